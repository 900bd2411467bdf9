//! How many calls run at once is found out: near what the server can use, whether it tells its load or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kafka_llm_processor::llm::{LlmConfig, VllmClient};
use kafka_llm_processor::sandbox::vllm::{Answers, Vllm, VllmConfig};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::harness::{ask, client, config, eventually, fixed, serve, taking, text};

/// Documents at hand: more than any server here can use.
const AT_HAND: usize = 160;

/// Documents that never run out, until it is dropped.
struct Load {
    client: Arc<VllmClient>,
    answered: Arc<AtomicI64>,
    _work: JoinSet<()>,
}

impl Load {
    fn new(config: &LlmConfig) -> Self {
        let client = client(config);
        let answered = Arc::new(AtomicI64::new(0));
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

    /// The mean of the limit over a time, and answers a second.
    async fn watch(&self, time: Duration) -> (usize, f64) {
        let began = Instant::now();
        let before = self.answered.load(Ordering::Relaxed);
        let (mut sum, mut readings) = (0, 0);
        while began.elapsed() < time {
            sum += self.limit();
            readings += 1;
            sleep(Duration::from_millis(20)).await;
        }
        let answered = self.answered.load(Ordering::Relaxed) - before;
        let answered = f64::from(i32::try_from(answered).unwrap());
        (sum / readings, answered / began.elapsed().as_secs_f64())
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

/// Two servers at once, one of them small. 64 is where the limit begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_load_is_told_the_limit_settles_a_little_above_what_runs() {
    let small = server(8, 50, |_config| {}).await;
    let large = server(48, 150, |_config| {}).await;
    let (small_load, large_load) = (Load::new(&config(&small)), Load::new(&config(&large)));
    eventually("both limits settle", Duration::from_secs(8), || {
        small_load.limit() <= 14 && large_load.limit() <= 64
    })
    .await;
    let time = Duration::from_secs(1);
    let ((small, _), (large, rate)) = tokio::join!(small_load.watch(time), large_load.watch(time));
    assert!((8..=16).contains(&small), "{small}");
    assert!((48..=70).contains(&large), "{large} at {rate} a second");
}

/// The server refuses what is beyond twelve: it is kept below that, and all it can do is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_queue_is_bounded_the_limit_stays_below_its_bound() {
    let bounded = |told| {
        server(8, 50, move |config| {
            config.max_num_queued_reqs = Some(12);
            config.reports_load = told;
        })
    };
    let (telling, silent) = (bounded(true).await, bounded(false).await);
    let loads = [Load::new(&config(&telling)), Load::new(&config(&silent))];
    sleep(Duration::from_secs(2)).await;
    let refused = [&telling, &silent].map(Vllm::calls);
    let time = Duration::from_secs(2);
    let watched = tokio::join!(loads[0].watch(time), loads[1].watch(time));
    for (server, (before, (limit, rate))) in [&telling, &silent]
        .into_iter()
        .zip(refused.into_iter().zip([watched.0, watched.1]))
    {
        assert!((7..=13).contains(&limit), "{limit}");
        let calls = f64::from(u32::try_from(server.calls() - before).unwrap());
        // Most calls are answered: growth is tried now and then.
        assert!(
            calls * 0.8 < rate * 2.0 + 20.0,
            "{calls} calls, {rate} answers a second"
        );
    }
}

/// Beside one whose number of calls is right from the start, under the same noise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_load_is_not_told_throughput_is_that_of_the_best_fixed_number() {
    let silent = |config: &mut VllmConfig| config.reports_load = false;
    let (found, best) = (server(48, 150, silent).await, server(48, 150, silent).await);
    let found_load = Load::new(&config(&found));
    let best_load = Load::new(&fixed(config(&best), 60));
    sleep(Duration::from_secs(2)).await;
    let time = Duration::from_secs(3);
    let ((limit, rate), (_, best)) = tokio::join!(found_load.watch(time), best_load.watch(time));
    assert!(
        rate >= best * 0.95,
        "{rate} of {best} a second, with {limit} at once"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_server_can_carry_half_the_limit_falls_within_five_seconds() {
    let server = server(48, 100, |_config| {}).await;
    let load = Load::new(&config(&server));
    sleep(Duration::from_secs(2)).await;
    let before = load.limit();
    assert!(before >= 48, "{before}");
    server.set_max_num_seqs(24);
    eventually("the limit falls", Duration::from_secs(5), || {
        load.limit() <= 36
    })
    .await;
    let (limit, _) = load.watch(Duration::from_secs(1)).await;
    assert!((24..=38).contains(&limit), "{limit}");
}
