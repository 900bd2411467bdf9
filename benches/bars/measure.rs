//! Rows that go through HTTP: `measure.py` writes the documents, starts a simulated vLLM and the processor, and looks at what comes out.
//!
//! It knows a result by its key, and a result keeps the key of its document: so each document has a key of its own here, in every order.

use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;

use super::Bench;
use super::table::{Bar, Row, Table};

/// Above it a wall says little: others used that share of the machine.
const FOREIGN_SHARE_MAX: f64 = 0.1;
/// Seconds that each run waits for a quiet machine, at most.
const QUIET_SECONDS: &str = "30";

/// What a row takes from a run.
#[derive(Debug, Clone, Copy)]
enum Figure {
    Wall,
    Cpu,
    Memory,
    Start,
    Recovery,
}

/// A workload, and the bars that it is held to.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    what: &'static str,
    stub: &'static str,
    partitions: u32,
    at_once: u32,
    orders: &'static [&'static str],
    /// With each guarantee and assignment that is listed; the first of each is the default.
    guarantees: &'static [&'static str],
    assignments: &'static [&'static str],
    more: &'static [&'static str],
    bars: &'static [(Figure, Bar)],
}

const ORDERS: &[&str] = &["completion", "key", "input"];
const AT_LEAST_ONCE: &[&str] = &["at_least_once"];

pub(super) const ROWS: &[Workload] = &[
    Workload {
        name: "w1",
        what: "W1: 0–5 ms, 100 in flight, 1 partition",
        stub: "-latency 0-5",
        partitions: 1,
        at_once: 100,
        orders: ORDERS,
        guarantees: AT_LEAST_ONCE,
        assignments: &["all"],
        more: &[],
        bars: &[(Figure::Wall, Bar::AtMost(1.3))],
    },
    Workload {
        name: "w2",
        what: "W2: 50 ms, 256 in flight, 1 partition",
        stub: "-latency 50",
        partitions: 1,
        at_once: 256,
        orders: ORDERS,
        guarantees: AT_LEAST_ONCE,
        assignments: &["all"],
        more: &[],
        bars: &[
            (Figure::Wall, Bar::AtMost(2.5)),
            (Figure::Memory, Bar::AtMost(40.0)),
        ],
    },
    Workload {
        name: "w2",
        what: "W2: 50 ms, 256 in flight, 16 partitions",
        stub: "-latency 50",
        partitions: 16,
        at_once: 256,
        orders: ORDERS,
        guarantees: AT_LEAST_ONCE,
        assignments: &["all"],
        more: &[],
        bars: &[
            (Figure::Wall, Bar::AtMost(2.5)),
            (Figure::Memory, Bar::AtMost(40.0)),
            (Figure::Start, Bar::AtMost(0.3)),
        ],
    },
    Workload {
        name: "w2_64",
        what: "W2: 50 ms, 64 in flight, 1 partition",
        stub: "-latency 50",
        partitions: 1,
        at_once: 64,
        orders: ORDERS,
        guarantees: AT_LEAST_ONCE,
        assignments: &["all"],
        more: &[],
        // 1.05 times 10,000 × 50 ms ÷ 64.
        bars: &[(Figure::Wall, Bar::AtMost(8.24))],
    },
    Workload {
        name: "w3",
        what: "W3: no latency, 64 in flight, 1 partition",
        stub: "-latency 0",
        partitions: 1,
        at_once: 64,
        orders: &["completion"],
        guarantees: AT_LEAST_ONCE,
        assignments: &["all"],
        more: &[],
        bars: &[(Figure::Cpu, Bar::AtMost(1.2))],
    },
    Workload {
        name: "restart",
        what: "kill -9 at half, W2 on 4 partitions",
        stub: "-latency 50",
        partitions: 4,
        at_once: 256,
        orders: &["input"],
        guarantees: &["at_least_once", "exactly_once"],
        assignments: &["all", "static"],
        more: &["--kill-after", "0.5", "--settle", "2"],
        bars: &[(Figure::Recovery, Bar::AtMost(1.5))],
    },
];

/// The alternatives that the folder can start, as its README names them.
const PEERS: &[(&str, &[&str], &[&str])] = &[
    (
        "aiokafka + aiohttp",
        &["--env", "CONCURRENCY=256"],
        &["PYTHON", "python/good_async.py"],
    ),
    (
        "Redpanda Connect, unordered",
        &["--env", "THREADS=256"],
        &["bin/connect-min", "run", "connect/unordered.yaml"],
    ),
    (
        "Redpanda Connect, partition order",
        &["--order", "partition", "--env", "BATCH_BYTES=282KB"],
        &["bin/connect-min", "run", "connect/ordered.yaml"],
    ),
    (
        "Parallel Consumer (Vert.x), unordered",
        &["--env", "PC_CONCURRENCY=256", "--env", "PC_ENGINE=vertx"],
        &[
            "java",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-cp",
            "pc/target/pc-peer-1.jar:pc/target/lib/*",
            "bench.Main",
        ],
    ),
];

pub(super) struct Measure {
    folder: PathBuf,
}

impl Measure {
    /// `None` after saying what is missing.
    pub(super) fn find() -> Option<Self> {
        let folder = std::env::var_os("BENCH_PEERS")
            .map(PathBuf::from)
            .unwrap_or_default();
        let is_there = folder.join("measure.py").exists()
            && folder.join("venv/bin/python").exists()
            && folder.join("bin/llm-stub").exists();
        if !is_there {
            eprintln!(
                "rows through HTTP are skipped: BENCH_PEERS names no folder with measure.py, venv and bin/llm-stub"
            );
        }
        is_there.then_some(Self { folder })
    }

    pub(super) fn stub(&self) -> PathBuf {
        self.folder.join("bin/llm-stub")
    }

    /// CPU seconds of one run without latency.
    pub(super) async fn cpu_without_latency(&self, bench: &Bench, driver: &str) -> f64 {
        let row = ROWS
            .iter()
            .find(|row| row.name == "w3")
            .expect("it is there");
        let how = [driver, "at_least_once", "all", "completion"];
        let runs = self.ours(bench, 1, row, how).await;
        Figure::Cpu.of(&runs[0]).expect("it is measured")
    }

    pub(super) async fn run(&self, bench: &Bench, row: &Workload, table: &mut Table) {
        for guarantee in row.guarantees {
            // Exactly once needs the wire driver, whatever is asked for.
            let drivers = if *guarantee == "exactly_once" {
                vec!["wire".to_owned()]
            } else {
                bench.drivers.clone()
            };
            for driver in drivers {
                for assignment in row.assignments {
                    for order in row.orders {
                        let runs = self
                            .ours(
                                bench,
                                bench.rounds,
                                row,
                                [&driver, guarantee, assignment, order],
                            )
                            .await;
                        let mut what = format!("{}, `{order}`", row.what);
                        if row.assignments.len() > 1 {
                            what = format!("{what}, `{assignment}`");
                        }
                        add(table, row.bars, &what, &driver, guarantee, &runs);
                    }
                }
            }
        }
    }

    /// Runs of the processor with a driver, a guarantee, an assignment and an order.
    async fn ours(
        &self,
        bench: &Bench,
        rounds: usize,
        row: &Workload,
        how: [&str; 4],
    ) -> Vec<Value> {
        let [driver, guarantee, assignment, order] = how;
        let checked = match order {
            "input" => "partition",
            "key" => "key",
            _ => "none",
        };
        let partitions = row.partitions.to_string();
        let mut options = vec!["--partitions", &partitions, "--order", checked];
        options.extend(row.more);
        let built = std::env::var("KLP_TEST_BINARY")
            .unwrap_or_else(|_| env!("CARGO_BIN_EXE_kafka-llm-processor").to_owned());
        let mut command = vec![
            built,
            "run".to_owned(),
            format!("--concurrency={}", row.at_once),
            format!("--order={order}"),
            format!("--set=kafka.driver={driver}"),
            format!("--set=processing.guarantee={guarantee}"),
            format!("--set=input.assignment={assignment}"),
            "--set=admin.listen=127.0.0.1:0".to_owned(),
            "--set=log.file=off".to_owned(),
        ];
        if assignment == "static" {
            command.push(format!(
                "--set=input.static_partitions=0-{}",
                row.partitions - 1
            ));
        }
        self.measure(bench, rounds, row.stub, &options, &command)
            .await
    }

    /// The alternatives beside ours, in one run, in turns.
    pub(super) async fn compare(&self, bench: &Bench, table: &mut Table) {
        let row = ROWS
            .iter()
            .find(|row| row.name == "w2")
            .expect("it is there");
        let mut runs: Vec<Vec<Value>> = vec![Vec::new(); PEERS.len() + 2];
        for _ in 0..bench.rounds {
            for (index, (_, options, command)) in PEERS.iter().enumerate() {
                let python = self.folder.join("venv/bin/python");
                let command: Vec<_> = command
                    .iter()
                    .map(|word| {
                        if *word == "PYTHON" {
                            python.display().to_string()
                        } else {
                            (*word).to_owned()
                        }
                    })
                    .collect();
                let mut all = vec!["--partitions", "1"];
                all.extend(*options);
                runs[index].extend(self.measure(bench, 1, row.stub, &all, &command).await);
            }
            for (index, order) in ["completion", "input"].into_iter().enumerate() {
                let how = ["rskafka", "at_least_once", "all", order];
                runs[PEERS.len() + index].extend(self.ours(bench, 1, row, how).await);
            }
        }
        let names = PEERS.iter().map(|(name, ..)| (*name).to_owned());
        let ours = ["completion", "input"].map(|order| format!("kafka-llm-processor, `{order}`"));
        let bars = [Figure::Wall, Figure::Cpu, Figure::Memory];
        for (name, runs) in names.chain(ours).zip(&runs) {
            for figure in bars {
                table.add(figure.row(
                    &format!("{}: {name}", row.what),
                    "",
                    "at least once",
                    runs,
                    None,
                ));
            }
        }
    }

    async fn measure(
        &self,
        bench: &Bench,
        rounds: usize,
        stub: &str,
        options: &[&str],
        command: &[String],
    ) -> Vec<Value> {
        let output = Command::new(self.folder.join("venv/bin/python"))
            .current_dir(&self.folder)
            // The processor would take it for one of its settings.
            .env_remove("KLP_TEST_BINARY")
            .arg("measure.py")
            .args([
                "--brokers",
                &bench.broker.address(),
                "--broker-pid",
                bench.broker.pid(),
            ])
            .args([
                "--stub",
                "bin/llm-stub",
                "--stub-args",
                stub,
                "--wait-quiet",
                QUIET_SECONDS,
            ])
            .args(["--runs", &rounds.to_string(), "--timeout", "180"])
            .args(options)
            .arg("--")
            .args(command)
            .output()
            .await
            .expect("measure.py runs");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!(
                "measure.py: {error}\n{}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        let runs = report["runs"].as_array().expect("runs").clone();
        for run in &runs {
            assert_eq!(run["missing"], 0, "{run:#}");
            assert_eq!(run["order_violations"].as_u64().unwrap_or(0), 0, "{run:#}");
        }
        runs
    }
}

fn add(
    table: &mut Table,
    bars: &[(Figure, Bar)],
    what: &str,
    driver: &str,
    guarantee: &str,
    runs: &[Value],
) {
    for (figure, bar) in bars {
        table.add(figure.row(what, driver, guarantee, runs, Some(*bar)));
    }
}

impl Figure {
    fn row(
        self,
        what: &str,
        driver: &str,
        guarantee: &str,
        runs: &[Value],
        bar: Option<Bar>,
    ) -> Row {
        // Processor time and memory hardly depend on the neighbours; walls do.
        let is_wall = matches!(self, Self::Wall | Self::Start | Self::Recovery);
        let counts = |run: &&Value| {
            !is_wall || run["foreign_cpu_share"].as_f64().unwrap_or(0.0) < FOREIGN_SHARE_MAX
        };
        let runs_that_count: Vec<_> = runs
            .iter()
            .filter(counts)
            .filter_map(|run| self.of(run))
            .collect();
        Row {
            what: what.to_owned(),
            driver: driver.to_owned(),
            guarantee: guarantee.replace('_', " "),
            unit: self.unit(),
            disturbed: runs.len() - runs.iter().filter(counts).count(),
            runs: runs_that_count,
            bar,
        }
    }

    fn of(self, run: &Value) -> Option<f64> {
        match self {
            Self::Wall => run["wall_from_first_call_s"].as_f64(),
            Self::Cpu => run["cpu_s"].as_f64(),
            Self::Memory => run["peak_rss_mib"].as_f64(),
            Self::Start => run["startup_s"].as_f64(),
            Self::Recovery => run["kills"][0]["recovery_s"].as_f64(),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Wall => "s, first call to last result",
            Self::Cpu => "CPU s",
            Self::Memory => "MiB resident, peak",
            Self::Start => "s, process to first call",
            Self::Recovery => "s, kill to first new result",
        }
    }
}
