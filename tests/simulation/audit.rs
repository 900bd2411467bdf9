//! The audit trail: what is in the log in the end is whole, up to where the commits say that it ends.

use std::collections::BTreeMap;

use kafka_llm_processor::offsets::{AuditWriter, CommitRecord, newest};
use kafka_llm_processor::pipeline::Auditing;
use kafka_llm_processor::records::audit::AuditParameters;
use kafka_llm_processor::records::audit::chain::{Committed, Place, Seen, Verdict, Verifier};
use kafka_llm_processor::types::TopicPartition;

use crate::log::Log;
use crate::oracle::COMMITS;
use crate::scenario::{Flavour, Scenario};

pub const AUDIT: &str = "audit";

pub fn keeper(scenario: &Scenario) -> Auditing {
    let writer = AuditWriter {
        topic: AUDIT.into(),
        partitions: scenario.output_partitions,
        group: "simulation".to_owned(),
    };
    Auditing::new(writer, "simulated", AuditParameters::default())
}

/// What is wrong with the chains, if anything is. At least once a commit that is written late may take the place of the newest, and the next owner
/// goes back behind committed records: that is a break, and told as one.
pub fn broken(logs: &BTreeMap<TopicPartition, Log>, flavour: Flavour) -> Option<String> {
    if flavour != Flavour::ExactlyOnce {
        return None;
    }
    let verdicts = verdicts(logs);
    let wrong = verdicts.into_iter().find(|(_, verdict)| {
        let others = verdict.forks + verdict.repeats + verdict.late;
        verdict.breaks + others > 0
    });
    wrong.map(|(chain, verdict)| format!("the audit trail of {chain} is broken: {verdict:?}"))
}

/// By key of the commit records.
fn verdicts(logs: &BTreeMap<TopicPartition, Log>) -> BTreeMap<String, Verdict> {
    let mut chains: BTreeMap<String, Verifier> = BTreeMap::new();
    let mut commits = BTreeMap::new();
    for (partition, log) in logs {
        for (offset, record) in log.committed() {
            // Tombstones of the input.
            let Some(value) = record.value.as_ref() else {
                continue;
            };
            match &*partition.topic {
                AUDIT => {
                    let seen = Seen::parse(value).unwrap();
                    let key = format!("{}/{}", seen.chain.topic, seen.chain.partition);
                    let at = Place {
                        partition: partition.partition,
                        offset,
                    };
                    chains.entry(key).or_default().take(at, &seen);
                }
                COMMITS => {
                    let key = String::from_utf8(record.key.as_ref().unwrap().to_vec()).unwrap();
                    let commit = CommitRecord::from_value(value).unwrap();
                    let current = commits.remove(&key);
                    commits.insert(key, newest(current, (offset, commit)));
                }
                _ => {}
            }
        }
    }
    let verdicts = chains.into_iter().map(|(key, chain)| {
        let commit = commits.get(&key);
        let committed = commit.map_or(Committed::Nothing, |(_, commit)| Committed::Head {
            head: commit.audit,
            is_live: false,
        });
        (key, chain.conclude(committed))
    });
    verdicts.collect()
}
