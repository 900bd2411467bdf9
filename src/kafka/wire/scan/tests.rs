//! Batches of a log as several writers leave it; nothing here asks a broker.

use super::super::reader::tests::{batch, data, marker};
use super::*;

const PLAIN: i64 = -1;
const NOTHING: [i64; 0] = [];

fn partition() -> TopicPartition {
    TopicPartition::new("commits", 0)
}

/// One scan, fed by hand.
struct Fed {
    undecided: Undecided,
    position: Offset,
}

impl Fed {
    fn from(position: i64, bytes_max: usize) -> Self {
        Self {
            undecided: Undecided::new(bytes_max),
            position: Offset::new(position),
        }
    }

    fn read(&mut self, batches: &[Vec<u8>]) -> Result<Vec<i64>, KafkaError> {
        let fetched = read_data(
            &partition(),
            self.position,
            data(batches, &[]),
            &mut self.undecided,
        )?;
        self.position = fetched.next_offset;
        Ok(offsets(&fetched))
    }

    fn resume_at(&self) -> i64 {
        let first = self.undecided.first_offset();
        first.unwrap_or(self.position).value()
    }
}

fn offsets(fetched: &Fetched) -> Vec<i64> {
    let offsets = fetched.records.iter();
    offsets.map(|(offset, _)| offset.value()).collect()
}

fn scan() -> Fed {
    Fed::from(0, WITHHELD_BYTES_MAX)
}

#[test]
fn an_open_transaction_hides_nothing_of_others() {
    let mut scan = scan();
    let log = [
        batch(0, 2, 1),
        batch(2, 1, PLAIN),
        batch(3, 1, 2),
        marker(4, 2, true),
    ];
    assert_eq!(scan.read(&log).unwrap(), [2, 3]);
    assert_eq!(scan.position.value(), 5, "it has read to the end");
    assert_eq!(scan.resume_at(), 0, "another scan needs the open one");
}

#[test]
fn a_commit_hands_out_what_was_withheld_and_an_abort_drops_it() {
    let mut scan = scan();
    let log = [batch(0, 2, 1), batch(2, 1, 2)];
    assert_eq!(scan.read(&log).unwrap(), NOTHING);
    assert_eq!(scan.resume_at(), 0);
    let log = [batch(3, 1, 1), marker(4, 1, true)];
    assert_eq!(scan.read(&log).unwrap(), [0, 1, 3], "in their order");
    assert_eq!(scan.resume_at(), 2, "the next oldest");
    assert_eq!(scan.read(&[marker(5, 2, false)]).unwrap(), NOTHING);
    assert_eq!(scan.resume_at(), 6);
    assert_eq!(scan.undecided.bytes, 0, "nothing is withheld any more");
}

#[test]
fn the_same_producer_begins_anew_after_its_marker() {
    let log = [
        batch(0, 1, 1),
        marker(1, 1, false),
        batch(2, 1, 1),
        marker(3, 1, true),
        batch(4, 1, 1),
    ];
    let mut scan = scan();
    assert_eq!(scan.read(&log).unwrap(), [2]);
    assert_eq!(scan.resume_at(), 4);
}

#[test]
fn a_marker_alone_decides_nothing() {
    let mut scan = scan();
    let log = [marker(0, 7, true), marker(1, 8, false)];
    assert_eq!(scan.read(&log).unwrap(), NOTHING);
    assert_eq!(scan.resume_at(), 2);
}

#[test]
fn a_scan_that_begins_inside_a_batch_withholds_the_rest_of_it() {
    let mut scan = Fed::from(2, WITHHELD_BYTES_MAX);
    let log = [batch(0, 4, 1), marker(4, 1, true)];
    assert_eq!(scan.read(&log).unwrap(), [2, 3]);
    // Batches that nobody asked for decide nothing.
    let mut scan = Fed::from(5, WITHHELD_BYTES_MAX);
    let log = [batch(0, 4, 1), batch(5, 1, 1), marker(6, 1, true)];
    assert_eq!(scan.read(&log).unwrap(), [5]);
}

#[test]
fn a_batch_that_cannot_be_read_leaves_the_scan_before_it() {
    let mut bad = batch(1, 1, 1);
    bad[70] ^= 1;
    let mut scan = scan();
    let log = [batch(0, 1, 1), bad];
    assert_eq!(scan.read(&log).unwrap(), NOTHING);
    assert_eq!(scan.position.value(), 1);
    let error = scan.read(&log[1..]).unwrap_err();
    assert!(matches!(error, KafkaError::Unreadable { .. }), "{error:?}");
    let log = [batch(1, 1, 1), marker(2, 1, true)];
    assert_eq!(scan.read(&log).unwrap(), [0, 1], "nothing twice");
}

#[test]
fn more_than_the_bound_is_not_withheld_and_the_error_names_the_oldest() {
    let mut scan = Fed::from(0, 400);
    let log: Vec<_> = (0..20).map(|offset| batch(offset, 1, offset)).collect();
    assert_eq!(scan.read(&log).unwrap(), NOTHING);
    let read = scan.position.value();
    assert!((1..20).contains(&read), "{read} batches are withheld");
    let rest = log.get(usize::try_from(read).unwrap()..).unwrap();
    let error = scan.read(rest).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("since offset 0"), "{text}");
    assert!(text.contains("kafka-transactions.sh"), "{text}");
    let released = [marker(read, 0, true)];
    assert_eq!(scan.read(&released).unwrap(), [0], "it goes on afterwards");
}
