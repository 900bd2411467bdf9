//! `check`: is everything there that `run` needs, and does a processor run?
//!
//! All probes run side by side and each has a deadline, so that a wrong setting is told within five seconds. Each cross says what to
//! do about it.

mod judge;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use futures::stream;
use serde::Serialize;
use tokio::time::timeout;

use crate::cli::contact;
use crate::cli::output::{Terminal, Tone, harmless};
use crate::clock;
use crate::kafka::wire::{Cluster, TopicDescription};
use crate::kafka::{KafkaConfig, KafkaError, LogReader};
use crate::llm::{Call, HttpTransport, LlmConfig, Transport, VllmClient};
use crate::offsets::CommitRecord;
use crate::types::{Offset, TopicPartition, error_chain};

/// How long each probe may take; somewhat longer than Kafka's first answer, whose own message says more.
const PROBE_WITHIN: Duration = Duration::from_millis(4_500);

/// The newest commit lies at the end of its partition; a few markers may follow it.
const COMMIT_TAIL: i64 = 64;

/// Commit partitions that are read side by side.
const READS_MAX: usize = 8;

/// Arguments of `check`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct CheckArgs {
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// The settings that are checked.
#[derive(Debug, Clone, Copy)]
pub struct CheckSettings<'a> {
    /// How to reach Kafka.
    pub kafka: &'a KafkaConfig,
    /// How to reach the model server, and which model is asked.
    pub llm: &'a LlmConfig,
    /// The input topics (`INPUT_TOPIC`).
    pub input_topics: &'a [String],
    /// The topic of the results (`OUTPUT_TOPIC`).
    pub output_topic: &'a str,
    /// The topic of the dead letters (`dead_letters.topic`).
    pub dead_letter_topic: &'a str,
    /// The topic of the audit trail (`audit.topic`), where one is kept.
    pub audit_topic: Option<&'a str>,
}

/// One tick or cross.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckItem {
    /// What was checked.
    pub name: String,
    /// Whether it is as it should be.
    pub passed: bool,
    /// What was found.
    pub detail: String,
    /// What to do about a cross, where the detail does not say it already.
    pub remedy: Option<String>,
}

impl CheckItem {
    fn pass(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            passed: true,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            passed: false,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// All ticks and crosses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Whether there is no cross.
    pub passed: bool,
    /// In the order in which they are shown.
    pub items: Vec<CheckItem>,
}

/// Checks, and shows what was found; whether all passed (exit code 1 otherwise).
///
/// # Errors
/// When `out` cannot be written.
///
/// # Cancel safety
/// Safe: nothing is changed.
pub async fn run(
    args: CheckArgs,
    settings: CheckSettings<'_>,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<bool> {
    let report = report(settings).await;
    if args.json {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        write_text(&report, terminal, out)?;
    }
    out.flush()?;
    Ok(report.passed)
}

/// Checks.
///
/// # Cancel safety
/// Safe: nothing is changed.
pub async fn report(settings: CheckSettings<'_>) -> CheckReport {
    let cluster = contact::impatient(settings.kafka);
    let (mut items, kafka) =
        tokio::join!(check_llm(settings.llm), check_kafka(&cluster, settings),);
    items.extend(kafka);
    CheckReport {
        passed: items.iter().all(|item| item.passed),
        items,
    }
}

/// Each server of LLM_URL, side by side.
async fn check_llm(llm: &LlmConfig) -> Vec<CheckItem> {
    let urls = match llm.base_urls() {
        Ok(urls) => urls,
        Err(problem) => {
            return vec![CheckItem::fail(
                "model server",
                problem,
                "correct the setting",
            )];
        }
    };
    let several = urls.len() > 1;
    let checks = urls.into_iter().map(async |url| {
        let name = |what: &str| {
            if several {
                format!("{what}, {url}")
            } else {
                what.to_owned()
            }
        };
        let one = LlmConfig {
            url: url.clone(),
            ..llm.clone()
        };
        let (server, model) = tokio::join!(
            check_server(name("model server"), &one),
            check_model(name("model and key"), &one),
        );
        [server, model]
    });
    futures::future::join_all(checks).await.concat()
}

async fn check_server(name: String, llm: &LlmConfig) -> CheckItem {
    let remedy = "start vLLM, or set LLM_URL (llm.url) to its address";
    let transport = match HttpTransport::new(llm) {
        Ok(transport) => transport,
        Err(error) => return CheckItem::fail(name, error_chain(&error), "correct the setting"),
    };
    let call = Call {
        base: llm.url.as_str().into(),
        path: "/health",
        headers: Default::default(),
        body: None,
    };
    match timeout(PROBE_WITHIN, transport.exchange(call)).await {
        Err(_elapsed) => CheckItem::fail(
            name,
            format!("{} does not answer within {PROBE_WITHIN:?}", llm.url),
            remedy,
        ),
        Ok(Err(error)) => CheckItem::fail(name, format!("{}: {error}", llm.url), remedy),
        Ok(Ok(reply)) => judge::health(&name, &llm.url, reply.status),
    }
}

/// A completion of one token: reachable, right key, right model, and the engine works.
async fn check_model(name: String, llm: &LlmConfig) -> CheckItem {
    let transport = match HttpTransport::new(llm) {
        Ok(transport) => Arc::new(transport),
        Err(error) => return CheckItem::fail(name, error_chain(&error), "correct the setting"),
    };
    match timeout(PROBE_WITHIN, VllmClient::preflight(llm, transport)).await {
        Ok(Ok(served)) => {
            let context = served
                .and_then(|served| served.max_model_len)
                .map(|tokens| format!(", context of {tokens} tokens"));
            let detail = format!("`{}` answers{}", llm.model, context.unwrap_or_default());
            CheckItem::pass(name, detail)
        }
        // The sentence names what to change.
        Ok(Err(error)) => CheckItem {
            name,
            passed: false,
            detail: error_chain(&error),
            remedy: None,
        },
        Err(_elapsed) => CheckItem::fail(
            name,
            format!("a completion of one token takes longer than {PROBE_WITHIN:?}"),
            "the server is busy or stuck: look at its /metrics (vllm:num_requests_waiting) and its log",
        ),
    }
}

async fn check_kafka(cluster: &Cluster, settings: CheckSettings<'_>) -> Vec<CheckItem> {
    let found = timeout(PROBE_WITHIN, look(cluster, settings)).await;
    let found = found.unwrap_or(Err(KafkaError::Timeout {
        operation: "check",
        after: PROBE_WITHIN,
    }));
    match found {
        Ok(found) => judge::kafka(settings, &found, clock::now()),
        Err(error) => vec![
            CheckItem::fail("kafka", error_chain(&error), judge::kafka_remedy(&error)),
            CheckItem::fail(
                "topics",
                "not asked, as Kafka does not answer",
                "first reach Kafka",
            ),
            CheckItem::fail(
                "processor",
                "not asked, as Kafka does not answer",
                "first reach Kafka",
            ),
        ],
    }
}

/// What Kafka told.
#[derive(Debug)]
struct Found {
    brokers: usize,
    cluster_id: Option<String>,
    /// In the order in which they are shown; `None` for a topic that does not exist.
    topics: Vec<(judge::Role, String, Option<TopicDescription>)>,
    /// `cleanup.policy` of the commit topic, or why it is not known.
    commit_policy: Option<Result<String, String>>,
    /// The same of the audit topic.
    audit_policy: Option<Result<String, String>>,
    /// The newest commit of each owner, the youngest first, or why the commit topic cannot be read.
    newest_commits: Result<Vec<CommitRecord>, String>,
}

async fn look(cluster: &Cluster, settings: CheckSettings<'_>) -> Result<Found, KafkaError> {
    let commits = settings.kafka.commit_topic();
    let mut names: Vec<(judge::Role, &str)> = settings
        .input_topics
        .iter()
        .map(|name| (judge::Role::Input, name.as_str()))
        .collect();
    names.push((judge::Role::Output, settings.output_topic));
    names.push((judge::Role::DeadLetters, settings.dead_letter_topic));
    names.push((judge::Role::Commits, &commits));
    names.extend(
        settings
            .audit_topic
            .map(|topic| (judge::Role::Audit, topic)),
    );
    let asked: Vec<&str> = names.iter().map(|(_, name)| *name).collect();
    let (description, topics) = tokio::join!(
        cluster.cluster_description(),
        cluster.describe_topics(&asked)
    );
    let (description, mut topics) = (description?, topics?);
    let partitions = topics
        .get(&commits)
        .and_then(|topic| topic.as_ref())
        .map(|topic| topic.partitions);
    let (commit_policy, newest_commits) = match partitions {
        None => (None, Ok(Vec::new())),
        Some(partitions) => {
            let (policy, newest) = tokio::join!(
                cleanup_policy(cluster, &commits),
                newest_commits(cluster, &commits, partitions)
            );
            (Some(policy), newest)
        }
    };
    let audit = settings.audit_topic;
    let audit = audit.filter(|topic| topics.get(*topic).is_some_and(Option::is_some));
    let audit_policy = match audit {
        Some(topic) => Some(cleanup_policy(cluster, topic).await),
        None => None,
    };
    let topics = names
        .into_iter()
        .map(|(role, name)| (role, name.to_owned(), topics.remove(name).flatten()));
    Ok(Found {
        brokers: description.brokers.len(),
        cluster_id: description.cluster_id,
        topics: topics.collect(),
        commit_policy,
        audit_policy,
        newest_commits,
    })
}

async fn cleanup_policy(cluster: &Cluster, topic: &str) -> Result<String, String> {
    const KEY: &str = "cleanup.policy";
    let configs = cluster.topic_configs(topic, &[KEY]).await;
    let mut configs = configs.map_err(|error| error_chain(&error))?;
    let value = configs.remove(KEY).and_then(|config| config.value);
    value.ok_or_else(|| format!("the broker does not tell {KEY}"))
}

/// The newest commit of each owner, over all partitions, the youngest first.
async fn newest_commits(
    reader: &dyn LogReader,
    topic: &str,
    partitions: i32,
) -> Result<Vec<CommitRecord>, String> {
    let tails = (0..partitions).map(|index| tail(reader, TopicPartition::new(topic, index)));
    let tails: Vec<_> = stream::iter(tails)
        .buffer_unordered(READS_MAX)
        .collect()
        .await;
    let mut all = Vec::new();
    for commits in tails {
        all.extend(commits.map_err(|error| error_chain(&error))?);
    }
    all.sort_by_key(|commit| Reverse(commit.at));
    let mut owners = BTreeSet::new();
    all.retain(|commit| owners.insert(commit.owner.clone()));
    Ok(all)
}

/// The last commits of a partition; what is not one is passed over, as only their age counts here.
async fn tail(
    reader: &dyn LogReader,
    partition: TopicPartition,
) -> Result<Vec<CommitRecord>, KafkaError> {
    let (log_start, end) = reader.log_bounds(&partition).await?;
    let mut next = log_start.max(Offset::new(end.value().saturating_sub(COMMIT_TAIL)));
    let mut commits = Vec::new();
    while next < end {
        let fetched = reader.read(&partition, next, Duration::ZERO).await?;
        for (_, record) in &fetched.records {
            let commit = record
                .value
                .as_ref()
                .and_then(|value| CommitRecord::from_value(value).ok());
            commits.extend(commit);
        }
        if fetched.next_offset <= next {
            break;
        }
        next = fetched.next_offset;
    }
    Ok(commits)
}

fn write_text(
    report: &CheckReport,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let names = report.items.iter().map(|item| item.name.chars().count());
    let width = names.max().unwrap_or(0);
    for item in &report.items {
        let mark = terminal.mark(item.passed);
        let name = harmless(&item.name);
        writeln!(out, "{mark} {name:<width$}  {}", harmless(&item.detail))?;
        if let Some(remedy) = &item.remedy {
            let remedy = terminal.paint(Tone::Caution, format!("→ {remedy}"));
            writeln!(out, "  {:<width$}  {remedy}", "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
