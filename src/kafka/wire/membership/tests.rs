use std::future::Future;

use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatResponse, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::{Request, StrBytes};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::protocol::{Assignment, Note};
use super::*;
use crate::kafka::wire::fake::{Asked, FakeBroker, Reply};

const REBALANCE: i16 = 27;
const UNKNOWN_MEMBER: i16 = 25;
const ILLEGAL_GENERATION: i16 = 22;
const FENCED: i16 = 82;
const NOT_COORDINATOR: i16 = 16;
const MEMBER_ID_REQUIRED: i16 = 79;

/// Nothing here takes longer, on a busy machine either.
const SOON: Duration = Duration::from_secs(20);

fn partition(index: i32) -> TopicPartition {
    TopicPartition::new("orders", index)
}

fn partitions(indexes: &[i32]) -> BTreeSet<TopicPartition> {
    indexes.iter().copied().map(partition).collect()
}

fn coordinator(asked: Asked, port: u16) -> Reply {
    let response = FindCoordinatorResponse::default();
    let found = kafka_protocol::messages::find_coordinator_response::Coordinator::default()
        .with_key(StrBytes::from_static_str("group"))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(i32::from(port));
    let response = response.with_coordinators(vec![found]);
    Reply::to::<FindCoordinatorRequest>(asked.version, &response)
}

fn joined(asked: Asked, code: i16) -> Reply {
    let generation = i32::try_from(asked.turn).unwrap() + 1;
    let response = JoinGroupResponse::default()
        .with_error_code(code)
        .with_generation_id(generation)
        .with_protocol_name(Some(StrBytes::from_static_str("any")))
        .with_leader(StrBytes::from_static_str("other"))
        .with_member_id(StrBytes::from_static_str("me"));
    Reply::to::<JoinGroupRequest>(asked.version, &response)
}

fn synced(asked: Asked, code: i16, dealt: &[i32], give_up: &[i32]) -> Reply {
    let assignment = Assignment {
        partitions: partitions(dealt),
        note: Some(Note {
            give_up: partitions(give_up),
            topics: Topics::from([("orders".into(), 4)]),
        }),
    };
    let response = SyncGroupResponse::default()
        .with_error_code(code)
        .with_assignment(assignment.encode().unwrap());
    Reply::to::<SyncGroupRequest>(asked.version, &response)
}

fn beaten(asked: Asked, code: i16) -> Reply {
    let response = HeartbeatResponse::default().with_error_code(code);
    Reply::to::<HeartbeatRequest>(asked.version, &response)
}

/// Starts a coordinator that lets the member in, deals partitions 0 and 1, and leaves what is asked first to the script.
async fn group(mut script: impl FnMut(Asked) -> Option<Reply> + Send + 'static) -> FakeBroker {
    let port = Arc::new(Mutex::new(0));
    let told = Arc::clone(&port);
    let broker = FakeBroker::start(move |asked| {
        if let Some(reply) = script(asked) {
            return reply;
        }
        match asked.key {
            FindCoordinatorRequest::KEY => coordinator(asked, *lock(&told)),
            JoinGroupRequest::KEY => joined(asked, 0),
            SyncGroupRequest::KEY => synced(asked, 0, &[0, 1], &[]),
            HeartbeatRequest::KEY => beaten(asked, 0),
            LeaveGroupRequest::KEY => {
                let response = LeaveGroupResponse::default();
                Reply::to::<LeaveGroupRequest>(asked.version, &response)
            }
            key => panic!("API {key}"),
        }
    })
    .await;
    *lock(&port) = broker.address.port();
    broker
}

fn config() -> MembershipConfig {
    MembershipConfig {
        session_timeout: Duration::from_secs(3),
        heartbeat_interval: Duration::from_millis(20),
        ..MembershipConfig::new("group")
    }
}

fn member(broker: &FakeBroker, config: MembershipConfig) -> Arc<GroupMember> {
    let cluster = Cluster::new(&broker.config());
    Arc::new(GroupMember::new(
        cluster,
        config,
        vec![("orders".to_owned(), 4)],
    ))
}

/// A member's task, and the word to end it.
struct Running {
    member: Arc<GroupMember>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), MembershipError>>,
}

impl Running {
    fn start(broker: &FakeBroker, config: MembershipConfig) -> Self {
        let member = member(broker, config);
        let stop = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&member).run(stop.clone()));
        Self { member, stop, task }
    }

    async fn sees(&self, what: impl FnMut(&Assigned) -> bool) -> Assigned {
        let mut assigned = self.member.assigned();
        let found = in_time(assigned.wait_for(what)).await;
        found.unwrap().clone()
    }

    async fn end(self) -> Result<(), MembershipError> {
        self.stop.cancel();
        in_time(self.task).await.unwrap()
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it comes soon")
}

#[tokio::test]
async fn a_member_joins_under_the_id_it_is_given_and_leaves_at_the_end() {
    let broker = group(|asked| {
        let is_first = asked.key == JoinGroupRequest::KEY && asked.turn == 0;
        is_first.then(|| joined(asked, MEMBER_ID_REQUIRED))
    })
    .await;
    let running = Running::start(&broker, config());
    let assigned = running.sees(|assigned| assigned.generation >= 0).await;
    assert_eq!((assigned.session, assigned.generation), (0, 2));
    assert_eq!(assigned.member_id, "me");
    assert_eq!(assigned.partitions, partitions(&[0, 1]));
    let identity = running.member.identity().unwrap();
    assert_eq!(
        (identity.member_id.as_str(), identity.generation),
        ("me", 2)
    );
    assert_eq!(broker.asked::<JoinGroupRequest>().len(), 2);

    let assigned = running.member.assigned();
    running.end().await.unwrap();
    assert_eq!(broker.asked::<LeaveGroupRequest>().len(), 1);
    assert!(assigned.borrow().partitions.is_empty(), "nothing is ours");
    assert_eq!(assigned.borrow().session, 1);
}

#[tokio::test]
async fn a_static_member_goes_without_a_word() {
    let broker = group(|_| None).await;
    let config = MembershipConfig {
        instance_id: Some("pod-1".to_owned()),
        ..config()
    };
    let running = Running::start(&broker, config);
    running.sees(|assigned| assigned.generation >= 0).await;
    running.end().await.unwrap();
    assert!(broker.asked::<LeaveGroupRequest>().is_empty());
}

#[tokio::test]
async fn a_rebalance_takes_nothing_away_meanwhile() {
    let broker = group(|asked| {
        let is_third = asked.key == HeartbeatRequest::KEY && asked.turn == 2;
        is_third.then(|| beaten(asked, REBALANCE))
    })
    .await;
    let running = Running::start(&broker, config());
    let mut kept = true;
    let assigned = running
        .sees(|assigned| {
            kept &= assigned.generation < 0 || assigned.partitions == partitions(&[0, 1]);
            assigned.generation == 2
        })
        .await;
    assert!(kept);
    assert_eq!(assigned.session, 0, "the membership was never lost");
    running.end().await.unwrap();
}

#[tokio::test]
async fn whoever_is_counted_out_holds_nothing_and_joins_anew() {
    for code in [UNKNOWN_MEMBER, ILLEGAL_GENERATION] {
        let broker = group(move |asked| {
            let is_third = asked.key == HeartbeatRequest::KEY && asked.turn == 2;
            is_third.then(|| beaten(asked, code))
        })
        .await;
        let running = Running::start(&broker, config());
        let assigned = running
            .sees(|assigned| assigned.session == 1 && assigned.generation >= 0)
            .await;
        assert_eq!(assigned.generation, 2);
        running.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_join_that_fails_halfway_is_begun_again() {
    for code in [
        REBALANCE,
        UNKNOWN_MEMBER,
        ILLEGAL_GENERATION,
        NOT_COORDINATOR,
    ] {
        let broker = group(move |asked| {
            let is_first = asked.key == SyncGroupRequest::KEY && asked.turn == 0;
            is_first.then(|| synced(asked, code, &[], &[]))
        })
        .await;
        let running = Running::start(&broker, config());
        let assigned = running.sees(|assigned| assigned.generation >= 0).await;
        assert_eq!(assigned.partitions, partitions(&[0, 1]), "after {code}");
        running.end().await.unwrap();
    }
}

#[tokio::test]
async fn two_processes_with_one_instance_id_do_not_fight() {
    for key in [HeartbeatRequest::KEY, SyncGroupRequest::KEY] {
        let broker = group(move |asked| {
            (asked.key == key).then(|| match key {
                HeartbeatRequest::KEY => beaten(asked, FENCED),
                _ => synced(asked, FENCED, &[], &[]),
            })
        })
        .await;
        let config = MembershipConfig {
            instance_id: Some("pod-1".to_owned()),
            ..config()
        };
        let running = Running::start(&broker, config);
        let error = in_time(running.task).await.unwrap().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("pod-1") && text.contains("kafka.group_instance_id"));
        assert!(running.member.identity().is_none());
    }
}

#[tokio::test]
async fn a_coordinator_that_falls_silent_ends_the_session_on_time() {
    let broker = group(|asked| {
        let is_late = asked.key == HeartbeatRequest::KEY && asked.turn >= 2;
        is_late.then_some(Reply::Silence)
    })
    .await;
    let config = MembershipConfig {
        session_timeout: Duration::from_millis(600),
        ..config()
    };
    let running = Running::start(&broker, config);
    running.sees(|assigned| assigned.generation >= 0).await;
    let until = running.member.valid_until().unwrap();
    let assigned = running.sees(|assigned| assigned.session == 1).await;
    assert!(Instant::now() >= until, "not before its time");
    assert!(assigned.partitions.is_empty());
    assert!(broker.asked::<HeartbeatRequest>().len() > 3, "asked again");
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_task_that_was_not_polled_looks_at_the_clock_first() {
    let broker = group(|_| None).await;
    let config = MembershipConfig {
        session_timeout: Duration::from_millis(300),
        ..config()
    };
    let member = member(&broker, config);
    let mut run = Box::pin(Arc::clone(&member).run(CancellationToken::new()));
    let mut assigned = member.assigned();
    tokio::select! {
        _ = &mut run => panic!("it goes on"),
        found = in_time(assigned.wait_for(|assigned| assigned.generation >= 0)) => drop(found.unwrap()),
    }
    // Nobody polls the task; the clock goes on.
    tokio::time::sleep_until(member.valid_until().unwrap()).await;
    let beats = broker.asked::<HeartbeatRequest>().len();
    tokio::select! {
        _ = &mut run => panic!("it goes on"),
        found = in_time(assigned.wait_for(|assigned| assigned.session == 1)) => drop(found.unwrap()),
    }
    assert_eq!(broker.asked::<HeartbeatRequest>().len(), beats);
}

#[tokio::test]
async fn a_coordinator_that_moved_is_looked_up_again() {
    let broker = group(|asked| {
        let is_second = asked.key == HeartbeatRequest::KEY && asked.turn == 1;
        is_second.then(|| beaten(asked, NOT_COORDINATOR))
    })
    .await;
    let running = Running::start(&broker, config());
    running.sees(|assigned| assigned.generation >= 0).await;
    in_time(async {
        while broker.asked::<HeartbeatRequest>().len() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(broker.asked::<FindCoordinatorRequest>().len(), 2);
    assert_eq!(running.member.assigned().borrow().session, 0);
    running.end().await.unwrap();
}

#[tokio::test]
async fn what_is_to_be_given_up_is_handed_over_when_it_is_let_go() {
    let broker = group(|asked| match (asked.key, asked.turn) {
        (SyncGroupRequest::KEY, 1) => Some(synced(asked, 0, &[0], &[1])),
        (SyncGroupRequest::KEY, _) if asked.turn > 1 => Some(synced(asked, 0, &[0], &[])),
        (HeartbeatRequest::KEY, 2) => Some(beaten(asked, REBALANCE)),
        _ => None,
    })
    .await;
    let running = Running::start(&broker, config());
    running.sees(|assigned| assigned.generation == 1).await;
    assert!(running.member.set_held(partitions(&[0, 1])).is_empty());
    let assigned = running.sees(|assigned| assigned.generation == 2).await;
    assert_eq!(assigned.partitions, partitions(&[0]));
    let beats = broker.asked::<HeartbeatRequest>().len();
    in_time(async {
        while broker.asked::<HeartbeatRequest>().len() < beats + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let joins = broker.asked::<JoinGroupRequest>().len();
    assert_eq!(joins, 2, "not while it is worked on");
    let (told, _) = running.member.subscription();
    assert_eq!(told.owned, partitions(&[0, 1]), "it would be told as ours");
    assert!(running.member.set_held(partitions(&[0])).is_empty());
    running.sees(|assigned| assigned.generation == 3).await;
    assert_eq!(running.member.set_held(partitions(&[1])), partitions(&[1]));
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_topic_that_is_added_is_asked_for() {
    let broker = group(|_| None).await;
    let running = Running::start(&broker, config());
    running.sees(|assigned| assigned.generation == 1).await;
    // Only the leader deals other counts; a member that follows waits for it.
    running.member.set_topics(vec![("orders".to_owned(), 8)]);
    let topics = vec![("orders".to_owned(), 8), ("claims".to_owned(), 1)];
    running.member.set_topics(topics);
    running.sees(|assigned| assigned.generation == 2).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn the_leader_deals_anew_when_a_topic_grows() {
    let broker = group(|asked| {
        (asked.key == JoinGroupRequest::KEY).then(|| {
            let told = Subscription {
                topics: BTreeSet::from(["orders".into()]),
                ..Subscription::default()
            };
            let me = JoinGroupResponseMember::default()
                .with_member_id(StrBytes::from_static_str("me"))
                .with_metadata(told.encode().unwrap());
            let response = JoinGroupResponse::default()
                .with_generation_id(i32::try_from(asked.turn).unwrap() + 1)
                .with_protocol_name(Some(StrBytes::from_static_str("any")))
                .with_leader(StrBytes::from_static_str("me"))
                .with_member_id(StrBytes::from_static_str("me"))
                .with_members(vec![me]);
            Reply::to::<JoinGroupRequest>(asked.version, &response)
        })
    })
    .await;
    let running = Running::start(&broker, config());
    running.sees(|assigned| assigned.generation == 1).await;
    running.member.set_topics(vec![("orders".to_owned(), 8)]);
    running.sees(|assigned| assigned.generation >= 2).await;
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_membership_is_confirmed_by_the_coordinator_only() {
    let broker = group(|asked| match asked.turn {
        _ if asked.key != HeartbeatRequest::KEY => None,
        1 => Some(beaten(asked, REBALANCE)),
        2 => Some(beaten(asked, ILLEGAL_GENERATION)),
        3 => Some(beaten(asked, 30)),
        _ => None,
    })
    .await;
    let member = member(&broker, config());
    assert!(!member.confirm().await.unwrap(), "no member yet");
    member.publish("me", 7, partitions(&[0]));
    assert!(member.confirm().await.unwrap());
    assert!(member.confirm().await.unwrap(), "the group waits for us");
    assert!(!member.confirm().await.unwrap(), "it has gone on");
    member.confirm().await.unwrap_err();
    assert!(member.lose());
    assert!(!member.confirm().await.unwrap(), "no member any more");
}

#[test]
fn only_what_is_ours_can_be_begun() {
    let cluster = Cluster::new(&crate::kafka::KafkaConfig::default());
    let member = GroupMember::new(cluster, config(), Vec::new());
    assert_eq!(member.set_held(partitions(&[0])), partitions(&[0]));
    member.publish("me", 1, partitions(&[0, 1]));
    assert!(member.set_held(partitions(&[0])).is_empty());
    member.publish("me", 2, partitions(&[]));
    let refused = member.set_held(partitions(&[0, 1]));
    assert_eq!(refused, partitions(&[1]), "0 is still being finished");
    assert!(member.set_held(partitions(&[])).is_empty());
    assert_eq!(member.set_held(partitions(&[0])), partitions(&[0]));
}
