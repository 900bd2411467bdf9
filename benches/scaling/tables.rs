//! What was measured beside what was computed, and what is only computed, as the tables of `docs/scaling.md`.

use super::Pair;
use super::model::{Load, REFRESH, is_wire};
use super::service::{COMMIT_PARTITIONS_MAX, Setup};

/// Measured on one Apache Kafka 4.3.1 by `just cost`: from the end of one flush to the next, less the interval.
const FLUSH_AT_LEAST_ONCE: f64 = 0.007;
const FLUSH_EXACTLY_ONCE: f64 = 0.009;
const ROUND_TRIP: f64 = 0.001;
/// `llm.concurrency` starts there, and a GPU with a model of some billion parameters stays near it.
const CALLS: f64 = 64.0;
/// The largest part of a commit partition's log that is not compacted: its newest segment (`segment.bytes`).
const SEGMENT: f64 = 1024.0 * 1024.0;

pub(crate) fn running(rows: &[(Setup, Vec<Pair>, u32)]) {
    println!("\nA second, measured / computed:\n");
    let pairs = rows.first().map(|(_, pairs, _)| names(pairs));
    let columns = ["P × I × E", "documents offered", "guarantee"];
    heading(&[&columns[..], &pairs.unwrap_or_default()].concat());
    for (setup, pairs, documents) in rows {
        println!(
            "| {} × {} × {} | {documents} | {} | {}",
            setup.partitions,
            setup.instances,
            setup.endpoints,
            setup.guarantee(),
            cells(pairs)
        );
    }
}

pub(crate) fn begun(rows: &[(Setup, Vec<Pair>, f64)]) {
    println!("\nA start, measured / computed:\n");
    let pairs = rows.first().map(|(_, pairs, _)| names(pairs));
    let columns = ["P × I", "commit partitions", "guarantee"];
    heading(&[&columns[..], &pairs.unwrap_or_default(), &["time"]].concat());
    for (setup, pairs, seconds) in rows {
        println!(
            "| {} × {} | {} | {} | {} {seconds:.2} s |",
            setup.partitions,
            setup.instances,
            setup.commit_partitions,
            setup.guarantee(),
            cells(pairs)
        );
    }
}

fn names(pairs: &[Pair]) -> Vec<&'static str> {
    pairs.iter().map(|pair| pair.what).collect()
}

pub(crate) fn heading(columns: &[&str]) {
    println!("| {} |", columns.join(" | "));
    println!("|{}", " --- |".repeat(columns.len()));
}

fn cells(pairs: &[Pair]) -> String {
    let cells = pairs.iter().map(|pair| {
        if pair.computed == 0.0 && pair.measured == 0.0 {
            "– |".to_owned()
        } else {
            format!("{} / {} |", short(pair.measured), short(pair.computed))
        }
    });
    cells.collect::<Vec<_>>().join(" ")
}

/// Three digits.
fn short(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.1}"),
        ..10_000.0 => format!("{value:.0}"),
        ..1e6 => format!("{:.0}k", value / 1e3),
        _ => format!("{:.1}M", value / 1e6),
    }
}

/// Documents a second, partitions, instances, endpoints.
const LOADS: [(&str, f64, f64, f64, f64); 8] = [
    ("A", 20.0, 16.0, 1.0, 1.0),
    ("10 A", 200.0, 16.0, 1.0, 10.0),
    ("100 A", 2_000.0, 128.0, 2.0, 100.0),
    ("1,000 A", 20_000.0, 1_000.0, 16.0, 1_000.0),
    ("B", 1_280.0, 16.0, 1.0, 1.0),
    ("10 B", 12_800.0, 64.0, 4.0, 10.0),
    ("100 B", 128_000.0, 512.0, 32.0, 100.0),
    ("1,000 B", 1_280_000.0, 4_096.0, 320.0, 1_000.0),
];

pub(crate) fn computed() {
    println!("\nComputed, on three brokers:\n");
    heading(&[
        "load",
        "documents/s",
        "P × I × E",
        "driver, guarantee",
        "flushes/s",
        "documents of a flush",
        "Produce/s",
        "Fetch/s",
        "MB/s of Fetch beside documents",
        "others/s",
        "commit bytes of a document",
        "connections of a broker",
        "calls of an instance",
        "commit log at a start of an instance",
        "Metadata at a start",
    ]);
    for (name, documents, partitions, instances, endpoints) in LOADS {
        for (driver, exactly_once, interval) in [
            ("at least once", false, 0.01),
            ("exactly once", true, 0.05),
            ("exactly once, commit_interval_ms = 1000", true, 1.0),
        ] {
            let load = Load {
                partitions,
                commit_partitions: partitions.min(f64::from(COMMIT_PARTITIONS_MAX)),
                instances,
                brokers: 3.0,
                documents,
                document_bytes: 1_024.0,
                exactly_once,
                is_wire: is_wire(exactly_once, partitions),
                interval,
                is_group: instances > 1.0,
                flush: if exactly_once {
                    FLUSH_EXACTLY_ONCE
                } else {
                    FLUSH_AT_LEAST_ONCE
                },
                round_trip: ROUND_TRIP,
                refresh: REFRESH,
                early_refreshes: 0.0,
            };
            let cost = load.cost();
            let start = load.take_over(load.commit_partitions * SEGMENT);
            println!(
                "| {name} | {documents:.0} | {partitions:.0} × {instances:.0} × {endpoints:.0} | {driver} | {} | {:.1} | {} | {} | {:.1} | {} | {:.0} | {:.0} | {:.0} | {:.0} MB | {:.1} MB |",
                short(cost.flushes),
                documents / cost.flushes,
                short(cost.produces),
                short(cost.fetches),
                (cost.fetch_bytes - cost.document_bytes) / 1e6,
                short(
                    2.0 * cost.transactions
                        + cost.list_offsets
                        + cost.metadata
                        + cost.mirrors
                        + cost.heartbeats
                ),
                cost.commit_bytes / documents,
                load.connections() / load.brokers,
                CALLS * endpoints / instances,
                start.read_bytes / instances / 1e6,
                start.metadata_bytes / 1e6,
            );
        }
    }
}
