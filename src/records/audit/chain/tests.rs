use proptest::prelude::*;

use super::*;
use crate::records::audit::{AuditRecord, Writer, fixture};

/// Writes chains as owners do, and keeps the values as they would lie in the topic.
#[derive(Clone)]
struct Pen {
    guarantee: &'static str,
    owner_epoch: u64,
    has_written: bool,
    committed: Option<AuditHead>,
    log: Vec<Vec<u8>>,
}

impl Pen {
    fn new(guarantee: &'static str) -> Self {
        Self {
            guarantee,
            owner_epoch: 1,
            has_written: false,
            committed: None,
            log: Vec::new(),
        }
    }

    fn at_least_once() -> Self {
        Self::new("at_least_once")
    }

    /// The values of a flush, and the head behind it.
    fn flush(&self, documents: std::ops::Range<i64>) -> (Vec<Vec<u8>>, Option<AuditHead>) {
        let mut head = self.committed;
        let committed = head.map_or(0, |head| head.length);
        let mut take_over = !self.has_written;
        let mut values = Vec::new();
        for document in documents {
            let length = head.map_or(0, |head| head.length);
            let entry = fixture::entry(Offset::new(document));
            let record = AuditRecord {
                v: AUDIT_VERSION,
                chain: Link {
                    group: "g".to_owned(),
                    topic: "docs".to_owned(),
                    partition: 0,
                    sequence: length,
                    previous: head.map(|head| head.head),
                    committed,
                    take_over: std::mem::take(&mut take_over),
                },
                by: Writer {
                    instance: format!("i{}", self.owner_epoch),
                    version: "1".to_owned(),
                    owner_epoch: self.owner_epoch,
                    guarantee: self.guarantee.to_owned(),
                    generation: entry.generation,
                },
                document: entry.document,
                asked: entry.asked,
                outcome: entry.outcome,
                times: entry.times,
            };
            let (record, hash) = record.into_record();
            head = Some(AuditHead {
                length: length + 1,
                head: hash,
            });
            values.push(record.value.unwrap().to_vec());
        }
        (values, head)
    }

    /// A flush that goes through.
    fn write(&mut self, documents: std::ops::Range<i64>) {
        let (values, head) = self.flush(documents);
        self.log.extend(values);
        self.committed = head;
        self.has_written = true;
    }

    /// A flush that ends between its records and its commit.
    fn crash(&mut self, documents: std::ops::Range<i64>) {
        let (values, _) = self.flush(documents);
        self.log.extend(values);
        self.take_over();
    }

    fn take_over(&mut self) {
        self.owner_epoch += 1;
        self.has_written = false;
    }

    fn head(&self) -> Committed {
        Committed::Head {
            head: self.committed,
            is_live: false,
        }
    }

    fn verdict(&self) -> Verdict {
        verify(&self.log, self.head())
    }
}

fn at(offset: usize) -> Place {
    Place {
        partition: 0,
        offset: Offset::new(i64::try_from(offset).unwrap()),
    }
}

fn follow(log: &[Vec<u8>], is_cut: bool) -> Verifier {
    let mut verifier = Verifier::new(is_cut);
    for (offset, value) in log.iter().enumerate() {
        match Seen::parse(value) {
            Ok(seen) => verifier.take(at(offset), &seen),
            Err(why) => verifier.unusable(at(offset), &why),
        }
    }
    verifier
}

fn verify(log: &[Vec<u8>], committed: Committed) -> Verdict {
    follow(log, false).conclude(committed)
}

#[track_caller]
fn broken(verdict: &Verdict, offset: usize, what: &str) {
    let found = verdict.first_break.as_ref().expect("a break");
    assert_eq!(found.at, Some(at(offset)), "{found:?}");
    assert!(found.what.contains(what), "{found:?}");
}

/// Nine records in three flushes.
fn nine(guarantee: &'static str) -> Pen {
    let mut pen = Pen::new(guarantee);
    (0..3).for_each(|flush| pen.write(3 * flush..3 * flush + 3));
    pen
}

#[test]
fn a_chain_as_it_was_written_is_whole() {
    let verdict = nine(EXACTLY_ONCE).verdict();
    assert_eq!((verdict.breaks, verdict.first_break), (0, None));
    assert_eq!(
        (verdict.records, verdict.length, verdict.verified_from),
        (9, 9, Some(0))
    );
    assert_eq!(
        verdict.head,
        nine(EXACTLY_ONCE).committed.map(|head| head.head)
    );
}

#[test]
fn a_changed_record_is_found_wherever_it_lies() {
    for changed in 0..9 {
        let mut pen = nine(EXACTLY_ONCE);
        let text = String::from_utf8(pen.log[changed].clone()).unwrap();
        pen.log[changed] = text
            .replace(&format!("\"d{changed}\""), "\"other\"")
            .into_bytes();
        let verdict = pen.verdict();
        if changed < 8 {
            broken(&verdict, changed + 1, "was changed");
        } else {
            let found = verdict.first_break.unwrap();
            assert_eq!((found.at, found.sequence), (None, Some(8)), "{found:?}");
            assert!(found.what.contains("partition 0 offset 8"), "{found:?}");
        }
    }
}

#[test]
fn a_record_that_is_left_out_is_found_the_last_too() {
    for dropped in 0..9 {
        let mut pen = nine("at_least_once");
        pen.log.remove(dropped);
        let verdict = pen.verdict();
        match dropped {
            0 => broken(&verdict, 0, "the first record of the chain is missing"),
            8 => {
                let found = verdict.first_break.unwrap();
                assert_eq!((found.at, found.sequence), (None, Some(8)));
                assert!(found.what.contains("the last 1 of 9 records"), "{found:?}");
            }
            _ => broken(&verdict, dropped, &format!("number {dropped} of the chain")),
        }
    }
    let pen = nine("at_least_once");
    let found = verify(&[], pen.head()).first_break.unwrap();
    assert!(found.what.contains("the last 9 of 9"), "{found:?}");
    let found = verify(&pen.log[..3], pen.head()).first_break.unwrap();
    assert!(found.what.contains("the last 6 of 9"), "{found:?}");
}

#[test]
fn records_that_were_moved_are_found() {
    for moved in 0..8 {
        let mut pen = nine("at_least_once");
        pen.log.swap(moved, moved + 1);
        let verdict = pen.verdict();
        let found = verdict.first_break.unwrap();
        assert_eq!(found.at, Some(at(moved)), "{found:?}");
        assert!(found.what.contains("missing"), "{found:?}");
    }
}

#[test]
fn a_record_that_was_put_in_is_found() {
    let pen = nine("at_least_once");
    let mut foreign = pen.clone();
    // Somebody who knows the chain up to its sixth record.
    foreign.log.truncate(6);
    let Seen { hash, .. } = Seen::parse(&foreign.log[5]).unwrap();
    foreign.committed = Some(AuditHead {
        length: 6,
        head: hash,
    });
    let (values, _) = foreign.flush(77..78);
    for place in 7..=9 {
        let mut log = pen.log.clone();
        log.insert(place, values[0].clone());
        broken(
            &verify(&log, pen.head()),
            place,
            "which another follows already",
        );
    }
    // Behind the end it can only be told by the commit record.
    let (values, _) = pen.flush(77..78);
    let mut log = pen.log.clone();
    log.extend(values);
    let mut exactly_once = nine(EXACTLY_ONCE);
    let (values, _) = exactly_once.flush(77..78);
    exactly_once.log.extend(values);
    let found = exactly_once.verdict().first_break.unwrap();
    assert!(found.what.contains("1 records lie behind"), "{found:?}");
    assert_eq!(verify(&log, pen.head()).uncommitted, 1);
}

#[test]
fn a_flush_that_is_written_again_is_a_repeat_and_no_break() {
    let mut pen = nine("at_least_once");
    let again = pen.log[3..6].to_vec();
    pen.log.splice(6..6, again.clone());
    // Its first sending may come much later.
    pen.log.extend(again);
    let verdict = pen.verdict();
    assert_eq!((verdict.repeats, verdict.breaks), (6, 0));
    let mut pen = nine(EXACTLY_ONCE);
    let again = pen.log[3].clone();
    pen.log.push(again);
    let verdict = pen.verdict();
    assert_eq!(verdict.repeats, 0);
    broken(&verdict, 9, "exactly once rules out");
}

#[test]
fn what_an_owner_left_behind_is_a_fork_and_no_break() {
    let mut pen = Pen::at_least_once();
    pen.crash(0..2);
    pen.write(0..2);
    pen.crash(2..5);
    pen.crash(2..4);
    pen.write(2..5);
    let verdict = pen.verdict();
    assert_eq!((verdict.forks, verdict.breaks), (3, 0), "{verdict:?}");
    let told = &verdict.told_forks[0];
    assert_eq!(
        (told.at, told.sequence, told.left_behind, told.owner_epoch),
        (at(2), 0, 2, 2)
    );
    assert_eq!((verdict.length, verdict.uncommitted), (5, 0));
}

#[test]
fn what_a_former_owner_still_writes_is_late_and_no_break() {
    let mut pen = Pen::at_least_once();
    pen.write(0..2);
    let former = pen.clone();
    pen.take_over();
    pen.write(2..4);
    pen.log.extend(former.flush(2..5).0);
    pen.write(4..6);
    let verdict = pen.verdict();
    assert_eq!((verdict.late, verdict.breaks), (3, 0), "{verdict:?}");
    assert_eq!(verdict.length, 6);
}

#[test]
fn exactly_once_neither_leaves_behind_nor_comes_late() {
    let mut pen = Pen::new(EXACTLY_ONCE);
    pen.write(0..2);
    pen.crash(2..4);
    pen.write(2..4);
    broken(&pen.verdict(), 4, "before records that were committed");
    let mut pen = Pen::new(EXACTLY_ONCE);
    pen.write(0..2);
    let former = pen.clone();
    pen.take_over();
    pen.write(2..4);
    pen.log.extend(former.flush(2..3).0);
    broken(&pen.verdict(), 4, "which another follows already");
}

#[test]
fn another_guarantee_goes_on_with_the_chain() {
    let mut pen = Pen::at_least_once();
    pen.write(0..2);
    pen.crash(2..4);
    pen.guarantee = EXACTLY_ONCE;
    pen.write(2..4);
    pen.take_over();
    pen.guarantee = "at_least_once";
    pen.write(4..6);
    let verdict = pen.verdict();
    assert_eq!((verdict.forks, verdict.breaks), (1, 0), "{verdict:?}");
}

#[test]
fn a_fork_behind_what_was_committed_is_a_break() {
    let mut pen = nine("at_least_once");
    // The commit topic has lost the last commit.
    let mut before = Pen::at_least_once();
    before.write(0..3);
    before.write(3..6);
    pen.committed = before.committed;
    pen.write(20..23);
    // Of one owner they are not declared.
    broken(&pen.verdict(), 9, "which another follows already");
    let mut pen = nine("at_least_once");
    pen.write(9..10);
    pen.committed = before.committed;
    pen.take_over();
    pen.write(6..9);
    // As a former owner that wrote on would leave it.
    let verdict = pen.verdict();
    assert_eq!((verdict.breaks, verdict.forks), (0, 1), "{verdict:?}");
    assert!(verdict.told_forks[0].had_commits);
    // In the middle of a flush no commit ends.
    let mut pen = nine("at_least_once");
    let mut before = Pen::at_least_once();
    before.write(0..3);
    before.write(3..5);
    pen.committed = before.committed;
    pen.take_over();
    pen.write(5..9);
    assert_eq!(pen.verdict().breaks, 1, "{:?}", pen.verdict());
}

/// It learns of its successor only some flushes later, and all of them may lie before the first record of that.
#[test]
fn what_a_former_owner_wrote_on_is_left_behind_and_no_break() {
    let mut pen = Pen::at_least_once();
    pen.write(0..2);
    let mut former = pen.clone();
    pen.take_over();
    former.write(2..4);
    former.write(4..6);
    pen.log = former.log;
    pen.write(2..4);
    let verdict = pen.verdict();
    assert_eq!(
        (verdict.breaks, verdict.forks, verdict.length),
        (0, 1, 4),
        "{verdict:?}"
    );
    let fork = &verdict.told_forks[0];
    assert_eq!((fork.left_behind, fork.had_commits), (4, true));
}

#[test]
fn a_commit_topic_that_was_lost_is_told() {
    let mut pen = nine("at_least_once");
    let found = verify(&pen.log, Committed::Nothing).first_break.unwrap();
    assert!(found.what.contains("no commit record"), "{found:?}");
    pen.committed = None;
    pen.has_written = false;
    pen.write(50..52);
    broken(&pen.verdict(), 9, "begins anew");
    let mut pen = nine("at_least_once");
    pen.committed = None;
    let found = pen.verdict().first_break.unwrap();
    assert!(found.what.contains("set back"), "{found:?}");
}

#[test]
fn while_the_owner_is_at_work_the_log_may_be_ahead_of_the_commit_read() {
    let mut pen = nine(EXACTLY_ONCE);
    let Committed::Head { head, .. } = pen.head() else {
        panic!()
    };
    pen.write(9..12);
    let live = Committed::Head {
        head,
        is_live: true,
    };
    let verdict = verify(&pen.log, live);
    assert_eq!((verdict.breaks, verdict.uncommitted), (0, 3));
    let gone = Committed::Head {
        head,
        is_live: false,
    };
    assert_eq!(verify(&pen.log, gone).breaks, 1);
}

#[test]
fn where_the_beginning_was_deleted_the_rest_is_verified() {
    let pen = nine("at_least_once");
    for from in 0..9 {
        let verdict = follow(&pen.log[from..], true).conclude(pen.head());
        assert_eq!(
            (verdict.breaks, verdict.verified_from),
            (0, Some(u64::try_from(from).unwrap()))
        );
    }
    let nothing = follow(&[], true).conclude(pen.head());
    assert_eq!((nothing.breaks, nothing.verified_from), (0, None));
    // What a crash left, and nothing before it.
    let mut pen = nine("at_least_once");
    pen.crash(9..11);
    let verdict = follow(&pen.log[9..], true).conclude(pen.head());
    assert_eq!((verdict.breaks, verdict.uncommitted), (0, 2), "{verdict:?}");
    // A fork whose record before was deleted.
    pen.write(9..12);
    let verdict = follow(&pen.log[10..], true).conclude(pen.head());
    assert_eq!((verdict.breaks, verdict.forks), (0, 1), "{verdict:?}");
    assert_eq!(verdict.verified_from, Some(9));
}

#[test]
fn what_is_no_record_is_a_break_and_a_newer_version_is_told() {
    let mut pen = nine("at_least_once");
    pen.log[4] = b"rubbish".to_vec();
    broken(&pen.verdict(), 4, "cannot be used");
    let text = String::from_utf8(nine("at_least_once").log.remove(0)).unwrap();
    let newer = text.replace("\"v\":1", "\"v\":2");
    assert!(
        Seen::parse(newer.as_bytes())
            .unwrap_err()
            .contains("upgrade")
    );
}

#[test]
fn memory_is_bounded_and_a_long_chain_is_verified() {
    let mut pen = Pen::at_least_once();
    let flushes = i64::try_from(WINDOW / 50 + 20).unwrap();
    (0..flushes).for_each(|flush| pen.write(50 * flush..50 * flush + 50));
    let verifier = follow(&pen.log, false);
    assert!(verifier.known.len() <= WINDOW && verifier.line.len() <= WINDOW);
    assert!(verifier.arrivals.len() <= WINDOW && pen.log.len() > WINDOW);
    let verdict = verifier.conclude(pen.head());
    assert_eq!((verdict.breaks, verdict.verified_from), (0, Some(0)));
}

/// What can happen to an owner.
#[derive(Debug, Clone)]
enum Step {
    Write(i64),
    /// With its records written this many times.
    WriteAgain(i64, usize),
    Crash(i64),
    TakeOver,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1i64..4).prop_map(Step::Write),
        1 => (1i64..4, 1usize..3).prop_map(|(count, times)| Step::WriteAgain(count, times)),
        1 => (1i64..4).prop_map(Step::Crash),
        1 => Just(Step::TakeOver),
    ];
    prop::collection::vec(step, 1..12)
}

/// The log, and which of its places hold what the commit record stands for.
fn history(guarantee: &'static str, steps: &[Step]) -> (Pen, Vec<usize>) {
    let mut pen = Pen::new(guarantee);
    let mut line = Vec::new();
    let mut document = 0;
    for step in steps {
        let begin = pen.log.len();
        match step {
            Step::Write(count) => {
                pen.write(document..document + count);
                document += count;
                line.extend(begin..pen.log.len());
            }
            Step::WriteAgain(count, times) => {
                let (values, _) = pen.flush(document..document + count);
                pen.write(document..document + count);
                line.extend(begin..pen.log.len());
                if guarantee != EXACTLY_ONCE {
                    (0..*times).for_each(|_| pen.log.extend(values.clone()));
                }
                document += count;
            }
            Step::Crash(count) => {
                if guarantee != EXACTLY_ONCE {
                    pen.crash(document..document + count);
                } else {
                    pen.take_over();
                }
            }
            Step::TakeOver => pen.take_over(),
        }
    }
    (pen, line)
}

proptest! {
    /// Whatever crashes leave is no break; and whatever is changed, left out or moved of what is committed is one.
    #[test]
    fn honest_histories_are_whole_and_others_are_not(
        steps in steps(),
        is_exactly_once in any::<bool>(),
        pick in any::<prop::sample::Index>(),
    ) {
        let guarantee = if is_exactly_once { EXACTLY_ONCE } else { "at_least_once" };
        let (pen, line) = history(guarantee, &steps);
        let whole = pen.verdict();
        prop_assert_eq!(whole.breaks, 0, "{:?}", whole);
        if is_exactly_once {
            prop_assert_eq!((whole.forks, whole.repeats, whole.late), (0, 0, 0));
        }
        let Some(place) = line.get(pick.index(line.len().max(1))).copied() else { return Ok(()) };
        let is_once = |value: &Vec<u8>| pen.log.iter().filter(|other| *other == value).count() == 1;
        if !is_once(&pen.log[place]) {
            return Ok(());
        }
        let mut dropped = pen.log.clone();
        dropped.remove(place);
        prop_assert!(verify(&dropped, pen.head()).breaks > 0, "dropped");
        let mut changed = pen.log.clone();
        changed[place] = String::from_utf8(changed[place].clone()).unwrap().replace("\"d", "\"x").into_bytes();
        prop_assert!(verify(&changed, pen.head()).breaks > 0, "changed");
        if let Some(next) = line.iter().find(|next| **next > place && is_once(&pen.log[**next])) {
            let mut moved = pen.log.clone();
            moved.swap(place, *next);
            prop_assert!(verify(&moved, pen.head()).breaks > 0, "moved");
        }
    }
}
