//! What a storm is about: the promise, the way the input is shared, and the size.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Partitions of the input, and so of everything that is created after it.
pub(crate) const PARTITIONS: i32 = 8;
/// Calls in flight of each instance.
const CONCURRENCY: usize = 64;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),* }

        impl $name {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// The value of the setting.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().find(|one| one.as_str() == text);
                found.copied().ok_or_else(|| format!("{text:?} is none of {:?}", Self::ALL))
            }
        }
    };
}

names!(
    /// `processing.guarantee`.
    Guarantee { AtLeastOnce = "at_least_once", ExactlyOnce = "exactly_once" }
);
names!(
    /// `input.assignment`.
    Assignment { All = "all", Static = "static", Group = "group" }
);
names!(
    /// `pipeline.order`.
    Order { Input = "input", Key = "key", Completion = "completion" }
);

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) guarantee: Guarantee,
    pub(crate) assignment: Assignment,
    pub(crate) order: Order,
    /// 1 or 3.
    pub(crate) brokers: usize,
    /// Instances that belong to the job; `all` has one.
    pub(crate) instances: usize,
    pub(crate) documents: usize,
    /// How long the storm lasts.
    pub(crate) lasts: Duration,
}

impl Scenario {
    /// The long storm of a seed: any twenty seeds in a row have each guarantee with each assignment, and each order with each of both.
    fn of_seed(seed: u64) -> Self {
        let turn = |every: u64| usize::try_from(seed % every).expect("a small number");
        Self {
            seed,
            guarantee: match turn(4) {
                0 => Guarantee::AtLeastOnce,
                _ => Guarantee::ExactlyOnce,
            },
            assignment: Assignment::ALL[turn(3)],
            order: Order::ALL[turn(9) / 3],
            brokers: if turn(5) == 0 { 3 } else { 1 },
            instances: if turn(3) == 0 { 1 } else { 3 },
            documents: 20_000,
            lasts: Duration::from_secs(120),
        }
    }

    /// The storm of every day, with any seed: the strictest promise in the most lively assignment.
    fn short(seed: u64) -> Self {
        Self {
            seed,
            guarantee: Guarantee::ExactlyOnce,
            assignment: Assignment::Group,
            order: Order::Input,
            brokers: 1,
            instances: 3,
            documents: 3_000,
            lasts: Duration::from_secs(40),
        }
    }

    /// What the variables ask for.
    pub(crate) fn from_environment() -> Self {
        let mut scenario = match variable("SEED") {
            Some(seed) => Self::of_seed(seed),
            // Small, as it is typed by hand.
            None => Self::short(rand::random_range(1_000..1_000_000)),
        };
        set(&mut scenario.guarantee, "GUARANTEE");
        set(&mut scenario.order, "ORDER");
        set(&mut scenario.brokers, "BROKERS");
        set(&mut scenario.documents, "DOCUMENTS");
        if let Some(assignment) = variable("ASSIGNMENT") {
            scenario.assignment = assignment;
            scenario.instances = if assignment == Assignment::All { 1 } else { 3 };
        }
        set(&mut scenario.instances, "INSTANCES");
        if let Some(seconds) = variable("SECONDS") {
            scenario.lasts = Duration::from_secs(seconds);
        }
        let one = scenario.assignment != Assignment::All || scenario.instances == 1;
        assert!(one, "with `all` one instance works at a time");
        assert!(matches!(scenario.brokers, 1 | 3), "1 or 3 brokers");
        scenario
    }

    /// What repeats it.
    pub(crate) fn command(&self) -> String {
        format!(
            "just storm seed={} guarantee={} assignment={} order={} brokers={} instances={} documents={} seconds={}",
            self.seed,
            self.guarantee.as_str(),
            self.assignment.as_str(),
            self.order.as_str(),
            self.brokers,
            self.instances,
            self.documents,
            self.lasts.as_secs()
        )
    }

    /// Where what is worth keeping lies.
    pub(crate) fn folder(&self) -> PathBuf {
        storms().join(format!("seed-{}", self.seed))
    }

    /// The topics and the group are named after the seed.
    pub(crate) fn input(&self) -> String {
        format!("storm-{}", self.seed)
    }

    pub(crate) fn results(&self) -> String {
        format!("{}-results", self.input())
    }

    pub(crate) fn dead_letters(&self) -> String {
        format!("{}-dead-letters", self.input())
    }

    /// The group's name and the topic of its commits, which the processor names after it.
    pub(crate) fn group(&self) -> String {
        self.input()
    }

    pub(crate) fn commits(&self) -> String {
        format!("{}-commits", self.group())
    }

    /// What tells the instances of one job apart. `all` is the default and needs no word.
    fn share(&self, slot: usize) -> Vec<(&'static str, String)> {
        match self.assignment {
            Assignment::All => Vec::new(),
            Assignment::Static => vec![
                ("input.assignment", "static".to_owned()),
                ("input.static_ordinal", slot.to_string()),
                ("input.static_count", self.instances.to_string()),
            ],
            Assignment::Group => vec![
                ("input.assignment", "group".to_owned()),
                ("kafka.group_instance_id", format!("storm-{slot}")),
            ],
        }
    }

    /// The command line of the instance in a slot.
    pub(crate) fn arguments(&self, slot: usize, brokers: &str, llm: &str) -> Vec<String> {
        let mut arguments = vec![
            format!("--set=kafka.brokers={brokers}"),
            format!("--group-id={}", self.group()),
            format!("--input-topic={}", self.input()),
            format!("--output-topic={}", self.results()),
            format!("--llm-url={llm}"),
            format!("--concurrency={CONCURRENCY}"),
            format!("--set=dead_letters.topic={}", self.dead_letters()),
            "--set=admin.listen=127.0.0.1:0".to_owned(),
            "--set=log.file=off".to_owned(),
            format!("--set=processing.guarantee={}", self.guarantee.as_str()),
            format!("--set=pipeline.order={}", self.order.as_str()),
        ];
        let share = self.share(slot).into_iter();
        arguments.extend(share.map(|(key, value)| format!("--set={key}={value}")));
        arguments
    }
}

/// The folder of all storms.
pub(crate) fn storms() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    target.expect("it lies in the target folder").join("storm")
}

/// A variable of the storm.
fn variable<T: FromStr<Err: Display>>(name: &str) -> Option<T> {
    let name = format!("STORM_{name}");
    let text = std::env::var(&name).ok()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => panic!("{name}: {error}"),
    }
}

fn set<T: FromStr<Err: Display>>(value: &mut T, name: &str) {
    if let Some(wanted) = variable(name) {
        *value = wanted;
    }
}

#[test]
fn twenty_seeds_meet_each_guarantee_with_each_assignment_and_each_order() {
    for guarantee in Guarantee::ALL {
        for assignment in Assignment::ALL {
            let found = (1..=20)
                .map(Scenario::of_seed)
                .any(|storm| storm.guarantee == *guarantee && storm.assignment == *assignment);
            assert!(found, "{guarantee:?} {assignment:?}");
        }
        for order in Order::ALL {
            let found = (1..=20)
                .map(Scenario::of_seed)
                .any(|storm| storm.guarantee == *guarantee && storm.order == *order);
            assert!(found, "{guarantee:?} {order:?}");
        }
    }
}
