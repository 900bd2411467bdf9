//! A thousand input partitions in one process: how soon they are ready, what they cost while nothing happens.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::support::processor::Processor;
use super::table::{Bar, Row, Table};
use super::{Bench, documents};

const MANY: i32 = 1_000;
const READY_WITHIN: Duration = Duration::from_secs(300);
const IDLE_FOR: Duration = Duration::from_secs(30);
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

struct Idle {
    ready_s: f64,
    cpu_percent: f64,
    resident_kib: u64,
}

pub(crate) async fn run(bench: &Bench, table: &mut Table) {
    documents::create(&bench.cluster, "many", MANY).await;
    documents::create(&bench.cluster, "single", 1).await;
    for driver in &bench.drivers {
        let mut runs = [const { Vec::new() }; 3];
        for round in 0..bench.rounds {
            let single = idle(bench, driver, "single", round).await;
            let many = idle(bench, driver, "many", round).await;
            let more_kib = many.resident_kib.saturating_sub(single.resident_kib);
            let each_kib =
                f64::from(u32::try_from(more_kib).expect("a count")) / f64::from(MANY - 1);
            let figures = [many.ready_s, many.cpu_percent, each_kib];
            figures
                .into_iter()
                .zip(&mut runs)
                .for_each(|(figure, runs)| runs.push(figure));
        }
        // The bars are the wire driver's; rskafka has a connection for each partition.
        let is_judged = driver == "wire";
        let rows = [
            ("start to ready", "s", Some(5.0)),
            ("idle", "% of a core", Some(2.0)),
            ("memory of each", "KiB", None),
        ];
        for ((what, unit, bar), runs) in rows.into_iter().zip(runs) {
            table.add(Row {
                what: format!("1,000 partitions: {what}"),
                driver: driver.clone(),
                guarantee: "at least once".to_owned(),
                unit,
                runs,
                disturbed: 0,
                bar: bar.filter(|_| is_judged).map(Bar::AtMost),
            });
        }
    }
}

async fn idle(bench: &Bench, driver: &str, topic: &str, round: usize) -> Idle {
    let group = format!("{topic}-{driver}-{round}");
    let arguments = [
        format!("--set=kafka.brokers={}", bench.broker.address()),
        format!("--group-id={group}"),
        format!("--input-topic={topic}"),
        format!("--output-topic={topic}-results"),
        // Nothing is asked of it.
        "--llm-url=http://127.0.0.1:9".to_owned(),
        format!("--set=kafka.driver={driver}"),
        "--set=admin.listen=127.0.0.1:0".to_owned(),
        "--set=log.file=off".to_owned(),
    ];
    // The topics of the run are made before, as a second start would find them.
    let first = Processor::start(&arguments, &[]);
    first
        .line(&["all partitions are taken over"], READY_WITHIN)
        .await;
    first.drain(DRAIN_WITHIN).await;
    let began = Instant::now();
    let processor = Processor::start(&arguments, &[]);
    processor
        .line(&["all partitions are taken over"], READY_WITHIN)
        .await;
    let ready_s = began.elapsed().as_secs_f64();
    // What the start has left to do is over.
    sleep(Duration::from_secs(2)).await;
    let before = processor.cpu_time();
    sleep(IDLE_FOR).await;
    let cpu = processor.cpu_time() - before;
    let resident_kib = processor.resident_kib();
    processor.drain(DRAIN_WITHIN).await;
    Idle {
        ready_s,
        cpu_percent: cpu.as_secs_f64() / IDLE_FOR.as_secs_f64() * 100.0,
        resident_kib,
    }
}
