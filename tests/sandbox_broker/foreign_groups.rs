//! Members of consumer groups that are not ours: librdkafka and the Java client share work in groups of the sandbox.

use std::process::Stdio;

use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig, GroupState, GroupView};
use tokio::process::{Child, Command};
use tokio::time::{Duration, timeout};

use crate::foreign::{TOOL_MAX, has_confluent_kafka, java_tools, run};

/// Members come, leave, die and come back, with the eager and the incremental protocol: `confluent_groups.py` asserts each.
#[tokio::test(flavor = "multi_thread")]
async fn confluent_kafka_shares_the_work_in_groups() {
    if !has_confluent_kafka().await {
        return;
    }
    let broker = short_sessions().await;
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/sandbox_broker/confluent_groups.py"
    );
    let args = [script, &broker.bootstrap(), "work"];
    assert_eq!(
        run("python3", &args, "").await.unwrap().output().trim(),
        "done"
    );
    broker.shutdown().await;
}

/// A broker that takes sessions of a second, with a topic `work` of four partitions.
async fn short_sessions() -> Broker {
    let config = BrokerConfig {
        group_session_timeout_min: Duration::from_secs(1),
        ..BrokerConfig::default()
    };
    let broker = Broker::start(config).await.unwrap();
    broker.create_topic("work", 4, &[]).unwrap();
    broker
}

/// A console consumer as a member of the group `j`, with a short session.
fn console_consumer(tool: &str, server: &str) -> Child {
    let args = [
        "kafka-console-consumer",
        "--bootstrap-server",
        server,
        "--topic",
        "work",
        "--group",
        "j",
        "--command-property",
        "session.timeout.ms=3000",
        "--command-property",
        "heartbeat.interval.ms=500",
    ];
    Command::new(tool)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn java_consumers_share_the_work_in_a_group() {
    let Some(tool) = java_tools() else { return };
    let broker = short_sessions().await;
    let server = broker.bootstrap();
    let shared_by = async |members: usize| {
        let is_shared = |view: &GroupView| {
            let mut partitions = view.members.iter().map(|member| member.partitions.len());
            view.state == GroupState::Stable
                && view.members.len() == members
                && partitions.all(|assigned| assigned == 4 / members)
        };
        let wait = timeout(TOOL_MAX, broker.wait_for_group("j", is_shared));
        wait.await.expect("the group is shared in time")
    };
    let mut dies = console_consumer(&tool, &server);
    let leaves = console_consumer(&tool, &server);
    let view = shared_by(2).await;
    let groups = ["kafka-consumer-groups", "--bootstrap-server", &server];
    let describe = async |what: &[&str]| {
        let args = [&groups[..], &["--describe", "--group", "j"], what].concat();
        run(&tool, &args, "").await.unwrap().output()
    };
    let members = describe(&["--members", "--verbose"]).await;
    for member in &view.members {
        let line = members
            .lines()
            .find(|line| line.contains(&member.member_id));
        let line = line.unwrap_or_else(|| panic!("{members}"));
        let [one, two] = [0, 1].map(|index| member.partitions[index].partition);
        let told = format!(" work:{one},{two} ");
        assert!(line.contains(&told), "{told}: {members}");
    }
    let state = describe(&["--state"]).await;
    assert!(state.contains("Stable"), "{state}");
    let lags = describe(&[]).await;
    let owned = lags
        .lines()
        .filter(|line| line.contains("console-consumer-"));
    assert_eq!(owned.count(), 4, "{lags}");
    dies.kill().await.unwrap();
    shared_by(1).await;
    let pid = leaves.id().unwrap().to_string();
    run("kill", &["-TERM", &pid], "").await.unwrap().output();
    let is_empty = |view: &GroupView| view.state == GroupState::Empty;
    let wait = timeout(TOOL_MAX, broker.wait_for_group("j", is_empty));
    wait.await.expect("a consumer that ends leaves");
    broker.shutdown().await;
}
