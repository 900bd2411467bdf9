//! The books' entries, read with Kafka's own tools: nothing of the product's code has a part in it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::books::{Books, Commit, Entry};
use crate::scenario::{PARTITIONS, Scenario};
use crate::support::kafka::tool;

/// How long the consumer waits for a next record, on one try after the other.
const PATIENCE_MS: [&str; 3] = ["5000", "15000", "30000"];
/// Between the fields of a line, and between headers: what no field holds.
const FIELD: &str = "|~|";
const HEADER: &str = "|#|";
/// What stands for a key that is not there.
const NO_KEY: &str = "<none>";

/// Reads everything that the books are about.
pub(crate) async fn read(tools: &Path, brokers: &str, scenario: &Scenario) -> Books {
    let input = scenario.input();
    let group = scenario.group();
    let (results, dead_letters, commits) = (
        scenario.results(),
        scenario.dead_letters(),
        scenario.commits(),
    );
    #[rustfmt::skip]
    let lag = ["kafka-consumer-groups", "--bootstrap-server", brokers, "--describe", "--group", &group];
    let (ends, lag, results, dead_letters, commits) = tokio::join!(
        ends(tools, brokers, &input),
        tool(tools, &lag),
        consume(tools, brokers, &results, false),
        consume(tools, brokers, &dead_letters, false),
        consume(tools, brokers, &commits, true),
    );
    Books {
        input: input.clone(),
        ends,
        results: results.lines().map(entry).collect(),
        dead_letters: dead_letters.lines().map(entry).collect(),
        commits: newest_commits(&commits, &input),
        lag: lags(&lag, &input),
    }
}

async fn ends(tools: &Path, brokers: &str, topic: &str) -> BTreeMap<i32, i64> {
    #[rustfmt::skip]
    let offsets = ["kafka-get-offsets", "--bootstrap-server", brokers, "--topic", topic];
    let text = tool(tools, &offsets).await;
    text.lines().map(end).collect()
}

/// All records of a topic. The consumer ends when nothing came for a while, which on a busy machine may be before the last record: then it is
/// given more time.
async fn consume(tools: &Path, brokers: &str, topic: &str, value: bool) -> String {
    let ends = ends(tools, brokers, topic).await;
    for timeout_ms in &PATIENCE_MS[..PATIENCE_MS.len() - 1] {
        let text = consume_within(tools, brokers, topic, value, timeout_ms).await;
        if is_whole(&text, &ends) {
            return text;
        }
    }
    let longest = PATIENCE_MS[PATIENCE_MS.len() - 1];
    consume_within(tools, brokers, topic, value, longest).await
}

async fn consume_within(
    tools: &Path,
    brokers: &str,
    topic: &str,
    value: bool,
    timeout_ms: &str,
) -> String {
    let properties = [
        "print.partition=true".to_owned(),
        "print.offset=true".to_owned(),
        "print.headers=true".to_owned(),
        "print.key=true".to_owned(),
        format!("print.value={value}"),
        format!("key.separator={FIELD}"),
        format!("headers.separator={HEADER}"),
        format!("null.literal={NO_KEY}"),
    ];
    #[rustfmt::skip]
    let mut arguments = vec![
        "kafka-console-consumer", "--bootstrap-server", brokers, "--topic", topic, "--from-beginning",
        "--isolation-level", "read_committed", "--timeout-ms", timeout_ms,
    ];
    for property in &properties {
        arguments.extend(["--formatter-property", property]);
    }
    tool(tools, &arguments).await
}

/// Whether each partition was read to its last record. Behind it lie the markers of the transactions that were open when it was written: at
/// most one for each input partition. An aborted transaction at the end looks like an early end, and costs patience.
fn is_whole(text: &str, ends: &BTreeMap<i32, i64>) -> bool {
    let mut next = BTreeMap::<i32, i64>::new();
    for line in text.lines() {
        let (partition, offset, ..) = fields(line);
        next.insert(partition, offset + 1);
    }
    let mut ends = ends.iter();
    ends.all(|(partition, end)| {
        let next = next.get(partition).copied().unwrap_or_default();
        (end - i64::from(PARTITIONS)..=*end).contains(&next)
    })
}

/// `topic:partition:offset`
fn end(line: &str) -> (i32, i64) {
    let mut parts = line.rsplit(':');
    let offset = parts.next().and_then(|offset| offset.parse().ok());
    let partition = parts.next().and_then(|partition| partition.parse().ok());
    let found = partition.zip(offset);
    found.unwrap_or_else(|| panic!("topic:partition:offset expected: {line}"))
}

/// `Partition:p`, `Offset:o`, headers and key, and for commits the value.
fn fields(line: &str) -> (i32, i64, &str, Vec<&str>) {
    let mut fields = line.split(FIELD);
    let mut next = || fields.next().unwrap_or_default();
    let (partition, offset, headers) = (next(), next(), next());
    let number = |text: &str, name: &str| text.strip_prefix(name)?.parse::<i64>().ok();
    let partition = number(partition, "Partition:").and_then(|number| i32::try_from(number).ok());
    let found = partition.zip(number(offset, "Offset:"));
    let (partition, offset) = found.unwrap_or_else(|| panic!("partition and offset: {line}"));
    (partition, offset, headers, fields.collect())
}

fn entry(line: &str) -> Entry {
    let (partition, offset, headers, rest) = fields(line);
    let header = |name: &str| {
        let mut headers = headers.split(HEADER);
        headers.find_map(|header| header.strip_prefix(name)?.strip_prefix(':'))
    };
    let source = || {
        let partition = header("klp.source.partition")?.parse().ok()?;
        Some((partition, header("klp.source.offset")?.parse().ok()?))
    };
    let key = rest.first().copied().filter(|key| *key != NO_KEY);
    Entry {
        at: (partition, offset),
        topic: header("klp.source.topic").unwrap_or_default().to_owned(),
        source: source().unwrap_or_else(|| panic!("it names its source: {line}")),
        key: key.map(str::to_owned),
    }
}

/// By input partition: of the highest owner epoch the latest, as a recovery takes it.
fn newest_commits(lines: &str, input: &str) -> BTreeMap<i32, Commit> {
    let mut newest = BTreeMap::<i32, (u64, Commit)>::new();
    for line in lines.lines() {
        let (_, _, _, rest) = fields(line);
        let (key, value) = (rest[0], rest[1]);
        let of = key
            .rsplit_once('/')
            .filter(|(topic, _)| *topic == input)
            .and_then(|(_, partition)| partition.parse().ok());
        // Beside them stand the claims of whole groups.
        let Some(of) = of else { continue };
        let value: Value = serde_json::from_str(value).expect("a commit is JSON");
        let epoch = value["owner_epoch"].as_u64().expect("an epoch");
        let commit = Commit {
            next_offset: value["next_offset"].as_i64().expect("an offset"),
            ranges: value["done"].as_array().expect("ranges").len(),
        };
        if newest.get(&of).is_none_or(|(before, _)| *before <= epoch) {
            newest.insert(of, (epoch, commit));
        }
    }
    let commits = newest.into_iter();
    commits.map(|(of, (_, commit))| (of, commit)).collect()
}

/// Rows of `GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …`.
fn lags(table: &str, input: &str) -> BTreeMap<i32, i64> {
    let rows = table.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [_, topic, partition, _, _, lag, ..] = columns.as_slice() else {
            return None;
        };
        let row = partition.parse().ok().zip(lag.parse().ok());
        row.filter(|_| *topic == input)
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_from_its_headers() {
        let line = "Partition:3|~|Offset:17|~|klp.source.topic:storm-1|#|klp.source.partition:5|#|klp.source.offset:9|#|klp.schema:1|~|customer-4";
        let entry = entry(line);
        assert_eq!((entry.at, entry.source), ((3, 17), (5, 9)));
        assert_eq!(entry.topic, "storm-1");
        assert_eq!(entry.key.as_deref(), Some("customer-4"));
    }

    #[test]
    fn a_reading_that_ended_early_is_noticed() {
        let line = |partition: i32, offset: i64| {
            format!("Partition:{partition}|~|Offset:{offset}|~|NO_HEADERS|~|k\n")
        };
        let read = [line(0, 0), line(0, 1), line(1, 0)].concat();
        let whole = |ends: &[(i32, i64)]| is_whole(&read, &ends.iter().copied().collect());
        assert!(whole(&[(0, 2), (1, 1)]));
        assert!(whole(&[(0, 10), (1, 9)]), "markers");
        assert!(!whole(&[(0, 11), (1, 1)]), "more than markers");
        assert!(!whole(&[(0, 2), (1, 1), (2, 9)]), "nothing was read");
    }

    /// A late write of a former owner lies behind the newest, with a lower epoch.
    #[test]
    fn the_highest_epoch_is_the_newest_commit() {
        let line = |key: &str, epoch: u64, next: i64| {
            format!(
                "Partition:0|~|Offset:1|~|NO_HEADERS|~|{key}|~|{{\"owner_epoch\":{epoch},\"next_offset\":{next},\"done\":[]}}"
            )
        };
        let lines = [
            line("(group)/0", 9, 0),
            line("storm-1/2", 1, 10),
            line("storm-1/2", 2, 20),
            line("storm-1/2", 2, 25),
            line("storm-1/2", 1, 15),
        ];
        let commits = newest_commits(&lines.join("\n"), "storm-1");
        assert_eq!(commits.len(), 1);
        assert_eq!(commits[&2].next_offset, 25);
    }

    #[test]
    fn lag_is_a_column() {
        let table = "\n\
            GROUP   TOPIC   PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG CONSUMER-ID HOST CLIENT-ID\n\
            storm-1 storm-1 7         375            380            5   -           -    -\n\
            storm-1 other   1         1              1              0   -           -    -\n";
        assert_eq!(lags(table, "storm-1"), BTreeMap::from([(7, 5)]));
    }
}
