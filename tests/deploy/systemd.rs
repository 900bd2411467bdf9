//! The systemd unit.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_llm_processor::config::Settings;
use kafka_llm_processor::telemetry::logging::LogFile;

use crate::{assert_ends_in_time, assert_is_a_command, path, read};

fn unit() -> BTreeMap<String, Vec<String>> {
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in read("deploy/systemd/kafka-llm-processor.service").lines() {
        if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            keys.entry(key.to_owned())
                .or_default()
                .push(value.to_owned());
        }
    }
    keys
}

#[test]
fn the_unit_runs_a_command_that_exists_and_ends_in_time() {
    let unit = unit();
    let start: Vec<_> = unit["ExecStart"][0].split(' ').collect();
    assert_is_a_command(&start[1..]);
    let environment = unit["Environment"].iter().map(|variable| {
        let (name, value) = variable.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    });
    let file = path("deploy/systemd/klp.toml");
    let settings = Settings::load(Some(&file), environment, &[]).unwrap();
    let grace: u64 = unit["TimeoutStopSec"][0].parse().unwrap();
    assert_ends_in_time(&settings, Duration::from_secs(grace), "systemd");
    // SIGHUP has the configuration read anew.
    assert!(unit["ExecReload"][0].contains("kill -HUP $MAINPID"));
}

/// The log file lies in the folder that the unit makes: all else is read-only.
#[test]
fn the_log_file_of_the_unit_can_be_written() {
    let unit = unit();
    assert_eq!(unit["LogsDirectory"], ["kafka-llm-processor"]);
    assert_eq!(unit["ProtectSystem"], ["strict"]);
    let settings = Settings::load(Some(&path("deploy/systemd/klp.toml")), [], &[]).unwrap();
    let LogFile::Path(file) = settings.log.file else {
        panic!("no log file is named");
    };
    assert!(
        file.starts_with("/var/log/kafka-llm-processor"),
        "{}",
        file.display()
    );
}

/// What a restart does not heal is not tried for ever.
#[test]
fn the_unit_stays_down_where_a_restart_heals_nothing() {
    let unit = unit();
    // 3: another instance has taken over; 64: usage or configuration.
    assert_eq!(unit["RestartPreventExitStatus"], ["3 64"]);
    assert_eq!(unit["Restart"], ["on-failure"]);
}
