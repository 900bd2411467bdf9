//! The Kafka of a storm: one broker, or three with every record on all of them.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use tokio::time::{sleep_until, timeout};

use crate::journal::Journal;
use crate::plan::{At, Outage};
use crate::support::eventually;
use crate::support::kafka::{Broker, Paused, tool};
use crate::support::process::{self, Lines};

/// The listeners of one broker take this and the next five; three brokers take [`CLUSTER_PORT`] and the next five.
const PORT: u16 = 25_000;
const CLUSTER_PORT: u16 = 25_010;
const ENDS_WITHIN: Duration = Duration::from_secs(20);
const READY_WITHIN: Duration = Duration::from_secs(180);

pub(crate) enum Brokers {
    One(Broker),
    Three(Three),
}

impl Brokers {
    pub(crate) async fn start(tools: &Path, brokers: usize) -> Self {
        match brokers {
            1 => Self::One(Broker::start(tools, PORT).await),
            _ => Self::Three(Three::start(tools).await),
        }
    }

    /// `bootstrap.servers`.
    pub(crate) fn addresses(&self) -> String {
        match self {
            Self::One(broker) => broker.address(),
            Self::Three(three) => three.addresses.clone(),
        }
    }

    /// Meets one outage after the other; `results` is the topic whose leaders are killed.
    pub(crate) async fn weather(
        mut self,
        journal: &Journal,
        outages: &[At<Outage>],
        results: &str,
    ) -> Self {
        let mut paused: Option<Paused> = None;
        let mut down = None;
        for outage in outages {
            sleep_until(journal.began() + outage.at).await;
            match (outage.what, &mut self) {
                (Outage::Stop, Self::One(broker)) => {
                    paused = Some(broker.pause().await);
                    journal.count("broker_stops", "the broker is stopped");
                }
                (Outage::Continue, _) => {
                    paused = None;
                    journal.tell("the broker is continued");
                }
                (Outage::Kill { partition }, Self::Three(three)) => {
                    let broker = three.leader(results, partition).await;
                    three.kill(broker).await;
                    down = Some(broker);
                    let what = format!("broker {broker}, leader of {results}/{partition}: killed");
                    journal.count("broker_kills", &what);
                }
                (Outage::Start, Self::Three(three)) => {
                    let broker = down.take().expect("one was killed");
                    three.start_again(broker).await;
                    journal.tell(&format!("broker {broker} is back"));
                }
                (what, _) => panic!("{what:?} is not for this number of brokers"),
            }
        }
        drop(paused);
        self
    }
}

/// Three brokers, killed with all their processes when dropped.
pub(crate) struct Three {
    tools: PathBuf,
    data: PathBuf,
    script: Child,
    addresses: String,
}

impl Three {
    async fn start(tools: &Path) -> Self {
        let data =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-kafka-{CLUSTER_PORT}"));
        if data.exists() {
            fs::remove_dir_all(&data).expect("an earlier run's data is removed");
        }
        fs::create_dir_all(&data).expect("a folder for the data");
        let log = fs::File::create(data.join("cluster.log")).expect("a file for its log");
        let mut command = process::mortal(tools.join("cluster.sh"));
        command
            .arg(CLUSTER_PORT.to_string())
            .env("KAFKA_DATA", &data)
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0);
        let mut script = process::spawn(command);
        let lines = Lines::new();
        lines.gather(script.stdout.take().expect("its output is piped"));
        let ready = eventually("the cluster is ready", READY_WITHIN, async || {
            let ended = script.try_wait().expect("it can be asked for");
            assert!(
                ended.is_none(),
                "the cluster ended ({ended:?}); its log is in {}",
                data.display()
            );
            lines.find(&["ready"])
        })
        .await;
        let addresses = ready.split_whitespace().nth(1).expect("the addresses");
        Self {
            tools: tools.to_owned(),
            addresses: addresses.to_owned(),
            data,
            script,
        }
    }

    /// The number of the broker that leads a partition, as Kafka's own tool says.
    async fn leader(&self, topic: &str, partition: i32) -> usize {
        let servers = &self.addresses;
        #[rustfmt::skip]
        let arguments = ["kafka-topics", "--bootstrap-server", servers, "--describe", "--topic", topic];
        let text = tool(&self.tools, &arguments).await;
        let wanted = format!("Partition: {partition}");
        let line = text.lines().find(|line| {
            let mut columns = line.split('\t').map(str::trim);
            columns.any(|column| column == wanted)
        });
        let leader = line.and_then(|line| {
            let mut columns = line.split('\t').map(str::trim);
            columns.find_map(|column| column.strip_prefix("Leader: "))
        });
        let leader = leader.and_then(|leader| leader.parse().ok());
        leader.unwrap_or_else(|| panic!("no leader of {topic}/{partition} in {text}"))
    }

    /// `kill -9`, and its end: the script starts no broker while there is a process.
    async fn kill(&self, broker: usize) {
        let file = self.data.join(format!("broker-{broker}.pid"));
        let pid = fs::read_to_string(file).expect("the script tells the process");
        assert!(process::signal("-KILL", pid.trim()), "kill {pid}");
        eventually("the broker ends", ENDS_WITHIN, async || {
            (!process::signal("-0", pid.trim())).then_some(())
        })
        .await;
    }

    async fn start_again(&self, broker: usize) {
        let status = tokio::process::Command::new(self.tools.join("cluster.sh"))
            .arg("start")
            .arg(&self.data)
            .arg(broker.to_string())
            .kill_on_drop(true)
            .status();
        let status = timeout(READY_WITHIN, status).await.expect("in time");
        assert!(status.expect("it runs").success(), "broker {broker}");
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        let group = format!("-{}", self.script.id());
        if !process::signal("-KILL", &group) {
            eprintln!("the cluster's process group {group} could not be killed");
        }
        if let Err(error) = self.script.wait() {
            eprintln!("the cluster's script could not be waited for: {error}");
        }
    }
}
