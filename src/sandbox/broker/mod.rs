//! A Kafka broker in this process: real TCP, the real protocol, logs in memory.
//!
//! One file per API under `api/`, each naming its versions and where it departs from Kafka; adding an API is one file and one
//! line in the table of `api/mod.rs`. Only what is in that table is advertised.
//!
//! # Invariants
//! 1. What Kafka refuses is refused, with Kafka's code: sizes, checksums, offsets, epochs, sequences, transactions,
//!    names, configurations.
//! 2. One mutex owns the state; nobody holds it across an await. The state outlives the listener.
//! 3. Requests of one connection are handled one at a time and answered in their order.
//! 4. Whatever a client sends, only its own connection ends.
//! 5. Every task ends with the listener, and the listener with the last handle.
//!
//! ```
//! use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig, ErrorCode};
//! use kafka_llm_processor::types::Record;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = Broker::start(BrokerConfig::default()).await?;
//! broker.create_topic("orders", 4, &[("cleanup.policy", "compact")])?;
//! broker.append("orders", 0, vec![Record::default()])?;
//! // The next two appends of a client to `orders` are refused, then all goes on.
//! let fault = broker.faults().on(ApiKey::Produce).topic("orders").times(2);
//! let fault = fault.answer(ErrorCode::NotEnoughReplicas);
//! // … a client connects to `broker.bootstrap()` …
//! assert_eq!(fault.hits(), 0);
//! broker.shutdown().await;
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```
//!
//! # What it is not
//! One broker, one replica, nothing on disk, no retention, no quotas, no access control beyond SASL; only the classic
//! protocol of consumer groups, and the classic one of transactions (not that of KIP-890).

mod api;
mod batch;
mod clock;
mod config;
mod connection;
mod election;
mod faults;
mod groups;
mod handle;
mod layout;
mod listener;
mod log;
mod sasl;
mod scram;
mod shared;
mod state;
mod topic_config;
mod traffic;
mod transactions;
mod validate;

pub use config::{BrokerConfig, SaslUsers, ToldRights};
pub use faults::{Fault, FaultBuilder, Faults, SeenRequest};
pub use groups::{GroupMember, GroupState, GroupView};
pub use handle::Broker;
pub use kafka_protocol::error::ResponseError as ErrorCode;
pub use kafka_protocol::messages::ApiKey;
pub use state::Refusal;
pub use traffic::{ApiTraffic, Traffic};
pub use transactions::OpenTransaction;
