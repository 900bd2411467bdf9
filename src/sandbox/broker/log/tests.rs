use super::*;

fn record(key: &'static str, value: &'static str, timestamp_ms: i64) -> Record {
    Record {
        key: Some(Bytes::from(key)),
        value: Some(Bytes::from(value)),
        headers: Vec::new(),
        timestamp_ms,
    }
}

/// Three batches of two records each: offsets 0 to 5, time stamps 0, 10, … 50, in epochs 0, 0 and 3.
fn log() -> PartitionLog {
    let mut log = PartitionLog::default();
    for (first, epoch) in [(0, 0), (20, 0), (40, 3)] {
        let records = [record("a", "x", first), record("b", "y", first + 10)];
        log.append(Batch::of_records(&records), epoch);
    }
    log
}

fn offsets(log: &PartitionLog) -> Vec<i64> {
    let records = log.records().into_iter();
    records.map(|(offset, _)| offset.value()).collect()
}

fn read_offsets(mut bytes: Bytes) -> Vec<i64> {
    let mut offsets = Vec::new();
    while let Ok(batch) = Batch::split_from(&mut bytes) {
        let records = batch.records().unwrap().into_iter();
        offsets.extend(records.map(|(offset, _)| offset.value()));
    }
    offsets
}

#[test]
fn a_read_begins_with_the_whole_batch_that_holds_the_offset() {
    let log = log();
    assert_eq!(log.end(), 6);
    assert_eq!(
        read_offsets(log.read(3, i64::MAX, usize::MAX, true)),
        [2, 3, 4, 5]
    );
    assert!(log.read(6, i64::MAX, usize::MAX, true).is_empty());
}

#[test]
fn a_read_is_cut_at_its_limit_but_for_the_first_batch() {
    let log = log();
    let one = log.read(4, i64::MAX, usize::MAX, true).len();
    assert_eq!(
        log.read(0, i64::MAX, 1, true).len(),
        one,
        "the first batch is whole"
    );
    assert_eq!(
        log.read(0, i64::MAX, 1, false).len(),
        0,
        "or not there at all"
    );
    assert_eq!(
        log.read(0, i64::MAX, one + 7, true).len(),
        one + 7,
        "the next is cut"
    );
    assert_eq!(log.read(0, i64::MAX, 2 * one, true).len(), 2 * one);
}

#[test]
fn a_gap_keeps_the_offsets_around_it() {
    let mut log = log();
    log.punch_gap(&(1..4));
    assert_eq!(offsets(&log), [0, 4, 5]);
    assert_eq!((log.start(), log.end()), (0, 6));
    assert_eq!(
        read_offsets(log.read(2, i64::MAX, usize::MAX, true)),
        [4, 5]
    );
    log.punch_gap(&(4..6));
    assert_eq!(log.end(), 6, "the end stays when the last records go");
    let next = log.append(Batch::of_records(&[record("c", "z", 60)]), 3);
    assert_eq!(next, 6, "offsets are never given twice");
}

#[test]
fn compaction_keeps_the_newest_of_each_key_and_the_active_batch() {
    let mut log = log();
    log.append(Batch::of_records(&[record("c", "z", 60)]), 3);
    log.compact();
    assert_eq!(offsets(&log), [4, 5, 6]);
    let mut twice = PartitionLog::default();
    twice.append(
        Batch::of_records(&[record("a", "1", 0), record("a", "2", 0)]),
        0,
    );
    twice.compact();
    assert_eq!(offsets(&twice), [0, 1], "the active batch is not compacted");
}

#[test]
fn deleting_moves_the_start_and_drops_what_lies_below() {
    let mut log = log();
    let before = log.bytes();
    log.delete_before(3);
    assert_eq!(log.start(), 3);
    assert_eq!(offsets(&log), [3, 4, 5]);
    assert!(log.bytes() < before);
    log.delete_before(1);
    assert_eq!(log.start(), 3, "the start never goes back");
    log.delete_before(99);
    assert_eq!((log.start(), log.end(), log.bytes()), (6, 6, 0));
}

#[test]
fn times_are_found_by_record() {
    let mut log = log();
    let found = log.find_by_time(25).unwrap();
    assert_eq!(
        (found.offset, found.timestamp, found.leader_epoch),
        (3, 30, 0)
    );
    assert_eq!(log.find_by_time(51), None);
    assert_eq!(log.find_max_timestamp().unwrap().offset, 5);
    log.delete_before(4);
    assert_eq!(
        log.find_by_time(0).unwrap().offset,
        4,
        "not below the start"
    );
}

#[test]
fn epochs_end_where_the_next_begins() {
    let log = log();
    assert_eq!(log.end_of_epoch(0), Some((0, 4)));
    assert_eq!(log.end_of_epoch(2), Some((0, 4)));
    assert_eq!(log.end_of_epoch(3), Some((3, 6)));
    assert_eq!((log.epoch_at(3), log.epoch_at(4)), (Some(0), Some(3)));
    assert_eq!(PartitionLog::default().epoch_at(0), None);
}

/// A batch of two records of producer `id` in epoch 0.
fn of_producer(id: i64, sequence: i32, transactional: bool) -> Batch {
    let mut batch = Batch::of_records(&[record("a", "x", 0), record("b", "y", 0)]);
    batch.header.producer_id = id;
    batch.header.producer_epoch = 0;
    batch.header.base_sequence = sequence;
    batch.header.attributes |= i16::from(transactional) << 4;
    batch
}

#[test]
fn the_last_stable_offset_is_that_of_the_oldest_open_transaction() {
    let mut log = PartitionLog::default();
    log.append(of_producer(7, 0, true), 0);
    log.append(of_producer(8, 0, true), 0);
    log.append(of_producer(9, 0, false), 0);
    assert_eq!((log.last_stable(), log.end()), (0, 6));
    log.append(Batch::marker(false, 7, 0, 0), 0);
    assert_eq!(log.last_stable(), 2);
    assert!(read_offsets(log.read(2, log.last_stable(), usize::MAX, true)).is_empty());
    log.append(Batch::marker(true, 8, 0, 0), 0);
    assert_eq!((log.last_stable(), log.end()), (8, 8));
    let committed: Vec<_> = log.records_committed().into_iter().collect();
    let committed: Vec<_> = committed.iter().map(|(offset, _)| offset.value()).collect();
    assert_eq!(committed, [2, 3, 4, 5]);
    let aborted: Vec<_> = log.aborted_from(0).collect();
    let expected = Aborted {
        producer_id: 7,
        first: 0,
        last: 6,
    };
    assert_eq!(aborted, [expected]);
    assert_eq!(log.aborted_from(7).count(), 0);
}

#[test]
fn deletion_forgets_aborted_transactions_and_keeps_producers() {
    let mut log = PartitionLog::default();
    log.append(of_producer(7, 0, true), 0);
    log.append(Batch::marker(false, 7, 0, 0), 0);
    log.append(of_producer(7, 2, true), 0);
    log.delete_before(4);
    assert_eq!(log.aborted_from(0).count(), 0);
    assert_eq!(log.last_stable(), 4, "not below the start");
    let again = log.check_producer(&of_producer(7, 2, true).header).unwrap();
    assert_eq!(again.unwrap().first_offset, 3);
}

#[test]
fn compaction_drops_what_was_aborted_and_leaves_what_is_open() {
    let mut log = PartitionLog::default();
    log.append(of_producer(8, 0, false), 0);
    log.append(of_producer(7, 0, true), 0);
    log.append(Batch::marker(false, 7, 0, 0), 0);
    log.append(of_producer(9, 0, true), 0);
    log.append(of_producer(8, 2, false), 0);
    log.compact();
    assert_eq!(offsets(&log), [0, 1, 5, 6, 7, 8]);
    log.append(Batch::marker(true, 9, 0, 0), 0);
    log.compact();
    assert_eq!(offsets(&log), [7, 8]);
}

#[test]
fn sequences_begin_again_at_zero_behind_the_largest() {
    let mut log = PartitionLog::default();
    log.append(of_producer(7, i32::MAX, false), 0);
    let next = log.check_producer(&of_producer(7, 1, false).header);
    assert_eq!(next, Ok(None));
    let wrong = log.check_producer(&of_producer(7, 2, false).header);
    assert_eq!(
        wrong.unwrap_err().code,
        kafka_protocol::error::ResponseError::OutOfOrderSequenceNumber
    );
}
