//! What has to hold at every moment, and at the end.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_llm_processor::offsets::{CommitPosition, CommitRecord};
use kafka_llm_processor::pipeline::{OnDataLoss, Order};
use kafka_llm_processor::records::headers;
use kafka_llm_processor::types::{Offset, Record, TopicPartition};

use crate::audit::{self, AUDIT};
use crate::broker::Writer;
use crate::log::Log;
use crate::scenario::{Flavour, Scenario};

pub const INPUT: &str = "documents";
pub const OUTPUT: &str = "results";
pub const DEAD_LETTERS: &str = "dead-letters";
pub const COMMITS: &str = "commits";

/// Where a document lies: input partition and offset.
type Place = (i32, Offset);

/// The first outcome of a document.
#[derive(Debug)]
struct First {
    since: u64,
    by: String,
    to: TopicPartition,
}

#[derive(Debug)]
pub struct Oracle {
    flavour: Flavour,
    order: Order,
    /// Those that must have an outcome, with their keys.
    documents: BTreeMap<Place, Option<Bytes>>,
    /// Outcomes that nothing can take away, the first of each document.
    outcomes: BTreeMap<Place, First>,
    /// Counts what happens.
    now: u64,
    /// When an instance took a partition over last.
    taken: BTreeMap<(String, i32), u64>,
    /// What each writer has written: with sequences nothing is written twice by one.
    written: BTreeSet<(u64, Place)>,
    /// The commit that counts, per input partition.
    commits: BTreeMap<i32, (u64, CommitPosition)>,
    /// The last commit offset of an owner in its epoch.
    claimed: BTreeMap<(i32, String, u64), Offset>,
    /// When each owner of a key in the commit topic was first seen there, by key, name and owner epoch.
    claims: BTreeMap<(String, String, u64), u64>,
    /// Whose an owner epoch of a partition is.
    owners: BTreeMap<(i32, u64), String>,
    /// Input that is gone: it may have no outcome, once somebody has decided so.
    lost: BTreeSet<Place>,
    on_data_loss: OnDataLoss,
    /// What is gone and waits for the decision.
    undecided: BTreeMap<i32, Offset>,
    is_orderly: bool,
    /// The output takes only small messages.
    is_small: bool,
    /// The first thing that does not hold.
    pub violation: Option<String>,
}

impl Oracle {
    pub fn new(scenario: &Scenario) -> Self {
        Self {
            flavour: scenario.flavour,
            order: scenario.order,
            documents: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            now: 0,
            taken: BTreeMap::new(),
            written: BTreeSet::new(),
            commits: BTreeMap::new(),
            claimed: BTreeMap::new(),
            claims: BTreeMap::new(),
            owners: BTreeMap::new(),
            lost: BTreeSet::new(),
            on_data_loss: scenario.on_data_loss,
            undecided: BTreeMap::new(),
            is_orderly: scenario.is_orderly,
            is_small: scenario.faults.small_messages,
            violation: None,
        }
    }

    pub fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A document that must have an outcome.
    pub fn expects(&mut self, partition: i32, at: Offset, key: Option<Bytes>) {
        self.documents.insert((partition, at), key);
    }

    /// Input below an offset is gone.
    pub fn input_lost(&mut self, partition: i32, log_start: Offset) {
        // Where nothing was ever committed work begins at the first record that exists.
        let is_known = self.commits.contains_key(&partition);
        if is_known && self.on_data_loss == OnDataLoss::Hold {
            self.undecided.insert(partition, log_start);
        } else {
            self.excuse(partition, log_start);
        }
    }

    /// Work goes on without what is gone.
    pub fn decide(&mut self) {
        for (partition, log_start) in std::mem::take(&mut self.undecided) {
            self.excuse(partition, log_start);
        }
    }

    fn excuse(&mut self, partition: i32, log_start: Offset) {
        let gone = self
            .documents
            .range((partition, Offset::ZERO)..(partition, log_start));
        let gone = gone.map(|(place, _)| *place);
        self.lost
            .extend(gone.filter(|place| !self.outcomes.contains_key(place)));
    }

    pub fn taken_over(&mut self, instance: &str, input: &TopicPartition) {
        let now = self.tick();
        if &*input.topic == INPUT {
            self.taken
                .insert((instance.to_owned(), input.partition), now);
        }
    }

    /// Records that became durable together. `late` says that their sender had stopped to wait for them.
    pub fn durable(&mut self, writer: &Writer, records: Vec<(TopicPartition, Record)>, late: bool) {
        let now = self.tick();
        let by = &writer.instance;
        let is_outcome = |to: &TopicPartition| ![COMMITS, AUDIT].contains(&&*to.topic);
        for (to, record) in records.iter().filter(|(to, _)| is_outcome(to)) {
            let Some(source) = headers::source(record) else {
                self.violated(format!("a record in {to} does not say where it comes from"));
                return;
            };
            let place = (source.topic_partition.partition, source.offset);
            if !self.documents.contains_key(&place) {
                self.violated(format!("{source} has an outcome and is no document"));
            }
            let known = self.outcomes.contains_key(&place);
            if known && self.flavour == Flavour::ExactlyOnce {
                self.violated(format!("{source} has two outcomes; the second is by {by}"));
            }
            let is_new = self.written.insert((writer.sink, place));
            if !is_new && self.flavour == Flavour::Idempotent {
                self.violated(format!("one writer of {by} has written {source} twice"));
            }
            self.outcomes.entry(place).or_insert_with(|| First {
                since: now,
                by: by.to_owned(),
                to: to.clone(),
            });
        }
        for (_, record) in records.iter().filter(|(to, _)| &*to.topic == COMMITS) {
            self.committed(record, late);
        }
    }

    fn committed(&mut self, record: &Record, late: bool) {
        let key = record.key.as_deref().unwrap_or_default();
        let commit = CommitRecord::from_value(record.value.as_deref().unwrap_or_default());
        let Ok(commit) = commit else {
            self.violated(format!("a commit record cannot be read: {commit:?}"));
            return;
        };
        let name = std::str::from_utf8(key).unwrap_or_default();
        let claim = (name.to_owned(), commit.owner.clone(), commit.owner_epoch);
        self.claims.entry(claim).or_insert(self.now);
        let Some(partition) = name
            .strip_prefix(INPUT)
            .and_then(|rest| rest.strip_prefix('/'))
        else {
            return;
        };
        let partition: i32 = partition.parse().unwrap();
        if self.flavour == Flavour::ExactlyOnce {
            self.owned_by(partition, &commit);
        }
        let position = commit.position();
        for (document, at) in self.documents.keys() {
            let place = (*document, *at);
            let has_outcome = self.outcomes.contains_key(&place) || self.lost.contains(&place);
            if *document == partition && position.contains(*at) && !has_outcome {
                let what = format!(
                    "{} claims {partition}@{at}, which has no outcome",
                    commit.owner
                );
                self.violation.get_or_insert(what);
            }
        }
        let claim = (partition, commit.owner.clone(), commit.owner_epoch);
        let before = self.claimed.get(&claim).copied().unwrap_or_default();
        // A plain append that its sender has given up may be written behind later ones: recovery does not go by it.
        if commit.next_offset < before && !late {
            self.violated(format!(
                "the commit offset of partition {partition} falls from {before} to {} within owner epoch {}",
                commit.next_offset, commit.owner_epoch
            ));
        }
        self.claimed.insert(claim, before.max(commit.next_offset));
        let newest = self.commits.get(&partition);
        if newest.is_none_or(|(epoch, newest)| {
            (commit.owner_epoch, commit.next_offset) >= (*epoch, newest.next_offset)
        }) {
            self.commits
                .insert(partition, (commit.owner_epoch, position));
        }
    }

    /// With transactions nobody writes visibly once somebody else has.
    fn owned_by(&mut self, partition: i32, commit: &CommitRecord) {
        let CommitRecord {
            owner, owner_epoch, ..
        } = commit;
        let newest = self.commits.get(&partition).map(|(epoch, _)| *epoch);
        let of_epoch = self
            .owners
            .entry((partition, *owner_epoch))
            .or_insert_with(|| owner.clone());
        if newest > Some(*owner_epoch) || of_epoch != owner {
            let what = format!(
                "{owner} writes to partition {partition} in owner epoch {owner_epoch}, while the newest is {newest:?} and that one {of_epoch}'s"
            );
            self.violated(what);
        }
    }

    /// What happens from now on is later than this.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Whether anybody else has claimed one of these partitions, or all as a whole, since then.
    pub fn is_overruled(&self, instance: &str, partitions: &BTreeSet<i32>, since: u64) -> bool {
        let concerns = |key: &str| {
            let partition = key
                .strip_prefix(INPUT)
                .and_then(|rest| rest.strip_prefix('/'));
            partition.is_none_or(|partition| partitions.contains(&partition.parse().unwrap()))
        };
        self.claims
            .iter()
            .any(|((key, owner, _), seen)| owner != instance && *seen > since && concerns(key))
    }

    /// The model is asked about a document.
    pub fn asked(&mut self, instance: &str, partition: i32, at: Offset) {
        if self.flavour != Flavour::ExactlyOnce {
            return;
        }
        let Some(First { since, by, .. }) = self.outcomes.get(&(partition, at)) else {
            return;
        };
        let taken = self.taken.get(&(instance.to_owned(), partition));
        if by == instance || taken.is_some_and(|taken| taken > since) {
            let what = format!(
                "{instance} asks about {partition}@{at} again, whose outcome by {by} was committed before"
            );
            self.violated(what);
        }
    }

    /// Whether everything has an outcome and the commits say so.
    pub fn is_finished(&self, ends: &BTreeMap<i32, Offset>) -> bool {
        let has_outcome =
            |place: &Place| self.outcomes.contains_key(place) || self.lost.contains(place);
        self.documents.keys().all(has_outcome)
            && ends.iter().all(|(partition, end)| {
                self.commits.get(partition).is_some_and(|(_, position)| {
                    position.next_offset == *end && position.done.is_empty()
                })
            })
    }

    /// What is missing, for the message of a run that does not end.
    pub fn missing(&self) -> String {
        let missing: Vec<_> = self
            .documents
            .keys()
            .filter(|place| !self.outcomes.contains_key(place))
            .collect();
        format!("without outcome: {missing:?}; commits: {:?}", self.commits)
    }

    /// What readers with `read_committed` see in the end.
    pub fn check_logs(&mut self, logs: &BTreeMap<TopicPartition, Log>) {
        if let Some(what) = audit::broken(logs, self.flavour) {
            self.violated(what);
        }
        let mut counts: BTreeMap<Place, usize> = BTreeMap::new();
        for (partition, log) in logs {
            if ![OUTPUT, DEAD_LETTERS].contains(&&*partition.topic) {
                continue;
            }
            let mut seen = BTreeSet::new();
            // The last place in a lane, where a lane is what the order mode keeps in order.
            let mut lanes: BTreeMap<(i32, Option<Bytes>), Offset> = BTreeMap::new();
            for (_, record) in log.committed() {
                let source = headers::source(record).unwrap();
                let place = (source.topic_partition.partition, source.offset);
                *counts.entry(place).or_default() += 1;
                // Asked again, the model may answer otherwise, and the outcome goes elsewhere: the first is what counts.
                let is_first = self
                    .outcomes
                    .get(&place)
                    .is_some_and(|first| first.to == *partition);
                // The dead letter for a result that turned out to be too large may come behind those that were sent side by side with it.
                let is_a_substitute = self.is_small && &*partition.topic == DEAD_LETTERS;
                // Of input that was deleted while somebody worked on it the answer may come late: whoever took over has gone on behind it.
                let was_deleted = self.lost.contains(&place);
                if !seen.insert(place) || !is_first || is_a_substitute || was_deleted {
                    continue;
                }
                let key = self.documents.get(&place).cloned().flatten();
                let lane = match self.order {
                    Order::Input => (place.0, None),
                    Order::Key if key.is_some() => (place.0, key),
                    Order::Key | Order::Completion => continue,
                };
                let last = lanes.insert(lane, place.1);
                if last.is_some_and(|last| last > place.1) {
                    let what =
                        format!("{partition} holds {source} behind {last:?}, against the order");
                    self.violated(what);
                }
            }
        }
        for place in self.documents.keys() {
            let count = counts.get(place).copied().unwrap_or_default();
            let right = match self.flavour {
                _ if count == 0 => self.lost.contains(place),
                Flavour::ExactlyOnce => count == 1,
                Flavour::Idempotent | Flavour::Plain if self.is_orderly => count == 1,
                Flavour::Idempotent | Flavour::Plain => count >= 1,
            };
            if !right {
                let what = format!("readers see {count} outcomes of {place:?}");
                self.violation.get_or_insert(what);
            }
        }
    }
}
