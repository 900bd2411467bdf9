//! The course of a run: documents come, instances live and die, faults stop, and then everything has to be finished in time.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::pipeline::OnDataLoss;
use kafka_llm_processor::types::{Offset, Record, TopicPartition};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::broker::World;
use crate::instance::{Instance, Life};
use crate::log::Entry;
use crate::oracle::INPUT;
use crate::processor;
use crate::scenario::{Flavour, Scenario, Shares};

/// In how much simulated time after the last fault everything is finished.
const FINISHED_WITHIN: Duration = Duration::from_secs(300);
/// In how much time instances that were overruled have ended.
const ALONE_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// Markers and requests that are on their way have arrived by then.
const SETTLED_AFTER: Duration = Duration::from_secs(15);
/// How often the conductor looks.
const LOOK: Duration = Duration::from_millis(200);

/// What is known at the end of a run.
#[derive(Debug)]
pub struct Outcome {
    pub trace: u64,
    /// What does not hold, when something does not.
    pub violation: Option<String>,
    /// What the run has reached of what it is for.
    pub reached: BTreeSet<&'static str>,
}

/// Runs one scenario on this thread, with its own clock.
pub fn run(scenario: Scenario, printed: bool) -> Outcome {
    kafka_llm_processor::clock::seed_random(scenario.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(scenario, printed);
        if printed {
            println!("{:#?}", world.scenario);
        }
        if let Err(what) = conduct(&world).await {
            world.state().oracle.violated(what);
        }
        let state = &mut *world.state();
        if state.oracle.violation.is_none() {
            state.oracle.check_logs(&state.logs);
        }
        Outcome {
            trace: state.trace.hash(),
            violation: state.oracle.violation.clone(),
            reached: std::mem::take(&mut state.reached),
        }
    })
}

/// What the slots share.
struct Stage {
    world: Arc<World>,
    alive: AtomicUsize,
    /// Faults are over: nothing is started that is not needed.
    calm: CancellationToken,
    /// Somebody has decided to go on without what was lost: whoever runs is started again with other settings.
    decided: CancellationToken,
    /// Everything is finished: whoever is left drains.
    finished: CancellationToken,
}

async fn conduct(world: &Arc<World>) -> Result<(), String> {
    let stage = Arc::new(Stage {
        world: Arc::clone(world),
        alive: AtomicUsize::new(0),
        calm: CancellationToken::new(),
        decided: CancellationToken::new(),
        finished: CancellationToken::new(),
    });
    let fault_phase = world.scenario.fault_phase;
    let mut slots = JoinSet::new();
    for slot in 0..world.scenario.slots {
        slots.spawn(live_again_and_again(Arc::clone(&stage), slot));
    }
    let mut extras = JoinSet::new();
    if world.scenario.faults.forgets_writers {
        extras.spawn(forget_writers(Arc::clone(&stage)));
    }
    if world.scenario.faults.loses_input {
        extras.spawn(lose_input(Arc::clone(&stage)));
    }
    let writing = tokio::spawn(write_documents(Arc::clone(world)));
    sleep(fault_phase).await;
    let ends = writing.await.map_err(|error| error.to_string())?;
    world.note(format_args!("faults are over"));
    world.state().faults_on = false;
    let is_held =
        world.scenario.on_data_loss == OnDataLoss::Hold && !world.state().starts.is_empty();
    world.state().oracle.decide();
    if is_held {
        stage.decided.cancel();
    }
    stage.calm.cancel();

    let finished = async {
        while !world.state().oracle.is_finished(&ends) {
            check(world, &mut slots)?;
            check_dealt(world)?;
            sleep(LOOK).await;
        }
        Ok::<(), String>(())
    };
    match timeout(FINISHED_WITHIN, finished).await {
        Ok(finished) => finished?,
        Err(_elapsed) => return Err(format!("not finished: {}", world.state().oracle.missing())),
    }
    world.note(format_args!("finished"));
    let alone = async {
        while stage.alive.load(Ordering::Relaxed) > 1 {
            sleep(LOOK).await;
        }
    };
    let is_one_instance_s = world.scenario.shares == Shares::All;
    if is_one_instance_s && timeout(ALONE_WITHIN, alone).await.is_err() {
        return Err("two instances go on side by side".to_owned());
    }
    stage.finished.cancel();
    let stopped = async {
        while let Some(ended) = slots.join_next().await {
            ended.map_err(|error| error.to_string())?;
        }
        Ok::<(), String>(())
    };
    match timeout(STOPPED_WITHIN, stopped).await {
        Ok(stopped) => stopped?,
        Err(_elapsed) => return Err("an instance does not stop".to_owned()),
    }
    sleep(SETTLED_AFTER).await;
    // At least once, the claim of an instance that died may land now, with the position that it had read: whoever came next would do again
    // what lies behind it.
    let stays = world.scenario.flavour == Flavour::ExactlyOnce;
    if stays && !world.state().oracle.is_finished(&ends) {
        return Err(format!(
            "the end is not as it was: {}",
            world.state().oracle.missing()
        ));
    }
    Ok(())
}

/// Ends the run early once something does not hold.
fn check(world: &World, slots: &mut JoinSet<()>) -> Result<(), String> {
    while let Some(ended) = slots.try_join_next() {
        ended.map_err(|error| error.to_string())?;
    }
    world.state().oracle.violation.clone().map_or(Ok(()), Err)
}

/// In a group no partition waits for its owner for long.
fn check_dealt(world: &World) -> Result<(), String> {
    if world.scenario.shares != Shares::Group {
        return Ok(());
    }
    match world.state().group.overdue() {
        Some(partition) => Err(format!("partition {partition} waits for its next owner")),
        None => Ok(()),
    }
}

/// What happens to an instance while there are faults.
#[derive(Debug, Clone, Copy)]
enum Act {
    Kill,
    Freeze,
    Drain,
}

impl Stage {
    fn draw(&self, low: u64, high: u64) -> Duration {
        self.world.state().random.millis(low, high)
    }

    /// The next thing that happens to an instance, and when; never in calm.
    async fn next_act(&self) -> Act {
        let acts: Vec<_> = {
            let faults = &self.world.scenario.faults;
            let all = [
                (faults.killed, Act::Kill),
                (faults.frozen, Act::Freeze),
                (faults.drained, Act::Drain),
            ];
            all.into_iter()
                .filter(|(exists, _)| *exists)
                .map(|(_, act)| act)
                .collect()
        };
        if acts.is_empty() {
            return pending().await;
        }
        let after = self.draw(100, 15_000);
        if self.calm.run_until_cancelled(sleep(after)).await.is_none() {
            return pending().await;
        }
        self.world.state().random.pick(&acts)
    }
}

async fn live_again_and_again(stage: Arc<Stage>, slot: u64) {
    let shares = stage.world.scenario.shares;
    if stage.world.scenario.partitions_of(slot).is_empty() {
        return;
    }
    if slot > 0 {
        let delay = stage.draw(0, 10_000);
        sleep(delay).await;
    }
    for run in 0.. {
        if stage.finished.is_cancelled() {
            return;
        }
        if stage.calm.is_cancelled() {
            // One slot goes on: two that are started again and again would overrule each other for ever.
            if slot > 0 && shares != Shares::Disjoint {
                return;
            }
            while shares == Shares::All && stage.alive.load(Ordering::Relaxed) > 0 {
                if stage
                    .finished
                    .run_until_cancelled(sleep(LOOK))
                    .await
                    .is_none()
                {
                    return;
                }
            }
        }
        live(
            &stage,
            slot,
            format!("{}{run}", char::from(b'a' + u8::try_from(slot).unwrap())),
        )
        .await;
        let pause = stage.draw(50, 5_000);
        if stage
            .finished
            .run_until_cancelled(sleep(pause))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// One run of a process.
async fn live(stage: &Stage, slot: u64, name: String) {
    let world = &stage.world;
    let instance = Instance::new(world, name, world.scenario.partitions_of(slot));
    let was_decided = stage.decided.is_cancelled();
    let since = world.state().oracle.now();
    if stage.alive.fetch_add(1, Ordering::Relaxed) > 0 {
        world.state().reached.insert("two side by side");
    }
    instance.note(format_args!("starts"));
    let drain = CancellationToken::new();
    let mut running = Box::pin(processor::run(Arc::clone(&instance), drain.clone()));
    loop {
        tokio::select! {
            biased;
            () = instance.death() => break,
            end = &mut running => {
                instance.note(format_args!("ends: {end:?}"));
                world.state().reached.insert(processor::name_of(&end));
                let is_overruled = world.scenario.shares != Shares::Group
                    && world
                        .state()
                        .oracle
                        .is_overruled(&instance.name, &instance.partitions, since);
                if !processor::may_end(&end, drain.is_cancelled(), is_overruled) {
                    let what = format!("{} ends as it must not: {end:?}", instance.name);
                    world.state().oracle.violated(what);
                }
                break;
            }
            () = stage.decided.cancelled(), if !was_decided => instance.set_life(Life::Dead),
            () = stage.finished.cancelled(), if !drain.is_cancelled() => drain.cancel(),
            act = stage.next_act() => match act {
                Act::Kill => {
                    world.state().reached.insert("killed");
                    instance.set_life(Life::Dead);
                }
                Act::Drain => {
                    instance.note(format_args!("is asked to drain"));
                    drain.cancel();
                }
                Act::Freeze => {
                    instance.set_life(Life::Frozen);
                    let pause = stage.draw(500, 20_000);
                    tokio::select! {
                        biased;
                        () = stage.calm.cancelled() => {}
                        () = sleep(pause) => {}
                    }
                    instance.set_life(Life::Running);
                    world.state().reached.insert("thawed");
                }
            },
        }
    }
    drop(running);
    stage.alive.fetch_sub(1, Ordering::Relaxed);
}

async fn lose_input(stage: Arc<Stage>) {
    let state = || stage.world.state();
    let times = state().random.between(1, 2);
    for _ in 0..times {
        let pause = stage.draw(500, 30_000);
        if stage.calm.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        let partitions = u64::try_from(stage.world.scenario.input_partitions).unwrap();
        let partition = state().random.between(0, partitions - 1);
        let partition = TopicPartition::new(INPUT, i32::try_from(partition).unwrap());
        state().lose_input(&partition);
    }
}

async fn forget_writers(stage: Arc<Stage>) {
    while !stage.calm.is_cancelled() {
        let pause = stage.draw(500, 20_000);
        if stage.calm.run_until_cancelled(sleep(pause)).await.is_some() {
            stage.world.forget_a_writer();
        }
    }
}

/// Writes the input, some of it at once and the rest while the processors run. Answers where each partition ends.
async fn write_documents(world: Arc<World>) -> BTreeMap<i32, Offset> {
    let partitions = u64::try_from(world.scenario.input_partitions).unwrap();
    let at_once = world.state().random.between(0, world.scenario.documents);
    let pause_most =
        world.scenario.fault_phase.as_millis() / u128::from(world.scenario.documents) / 2;
    let pause_most = u64::try_from(pause_most).unwrap();
    for number in 0..world.scenario.documents {
        if number > at_once {
            let pause = world.state().random.millis(0, pause_most);
            sleep(pause).await;
        }
        let state = &mut *world.state();
        let partition = i32::try_from(state.random.between(0, partitions - 1)).unwrap();
        let to = TopicPartition::new(INPUT, partition);
        let log = state.logs.entry(to).or_default();
        for _ in 0..state.random.between(0, 9).saturating_sub(7) {
            log.push(Entry::Gap);
        }
        let key = state.random.pick(&[None, Some("a"), Some("b"), Some("c")]);
        let key = key.map(|key| Bytes::from_static(key.as_bytes()));
        // One in ten is a deletion, one in ten has no text and goes to the dead letters.
        let value = match state.random.between(0, 9) {
            0 => None,
            1 => Some(Bytes::from_static(b" ")),
            _ => Some(Bytes::from(format!("document {number}"))),
        };
        let is_document = value.is_some();
        let record = Record {
            key: key.clone(),
            value,
            ..Record::default()
        };
        let at = log.push(Entry::Data {
            record,
            transaction: None,
            visibility: crate::log::Visibility::Committed,
        });
        if state.random.chance(20) {
            log.push(Entry::Marker { producer: 0 });
        }
        if is_document {
            state.oracle.expects(partition, at, key);
        }
        world.input_grew.notify_waiters();
    }
    let state = world.state();
    let ends = (0..world.scenario.input_partitions).map(|partition| {
        (
            partition,
            state.end_of(&TopicPartition::new(INPUT, partition)),
        )
    });
    ends.collect()
}
