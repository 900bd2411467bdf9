//! Rights, with Kafka's own authorizer: `check` names what is missing, the commands that it prints allow it, and both guarantees work with
//! exactly that.

use serde_json::Value;

use crate::harness::{SOON, model};
use crate::support::kafka::{Broker, tools};
use crate::support::load;
use crate::support::processor::Processor;

/// Beside the shared broker's ports.
const PORT: u16 = 24_200;
const DOCUMENTS: usize = 40;

/// Without SASL one is a super user, so that the tests can allow things; alice may do nothing at first.
const AUTHORIZER: [&str; 2] = [
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users=User:ANONYMOUS",
];

struct Alice {
    broker: Broker,
    arguments: Vec<String>,
}

impl Alice {
    fn command(&self, command: &[&str]) -> Processor {
        let command = command.iter().map(|word| (*word).to_owned());
        let arguments: Vec<_> = command.chain(self.arguments.iter().cloned()).collect();
        let password = [("KLP_KAFKA__SASL_PASSWORD", "alice-secret")];
        Processor::start(&arguments, &password)
    }

    /// The crosses: name, detail, and what to do.
    async fn crosses(&self) -> Vec<(String, String, String)> {
        let mut check = self.command(&["check", "--json"]);
        let line = check.line(&["\"items\""], SOON).await;
        let report: Value = serde_json::from_str(&line).expect("one JSON object");
        let items = report["items"].as_array().expect("items").iter();
        let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let crosses: Vec<_> = items
            .filter(|item| item["passed"] == false)
            .map(|item| {
                (
                    text(item, "name"),
                    text(item, "detail"),
                    text(item, "remedy"),
                )
            })
            .collect();
        let code = check.exit_code(SOON).await;
        assert_eq!(code, Some(i32::from(!crosses.is_empty())), "{crosses:?}");
        crosses
    }

    /// Runs the commands that the crosses print, with another way to the broker: alice may not allow herself anything.
    async fn allow(&self, crosses: &[(String, String, String)]) {
        for (name, _, remedy) in crosses {
            if name != "rights" {
                continue;
            }
            let command = remedy.replace(&self.broker.sasl_address(), &self.broker.address());
            let words: Vec<_> = command.split_whitespace().collect();
            assert_eq!(words[0], "kafka-acls.sh");
            self.broker.tool(&words).await;
        }
    }
}

fn details(crosses: &[(String, String, String)], named: &str) -> Vec<String> {
    let crosses = crosses.iter().filter(|(name, ..)| name == named);
    crosses.map(|(_, detail, _)| detail.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_check_prints_is_what_a_run_needs() {
    let Some(tools) = tools() else {
        return;
    };
    let mut broker = Broker::start_with(&tools, PORT, &AUTHORIZER).await;
    for guarantee in ["at_least_once", "exactly_once"] {
        broker = works_with_exactly_that(broker, guarantee).await;
    }
}

async fn works_with_exactly_that(broker: Broker, guarantee: &str) -> Broker {
    let name = format!("acl-{}", guarantee.replace('_', "-"));
    let vllm = model().await;
    let settings = [
        ("kafka.brokers", broker.sasl_address()),
        ("kafka.security_protocol", "SASL_PLAINTEXT".to_owned()),
        ("kafka.sasl_username", "alice".to_owned()),
        ("output.topic", format!("{name}-out")),
        ("dead_letters.topic", format!("{name}-dead")),
        ("llm.url", vllm.url()),
        ("admin.listen", "127.0.0.1:0".to_owned()),
        ("log.file", "off".to_owned()),
        ("processing.guarantee", guarantee.to_owned()),
    ];
    let settings = settings.iter();
    let settings = settings.map(|(key, value)| format!("--set={key}={value}"));
    let named = [
        format!("--group-id={name}"),
        format!("--input-topic={name}-in"),
    ];
    let alice = Alice {
        broker,
        arguments: settings.chain(named).collect(),
    };

    let nothing = alice.crosses().await;
    let mut missing = vec![
        format!("Read is not allowed on topic `{name}-in`"),
        format!("Write is not allowed on topic `{name}-out`"),
        format!("Write is not allowed on topic `{name}-dead`"),
        format!("Read, Write, DescribeConfigs is not allowed on topic `{name}-commits`"),
        format!("Read is not allowed on group `{name}`"),
    ];
    if guarantee == "exactly_once" {
        missing.push(format!(
            "Write is not allowed on transactional ids `{name}/…`"
        ));
    }
    assert_eq!(details(&nothing, "rights"), missing);

    // Now it is told that the topics are not there, and that alice may not create them.
    alice.allow(&nothing).await;
    let topics = ["in", "out", "dead", "commits"];
    let missing = topics.map(|topic| format!("Create is not allowed on topic `{name}-{topic}`"));
    let uncreated = alice.crosses().await;
    assert_eq!(details(&uncreated, "rights"), missing);

    alice.allow(&uncreated).await;
    let allowed = alice.crosses().await;
    assert_eq!(details(&allowed, "rights"), [""; 0]);

    let processor = alice.command(&["run"]);
    let input = format!("{name}-in");
    processor
        .line(&["topic created", &format!("{name}-commits")], SOON)
        .await;
    let partitions: Vec<_> = (0..1).collect();
    load::write_documents(
        alice.broker.address(),
        &input,
        &partitions,
        0,
        DOCUMENTS,
        10,
    )
    .await;
    let root = [
        "results".to_owned(),
        "--follow".to_owned(),
        format!("--count={DOCUMENTS}"),
        format!("--brokers={}", alice.broker.address()),
        format!("--output-topic={name}-out"),
    ];
    let mut results = Processor::start(&root, &[]);
    assert_eq!(results.exit_code(SOON).await, Some(0), "all have results");
    assert_eq!(alice.crosses().await, [], "ticks only while it runs");
    processor.drain(SOON).await;
    alice.broker
}
