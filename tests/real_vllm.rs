//! The processor's promises on a real vLLM: the binary as it is shipped, a broker of the sandbox for each test, and one server shared by all
//! tests. Every document ends with exactly one correct outcome, whatever happens to the server.
//!
//! `REAL_VLLM_TOOLS` names the folder of `serve.sh`, as an absolute path: `serve.sh PORT [FLAGS]` serves in the foreground, on the loopback
//! interface, a model that never ends an answer by itself. Without it each test says so and passes; with `REAL_VLLM_REQUIRED=1` that is a
//! failure. `VLLM_TEST_URL` (and `VLLM_TEST_KEY`) name a server that runs already, for those tests that need not stop it or set it up. The
//! tests take turns. `KLP_TEST_BINARY` names another build of the processor than the one beside the tests. `REAL_VLLM_PORT` moves the server
//! to another port, and a second one to the port behind it; their logs are in cargo's folder for tests, below `target`.
//!
//! ```text
//! REAL_VLLM_TOOLS=… cargo test --test real_vllm -- --nocapture
//! VLLM_TEST_URL=http://localhost:8000 cargo test --test real_vllm -- --nocapture
//! ```
#![cfg(feature = "sandbox")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "these are tests; clippy knows only functions marked as tests"
)]

mod support;

#[path = "real_vllm/answers.rs"]
mod answers;
#[path = "real_vllm/credentials.rs"]
mod credentials;
#[path = "real_vllm/drain.rs"]
mod drain;
#[path = "real_vllm/endpoints.rs"]
mod endpoints;
#[path = "real_vllm/engine.rs"]
mod engine;
#[path = "real_vllm/harness.rs"]
mod harness;
#[path = "real_vllm/long_documents.rs"]
mod long_documents;
#[path = "real_vllm/overload.rs"]
mod overload;
#[path = "real_vllm/pause.rs"]
mod pause;
#[path = "real_vllm/structured.rs"]
mod structured;
