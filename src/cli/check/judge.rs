//! From what was found to ticks and crosses; pure.

use std::time::Duration;

use jiff::Timestamp;

use super::CheckItem;
use super::backlog::Backlog;
use super::look::{Found, TopicFound, by_owner};
use super::model::Room;
use crate::config::Settings;
use crate::kafka::wire::{BrokerSpeech, TopicDescription};
use crate::kafka::{KafkaError, SecurityProtocol};
use crate::offsets::{Guarantee, LIVE_FOR};
use crate::pipeline::Assignment;
use crate::types::error_chain;

/// What a commit's record batch takes beside its value, at the most.
const COMMIT_AROUND_BYTES: u64 = 2 * 1024;
/// The most that a token of an answer takes as JSON, except for texts of which nothing is plain.
const TOKEN_BYTES: u64 = 8;
/// What a result takes beside its answer.
const RESULT_AROUND_BYTES: u64 = 4 * 1024;

/// What a topic is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Input,
    Output,
    DeadLetters,
    Commits,
    Audit,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Input => "input topic",
            Self::Output => "output topic",
            Self::DeadLetters => "dead letters",
            Self::Commits => "commit topic",
            Self::Audit => "audit topic",
        }
    }

    const fn setting(self) -> &'static str {
        match self {
            Self::Input => "INPUT_TOPIC",
            Self::Output => "OUTPUT_TOPIC",
            Self::DeadLetters => "dead_letters.topic",
            Self::Commits => "kafka.commit_topic",
            Self::Audit => "audit.topic",
        }
    }
}

/// What `GET /health` says.
pub(super) fn health(name: &str, url: &str, status: u16) -> CheckItem {
    match status {
        200 => CheckItem::pass(name, format!("{url} is healthy")),
        404 => CheckItem::fail(
            name,
            format!("{url} has no /health (404)"),
            "set LLM_URL (llm.url) to vLLM's own address, without a path",
        ),
        _ => CheckItem::fail(
            name,
            format!("{url}/health answers {status}"),
            "look at vLLM's log: its engine may be starting or dead",
        ),
    }
}

/// What to do when Kafka does not answer as it should.
pub(super) const fn kafka_remedy(error: &KafkaError) -> &'static str {
    match error {
        KafkaError::Authentication { .. } => {
            "correct kafka.sasl_mechanism, kafka.sasl_username or kafka.sasl_password"
        }
        KafkaError::Unreachable { .. }
        | KafkaError::Timeout { .. }
        | KafkaError::Disconnected { .. }
        | KafkaError::Protocol { .. } => {
            "start Kafka, set KAFKA_BROKERS (kafka.brokers) to its address, or correct kafka.security_protocol"
        }
        _ => "look at the brokers' log",
    }
}

/// Whether a context has room for documents.
pub(super) fn room(name: String, max_tokens: u32, room: Room) -> CheckItem {
    let answer = u64::from(max_tokens);
    let Some(context) = room.context else {
        let detail =
            "not told by the server: documents that are too long are seen when it refuses them";
        return CheckItem::pass(
            name,
            format!("{detail} (long_documents.context_tokens sets it)"),
        );
    };
    let Some(prompt) = room.prompt else {
        let detail = format!(
            "{context} tokens, of which an answer takes up to {answer}; the prompt needs fields of a document (dry-run counts it)"
        );
        return if answer < context {
            CheckItem::pass(name, detail)
        } else {
            CheckItem::fail(name, detail, "lower llm.max_tokens")
        };
    };
    let counted = if room.counted { "" } else { " (estimated)" };
    let taken = prompt.saturating_add(answer);
    let parts = format!(
        "the prompt without its document takes {prompt}{counted}, an answer up to {answer}"
    );
    if taken < context {
        let left = context - taken;
        CheckItem::pass(
            name,
            format!("{context} tokens: {parts}, which leaves {left} to the document"),
        )
    } else {
        CheckItem::fail(
            name,
            format!("{context} tokens are too few: {parts}"),
            "lower llm.max_tokens, shorten the prompt, or start vLLM with a larger --max-model-len",
        )
    }
}

/// Kafka, its brokers and its topics.
pub(super) fn kafka(settings: &Settings, found: &Found) -> Vec<CheckItem> {
    let cluster = found
        .cluster
        .cluster_id
        .as_deref()
        .unwrap_or("without an id");
    let brokers = match found.brokers.len() {
        1 => "1 broker".to_owned(),
        brokers => format!("{brokers} brokers"),
    };
    let detail = format!("{}: cluster {cluster}, {brokers}", settings.kafka.brokers);
    let mut items = vec![CheckItem::pass("kafka", detail)];
    items.extend(versions(settings, found));
    let largest = |found: &Found| {
        let inputs = found
            .topics
            .iter()
            .filter(|topic| topic.role == Role::Input);
        inputs.filter_map(message_bytes).max()
    };
    let input_bytes = largest(found);
    let topics = found.topics.iter();
    items.extend(topics.map(|found| topic(settings, found, input_bytes)));
    items
}

/// A cross for each broker that cannot be reached or is too old, and a tick for the others.
fn versions(settings: &Settings, found: &Found) -> Vec<CheckItem> {
    let mut items = Vec::new();
    let mut good = Vec::new();
    for BrokerSpeech { broker, gaps } in &found.brokers {
        let (id, host, port) = (broker.id, &broker.host, broker.port);
        let gaps = match gaps {
            Ok(gaps) => gaps,
            Err(error) => {
                items.push(CheckItem::fail(
                    "broker",
                    format!("broker {id} at {host}:{port}: {}", error_chain(error)),
                    "that is its advertised.listeners: correct it, or make it reachable from here",
                ));
                continue;
            }
        };
        let lacking: Vec<_> = gaps
            .iter()
            .filter(|gap| is_needed(gap.api, settings))
            .map(|gap| {
                let (ours, theirs) = (gap.ours, gap.theirs);
                let theirs =
                    theirs.map_or("none".to_owned(), |(min, max)| format!("{min} to {max}"));
                format!("{} {} to {} (it: {theirs})", gap.api, ours.0, ours.1)
            })
            .collect();
        if lacking.is_empty() {
            good.push(id.to_string());
        } else {
            items.push(CheckItem::fail(
                "broker",
                format!(
                    "broker {id} at {host}:{port} does not speak {}",
                    lacking.join(", ")
                ),
                "upgrade it: Kafka 2.4 or newer, for exactly once and idempotent appends 2.5",
            ));
        }
    }
    if !good.is_empty() {
        let level = found.cluster.metadata_version;
        let level = level.map(|level| format!("; metadata.version {level}"));
        let (names, level) = (good.join(", "), level.unwrap_or_default());
        let detail = format!("all versions that `run` needs are spoken by broker {names}{level}");
        items.push(CheckItem::pass("versions", detail));
    }
    items
}

/// Whether `run` calls that API with these settings.
fn is_needed(api: &str, settings: &Settings) -> bool {
    let exactly_once = settings.processing.guarantee == Guarantee::ExactlyOnce;
    let has_group = settings.input.assignment == Assignment::Group;
    match api {
        "AddPartitionsToTxn" | "EndTxn" => exactly_once,
        "JoinGroup" | "SyncGroup" | "Heartbeat" | "LeaveGroup" => has_group,
        "CreateTopics" => settings.kafka.create_topics,
        "SaslHandshake" | "SaslAuthenticate" => {
            settings.kafka.security_protocol != SecurityProtocol::Plaintext
        }
        // Only `check` asks for groups.
        "DescribeGroups" => false,
        _ => true,
    }
}

/// `max.message.bytes`, where it is told.
fn message_bytes(topic: &TopicFound) -> Option<u64> {
    let configs = topic.configs.as_ref().ok()?;
    configs.get("max.message.bytes")?.parse().ok()
}

fn topic(settings: &Settings, found: &TopicFound, input_bytes: Option<u64>) -> CheckItem {
    let (role, name) = (found.role, &found.name);
    let rights = match &found.rights {
        Ok(rights) => rights,
        Err(problem) => {
            let detail = format!("`{name}`: {problem}");
            return CheckItem::fail(role.name(), detail, "look at the brokers' log");
        }
    };
    let Some(topic) = &rights.topic else {
        return missing(settings, found);
    };
    let partitions = match topic.partitions {
        1 => "1 partition".to_owned(),
        partitions => format!("{partitions} partitions"),
    };
    if let Some(item) = leaderless(role, topic, &partitions) {
        return item;
    }
    let told = match &found.configs {
        Ok(configs) => {
            let told = configs
                .iter()
                .map(|(key, value)| format!(", {key}={value}"));
            told.collect()
        }
        Err(problem) => format!(", its configuration is not told ({problem})"),
    };
    let detail = format!("`{name}`, {partitions}{told}");
    match objection(settings, found, input_bytes) {
        Some((problem, remedy)) => {
            CheckItem::fail(role.name(), format!("{detail}: {problem}"), remedy)
        }
        None => CheckItem::pass(role.name(), detail),
    }
}

fn missing(settings: &Settings, found: &TopicFound) -> CheckItem {
    let (role, name) = (found.role, &found.name);
    if found.is_hidden() {
        let detail = format!("`{name}` may not be seen, so that it is not told whether it exists");
        return CheckItem::fail(
            role.name(),
            detail,
            "allow what is missing (below), then check again",
        );
    }
    let remedy = if settings.kafka.create_topics {
        format!("`run` creates it, or set {} to another", role.setting())
    } else {
        format!(
            "create it, or set kafka.create_topics = true, or set {} to another",
            role.setting()
        )
    };
    CheckItem::fail(role.name(), format!("`{name}` does not exist"), remedy)
}

fn leaderless(role: Role, topic: &TopicDescription, partitions: &str) -> Option<CheckItem> {
    (topic.leaders_missing > 0).then(|| {
        let (name, missing) = (&topic.name, topic.leaders_missing);
        CheckItem::fail(
            role.name(),
            format!("`{name}`: {missing} of {partitions} without a leader"),
            "look at the brokers: some are down or starting",
        )
    })
}

/// What speaks against a topic's configuration, and what to do.
fn objection(
    settings: &Settings,
    found: &TopicFound,
    input_bytes: Option<u64>,
) -> Option<(String, String)> {
    let name = &found.name;
    let configs = found.configs.as_ref().ok()?;
    let policy = configs.get("cleanup.policy").map(|policy| policy.trim());
    let bytes = message_bytes(found);
    let set = |what: &str| {
        format!(
            "kafka-configs.sh --bootstrap-server {} --alter --topic {name} --add-config {what}",
            settings.kafka.brokers
        )
    };
    let needed = |needed: u64| bytes.is_some_and(|bytes| bytes < needed);
    match found.role {
        Role::Input => None,
        Role::Audit => policy.filter(|policy| policy.contains("compact")).map(|_| {
            let problem = "records of the audit trail would be taken away".to_owned();
            (problem, set("cleanup.policy=delete"))
        }),
        Role::Output => {
            let answer = u64::from(settings.llm.max_tokens).saturating_mul(TOKEN_BYTES);
            let most = answer.saturating_add(RESULT_AROUND_BYTES);
            needed(most).then(|| {
                let problem = format!(
                    "an answer of llm.max_tokens = {} tokens may take {most} bytes, and what is larger ends as a dead letter",
                    settings.llm.max_tokens
                );
                (problem, format!("{}, or lower llm.max_tokens", set(&format!("max.message.bytes={most}"))))
            })
        }
        Role::DeadLetters => {
            if policy.is_some_and(|policy| policy.contains("compact")) {
                let problem = "records without a key are refused, and of those with one key only the last is kept";
                return Some((problem.to_owned(), set("cleanup.policy=delete")));
            }
            let most = input_bytes.unwrap_or(0);
            needed(most).then(|| {
                let problem = format!(
                    "the input's is {most}, so that larger documents become pointers without payload"
                );
                (problem, set(&format!("max.message.bytes={most}")))
            })
        }
        Role::Commits => {
            if policy.is_some_and(|policy| policy != "compact") {
                let problem = "commits would be deleted with time".to_owned();
                return Some((problem, set("cleanup.policy=compact")));
            }
            let ours = settings.processing.commit_record_bytes_max;
            let most = u64::try_from(ours)
                .unwrap_or(u64::MAX)
                .saturating_add(COMMIT_AROUND_BYTES);
            needed(most).then(|| {
                let problem = format!(
                    "a commit may take {most} bytes (processing.commit_record_bytes_max = {ours})"
                );
                let remedy = format!(
                    "{}, or lower processing.commit_record_bytes_max",
                    set(&format!("max.message.bytes={most}"))
                );
                (problem, remedy)
            })
        }
    }
}

/// Whether a processor runs, and keeps up.
pub(super) fn processor(
    found: &Found,
    backlog: &Result<Option<Backlog>, String>,
    settings: &Settings,
    now: Timestamp,
) -> Vec<CheckItem> {
    let (lives, processor) = lives(found, now);
    let mut items = vec![processor];
    match backlog {
        Ok(Some(backlog)) => items.push(keeps_up(lives, backlog, settings)),
        // The topic has its cross.
        Ok(None) => {}
        Err(problem) => items.push(CheckItem::fail(
            "backlog",
            format!("not known: {problem}"),
            "first see to what is crossed above; `offsets show` has each partition",
        )),
    }
    items
}

fn keeps_up(lives: bool, backlog: &Backlog, settings: &Settings) -> CheckItem {
    const NAME: &str = "backlog";
    let total = backlog.total();
    if total == 0 {
        return CheckItem::pass(NAME, "no unfinished records");
    }
    let partitions = match backlog.unfinished.len() {
        1 => "1 partition".to_owned(),
        partitions => format!("{partitions} partitions"),
    };
    let records = if total == 1 { "record" } else { "records" };
    let Backlog {
        arrived, finished, ..
    } = backlog;
    let detail = format!(
        "{total} unfinished {records} in {partitions}; in {:.1} s {finished} were finished and {arrived} arrived",
        backlog.apart.as_secs_f64()
    );
    let bound = u64::try_from(settings.pipeline.read_ahead_records).unwrap_or(u64::MAX);
    if !lives {
        let detail =
            format!("{total} unfinished {records} in {partitions}, and nobody works on them");
        CheckItem::fail(NAME, detail, "start a processor: kafka-llm-processor run")
    } else if total > bound && arrived > finished {
        CheckItem::fail(
            NAME,
            format!("{detail}: it grows"),
            "kafka-llm-processor status tells what limits it; more servers in LLM_URL, or more instances, take more",
        )
    } else {
        CheckItem::pass(NAME, detail)
    }
}

fn lives(found: &Found, now: Timestamp) -> (bool, CheckItem) {
    const NAME: &str = "processor";
    const REMEDY: &str = "start it: kafka-llm-processor run";
    let commits = match &found.commits {
        Err(problem) => {
            let detail = format!("the commit topic cannot be read: {problem}");
            return (
                false,
                CheckItem::fail(NAME, detail, "allow Read on the commit topic"),
            );
        }
        Ok(commits) => by_owner(commits),
    };
    let Some((youngest, others)) = commits.split_first() else {
        return (
            false,
            CheckItem::fail(NAME, "no processor has committed yet", REMEDY),
        );
    };
    let owner = &youngest.owner;
    let age = Duration::try_from(now.duration_since(youngest.at)).unwrap_or_default();
    let told = humantime::format_duration(Duration::from_secs(age.as_secs()));
    if !youngest.is_live(now) {
        let detail = format!("none runs: the newest commit, by `{owner}`, is {told} old");
        return (false, CheckItem::fail(NAME, detail, REMEDY));
    }
    let others = others.iter().filter(|commit| commit.is_live(now));
    let others: Vec<_> = others.map(|commit| format!("`{}`", commit.owner)).collect();
    let mut detail = format!("`{owner}` runs: it committed {told} ago");
    if !others.is_empty() {
        let (count, names) = (others.len(), others.join(", "));
        detail = format!("{detail}; so did {count} more in the last {LIVE_FOR:?}: {names}");
    }
    (true, CheckItem::pass(NAME, detail))
}
