//! From what was found to ticks and crosses; pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{CheckItem, CheckSettings, Found};
use crate::kafka::KafkaError;
use crate::kafka::wire::TopicDescription;
use crate::offsets::LIVE_FOR;

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
    const fn name(self) -> &'static str {
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
            "correct kafka.sasl_mechanism, or the user and password, or the token, that is named here"
        }
        KafkaError::Credentials { .. } | KafkaError::Tls { .. } => {
            "correct what is named here, or kafka.security_protocol"
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

/// Kafka, its topics, and the processor.
pub(super) fn kafka(settings: CheckSettings<'_>, found: &Found, now: Timestamp) -> Vec<CheckItem> {
    let cluster = found.cluster_id.as_deref().unwrap_or("without an id");
    let brokers = match found.brokers {
        1 => "1 broker".to_owned(),
        brokers => format!("{brokers} brokers"),
    };
    let detail = format!("{}: cluster {cluster}, {brokers}", settings.kafka.brokers);
    let mut items = vec![CheckItem::pass("kafka", detail)];
    for (role, name, description) in &found.topics {
        let description = description.as_ref();
        items.push(match role {
            Role::Commits => commit_topic(settings, name, description, found),
            Role::Audit => audit_topic(settings, name, description, found),
            Role::Input | Role::Output | Role::DeadLetters => {
                topic(settings, *role, name, description)
            }
        });
    }
    items.push(processor(found, now));
    items
}

fn topic(
    settings: CheckSettings<'_>,
    role: Role,
    name: &str,
    description: Option<&TopicDescription>,
) -> CheckItem {
    let Some(topic) = description else {
        let remedy = if settings.kafka.create_topics {
            format!("`run` creates it, or set {} to another", role.setting())
        } else {
            format!(
                "create it, or set kafka.create_topics = true, or set {} to another",
                role.setting()
            )
        };
        return CheckItem::fail(role.name(), format!("`{name}` does not exist"), remedy);
    };
    let partitions = match topic.partitions {
        1 => "1 partition".to_owned(),
        partitions => format!("{partitions} partitions"),
    };
    if topic.leaders_missing > 0 {
        let detail = format!(
            "`{name}`: {} of {partitions} without a leader",
            topic.leaders_missing
        );
        return CheckItem::fail(
            role.name(),
            detail,
            "look at the brokers: some are down or starting",
        );
    }
    CheckItem::pass(role.name(), format!("`{name}`, {partitions}"))
}

fn commit_topic(
    settings: CheckSettings<'_>,
    name: &str,
    description: Option<&TopicDescription>,
    found: &Found,
) -> CheckItem {
    let item = topic(settings, Role::Commits, name, description);
    if !item.passed {
        return item;
    }
    match &found.commit_policy {
        Some(Ok(policy)) if policy.trim() == "compact" => {
            CheckItem::pass(item.name, format!("{}, compacted", item.detail))
        }
        Some(Ok(policy)) => CheckItem::fail(
            item.name,
            format!("`{name}` has cleanup.policy={policy}: commits would be deleted with time"),
            format!("kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=compact"),
        ),
        Some(Err(problem)) => CheckItem::fail(
            item.name,
            format!("`{name}`: {problem}"),
            "allow DescribeConfigs on the topic",
        ),
        None => item,
    }
}

fn audit_topic(
    settings: CheckSettings<'_>,
    name: &str,
    description: Option<&TopicDescription>,
    found: &Found,
) -> CheckItem {
    let item = topic(settings, Role::Audit, name, description);
    if !item.passed {
        return item;
    }
    match &found.audit_policy {
        Some(Ok(policy)) if policy.contains("compact") => CheckItem::fail(
            item.name,
            format!(
                "`{name}` has cleanup.policy={policy}: records of the audit trail would be taken away"
            ),
            format!("kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=delete"),
        ),
        Some(Err(problem)) => CheckItem::fail(
            item.name,
            format!("`{name}`: {problem}"),
            "allow DescribeConfigs on the topic",
        ),
        Some(Ok(_)) | None => item,
    }
}

fn processor(found: &Found, now: Timestamp) -> CheckItem {
    const NAME: &str = "processor";
    const REMEDY: &str = "start it: kafka-llm-processor run";
    let commits = match &found.newest_commits {
        Err(problem) => {
            return CheckItem::fail(
                NAME,
                format!("the commit topic cannot be read: {problem}"),
                "allow Read on the commit topic",
            );
        }
        Ok(commits) => commits,
    };
    let Some((youngest, others)) = commits.split_first() else {
        return CheckItem::fail(NAME, "no processor has committed yet", REMEDY);
    };
    let owner = &youngest.owner;
    let age = Duration::try_from(now.duration_since(youngest.at)).unwrap_or_default();
    let told = humantime::format_duration(Duration::from_secs(age.as_secs()));
    if !youngest.is_live(now) {
        let detail = format!("none runs: the newest commit, by `{owner}`, is {told} old");
        return CheckItem::fail(NAME, detail, REMEDY);
    }
    let others = others.iter().filter(|commit| commit.is_live(now));
    let others: Vec<_> = others.map(|commit| format!("`{}`", commit.owner)).collect();
    let mut detail = format!("`{owner}` runs: it committed {told} ago");
    if !others.is_empty() {
        let (count, names) = (others.len(), others.join(", "));
        detail = format!("{detail}; so did {count} more in the last {LIVE_FOR:?}: {names}");
    }
    CheckItem::pass(NAME, detail)
}
