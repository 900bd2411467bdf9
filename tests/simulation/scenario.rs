//! What a run is made of, drawn from its seed: which faults exist in it at all, and how often they strike.

use std::collections::BTreeSet;
use std::time::Duration;

use kafka_llm_processor::pipeline::{OnDataLoss, Order, Partitioner};

use crate::random::Random;

/// What the sink can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Transactions; the broker fences.
    ExactlyOnce,
    /// A repeated batch is written once; nobody is fenced.
    Idempotent,
    /// As a sink of an embedding program may be: a repeated batch is written twice.
    Plain,
}

/// How the input partitions are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shares {
    /// Each instance is to have all: the last one to start wins.
    All,
    /// By the settings, each partition in one slot.
    Disjoint,
    /// By settings that are wrong: two slots have the same partition.
    Overlapping,
    /// By a group coordinator.
    Group,
}

/// An edge that is broken on purpose: the oracle has to see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Former owners may go on writing.
    NobodyIsFenced,
    /// Results are acknowledged before they are written, and written after the commit record.
    AcksBeforeWriting,
    /// The transaction is committed before the results are appended.
    EndsBeforeAppending,
    /// Reading the commit topic leaves out its newest record.
    HidesNewestCommit,
    /// The broker forgets which batches it has.
    ForgetsSequences,
    /// Reading the commit topic hands out what was aborted.
    HandsOutAborted,
    /// The group's coordinator gives all to everybody.
    DealsTwice,
    /// The group's coordinator does not wait until the former owner has let go.
    HandsOverEarly,
}

impl Mutant {
    fn is_in_the_group(self) -> bool {
        matches!(self, Self::DealsTwice | Self::HandsOverEarly)
    }
}

/// The faults that exist in a run, and how many of a hundred steps they strike.
#[derive(Debug, Clone)]
pub struct Faults {
    pub percent: u64,
    /// Steps are refused; nothing is done.
    pub refuses: bool,
    /// The request is lost: the outcome is unknown, nothing is done.
    pub loses_requests: bool,
    /// The answer is lost: the outcome is unknown, and it is done, perhaps later than the sender waits.
    pub loses_answers: bool,
    /// Steps take seconds, sometimes longer than a transaction may stay open.
    pub slow_steps: bool,
    /// What is decided is seen late in some partitions.
    pub slow_markers: bool,
    pub failing_fetches: bool,
    pub failing_scans: bool,
    pub failing_take_overs: bool,
    pub failing_heartbeats: bool,
    /// The output topic takes only small records, and few at a time.
    pub small_messages: bool,
    /// The input's log begins later than it did, wherever its readers are.
    pub loses_input: bool,
    pub slow_documents: bool,
    /// The model gives documents up.
    pub gives_up: bool,
    /// The process dies right before or after a step.
    pub dies_at_steps: bool,
    pub killed: bool,
    pub frozen: bool,
    pub drained: bool,
    /// The broker forgets writers that are idle.
    pub forgets_writers: bool,
}

#[derive(Debug, Clone)]
pub struct Scenario {
    pub seed: u64,
    pub flavour: Flavour,
    pub shares: Shares,
    /// Nothing happens that makes a document be done twice: all hand-overs are orderly.
    pub is_orderly: bool,
    /// Whether an audit trail is kept.
    pub is_audited: bool,
    pub order: Order,
    pub partitioner: Partitioner,
    pub input_partitions: i32,
    pub output_partitions: i32,
    pub commit_partitions: i32,
    /// Instances that may be alive at the same time.
    pub slots: u64,
    pub documents: u64,
    /// Faults end then.
    pub fault_phase: Duration,
    pub concurrency: usize,
    pub commit_interval: Duration,
    pub read_ahead_records: usize,
    /// Until the faults are over; whoever held is then told to go on.
    pub on_data_loss: OnDataLoss,
    /// Whether a second end of one transaction is refused, rather than answered as the first.
    pub second_end_is_refused: bool,
    pub faults: Faults,
    pub mutant: Option<Mutant>,
}

impl Scenario {
    pub fn draw(seed: u64, mutant: Option<Mutant>) -> Self {
        let random = &mut Random::new(seed);
        let flavours = match mutant {
            Some(Mutant::AcksBeforeWriting) => &[Flavour::Idempotent, Flavour::Plain][..],
            Some(mutant) if mutant.is_in_the_group() => &[Flavour::Idempotent, Flavour::Plain],
            Some(Mutant::ForgetsSequences) => &[Flavour::ExactlyOnce, Flavour::Idempotent],
            Some(_) => &[Flavour::ExactlyOnce],
            None => &[
                Flavour::ExactlyOnce,
                Flavour::ExactlyOnce,
                Flavour::Idempotent,
                Flavour::Plain,
            ],
        };
        let shares = match mutant {
            Some(mutant) if mutant.is_in_the_group() => Shares::Group,
            Some(_) => Shares::All,
            None => random.pick(&[
                Shares::All,
                Shares::All,
                Shares::Disjoint,
                Shares::Overlapping,
                Shares::Group,
                Shares::Group,
                Shares::Group,
            ]),
        };
        let is_in_the_group = mutant.is_some_and(Mutant::is_in_the_group);
        let is_orderly = is_in_the_group || (shares == Shares::Group && random.chance(25));
        let faults = Faults::draw(random);
        let faults = if is_orderly { faults.orderly() } else { faults };
        let input_partitions = random.pick(&[1, 2, 3]);
        Self {
            seed,
            flavour: random.pick(flavours),
            shares,
            is_orderly,
            is_audited: seed % 2 == 1,
            order: random.pick(&[Order::Input, Order::Key, Order::Completion]),
            partitioner: random.pick(&[Partitioner::Key, Partitioner::Source]),
            input_partitions,
            output_partitions: random.pick(&[1, 2, 3]),
            commit_partitions: random.pick(&[1, input_partitions]),
            slots: random.between(1, 3),
            documents: random.between(10, 40),
            fault_phase: random.millis(5_000, 60_000),
            concurrency: random.pick(&[1, 3, 16]),
            commit_interval: random.millis(0, 1) * 50,
            read_ahead_records: random.pick(&[3, 10, 64]),
            on_data_loss: random.pick(&[OnDataLoss::Hold, OnDataLoss::Resume]),
            second_end_is_refused: random.chance(50),
            faults,
            mutant,
        }
    }

    /// The partitions that the settings give to a slot, or that a group can give to it.
    pub fn partitions_of(&self, slot: u64) -> BTreeSet<i32> {
        let is_its_own = |partition: &i32| {
            let partition = u64::try_from(*partition).unwrap();
            match self.shares {
                Shares::All | Shares::Group => true,
                Shares::Disjoint => partition % self.slots == slot,
                Shares::Overlapping => slot == 0 || partition < slot,
            }
        };
        (0..self.input_partitions).filter(is_its_own).collect()
    }
}

impl Faults {
    fn draw(random: &mut Random) -> Self {
        let percent = random.pick(&[1, 3, 10, 25]);
        let mut exists = || random.chance(40);
        Self {
            percent,
            refuses: exists(),
            loses_requests: exists(),
            loses_answers: exists(),
            slow_steps: exists(),
            slow_markers: exists(),
            failing_fetches: exists(),
            failing_scans: exists(),
            failing_take_overs: exists(),
            failing_heartbeats: exists(),
            small_messages: exists(),
            loses_input: exists(),
            slow_documents: exists(),
            gives_up: exists(),
            dies_at_steps: exists(),
            killed: exists(),
            frozen: exists(),
            drained: exists(),
            forgets_writers: exists(),
        }
    }

    /// Without those after which a document may be done twice.
    fn orderly(self) -> Self {
        Self {
            refuses: false,
            loses_requests: false,
            loses_answers: false,
            slow_steps: false,
            failing_heartbeats: false,
            dies_at_steps: false,
            killed: false,
            frozen: false,
            forgets_writers: false,
            loses_input: false,
            ..self
        }
    }
}
