//! How many calls run at once is found out: near what the server can use, whether it tells its load or not.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kafka_llm_processor::llm::{LlmConfig, VllmClient};
use kafka_llm_processor::sandbox::vllm::{Answers, Vllm, VllmConfig};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::harness::{PATIENCE, ask, client, config, eventually, fixed, serve, taking, text};

/// Documents at hand: more than any server here can use. Calls take long, so that a busy machine can keep up with them.
const AT_HAND: usize = 160;

/// The share of what a server can do that must be seen before it is said to be used.
const KEEPS_UP: f64 = 0.75;

/// Documents that never run out, until it is dropped.
struct Load {
    client: Arc<VllmClient>,
    answered: Arc<AtomicU64>,
    _work: JoinSet<()>,
}

impl Load {
    fn new(config: &LlmConfig) -> Self {
        let client = client(config);
        let answered = Arc::new(AtomicU64::new(0));
        let mut work = JoinSet::new();
        for _ in 0..AT_HAND {
            let (client, answered) = (Arc::clone(&client), Arc::clone(&answered));
            work.spawn(async move {
                loop {
                    ask(Arc::clone(&client), 1, text(1)).await.unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self {
            client,
            answered,
            _work: work,
        }
    }

    fn limit(&self) -> usize {
        self.client.state().limit
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// The mean of the limit over a time, and answers a second.
    async fn watch(&self, time: Duration) -> (usize, f64) {
        let began = Instant::now();
        let before = self.answered();
        let (mut sum, mut readings) = (0, 0);
        while began.elapsed() < time {
            sum += self.limit();
            readings += 1;
            sleep(Duration::from_millis(20)).await;
        }
        let answered = f64::from(u32::try_from(self.answered() - before).unwrap());
        (sum / readings, answered / began.elapsed().as_secs_f64())
    }

    /// Waits for two seconds in which the limit lies within `limits` while the server does what it can, which is `full_rate`. While this
    /// machine does not keep up, it is not the server that bounds the limit. Calls of one batch end together, five batches in this time.
    async fn settles(&self, limits: RangeInclusive<usize>, full_rate: f64) {
        let began = Instant::now();
        loop {
            let (limit, rate) = self.watch(Duration::from_secs(2)).await;
            if limits.contains(&limit) && rate >= full_rate * KEEPS_UP {
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{limit} is not within {limits:?}, at {rate} of {full_rate} a second"
            );
        }
    }
}

async fn server(slots: usize, ms: u64, change: impl FnOnce(&mut VllmConfig)) -> Vllm {
    let mut config = VllmConfig {
        max_num_seqs: slots,
        answers: Answers::Fixed("Revenue rose.".to_owned()),
        requests_logged: 1,
        ..taking(ms)
    };
    change(&mut config);
    serve(config).await
}

/// Answers a second of `slots` calls at once that take `ms` each.
fn full_rate(slots: u32, ms: u32) -> f64 {
    f64::from(slots) * 1_000.0 / f64::from(ms)
}

/// Two servers at once, one of them small. 64 is where the limit begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_load_is_told_the_limit_settles_a_little_above_what_runs() {
    let small = server(8, 100, |_config| {}).await;
    let large = server(48, 400, |_config| {}).await;
    let (small, large) = (Load::new(&config(&small)), Load::new(&config(&large)));
    tokio::join!(
        small.settles(8..=14, full_rate(8, 100)),
        large.settles(48..=66, full_rate(48, 400))
    );
}

/// The server refuses what is beyond twelve: it is kept below that, and all it can do is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_queue_is_bounded_the_limit_stays_below_its_bound() {
    let bounded = |told| {
        server(8, 100, move |config| {
            config.max_num_queued_reqs = Some(12);
            config.reports_load = told;
        })
    };
    let (telling, silent) = (bounded(true).await, bounded(false).await);
    let (telling_load, silent_load) = (Load::new(&config(&telling)), Load::new(&config(&silent)));
    tokio::join!(
        telling_load.settles(8..=12, full_rate(8, 100)),
        silent_load.settles(8..=12, full_rate(8, 100))
    );
    // Growth is tried now and then; most calls are answered.
    let count = || {
        let calls = telling.calls() + silent.calls();
        (calls, telling_load.answered() + silent_load.answered())
    };
    let before = count();
    sleep(Duration::from_secs(1)).await;
    let (calls, answered) = count();
    let (calls, answered) = (calls - before.0, answered - before.1);
    assert!(
        calls * 8 < answered * 10 + 24 * 10,
        "{answered} of {calls} calls"
    );
}

/// Beside one whose number of calls is right from the start, under the same noise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_load_is_not_told_throughput_is_that_of_the_best_fixed_number() {
    let silent = |config: &mut VllmConfig| config.reports_load = false;
    let (found, best) = (server(48, 400, silent).await, server(48, 400, silent).await);
    let found = Load::new(&config(&found));
    let best = Load::new(&fixed(config(&best), 60));
    sleep(Duration::from_secs(2)).await;
    let time = Duration::from_secs(2);
    let began = Instant::now();
    loop {
        let ((limit, rate), (_, best)) = tokio::join!(found.watch(time), best.watch(time));
        let is_busy = best < full_rate(48, 400) * KEEPS_UP;
        if rate >= best * 0.95 && !is_busy {
            break;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{rate} of {best} a second, with {limit} at once"
        );
    }
}

/// In five seconds it answers 24 calls twelve and a half times, and what ran before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_server_can_carry_half_the_limit_falls_within_five_seconds() {
    let server = server(48, 400, |_config| {}).await;
    let load = Load::new(&config(&server));
    load.settles(48..=66, full_rate(48, 400)).await;
    server.set_max_num_seqs(24);
    let before = load.answered();
    eventually("the limit falls", PATIENCE, || load.limit() <= 36).await;
    let answered = load.answered() - before;
    assert!(answered <= 24 * 25 / 2 + 48, "{answered}");
    load.settles(24..=36, full_rate(24, 400)).await;
}
