//! What Kafka refuses to members of a group: one table, run against the sandbox always and against a real broker when `REAL_KAFKA`
//! names one.

use std::time::Duration;

use kafka_llm_processor::sandbox::broker::BrokerConfig;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DescribeGroupsRequest, FindCoordinatorRequest, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, OffsetCommitRequest, SyncGroupRequest,
};
use uuid::Uuid;

use crate::groups::{Member, commit, heartbeat, id, join, leave, start, subscription, sync, word};
use crate::refusals::{Found, assert_refusals, creatable, create};
use crate::wire::Wire;

#[tokio::test]
async fn the_sandbox_refuses_members_as_kafka_does() {
    let broker = start(BrokerConfig::default()).await;
    assert_refusals(&ask_everything(&broker.bootstrap()).await);
    broker.shutdown().await;
}

#[tokio::test]
async fn kafka_refuses_members_as_the_sandbox_does() {
    let Ok(address) = std::env::var("REAL_KAFKA") else {
        println!("skipped: REAL_KAFKA names no broker");
        return;
    };
    assert_refusals(&ask_everything(&address).await);
}

/// The groups and the topic of one run.
struct Asker {
    address: String,
    wire: Wire,
    prefix: String,
    topic: String,
    found: Found,
}

impl Asker {
    fn group(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn push(&mut self, what: &'static str, expected: i16, code: i16) {
        self.found.push((what, expected, code));
    }

    async fn joins(&mut self, what: &'static str, expected: i16, request: &JoinGroupRequest) {
        let answer = self.wire.call(9, request).await;
        self.push(what, expected, answer.error_code);
    }

    async fn syncs(&mut self, what: &'static str, expected: i16, request: &SyncGroupRequest) {
        let answer = self.wire.call(5, request).await;
        self.push(what, expected, answer.error_code);
    }

    async fn beats(&mut self, what: &'static str, expected: i16, group: &str, who: (&str, i32)) {
        let request = heartbeat(group, who.0, who.1);
        let answer = self.wire.call(4, &request).await;
        self.push(what, expected, answer.error_code);
    }

    async fn leaves(&mut self, what: &'static str, expected: i16, request: &LeaveGroupRequest) {
        let answer = self.wire.call(5, request).await;
        self.push(what, 0, answer.error_code);
        self.push(what, expected, answer.members[0].error_code);
    }

    async fn commits(&mut self, what: &'static str, expected: i16, request: &OffsetCommitRequest) {
        let answer = self.wire.call(8, request).await;
        self.push(what, expected, answer.topics[0].partitions[0].error_code);
    }

    async fn deletes(&mut self, what: &'static str, expected: i16, group: &str) {
        let request = DeleteGroupsRequest::default().with_groups_names(vec![id(group)]);
        let answer = self.wire.call(2, &request).await;
        self.push(what, expected, answer.results[0].error_code);
    }

    async fn is_in_state(&mut self, group: &str, state: &str) -> bool {
        let request = DescribeGroupsRequest::default().with_groups(vec![id(group)]);
        let answer = self.wire.call(5, &request).await;
        answer.groups[0].group_state.as_str() == state
    }

    async fn wait_for_state(&mut self, group: &str, state: &str) {
        for _ in 0..200 {
            if self.is_in_state(group, state).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{group} does not get into {state}");
    }
}

async fn ask_everything(address: &str) -> Found {
    let prefix = format!("members-{}", Uuid::new_v4().simple());
    let topic = format!("{prefix}-topic");
    let mut wire = Wire::connect(address).await;
    create(&mut wire, creatable(&topic, &[])).await;
    let mut asker = Asker {
        address: address.to_owned(),
        wire,
        prefix,
        topic,
        found: Vec::new(),
    };
    find_coordinator(&mut asker).await;
    strangers(&mut asker).await;
    members(&mut asker).await;
    during_a_rebalance(&mut asker).await;
    static_members(&mut asker).await;
    a_static_leader_comes_back(&mut asker).await;
    a_static_member_waits(&mut asker).await;
    asker.found
}

/// A young cluster makes the topic of the groups first.
async fn find_coordinator(asker: &mut Asker) {
    let group = asker.group("first");
    let find = FindCoordinatorRequest::default().with_coordinator_keys(vec![word(&group)]);
    for _ in 0..100 {
        let found = asker.wire.call(4, &find).await.coordinators[0].error_code;
        let beat = heartbeat(&group, "m", 1);
        if found == 0 && asker.wire.call(4, &beat).await.error_code == 25 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no coordinator");
}

/// Those who are in no group.
async fn strangers(asker: &mut Asker) {
    let group = asker.group("strange");
    let join_new = || join(&group, "", None);
    for (what, expected, request) in [
        ("join: no group id", 24, join("", "", None)),
        (
            "join: short session",
            26,
            join_new().with_session_timeout_ms(5_999),
        ),
        (
            "join: long session",
            26,
            join_new().with_session_timeout_ms(1_800_001),
        ),
        (
            "join: negative session",
            26,
            join_new().with_session_timeout_ms(-1),
        ),
        ("join: unknown group", 25, join(&group, "m", None)),
        ("join: no protocols", 23, join_new().with_protocols(vec![])),
        ("join: no type", 23, join_new().with_protocol_type(word(""))),
        ("join: without an id", 79, join_new()),
        ("join: another id", 25, join(&group, "m", None)),
        ("join: unknown instance", 25, join(&group, "m", Some("i"))),
    ] {
        asker.joins(what, expected, &request).await;
    }
    let none = asker.group("none");
    let unnamed = sync(&none, "m", 1, &[]).with_protocol_type(None);
    asker
        .syncs("sync: unknown group", 25, &sync(&none, "m", 1, &[]))
        .await;
    asker
        .syncs("sync: no group id", 24, &sync("", "m", 1, &[]))
        .await;
    asker.syncs("sync: no protocol", 23, &unnamed).await;
    asker
        .beats("heartbeat: unknown group", 25, &none, ("m", 1))
        .await;
    asker
        .beats("heartbeat: no group id", 24, "", ("m", 1))
        .await;
    asker
        .leaves("leave: unknown group", 25, &leave(&none, "m", None))
        .await;
    let no_group = asker.wire.call(5, &leave("", "m", None)).await;
    asker.push("leave: no group id", 24, no_group.error_code);
    asker.deletes("delete: unknown group", 69, &none).await;
    let pending = asker.wire.call(9, &join_new()).await.member_id.to_string();
    let contradiction = join(&group, &pending, Some("i"));
    asker
        .joins("join: an id with an instance", -1, &contradiction)
        .await;
    asker
        .beats(
            "heartbeat: before the second join",
            25,
            &group,
            (&pending, 0),
        )
        .await;
    asker
        .leaves(
            "leave: before the second join",
            0,
            &leave(&group, &pending, None),
        )
        .await;
    asker
        .joins(
            "join: an id that has left",
            25,
            &join(&group, &pending, None),
        )
        .await;
    let topic = asker.topic.clone();
    asker
        .commits(
            "commit: of a stranger to an empty group",
            25,
            &commit(&group, &topic, "m", 1),
        )
        .await;
    asker
        .commits(
            "commit: to an empty group",
            0,
            &commit(&group, &topic, "", -1),
        )
        .await;
}

/// A member of a stable group, and what is said in its name.
async fn members(asker: &mut Asker) {
    let group = asker.group("stable");
    let topic = asker.topic.clone();
    let member = Member::alone(&asker.address, &group).await;
    let (name, generation) = (member.id.as_str(), member.generation());
    asker.push("a first generation", 1, i16::try_from(generation).unwrap());
    let mut other_protocol = join(&group, "", None);
    other_protocol.protocols[0].name = word("other");
    asker
        .joins("join: no common protocol", 23, &other_protocol)
        .await;
    let other_type = join(&group, "", None).with_protocol_type(word("connect"));
    asker.joins("join: another type", 23, &other_type).await;
    asker
        .joins("join: unknown member", 25, &join(&group, "m", None))
        .await;
    let fenced = join(&group, name, Some("i"));
    asker
        .joins("join: a dynamic member as static", 25, &fenced)
        .await;
    for (what, expected, request) in [
        ("sync: again", 0, sync(&group, name, generation, &[])),
        (
            "sync: unknown member",
            25,
            sync(&group, "m", generation, &[]),
        ),
        ("sync: old generation", 22, sync(&group, name, 0, &[])),
        ("sync: next generation", 22, sync(&group, name, 9, &[])),
        (
            "sync: another protocol",
            23,
            sync(&group, name, generation, &[]).with_protocol_name(Some(word("other"))),
        ),
        (
            "sync: another type",
            23,
            sync(&group, name, generation, &[]).with_protocol_type(Some(word("connect"))),
        ),
    ] {
        asker.syncs(what, expected, &request).await;
    }
    asker
        .beats("heartbeat: good", 0, &group, (name, generation))
        .await;
    asker
        .beats("heartbeat: unknown member", 25, &group, ("m", generation))
        .await;
    asker
        .beats("heartbeat: old generation", 22, &group, (name, 0))
        .await;
    for (what, expected, who, generation) in [
        ("commit: good", 0, name, generation),
        ("commit: unknown member", 25, "m", generation),
        ("commit: old generation", 22, name, 0),
        ("commit: without a generation", 22, name, -1),
        ("commit: without membership", 25, "", -1),
    ] {
        asker
            .commits(what, expected, &commit(&group, &topic, who, generation))
            .await;
    }
    asker.deletes("delete: with members", 68, &group).await;
    asker
        .leaves("leave: unknown member", 25, &leave(&group, "m", None))
        .await;
    asker
        .leaves("leave: unknown instance", 25, &leave(&group, "", Some("i")))
        .await;
    asker
        .leaves(
            "leave: a dynamic member as static",
            25,
            &leave(&group, name, Some("i")),
        )
        .await;
    asker
        .leaves("leave: good", 0, &leave(&group, name, None))
        .await;
    asker
        .leaves("leave: twice", 25, &leave(&group, name, None))
        .await;
    asker
        .beats("heartbeat: after leaving", 25, &group, (name, generation))
        .await;
    let empty = asker.is_in_state(&group, "Empty").await;
    asker.push("the last one leaves", 1, empty.into());
    asker
        .commits(
            "commit: after leaving",
            25,
            &commit(&group, &topic, name, generation),
        )
        .await;
    asker.deletes("delete: without members", 0, &group).await;
}

async fn during_a_rebalance(asker: &mut Asker) {
    let group = asker.group("rebalancing");
    let topic = asker.topic.clone();
    let mut first = Member::alone(&asker.address, &group).await;
    let (name, generation) = (first.id.clone(), first.generation());
    let second = Member::begin(&asker.address, &group).await;
    asker.wait_for_state(&group, "PreparingRebalance").await;
    asker
        .beats("heartbeat: join phase", 27, &group, (&name, generation))
        .await;
    asker
        .syncs(
            "sync: join phase",
            27,
            &sync(&group, &name, generation, &[]),
        )
        .await;
    asker
        .commits(
            "commit: join phase",
            0,
            &commit(&group, &topic, &name, generation),
        )
        .await;
    first.rejoin(&group).await;
    first.receive_join().await;
    let mut second = Member::joined(second).await;
    let generation = second.generation();
    asker.push("a second generation", 2, i16::try_from(generation).unwrap());
    asker
        .beats("heartbeat: sync phase", 0, &group, (&name, generation))
        .await;
    asker
        .commits(
            "commit: sync phase",
            27,
            &commit(&group, &topic, &name, generation),
        )
        .await;
    asker
        .joins("join: sync phase, again", 0, &join(&group, &name, None))
        .await;
    // The leader leaves while the other waits for its assignment.
    second
        .wire
        .send(5, &sync(&group, &second.id, generation, &[]))
        .await;
    asker
        .beats(
            "heartbeat: while waiting",
            0,
            &group,
            (&second.id, generation),
        )
        .await;
    asker
        .leaves("leave: sync phase", 0, &leave(&group, &name, None))
        .await;
    let synced = second.receive_sync().await;
    asker.push("sync: the leader leaves", 27, synced.error_code);
    second.rejoin(&group).await;
    second.receive_join().await;
    asker.push(
        "a third generation",
        3,
        i16::try_from(second.generation()).unwrap(),
    );
}

/// Joins by instance id, and answers when the join phase ends.
async fn join_static(
    asker: &Asker,
    version: i16,
    group: &str,
    instance: &str,
) -> JoinGroupResponse {
    let mut wire = Wire::connect(&asker.address).await;
    wire.call(version, &join(group, "", Some(instance))).await
}

async fn static_members(asker: &mut Asker) {
    let group = asker.group("static");
    let topic = asker.topic.clone();
    let joined = join_static(asker, 9, &group, "i").await;
    asker.push("join: static", 0, joined.error_code);
    let (old, generation) = (joined.member_id.to_string(), joined.generation_id);
    asker
        .syncs(
            "sync: static",
            0,
            &sync(&group, &old, generation, &[(&old, "a")]),
        )
        .await;
    let again = join_static(asker, 9, &group, "i").await;
    let new = again.member_id.to_string();
    asker.push("static: comes back", 0, again.error_code);
    asker.push("static: under a new id", 1, i16::from(new != old));
    asker.push(
        "static: into the same generation",
        1,
        i16::from(again.generation_id == generation),
    );
    let of = |member: &str| {
        heartbeat(&group, member, generation).with_group_instance_id(Some(word("i")))
    };
    let fenced = asker.wire.call(4, &of(&old)).await;
    asker.push("heartbeat: fenced", 82, fenced.error_code);
    let good = asker.wire.call(4, &of(&new)).await;
    asker.push("heartbeat: the new id", 0, good.error_code);
    asker
        .beats(
            "heartbeat: the old id alone",
            25,
            &group,
            (&old, generation),
        )
        .await;
    let stranger = of(&new).with_group_instance_id(Some(word("j")));
    let stranger = asker.wire.call(4, &stranger).await;
    asker.push("heartbeat: unknown instance", 25, stranger.error_code);
    asker
        .joins("join: fenced", 82, &join(&group, &old, Some("i")))
        .await;
    let instance = Some(word("i"));
    let request = sync(&group, &old, generation, &[]).with_group_instance_id(instance.clone());
    asker.syncs("sync: fenced", 82, &request).await;
    let request = commit(&group, &topic, &old, generation).with_group_instance_id(instance);
    asker.commits("commit: fenced", 82, &request).await;
    asker
        .leaves("leave: fenced", 82, &leave(&group, &old, Some("i")))
        .await;
    asker
        .leaves("leave: by instance id", 0, &leave(&group, "", Some("i")))
        .await;
    let empty = asker.is_in_state(&group, "Empty").await;
    asker.push("static: has left", 1, empty.into());
}

async fn a_static_leader_comes_back(asker: &mut Asker) {
    let group = asker.group("leader");
    let joined = join_static(asker, 9, &group, "i").await;
    let (first, generation) = (joined.member_id.to_string(), joined.generation_id);
    asker
        .syncs(
            "sync: leader",
            0,
            &sync(&group, &first, generation, &[(&first, "a")]),
        )
        .await;
    let with_skip = join_static(asker, 9, &group, "i").await;
    let second = with_skip.member_id.to_string();
    asker.push(
        "v9: skips the assignment",
        1,
        i16::from(with_skip.skip_assignment),
    );
    asker.push(
        "v9: is the leader",
        1,
        i16::from(with_skip.leader.as_str() == second),
    );
    asker.push(
        "v9: sees the members",
        1,
        i16::try_from(with_skip.members.len()).unwrap(),
    );
    let synced = asker
        .wire
        .call(5, &sync(&group, &second, generation, &[]))
        .await;
    asker.push(
        "v9: keeps its assignment",
        1,
        i16::from(&synced.assignment[..] == b"a"),
    );
    let without = join_static(asker, 8, &group, "i").await;
    asker.push(
        "v8: is told of the old leader",
        1,
        i16::from(without.leader.as_str() == second),
    );
    asker.push(
        "v8: sees no members",
        0,
        i16::try_from(without.members.len()).unwrap(),
    );
    let mut changed = join(&group, "", Some("i"));
    changed.protocols[0].metadata = subscription("u");
    let mut wire = Wire::connect(&asker.address).await;
    let changed = wire.call(9, &changed).await;
    asker.push("v9: with another subscription", 0, changed.error_code);
    asker.push(
        "v9: generations passed",
        0,
        i16::try_from(changed.generation_id - generation).unwrap(),
    );
    asker.push(
        "v9: another subscription, skip",
        1,
        i16::from(changed.skip_assignment),
    );
}

/// Whoever waits under the old id is answered when the instance comes back.
async fn a_static_member_waits(asker: &mut Asker) {
    let group = asker.group("waits");
    let joined = join_static(asker, 9, &group, "i").await;
    let (leader, generation) = (joined.member_id.to_string(), joined.generation_id);
    asker
        .syncs("sync: first", 0, &sync(&group, &leader, generation, &[]))
        .await;
    let mut waiting = Wire::connect(&asker.address).await;
    waiting.send(9, &join(&group, "", Some("j"))).await;
    asker.wait_for_state(&group, "PreparingRebalance").await;
    let mut again = Wire::connect(&asker.address).await;
    again.send(9, &join(&group, "", Some("j"))).await;
    let fenced = waiting.receive::<JoinGroupRequest>(9).await;
    asker.push("join: fenced while waiting", 82, fenced.error_code);
    let mut first = Wire::connect(&asker.address).await;
    let joined = first.call(9, &join(&group, &leader, Some("i"))).await;
    asker.push("join: the leader", 0, joined.error_code);
    let generation = joined.generation_id;
    let other = again.receive::<JoinGroupRequest>(9).await;
    let mut request = sync(&group, &other.member_id, generation, &[]);
    request.group_instance_id = Some(word("j"));
    again.send(5, &request).await;
    // In the middle of an assignment a comeback begins a new rebalance.
    let mut third = Wire::connect(&asker.address).await;
    asker
        .beats(
            "heartbeat: waits",
            0,
            &group,
            (&other.member_id, generation),
        )
        .await;
    third.send(9, &join(&group, "", Some("j"))).await;
    let fenced = again.receive::<SyncGroupRequest>(5).await;
    asker.push("sync: fenced while waiting", 82, fenced.error_code);
    asker.wait_for_state(&group, "PreparingRebalance").await;
    first.call(9, &join(&group, &leader, Some("i"))).await;
    let joined = third.receive::<JoinGroupRequest>(9).await;
    let passed = i16::try_from(joined.generation_id - generation).unwrap();
    asker.push("static: a comeback in the sync phase", 1, passed);
}
