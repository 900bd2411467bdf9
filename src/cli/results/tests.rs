use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::records::dead_letter::{DeadLetter, HeaderStyle};
use crate::records::result::{
    ResultOutput, ResultRecord, ResultSource, ResultStatus, ResultTiming, ResultUsage,
    SCHEMA_VERSION,
};
use crate::types::{DeadLetterReason, SourcePosition};

/// Partitions in memory: `read` gives two records at a time, so that several reads are needed.
#[derive(Debug, Default)]
struct Log {
    records: Mutex<BTreeMap<i32, Vec<Record>>>,
    log_start: Offset,
}

impl Log {
    fn append(&self, partition: i32, record: Record) {
        self.records
            .lock()
            .unwrap()
            .entry(partition)
            .or_default()
            .push(record);
    }
}

#[async_trait]
impl LogReader for Log {
    async fn log_bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        let records = self.records.lock().unwrap();
        let end = records.get(&partition.partition).map_or(0, Vec::len);
        Ok((self.log_start, Offset::new(i64::try_from(end).unwrap())))
    }

    async fn topic_id(&self, _topic: &str) -> Result<Option<uuid::Uuid>, KafkaError> {
        Ok(None)
    }

    async fn read(
        &self,
        partition: &TopicPartition,
        from: Offset,
        wait: Duration,
    ) -> Result<Fetched, KafkaError> {
        let (_, high_watermark) = self.log_bounds(partition).await?;
        if from >= high_watermark {
            tokio::time::sleep(wait).await;
        }
        let records: Vec<_> = self
            .records
            .lock()
            .unwrap()
            .get(&partition.partition)
            .into_iter()
            .flatten()
            .cloned()
            .zip(0..)
            .map(|(record, offset)| (Offset::new(offset), record))
            .filter(|(offset, _)| *offset >= from)
            .take(2)
            .collect();
        Ok(Fetched {
            next_offset: records.last().map_or(from, |(offset, _)| offset.next()),
            records,
            high_watermark,
        })
    }
}

fn source(offset: i64) -> SourcePosition {
    SourcePosition {
        topic_partition: TopicPartition::new("docs", 0),
        offset: Offset::new(offset),
    }
}

fn result(id: &str) -> Record {
    result_record(id).into_record(None, None)
}

fn result_record(id: &str) -> ResultRecord {
    ResultRecord {
        schema: SCHEMA_VERSION,
        document_id: id.to_owned(),
        status: ResultStatus::Ok,
        output: ResultOutput::Text("Revenue rose by twelve percent.".to_owned()),
        finish_reason: "stop".to_owned(),
        model: "mistral".to_owned(),
        system_fingerprint: None,
        generation: String::new(),
        prompt_hash: String::new(),
        schema_hash: None,
        long_document: None,
        cached: false,
        usage: ResultUsage {
            prompt_tokens: 412,
            completion_tokens: 96,
            total_tokens: 508,
            calls: 1,
        },
        timing: ResultTiming {
            queued_ms: 3,
            llm_ms: 1204,
            total_ms: 1210,
        },
        attempts: 1,
        truncated: None,
        source: ResultSource::new(&source(41), -1),
        request_id: "docs-0-41-1".to_owned(),
        completed_at: Timestamp::UNIX_EPOCH,
    }
}

async fn shown(args: &ResultsArgs, log: &Log) -> (String, u64) {
    let partitions = (0..3).map(|index| TopicPartition::new("results", index));
    let (mut out, mut count) = (Vec::new(), 0);
    let terminal = Terminal::plain();
    read(
        args,
        log,
        partitions.collect(),
        &terminal,
        &mut out,
        &mut count,
    )
    .await
    .unwrap();
    (String::from_utf8(out).unwrap(), count)
}

#[tokio::test]
async fn a_result_tells_status_time_tokens_and_answer() {
    let log = Log::default();
    log.append(1, result("report-1"));
    let (text, count) = shown(&ResultsArgs::default(), &log).await;
    assert_eq!(count, 1);
    assert_eq!(
        text,
        "report-1\n\
        \x20 status          ok (finish reason stop)\n\
        \x20 model           mistral\n\
        \x20 processing time 1.2 s (model 1.2 s, queued 3 ms)\n\
        \x20 tokens used     508 (412 prompt, 96 completion)\n\
        \x20 attempts        1\n\
        \x20 source          docs/0@41\n\
        \x20 request id      docs-0-41-1\n\
        \x20 answer\n\
        \x20   Revenue rose by twelve percent.\n\n"
    );
}

#[tokio::test]
async fn all_partitions_are_read_to_their_ends() {
    let log = Log::default();
    for index in 0..5 {
        log.append(0, result(&format!("a{index}")));
        log.append(2, result(&format!("b{index}")));
    }
    let args = ResultsArgs {
        json: true,
        ..ResultsArgs::default()
    };
    let (text, count) = shown(&args, &log).await;
    assert_eq!(count, 10);
    let ids: std::collections::BTreeSet<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|value| value["document_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 10);
}

#[tokio::test]
async fn count_and_from_bound_what_is_shown() {
    let log = Log {
        log_start: Offset::new(1),
        ..Log::default()
    };
    for index in 0..6 {
        log.append(0, result(&format!("a{index}")));
    }
    for (from, count, expected) in [
        ("earliest", None, 5),
        ("latest", None, 0),
        ("4", None, 2),
        ("0", None, 5),
        ("99", None, 0),
        ("earliest", Some(3), 3),
        ("earliest", Some(0), 0),
    ] {
        let args = ResultsArgs {
            from: from.parse().unwrap(),
            count,
            ..ResultsArgs::default()
        };
        assert_eq!(shown(&args, &log).await.1, expected, "{from} {count:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn follow_waits_for_the_count() {
    let log = Log::default();
    log.append(0, result("first"));
    let args = ResultsArgs {
        follow: true,
        count: Some(2),
        ..ResultsArgs::default()
    };
    let later = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        log.append(1, result("second"));
    };
    let ((text, count), ()) = tokio::join!(shown(&args, &log), later);
    assert_eq!(count, 2);
    assert!(text.contains("first") && text.contains("second"));
}

#[tokio::test]
async fn foreign_records_are_told_and_passed() {
    let log = Log::default();
    log.append(
        0,
        Record {
            value: Some(Bytes::from_static(b"hello")),
            ..Record::default()
        },
    );
    log.append(0, Record::default());
    log.append(0, result("ours"));
    let (text, _) = shown(&ResultsArgs::default(), &log).await;
    assert!(
        text.contains("✘ results/0@0 is not a record of this program"),
        "{text}"
    );
    assert!(text.contains("results/0@1") && text.contains("ours"));
    let args = ResultsArgs {
        json: true,
        ..ResultsArgs::default()
    };
    for line in shown(&args, &log).await.0.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}

#[tokio::test]
async fn an_answer_cannot_act_on_the_terminal() {
    let log = Log::default();
    log.append(0, result("\u{1b}]0;title\u{7}"));
    let (text, _) = shown(&ResultsArgs::default(), &log).await;
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'));
}

#[tokio::test]
async fn dead_letters_tell_their_reason() {
    let letter = DeadLetter {
        reason: DeadLetterReason::InvalidJson,
        detail: "EOF at line 1".to_owned(),
        http_status: None,
        attempts: 0,
        request_id: None,
        answer: None,
        at: Timestamp::UNIX_EPOCH,
        source: source(7),
    };
    let original = Record {
        key: Some(Bytes::from_static(b"report-7")),
        value: Some(Bytes::from_static(b"{")),
        ..Record::default()
    };
    let log = Log::default();
    log.append(0, letter.record(&original, "group", HeaderStyle::Connect));
    log.append(0, letter.pointer(&original, "group", HeaderStyle::Connect));
    let args = ResultsArgs {
        dead_letters: true,
        ..ResultsArgs::default()
    };
    let (text, _) = shown(&args, &log).await;
    for part in [
        "report-7",
        "invalid_json",
        "EOF at line 1",
        "docs/0@7",
        "too large",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let args = ResultsArgs { json: true, ..args };
    let line = shown(&args, &log).await.0;
    let value: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(value["reason"], "invalid_json");
    assert_eq!(value["source"]["offset"], 7);
}

#[test]
fn from_is_a_word_or_an_offset() {
    assert_eq!("earliest".parse(), Ok(From::Earliest));
    assert_eq!("17".parse(), Ok(From::Offset(Offset::new(17))));
    assert!("-1".parse::<From>().is_err());
    assert!("yesterday".parse::<From>().is_err());
}

#[test]
fn what_was_done_with_a_long_document_and_a_cached_answer_is_shown() {
    let text = |result: ResultRecord| {
        let record = result.into_record(None, None);
        let partition = TopicPartition::new("results", 0);
        super::show::result(&Terminal::plain(), &partition, Offset::ZERO, &record)
    };
    let mut result = result_record("filing");
    result.long_document = Some(serde_json::json!({"policy": "map_reduce", "parts": 56}));
    result.usage.calls = 69;
    result.cached = true;
    let shown = text(result.clone());
    assert!(shown.contains("96 completion) in 69 calls\n"), "{shown}");
    assert!(shown.contains("read in 56 parts\n"), "{shown}");
    assert!(shown.contains("identical document"), "{shown}");
    result.long_document =
        Some(serde_json::json!({"policy": "truncate", "keep": "head", "left_out_characters": 7}));
    assert!(text(result.clone()).contains("7 characters left out, kept: head\n"));
    result.long_document = Some(serde_json::json!({"policy": "of a later version"}));
    assert!(!text(result).contains("long document"));
}
