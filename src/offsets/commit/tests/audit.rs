//! The audit trail under the protocol: whatever fails, its chain is whole, and the commit record names its end.

use tokio::time::timeout;

use super::*;
use crate::records::audit::chain::{Committed, Place, Seen, Verdict, Verifier};
use crate::records::audit::{AuditRecord, Hash, fixture};

fn entry(output: &Output) -> AuditEntry {
    let mut entry = fixture::entry(output.source);
    entry.written(&output.to, &output.record);
    entry
}

fn audited(offsets: std::ops::Range<i64>) -> Flush {
    let flush = flush_of(offsets);
    Flush {
        audit: flush.outputs.iter().map(entry).collect(),
        ..flush
    }
}

fn writer() -> Arc<AuditWriter> {
    Arc::new(AuditWriter {
        topic: "audit".into(),
        partitions: 1,
        group: "g".to_owned(),
    })
}

/// An owner that goes on from what the log says.
fn owner(memory: &Memory, epoch: u64) -> Committer {
    let head = newest(memory).and_then(|commit| commit.audit);
    let mut committer = committer(memory).with_audit(head, Some(writer()));
    committer.owner.epoch = epoch;
    committer
}

fn values(memory: &Memory, topic: &str) -> Vec<Bytes> {
    let log = memory.log();
    let visible = log.visible(topic).into_iter();
    visible
        .map(|entry| entry.record.value.clone().unwrap())
        .collect()
}

fn newest(memory: &Memory) -> Option<CommitRecord> {
    let values = values(memory, "commits");
    values
        .last()
        .map(|value| CommitRecord::from_value(value).unwrap())
}

fn verdict(memory: &Memory) -> Verdict {
    let mut verifier = Verifier::new(false);
    for (offset, value) in (0..).zip(values(memory, "audit")) {
        let at = Place {
            partition: 0,
            offset: Offset::new(offset),
        };
        verifier.take(at, &Seen::parse(&value).unwrap());
    }
    verifier.conclude(Committed::Head {
        head: newest(memory).and_then(|commit| commit.audit),
        is_live: false,
    })
}

/// Each head in a commit record names a record that lies before it (invariant 5).
fn check_heads(memory: &Memory) {
    let log = memory.log();
    let mut seen = HashSet::new();
    for entry in &log.entries {
        let value = entry.record.value.as_ref().unwrap();
        match (&*entry.to.topic, entry.visibility) {
            (_, Visibility::Open | Visibility::Aborted) => {}
            ("audit", _) => drop(seen.insert(Hash::of(value))),
            ("commits", _) => {
                let commit = CommitRecord::from_value(value).unwrap();
                let is_there = |head: AuditHead| seen.contains(&head.head);
                assert!(commit.audit.is_none_or(is_there), "{commit:?}");
            }
            _ => {}
        }
    }
}

fn flushes(memory: &Memory) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let mut committer = owner(memory, 1);
        for offsets in [0..4, 4..7, 7..12] {
            committer.flush(audited(offsets)).await.unwrap();
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_fails_the_chain_is_whole(
        faults in prop::collection::vec(fault(), 0..50),
        transactional in any::<bool>(),
    ) {
        let memory = Memory::new(transactional, &faults);
        flushes(&memory);
        if !transactional {
            check_heads(&memory);
        }
        let verdict = verdict(&memory);
        prop_assert_eq!((verdict.breaks, verdict.length, verdict.uncommitted), (0, 12, 0), "{:?}", verdict);
        prop_assert_eq!((verdict.forks, verdict.late), (0, 0));
        let may_repeat = !transactional && faults.contains(&Fault::DoneUnknown);
        prop_assert!(may_repeat || verdict.repeats == 0, "{:?}", verdict);
    }
}

/// One that is cut off between the audit trail and the commit record leaves records behind at least once, and nothing exactly once.
#[tokio::test(start_paused = true)]
async fn a_crash_before_the_commit_leaves_a_fork_and_no_break() {
    for transactional in [false, true] {
        let memory = Memory::new(transactional, &[]);
        let mut first = owner(&memory, 1);
        first.flush(audited(0..3)).await.unwrap();
        // Two results, their records; then no answer comes any more.
        let done = if transactional { 4 } else { 3 };
        let mut faults = vec![Fault::None; done];
        faults.extend(vec![Fault::NotDoneUnknown; 1_000]);
        memory.log().faults = faults;
        let flush = first.flush(audited(3..5));
        assert!(timeout(Duration::from_secs(60), flush).await.is_err());
        memory.log().faults = Vec::new();
        // Whoever takes over fences: what was open is aborted.
        memory.log().end(Visibility::Aborted);

        let mut second = owner(&memory, 2);
        second.flush(audited(3..6)).await.unwrap();
        let verdict = verdict(&memory);
        assert_eq!((verdict.breaks, verdict.length), (0, 6), "{verdict:?}");
        assert_eq!(verdict.forks, u64::from(!transactional));
        let left_behind = verdict.told_forks.iter().map(|fork| fork.left_behind);
        assert_eq!(left_behind.sum::<u64>(), if transactional { 0 } else { 2 });
        check_heads(&memory);
    }
}

/// What the audit trail says is known once the results are written; in a transaction its records go out with the commit record.
#[tokio::test(start_paused = true)]
async fn the_audit_trail_is_written_behind_the_results() {
    let calls = |memory: &Memory| memory.log().calls.clone();
    let memory = Memory::new(true, &[]);
    owner(&memory, 1).flush(audited(0..2)).await.unwrap();
    assert_eq!(
        calls(&memory),
        [vec!["results", "results"], vec!["audit", "commits"]]
    );
    let memory = Memory::new(false, &[]);
    owner(&memory, 1).flush(audited(0..2)).await.unwrap();
    assert_eq!(
        calls(&memory),
        [vec!["results", "results"], vec!["audit"], vec!["commits"]]
    );
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_written_to_it_the_head_is_kept() {
    for transactional in [false, true] {
        let memory = Memory::new(transactional, &[]);
        owner(&memory, 1).flush(audited(0..3)).await.unwrap();
        let head = newest(&memory).unwrap().audit;
        assert_eq!(head.unwrap().length, 3);
        let mut off = committer(&memory).with_audit(head, None);
        off.owner.epoch = 2;
        off.flush(flush_of(3..6)).await.unwrap();
        assert_eq!(newest(&memory).unwrap().audit, head);
        let mut on = owner(&memory, 3);
        on.flush(audited(6..8)).await.unwrap();
        let verdict = verdict(&memory);
        assert_eq!((verdict.breaks, verdict.length, verdict.forks), (0, 5, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_result_that_was_replaced_the_substitute_is_recorded() {
    let memory = Memory::new(false, &[]);
    let mut committer = owner(&memory, 1);
    committer.sink = Box::new(Narrow {
        memory: memory.clone(),
        records_max: 3,
        bytes_max: 2_000,
    });
    committer.shrink = Box::new(|mut output| {
        assert_eq!(&*output.to.topic, "results");
        output.to = TopicPartition::new("dead-letters", 0);
        output.record.value = Some(Bytes::from_static(b"too large"));
        Some(output)
    });
    let mut flush = audited(0..20);
    flush.outputs[6].record.value = Some(Bytes::from(vec![b'x'; 2_001]));
    committer.flush(flush).await.unwrap();
    let records: Vec<_> = values(&memory, "audit")
        .iter()
        .map(|value| AuditRecord::parse(value).unwrap())
        .collect();
    assert_eq!(records.len(), 20);
    for (offset, record) in (0..).zip(&records) {
        let (topic, value) = if offset == 6 {
            ("dead-letters", "too large".to_owned())
        } else {
            ("results", offset.to_string())
        };
        assert_eq!(record.document.source.offset, Offset::new(offset));
        assert_eq!(record.outcome.topic, topic);
        assert_eq!(record.outcome.hash, Some(Hash::of(value.as_bytes())));
    }
    assert_eq!(verdict(&memory).breaks, 0);
}

/// A topic that takes none of it holds the partition: nothing else may stand for a record of the audit trail.
#[tokio::test(start_paused = true)]
async fn a_record_of_the_audit_trail_is_never_replaced() {
    let memory = Memory::new(false, &[]);
    let mut committer = owner(&memory, 1);
    committer.sink = Box::new(Narrow {
        memory: memory.clone(),
        records_max: 3,
        bytes_max: 100,
    });
    committer.shrink = Box::new(|output| panic!("{output:?} is replaced"));
    let flush = committer.flush(audited(0..2));
    assert!(timeout(Duration::from_secs(60), flush).await.is_err());
    assert_eq!(memory.log().visible("audit").len(), 0);
    assert_eq!(memory.log().visible("commits").len(), 0);
}
