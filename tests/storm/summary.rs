//! One line for each storm.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::books::Balance;
use crate::journal::Journal;
use crate::scenario::{Scenario, storms};
use crate::watch::Recoveries;

const FILE: &str = "summary.jsonl";
/// What is counted by the journal, under its names.
const COUNTED: [&str; 8] = [
    "kills",
    "stops",
    "drains",
    "replaced",
    "fenced",
    "starts",
    "broker_stops",
    "broker_kills",
];

pub(crate) struct Summary {
    pub(crate) failures: Vec<String>,
    line: Value,
}

impl Summary {
    pub(crate) fn new(
        scenario: &Scenario,
        balance: &Balance,
        journal: &Journal,
        recoveries: &Recoveries,
        calls: u64,
    ) -> Self {
        let mut failures = journal.failures();
        failures.extend(balance.failures.iter().cloned());
        let mut line = head(scenario, &failures);
        let answered = u64::try_from(balance.results).expect("a count");
        let mut add = |name: &str, value: Value| {
            line[name] = value;
        };
        add("documents", balance.documents.into());
        add("results", balance.results.into());
        add("dead_letters", balance.dead_letters.into());
        add("duplicates", balance.duplicates.into());
        add("repeated_calls", calls.saturating_sub(answered).into());
        for name in COUNTED {
            add(name, journal.counted(name).into());
        }
        add("recovery_first_s", spread(&recoveries.first));
        add("recovery_every_s", spread(&recoveries.every));
        add("wall_s", seconds(journal.elapsed()));
        Self { failures, line }
    }

    /// A storm that the harness did not get through.
    pub(crate) fn broken(scenario: &Scenario) -> Self {
        let failures = vec!["the storm was not gone through: see what was printed".to_owned()];
        Self {
            line: head(scenario, &failures),
            failures,
        }
    }

    /// Whether the same storm has a line that says so.
    pub(crate) fn has_passed(scenario: &Scenario) -> bool {
        let lines = fs::read_to_string(storms().join(FILE)).unwrap_or_default();
        lines.lines().any(|line| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["command"] == scenario.command() && line["passed"] == true
        })
    }

    /// Prints the line and appends it to `target/storm/summary.jsonl`.
    pub(crate) fn keep(&self) {
        eprintln!("{}", self.line);
        let folder = storms();
        fs::create_dir_all(&folder).expect("a folder for the summary");
        let file = folder.join(FILE);
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(file)
            .expect("the summary opens");
        writeln!(file, "{}", self.line).expect("the summary is kept");
    }
}

/// What every line has.
fn head(scenario: &Scenario, failures: &[String]) -> Value {
    json!({
        "command": scenario.command(),
        "seed": scenario.seed,
        "passed": failures.is_empty(),
        "guarantee": scenario.guarantee.as_str(),
        "assignment": scenario.assignment.as_str(),
        "order": scenario.order.as_str(),
        "brokers": scenario.brokers,
        "instances": scenario.instances,
        "seconds": scenario.lasts.as_secs(),
        "failures": failures,
    })
}

fn seconds(time: Duration) -> Value {
    ((time.as_secs_f64() * 1000.0).round() / 1000.0).into()
}

fn spread(times: &[Duration]) -> Value {
    let mut times = times.to_vec();
    times.sort();
    let median = times.get(times.len() / 2).copied();
    let longest = times.last().copied();
    json!({"median": median.map(seconds), "max": longest.map(seconds), "count": times.len()})
}
