//! The state machine of one group, with the time passed in.

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use tokio::sync::oneshot::Receiver;
use tokio::time::{Duration, Instant};

use super::membership::{GroupState, Membership};
use super::{Assigning, Caller, Joiner, Limits, Waiter};

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);
const DELAY: Duration = Duration::from_secs(3);
const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    group: Membership,
    limits: Limits,
    now: Instant,
}

fn code(error: ResponseError) -> i16 {
    error.code()
}

impl Bench {
    fn new() -> Self {
        Self {
            group: Membership::default(),
            limits: Limits {
                initial_rebalance_delay: DELAY,
                members_max: 3,
            },
            now: Instant::now(),
        }
    }

    fn join_as(
        &mut self,
        member: &str,
        instance: Option<&str>,
        protocols: &[&str],
    ) -> Receiver<JoinGroupResponse> {
        let (waiter, answer) = Waiter::new();
        let joiner = Joiner {
            member_id: member.to_owned(),
            instance: instance.map(str::to_owned),
            client_id: "c".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            session_timeout: SESSION,
            rebalance_timeout: REBALANCE,
            protocol_type: "consumer".to_owned(),
            protocols: protocols
                .iter()
                .map(|name| ((*name).to_owned(), Bytes::new()))
                .collect(),
            must_know_id: false,
            can_skip_assignment: true,
        };
        self.group.join(joiner, waiter, &self.limits, self.now);
        answer
    }

    fn join(&mut self, member: &str) -> Receiver<JoinGroupResponse> {
        self.join_as(member, None, &["range"])
    }

    /// Lets time pass, one due moment after the other, as the clock does.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.group.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.group.expire(&self.limits, self.now);
        }
        self.now = end;
    }

    fn sync(&mut self, member: &str) -> Receiver<SyncGroupResponse> {
        let (waiter, answer) = Waiter::new();
        let assigning = Assigning {
            protocol_type: None,
            protocol: None,
            assignments: [(member.to_owned(), Bytes::from_static(b"a"))].into(),
        };
        let caller = self.caller(member);
        self.group.sync(caller, assigning, waiter, self.now);
        answer
    }

    fn caller<'a>(&self, member: &'a str) -> Caller<'a> {
        Caller {
            member_id: member,
            instance: None,
            generation: self.group.generation,
        }
    }

    fn beat(&mut self, member: &str) -> Result<(), ResponseError> {
        let caller = self.caller(member);
        self.group.heartbeat(caller, self.now)
    }

    /// A member that came first, with its assignment.
    fn stable(&mut self) -> String {
        let mut answer = self.join("");
        self.pass(DELAY);
        let joined = answer.try_recv().unwrap();
        let member = joined.member_id.to_string();
        self.sync(&member).try_recv().unwrap();
        assert_eq!(self.group.state, GroupState::Stable);
        member
    }

    /// Two members of one generation, both with their assignment; the first leads.
    fn pair(&mut self) -> (String, String) {
        let first = self.stable();
        let mut second = self.join("");
        let mut again = self.join(&first);
        again.try_recv().unwrap();
        let second = second.try_recv().unwrap().member_id.to_string();
        self.sync(&first).try_recv().unwrap();
        self.sync(&second).try_recv().unwrap();
        assert_eq!(
            (self.group.state, self.group.generation),
            (GroupState::Stable, 2)
        );
        (first, second)
    }
}

#[test]
fn the_first_rebalance_waits_for_more_members_and_longer_when_one_comes() {
    let mut bench = Bench::new();
    let mut first = bench.join("");
    bench.pass(SECOND);
    let mut second = bench.join("");
    bench.pass(DELAY);
    assert!(first.try_recv().is_err(), "the wait was extended");
    bench.pass(DELAY - SECOND);
    let (first, second) = (first.try_recv().unwrap(), second.try_recv().unwrap());
    assert_eq!((first.generation_id, second.generation_id), (1, 1));
    assert_eq!((first.members.len(), second.members.len()), (2, 0));
    assert_eq!(
        (&first.leader, &second.leader),
        (&first.member_id, &first.member_id)
    );
}

#[test]
fn the_first_rebalance_is_not_extended_beyond_the_rebalance_timeout() {
    let mut bench = Bench::new();
    let mut first = bench.join("");
    bench.limits.members_max = 1000;
    let mut waited = Duration::ZERO;
    while first.try_recv().is_err() {
        drop(bench.join(""));
        bench.pass(SECOND);
        waited += SECOND;
    }
    assert!(
        (REBALANCE - DELAY..=REBALANCE).contains(&waited),
        "{waited:?}"
    );
}

#[test]
fn a_member_without_heartbeats_is_removed_and_the_others_rebalance() {
    let mut bench = Bench::new();
    let (first, second) = bench.pair();
    for _ in 0..9 {
        bench.pass(SECOND);
        assert_eq!(bench.beat(&second), Ok(()));
    }
    bench.pass(SECOND);
    assert_eq!(bench.group.state, GroupState::PreparingRebalance);
    assert_eq!(bench.beat(&first), Err(ResponseError::UnknownMemberId));
    assert_eq!(bench.beat(&second), Err(ResponseError::RebalanceInProgress));
    let joined = bench.join(&second).try_recv().unwrap();
    assert_eq!(
        (joined.generation_id, joined.leader.as_str()),
        (3, second.as_str())
    );
}

#[test]
fn a_waiting_member_needs_no_heartbeats_and_one_that_does_not_join_is_left_out() {
    let mut bench = Bench::new();
    let (first, second) = bench.pair();
    let mut rejoined = bench.join(&first);
    // Heartbeats alone do not save the second: it must join.
    let mut waited = Duration::ZERO;
    while waited < REBALANCE {
        assert_eq!(bench.beat(&second), Err(ResponseError::RebalanceInProgress));
        assert!(rejoined.try_recv().is_err());
        bench.pass(SECOND);
        waited += SECOND;
    }
    let rejoined = rejoined.try_recv().unwrap();
    assert_eq!((rejoined.generation_id, rejoined.members.len()), (3, 1));
    assert_eq!(bench.beat(&second), Err(ResponseError::UnknownMemberId));
}

#[test]
fn who_does_not_ask_for_its_assignment_is_removed() {
    let mut bench = Bench::new();
    let mut first = bench.join("");
    let mut second = bench.join("");
    bench.pass(DELAY + DELAY);
    let first = first.try_recv().unwrap().member_id.to_string();
    let second = second.try_recv().unwrap().member_id.to_string();
    let mut waits = bench.sync(&second);
    let mut waited = Duration::ZERO;
    while waited < REBALANCE {
        assert_eq!(bench.beat(&first), Ok(()));
        assert!(waits.try_recv().is_err());
        bench.pass(SECOND);
        waited += SECOND;
    }
    let refused = waits.try_recv().unwrap().error_code;
    assert_eq!(refused, code(ResponseError::RebalanceInProgress));
    assert_eq!(bench.beat(&first), Err(ResponseError::UnknownMemberId));
    let alone = bench.join(&second).try_recv().unwrap();
    assert_eq!((alone.generation_id, alone.members.len()), (2, 1));
}

#[test]
fn an_id_that_never_joins_expires_and_holds_up_nobody_longer() {
    let mut bench = Bench::new();
    let first = bench.stable();
    let end = bench.now + SESSION;
    bench.group.pending.insert("given-out".to_owned(), end);
    let mut rejoined = bench.join(&first);
    bench.pass(SESSION - SECOND);
    assert!(rejoined.try_recv().is_err(), "it might still come");
    bench.pass(SECOND);
    assert_eq!(rejoined.try_recv().unwrap().error_code, 0);
    let late = bench.join("given-out").try_recv().unwrap();
    assert_eq!(late.error_code, code(ResponseError::UnknownMemberId));
}

#[test]
fn a_missing_static_member_keeps_its_place_until_its_session_ends() {
    let mut bench = Bench::new();
    let mut first = bench.join_as("", Some("i"), &["range"]);
    let mut second = bench.join_as("", Some("j"), &["range"]);
    bench.pass(DELAY + DELAY);
    let leader = first.try_recv().unwrap().member_id.to_string();
    second.try_recv().unwrap();
    bench.sync(&leader).try_recv().unwrap();
    // The leader asks for a rebalance; the other does not come, and its session ends before the join phase.
    let mut rejoined = bench.join_as(&leader, Some("i"), &["range"]);
    bench.pass(SESSION - SECOND);
    assert!(rejoined.try_recv().is_err());
    assert_eq!(bench.group.members.len(), 2);
    bench.pass(SECOND);
    assert_eq!(rejoined.try_recv().unwrap().members.len(), 1);
}

#[test]
fn the_protocol_that_most_like_best_is_taken_among_those_that_all_know() {
    let mut bench = Bench::new();
    let mut answers = Vec::new();
    for protocols in [
        &["sticky", "range", "robin"][..],
        &["range", "robin"],
        &["robin", "range"],
    ] {
        answers.push(bench.join_as("", None, protocols));
    }
    bench.pass(REBALANCE);
    let joined = answers.remove(0).try_recv().unwrap();
    assert_eq!(joined.protocol_name.unwrap().as_str(), "range");
}

#[test]
fn a_group_takes_no_more_members_than_it_may_have() {
    let mut bench = Bench::new();
    let answers: Vec<_> = (0..3).map(|_| bench.join("")).collect();
    let refused = bench.join("").try_recv().unwrap();
    assert_eq!(refused.error_code, code(ResponseError::GroupMaxSizeReached));
    bench.pass(REBALANCE);
    let members = answers
        .into_iter()
        .map(|mut answer| answer.try_recv().unwrap());
    assert_eq!(members.map(|one| one.members.len()).max(), Some(3));
}

#[test]
fn a_request_that_is_overtaken_ends_without_an_answer() {
    let mut bench = Bench::new();
    let (first, _) = bench.pair();
    let mut overtaken = bench.join(&first);
    let mut newer = bench.join(&first);
    assert!(matches!(
        overtaken.try_recv(),
        Err(tokio::sync::oneshot::error::TryRecvError::Closed)
    ));
    assert!(matches!(
        newer.try_recv(),
        Err(tokio::sync::oneshot::error::TryRecvError::Empty)
    ));
}

#[test]
fn the_last_member_leaves_an_empty_group_of_the_next_generation() {
    let mut bench = Bench::new();
    let member = bench.stable();
    bench.pass(SESSION);
    assert_eq!(
        (bench.group.state, bench.group.generation),
        (GroupState::Empty, 2)
    );
    assert_eq!(bench.beat(&member), Err(ResponseError::UnknownMemberId));
    assert_eq!(
        bench.group.next_deadline(),
        None,
        "nothing is left to wait for"
    );
}
