//! A pause begins no new call, finishes and commits what is in flight, and gives up nothing that is owned.

use std::net::SocketAddr;
use std::time::Duration;

use kafka_llm_processor::app::{App, RunEnd};
use kafka_llm_processor::cli::pause::{self, PauseArgs};
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use kafka_llm_processor::telemetry::StatusBoard;
use kafka_llm_processor::telemetry::status::{RunState, Summary};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::harness::{GROUP, World, eventually, plain};

/// A service with an admin server.
struct Service {
    board: StatusBoard,
    admin: SocketAddr,
    drain: CancellationToken,
    task: JoinHandle<(RunEnd, Summary)>,
}

impl Service {
    fn start(world: &World, set: &[&str]) -> Self {
        let set: Vec<_> = set
            .iter()
            .copied()
            .chain(["admin.listen=127.0.0.1:0"])
            .collect();
        let app = App::build(world.settings(&set)).unwrap();
        let (board, admin) = (app.board(), app.admin_addr().unwrap());
        let drain = CancellationToken::new();
        let task = tokio::spawn(app.run(drain.clone(), false));
        Self {
            board,
            admin,
            drain,
            task,
        }
    }

    /// The command, as a person gives it.
    async fn turn(&self, world: &World, paused: bool) -> String {
        let args = PauseArgs {
            admin: Some(self.admin.to_string()),
        };
        let mut out = Vec::new();
        let admin = world.settings(&[]).admin;
        pause::run(&args, &admin, paused, &mut out).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    fn epochs(&self) -> Vec<(i32, u64)> {
        let partitions = self.board.snapshot().partitions.into_iter();
        partitions
            .map(|status| (status.partition, status.owner_epoch))
            .collect()
    }

    async fn end(self) -> RunEnd {
        self.drain.cancel();
        self.task.await.unwrap().0
    }
}

async fn slow_world() -> World {
    let vllm = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(100)),
        ..VllmConfig::default()
    };
    World::with_vllm(2, vllm).await
}

#[tokio::test]
async fn a_pause_finishes_what_is_in_flight_and_keeps_what_is_owned() {
    let world = slow_world().await;
    world.produce(0..60, plain);
    let set = ["llm.concurrency=8", "input.assignment=group"];
    let service = Service::start(&world, &set);
    eventually("calls run", || world.vllm.running() == 8).await;
    let generation = || world.broker.group(GROUP).unwrap().generation;
    let (epochs, dealt) = (service.epochs(), generation());
    let said = service.turn(&world, true).await;
    assert!(said.contains("paused: no new call is begun"), "{said}");
    assert_eq!(service.board.snapshot().state, RunState::Paused);
    eventually("what was in flight is finished and committed", || {
        let committed: i64 = (0..2)
            .filter_map(|partition| world.commit_offset(partition))
            .sum();
        let begun = world.vllm.calls();
        world.vllm.running() == 0
            && world.results().len() == usize::try_from(begun).unwrap()
            && u64::try_from(committed).unwrap() == begun
    })
    .await;
    let begun = world.vllm.calls();
    assert!(begun < 60, "{begun}");
    // It goes on to read, and to commit that it is alive.
    world.produce(60..64, plain);
    eventually("what is new is seen", || {
        let partitions = service.board.snapshot().partitions;
        partitions
            .iter()
            .all(|status| status.high_watermark.value() == 32)
    })
    .await;
    assert!(
        service
            .turn(&world, true)
            .await
            .contains("paused already, since")
    );
    assert_eq!(world.vllm.calls(), begun, "no call was begun");
    assert_eq!((service.epochs(), generation()), (epochs, dealt));

    let said = service.turn(&world, false).await;
    assert!(said.contains("resumed"), "{said}");
    assert!(service.turn(&world, false).await.contains("was not paused"));
    eventually("everything is committed", || world.is_all_committed()).await;
    assert!(matches!(service.end().await, RunEnd::Drained));
    world.assert_all_have_results(64);
    world.assert_nothing_twice();
}

/// Also while documents wait between two calls.
#[tokio::test]
async fn a_stop_does_not_wait_for_the_end_of_a_pause_and_a_restart_begins_to_work() {
    use kafka_llm_processor::sandbox::vllm::{Action, Fault};
    let world = slow_world().await;
    // One that is asked again and again, at no cost: it stands between two calls when the pause comes.
    for _ in 0..1_000 {
        let busy = Fault::new(Action::answer(503, "")).on_prompt("Document 1 ");
        world.vllm.faults().push(busy);
    }
    world.produce(0..30, plain);
    let service = Service::start(&world, &["llm.concurrency=4"]);
    eventually("calls run", || world.vllm.running() > 2).await;
    service.turn(&world, true).await;
    eventually("they are through", || world.vllm.running() == 0).await;
    let began = Instant::now();
    assert!(matches!(service.end().await, RunEnd::Drained));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(world.results().len() < 30);

    world.vllm.faults().clear();
    let service = Service::start(&world, &[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    assert!(matches!(service.end().await, RunEnd::Drained));
    world.assert_all_have_results(30);
    world.assert_nothing_twice();
}
