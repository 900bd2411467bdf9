//! What happens when: drawn from the seed before the storm begins, so that the seed repeats it.
//!
//! Each instance and the brokers have a list of their own, and go through it side by side: what one waits for holds up no other.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::scenario::{Assignment, PARTITIONS, Scenario};

/// Work has begun by then.
const CALM_BEFORE: Duration = Duration::from_secs(3);
/// A step ends so long before the same instance meets the next.
const BREATH: Duration = Duration::from_millis(300);
/// With `group`, so long from one kill to the next: a session of 10 s has to end, and its partitions have to be given to others.
pub(crate) const BETWEEN_KILLS_IN_GROUP: Duration = Duration::from_secs(20);
/// An instance that stands still for longer loses its session, as a killed one does.
const SESSION_HOLDS: Duration = Duration::from_secs(8);
/// From the end of one broker's outage to the next: a cluster needs 9 s to see that a broker is gone, and three lose no majority.
const BETWEEN_OUTAGES: [(usize, Duration); 2] =
    [(1, Duration::from_secs(6)), (3, Duration::from_secs(15))];

/// What an instance meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is started, where it is not running.
    Start,
    /// `kill -9`.
    Kill,
    /// SIGTERM, and its end is waited for.
    Drain,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
    /// SIGSTOP, and another is started in its place under the same name.
    Replace,
    /// SIGCONT for the one that was replaced.
    Wake,
}

/// What the brokers meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// The only broker: SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
    /// `kill -9` of the broker that leads this partition of the results.
    Kill { partition: i32 },
    /// The killed one is started again.
    Start,
}

/// One thing and its moment, counted from the beginning of the storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At<T> {
    pub(crate) at: Duration,
    pub(crate) what: T,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// By slot. With `group` the last slot is for an instance that joins and leaves; it does not run at the beginning.
    pub(crate) instances: Vec<Vec<At<Step>>>,
    pub(crate) brokers: Vec<At<Outage>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Kill,
    Stop,
    Drain,
    Replace,
    Broker,
    JoinOrLeave,
}

impl Plan {
    pub(crate) fn of(scenario: &Scenario) -> Self {
        Draw::new(scenario).plan()
    }
}

struct Draw<'a> {
    scenario: &'a Scenario,
    random: StdRng,
    /// By slot: when it can meet the next thing.
    free_at: Vec<Duration>,
    brokers_free_at: Duration,
    kill_at: Duration,
    guest_is_in: bool,
    plan: Plan,
}

impl<'a> Draw<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let guests = usize::from(scenario.assignment == Assignment::Group);
        let slots = scenario.instances + guests;
        Self {
            scenario,
            random: StdRng::seed_from_u64(scenario.seed),
            free_at: vec![CALM_BEFORE; slots],
            brokers_free_at: CALM_BEFORE,
            kill_at: CALM_BEFORE,
            guest_is_in: false,
            plan: Plan {
                instances: vec![Vec::new(); slots],
                brokers: Vec::new(),
            },
        }
    }

    fn plan(mut self) -> Plan {
        let mut now = CALM_BEFORE;
        while now < self.scenario.lasts {
            let event = self.event();
            self.place(now, event);
            let pause = match self.scenario.assignment {
                Assignment::All | Assignment::Static => 600..1_400,
                Assignment::Group => 1_000..3_500,
            };
            now += Duration::from_millis(self.random.random_range(pause));
        }
        self.plan
    }

    fn event(&mut self) -> Event {
        let drawn = self.random.random_range(0..100);
        let kinds: &[(u32, Event)] = match self.scenario.assignment {
            Assignment::All | Assignment::Static => &[
                (45, Event::Kill),
                (65, Event::Stop),
                (80, Event::Drain),
                (88, Event::Replace),
                (100, Event::Broker),
            ],
            Assignment::Group => &[
                (35, Event::Kill),
                (50, Event::Stop),
                (65, Event::Drain),
                (72, Event::Replace),
                (84, Event::Broker),
                (100, Event::JoinOrLeave),
            ],
        };
        let found = kinds.iter().find(|(up_to, _)| drawn < *up_to);
        found.expect("the last is 100").1
    }

    /// A length in milliseconds, mostly a short one.
    fn length(&mut self, mostly: u64, at_most: u64) -> Duration {
        let most = if self.random.random_bool(0.8) {
            mostly
        } else {
            at_most
        };
        Duration::from_millis(self.random.random_range(500..=most))
    }

    /// Puts the event into the plan, unless whom it would meet is busy or it would not end in time.
    fn place(&mut self, now: Duration, event: Event) {
        if event == Event::Broker {
            self.place_outage(now);
            return;
        }
        if event == Event::JoinOrLeave {
            self.place_guest(now);
            return;
        }
        let slot = self.random.random_range(0..self.scenario.instances);
        let (first, length, last) = match event {
            Event::Kill => (Step::Kill, self.length(300 + 200, 3_000), Step::Start),
            Event::Stop => (Step::Stop, self.length(3_000, 15_000), Step::Continue),
            Event::Drain => (Step::Drain, self.length(500 + 200, 5_000), Step::Start),
            Event::Replace => (Step::Replace, self.length(3_000, 15_000), Step::Wake),
            Event::Broker | Event::JoinOrLeave => unreachable!("placed above"),
        };
        let in_group = self.scenario.assignment == Assignment::Group;
        let is_kill = matches!(event, Event::Kill | Event::Replace) || length > SESSION_HOLDS;
        let too_soon = in_group && is_kill && now < self.kill_at;
        if now < self.free_at[slot] || now + length > self.scenario.lasts || too_soon {
            return;
        }
        if is_kill {
            self.kill_at = now + BETWEEN_KILLS_IN_GROUP;
        }
        self.free_at[slot] = now + length + BREATH;
        self.plan.instances[slot].push(At {
            at: now,
            what: first,
        });
        self.plan.instances[slot].push(At {
            at: now + length,
            what: last,
        });
    }

    fn place_guest(&mut self, now: Duration) {
        let slot = self.scenario.instances;
        if now < self.free_at[slot] {
            return;
        }
        let what = if self.guest_is_in {
            Step::Drain
        } else {
            Step::Start
        };
        self.guest_is_in = !self.guest_is_in;
        self.free_at[slot] = now + BREATH;
        self.plan.instances[slot].push(At { at: now, what });
    }

    fn place_outage(&mut self, now: Duration) {
        let (first, length, last) = match self.scenario.brokers {
            1 => (Outage::Stop, self.length(3_000, 8_000), Outage::Continue),
            _ => {
                let partition = self.random.random_range(0..PARTITIONS);
                let length = self.length(5_000, 15_000);
                (Outage::Kill { partition }, length, Outage::Start)
            }
        };
        if now < self.brokers_free_at || now + length > self.scenario.lasts {
            return;
        }
        let between = BETWEEN_OUTAGES
            .iter()
            .find(|(brokers, _)| *brokers == self.scenario.brokers);
        self.brokers_free_at = now + length + between.expect("1 or 3 brokers").1;
        self.plan.brokers.push(At {
            at: now,
            what: first,
        });
        self.plan.brokers.push(At {
            at: now + length,
            what: last,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Guarantee, Order};

    fn scenario(seed: u64, assignment: Assignment, brokers: usize) -> Scenario {
        Scenario {
            seed,
            guarantee: Guarantee::AtLeastOnce,
            assignment,
            order: Order::Input,
            brokers,
            instances: if assignment == Assignment::All { 1 } else { 3 },
            documents: 1,
            lasts: Duration::from_secs(120),
        }
    }

    fn plans() -> impl Iterator<Item = (Scenario, Plan)> {
        (0..300).map(|seed| {
            let assignment = Assignment::ALL[usize::try_from(seed % 3).expect("a number")];
            let scenario = scenario(seed, assignment, if seed % 2 == 0 { 1 } else { 3 });
            let plan = Plan::of(&scenario);
            (scenario, plan)
        })
    }

    #[test]
    fn a_seed_has_one_plan() {
        for (scenario, plan) in plans() {
            assert_eq!(Plan::of(&scenario), plan);
        }
    }

    /// Whoever is killed or stopped is started or continued again, one thing after the other, before the storm ends.
    #[test]
    fn everything_is_undone_in_time() {
        for (scenario, plan) in plans() {
            for steps in plan.instances.iter().take(scenario.instances) {
                for pair in steps.chunks(2) {
                    let whats = [pair[0].what, pair[1].what];
                    let undone = [
                        [Step::Kill, Step::Start],
                        [Step::Drain, Step::Start],
                        [Step::Stop, Step::Continue],
                        [Step::Replace, Step::Wake],
                    ];
                    assert!(undone.contains(&whats), "{whats:?}");
                }
                assert!(steps.is_sorted_by(|before, after| before.at < after.at));
                assert!(steps.iter().all(|step| step.at <= scenario.lasts));
            }
            assert_eq!(plan.brokers.len() % 2, 0, "an outage ends");
            assert!(plan.brokers.iter().all(|step| step.at <= scenario.lasts));
        }
    }

    #[test]
    fn in_a_group_sessions_can_end_between_kills() {
        for (scenario, plan) in plans() {
            if scenario.assignment != Assignment::Group {
                continue;
            }
            let mut kills: Vec<_> = plan.instances.iter().flatten().collect();
            kills.retain(|step| matches!(step.what, Step::Kill | Step::Replace));
            kills.sort_by_key(|step| step.at);
            let apart = kills
                .windows(2)
                .all(|pair| pair[1].at - pair[0].at >= BETWEEN_KILLS_IN_GROUP);
            assert!(apart, "{kills:?}");
        }
    }

    /// A storm is one: without a group's sessions something happens every few seconds, and of each kind something happens in some storm.
    #[test]
    fn much_happens() {
        let mut met = Vec::new();
        for (scenario, plan) in plans() {
            let steps: Vec<_> = plan.instances.iter().flatten().collect();
            let least = if scenario.assignment == Assignment::Group {
                10
            } else {
                40
            };
            assert!(steps.len() >= least, "{scenario:?}: {}", steps.len());
            met.extend(steps.iter().map(|step| step.what));
            assert!(!plan.brokers.is_empty(), "{scenario:?}");
        }
        for step in [
            Step::Kill,
            Step::Drain,
            Step::Stop,
            Step::Replace,
            Step::Start,
        ] {
            assert!(met.contains(&step), "{step:?}");
        }
    }
}
