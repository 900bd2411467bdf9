use std::cell::Cell;

use super::super::registry::new_registry;
use super::super::status::{EndpointStatus, ReadAheadStatus, StatusBoard};
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A document at offset 17 of `docs/0`, somewhere.
fn partition(stage: Stage) -> PartitionStatus {
    PartitionStatus {
        topic: "docs".to_owned(),
        partition: 0,
        owner_epoch: 1,
        next_fetch_offset: Offset::new(20),
        commit_offset: Offset::new(17),
        high_watermark: Offset::new(20),
        open: 1,
        queued: 0,
        in_flight: 1,
        waiting_for_turn: 0,
        appending: 0,
        unacknowledged: 0,
        append_ms: None,
        head: Some(Head {
            offset: Offset::new(17),
            stage,
        }),
        oldest_open_ms: Some(10),
        commit_bytes: 0,
        waits_for_room: false,
        read_ahead_waits: None,
    }
}

struct Scene {
    board: StatusBoard,
    watchdog: Watchdog,
    begin: Instant,
    seconds: u64,
    parts: Cell<u64>,
}

impl Scene {
    fn new(partition: PartitionStatus) -> Self {
        let board = StatusBoard::new(&mut new_registry());
        board.set_state(RunState::Running);
        board.set_partition(partition);
        Self {
            board,
            watchdog: Watchdog::new(PATIENCE),
            begin: Instant::now(),
            seconds: 0,
            parts: Cell::new(0),
        }
    }

    fn model(&self, model: ModelStatus) {
        self.board.set_load(model, ReadAheadStatus::default());
    }

    /// What is told over that many seconds.
    fn watch(&mut self, seconds: u64) -> Vec<Bark> {
        let mut barks = Vec::new();
        for _ in 0..seconds {
            self.seconds += 1;
            let now = self.begin + Duration::from_secs(self.seconds);
            let wall = Timestamp::UNIX_EPOCH;
            let status = self.board.snapshot();
            let parts = |_: &TopicPartition, _| self.parts.get();
            barks.extend(self.watchdog.look(now, wall, &status, parts));
        }
        barks
    }

    fn stalled(&self) -> usize {
        let status = self.board.snapshot();
        self.watchdog.stalled(&status.partitions).len()
    }
}

#[test]
fn a_document_that_nothing_becomes_of_is_told_once_and_by_its_offset() {
    let mut scene = Scene::new(partition(Stage::WithModel));
    assert_eq!(scene.watch(60), []);
    let barks = scene.watch(600);
    let [Bark::Stalled(stall, stood_for)] = &barks[..] else {
        panic!("{barks:?}");
    };
    assert_eq!((stall.partition, stall.offset.value()), (0, 17));
    assert_eq!(*stood_for, PATIENCE);
    assert_eq!(stall.told(), "offset 17 is with the model");
    assert_eq!(scene.stalled(), 1);
    // Others behind it are answered: that is no progress of the partition.
    let mut others = partition(Stage::WithModel);
    others.waiting_for_turn = 5;
    others.next_fetch_offset = Offset::new(30);
    scene.board.set_partition(others);
    assert_eq!((scene.watch(10), scene.stalled()), (vec![], 1));

    let mut moved = partition(Stage::WithModel);
    moved.commit_offset = Offset::new(18);
    moved.head = Some(Head {
        offset: Offset::new(18),
        stage: Stage::WithModel,
    });
    scene.board.set_partition(moved);
    let barks = scene.watch(1);
    assert!(matches!(&barks[..], [Bark::GoesOn(..)]), "{barks:?}");
    assert_eq!(scene.stalled(), 0);
}

#[test]
fn one_that_ends_and_leaves_no_work_is_told_to_go_on() {
    let mut scene = Scene::new(partition(Stage::Appending));
    assert_eq!(scene.watch(70).len(), 1);
    scene.board.set_partition(PartitionStatus {
        head: None,
        open: 0,
        commit_offset: Offset::new(20),
        ..partition(Stage::Appending)
    });
    assert!(matches!(scene.watch(1)[..], [Bark::GoesOn(..)]));
    assert_eq!(scene.watch(600), []);
}

#[test]
fn slow_but_moving_is_no_stall() {
    let mut scene = Scene::new(partition(Stage::WithModel));
    for part in 0..20 {
        // A filing of many parts: one is answered each 50 s.
        scene.parts.set(part);
        assert_eq!(scene.watch(50), [], "part {part}");
    }
    assert_eq!(scene.watch(100).len(), 1, "no part any more");
}

#[test]
fn what_something_else_tells_of_is_not_told() {
    let held = ModelStatus {
        held: Some("503".to_owned()),
        ..ModelStatus::default()
    };
    let over_budget = ModelStatus {
        waiting_for_budget: 1,
        ..ModelStatus::default()
    };
    let others_run = ModelStatus {
        endpoints: vec![EndpointStatus {
            in_flight: 1,
            ..EndpointStatus::default()
        }],
        ..ModelStatus::default()
    };
    for (stage, model) in [
        (Stage::WithModel, held.clone()),
        (Stage::Queued, held.clone()),
        (Stage::WithModel, over_budget),
        (Stage::Queued, others_run.clone()),
    ] {
        let mut scene = Scene::new(partition(stage));
        scene.model(model);
        assert_eq!(scene.watch(600), []);
        // Its time begins when that is over.
        scene.model(ModelStatus::default());
        assert_eq!(scene.watch(59), []);
        assert_eq!(scene.watch(2).len(), 1);
    }
    for (stage, model) in [(Stage::Appending, held), (Stage::WithModel, others_run)] {
        let mut scene = Scene::new(partition(stage));
        scene.model(model);
        assert_eq!(scene.watch(600).len(), 1, "{stage:?}");
    }
    for (what, count) in [
        ("results of docs/0", 0),
        ("partition docs/0", 0),
        ("partition docs/10", 1),
        ("read-ahead of docs/0", 1),
    ] {
        let mut scene = Scene::new(partition(Stage::WithModel));
        scene.board.set_hold(what, "why");
        assert_eq!(scene.watch(600).len(), count, "{what}");
    }
}

#[test]
fn records_that_are_there_and_are_not_read_are_told() {
    let unread = PartitionStatus {
        head: None,
        open: 0,
        in_flight: 0,
        commit_offset: Offset::new(20),
        high_watermark: Offset::new(40),
        ..partition(Stage::WithModel)
    };
    let mut scene = Scene::new(unread.clone());
    let barks = scene.watch(61);
    let [Bark::Stalled(stall, _)] = &barks[..] else {
        panic!("{barks:?}");
    };
    assert_eq!(stall.told(), "offset 20 is there to be read, and is not");
    let mut waits = Scene::new(PartitionStatus {
        waits_for_room: true,
        ..unread
    });
    assert_eq!(waits.watch(600), [], "others have the room");
}

#[test]
fn while_it_drains_nobody_watches() {
    let mut scene = Scene::new(partition(Stage::WithModel));
    scene.board.set_state(RunState::Draining);
    assert_eq!(scene.watch(600), []);
}
