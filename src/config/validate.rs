//! Checks of values, within a section and across sections. Each message begins with the key.

use super::Settings;
use crate::kafka::KafkaConfig;
use crate::llm::Concurrency;
use crate::offsets::COMMIT_BYTES_MAX;

/// Most open documents: as many as one flush was measured to look through in a millisecond. The commit record has a bound of its own, which
/// read-ahead waits for.
const READ_AHEAD_RECORDS_MAX: usize = 20_000;
/// Least bytes of open documents: four fetches of the smallest size.
const READ_AHEAD_BYTES_MIN: usize = 64 * 1024;
/// Least bound of a commit record: what it takes beside its ranges, and some hundred ranges of the largest offsets.
const COMMIT_RECORD_BYTES_MIN: usize = 16 * 1024;
/// Kafka's own bound on the name of a topic.
const TOPIC_NAME_MAX: usize = 249;

/// What is wrong, one sentence each; empty when nothing is.
pub(super) fn problems(settings: &Settings) -> Vec<String> {
    let mut problems = Vec::new();
    kafka(settings, &mut problems);
    topics(settings, &mut problems);
    pipeline(settings, &mut problems);
    ownership(settings, &mut problems);
    problems.extend(settings.llm.validate());
    problems.extend(settings.prompt.validate());
    for topic in &settings.input.topics {
        let own = topic.prompt.validate_own().into_iter();
        problems.extend(own.map(|problem| format!("input.topics `{}`: {problem}", topic.name)));
    }
    problems.extend(settings.long_documents.validate());
    problems.extend(settings.drift.validate());
    problems.extend(settings.telemetry.validate());
    problems
}

fn kafka(settings: &Settings, problems: &mut Vec<String>) {
    let kafka = &settings.kafka;
    brokers(kafka, problems);
    if kafka.group_id.is_empty() {
        problems.push("kafka.group_id is empty: it names the commit topic, so set one".to_owned());
    }
    if kafka.replication_factor == 0 || kafka.replication_factor < -1 {
        problems.push(format!(
            "kafka.replication_factor = {}: must be at least 1, or -1 for the broker's default",
            kafka.replication_factor
        ));
    }
    for (key, duration) in [
        ("kafka.request_timeout", kafka.request_timeout),
        ("kafka.connect_timeout", kafka.connect_timeout),
        ("input.fetch_wait", settings.input.fetch_wait),
    ] {
        if duration.is_zero() {
            problems.push(format!("{key} = 0s: must be longer"));
        }
    }
    problems.extend(kafka.validate_security());
}

fn brokers(kafka: &KafkaConfig, problems: &mut Vec<String>) {
    if kafka.bootstrap().is_empty() {
        problems.push(
            "kafka.brokers (KAFKA_BROKERS) is empty: set host:port, comma separated".to_owned(),
        );
    }
    if kafka.brokers.contains('@') {
        // Not repeated: it may be a password.
        problems.push(
            "kafka.brokers (KAFKA_BROKERS) holds an `@`: it must hold no user or password; use kafka.sasl_username and kafka.sasl_password"
                .to_owned(),
        );
        return;
    }
    for broker in kafka.bootstrap() {
        let port = broker
            .rsplit_once(':')
            .and_then(|(host, port)| (!host.is_empty()).then_some(port));
        if port
            .and_then(|port| port.parse::<u16>().ok())
            .is_none_or(|port| port == 0)
        {
            problems.push(format!(
                "kafka.brokers (KAFKA_BROKERS) = `{broker}`: must be host:port, such as localhost:9092"
            ));
        }
    }
}

fn topics(settings: &Settings, problems: &mut Vec<String>) {
    if settings.input.topics.is_empty() {
        problems.push("input.topics (INPUT_TOPIC) is empty: name at least one topic".to_owned());
    }
    let commit_topic = settings.kafka.commit_topic();
    let ours = [
        (
            "output.topic (OUTPUT_TOPIC)",
            settings.output.topic.as_str(),
        ),
        ("dead_letters.topic", settings.dead_letters.topic.as_str()),
        ("kafka.commit_topic", commit_topic.as_str()),
        ("audit.topic", settings.audit.topic.as_str()),
    ];
    let inputs = settings
        .input
        .topics
        .iter()
        .map(|topic| ("input.topics (INPUT_TOPIC)", topic.name.as_str()));
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (key, name) in inputs.chain(ours) {
        if !is_topic_name(name) {
            problems.push(format!(
                "{key} = `{name}`: a topic's name has 1 to {TOPIC_NAME_MAX} of the characters a-z, A-Z, 0-9, `.`, `_` and `-`"
            ));
        } else if let Some((other, _)) = seen.iter().find(|(_, seen)| *seen == name) {
            problems.push(format!(
                "{key} = `{name}` is the topic of {other} too: each needs its own"
            ));
        }
        seen.push((key, name));
    }
    if settings.input.content_field.is_empty() {
        problems.push(
            "input.content_field is empty: name the JSON field that holds the text".to_owned(),
        );
    }
}

fn pipeline(settings: &Settings, problems: &mut Vec<String>) {
    let pipeline = &settings.pipeline;
    // Adaptive concurrency finds out how many calls there can be; a number that could not be reached is a mistake.
    let (least, key) = match settings.llm.concurrency {
        Concurrency::Adaptive => (1, "1".to_owned()),
        Concurrency::Fixed(calls) => {
            let servers = settings.llm.base_urls().map_or(1, |urls| urls.len());
            let calls = calls.saturating_mul(servers);
            (
                calls,
                format!("llm.concurrency at each server ({calls} in all)"),
            )
        }
    };
    if !(least..=READ_AHEAD_RECORDS_MAX).contains(&pipeline.read_ahead_records) {
        problems.push(format!(
            "pipeline.read_ahead_records = {}: must lie between {key} and {READ_AHEAD_RECORDS_MAX}",
            pipeline.read_ahead_records
        ));
    }
    if pipeline.read_ahead_bytes < READ_AHEAD_BYTES_MIN {
        problems.push(format!(
            "pipeline.read_ahead_bytes = {}: must be at least {READ_AHEAD_BYTES_MIN}",
            pipeline.read_ahead_bytes
        ));
    }
    if pipeline.stall_after.is_some_and(|after| after.is_zero()) {
        problems.push("pipeline.stall_after = 0s: must be longer than a document takes".to_owned());
    }
    let processing = &settings.processing;
    if !(COMMIT_RECORD_BYTES_MIN..=COMMIT_BYTES_MAX).contains(&processing.commit_record_bytes_max) {
        problems.push(format!(
            "processing.commit_record_bytes_max = {}: must lie between {COMMIT_RECORD_BYTES_MIN} and {COMMIT_BYTES_MAX}",
            processing.commit_record_bytes_max
        ));
    }
}

fn ownership(settings: &Settings, problems: &mut Vec<String>) {
    problems.extend(settings.driver().err());
    problems.extend(settings.static_share().err());
    let kafka = &settings.kafka;
    if kafka.heartbeat_interval.is_zero() || kafka.heartbeat_interval > kafka.session_timeout / 3 {
        problems.push(format!(
            "kafka.heartbeat_interval = {:?}: must be above 0 and at most a third of kafka.session_timeout ({:?})",
            kafka.heartbeat_interval, kafka.session_timeout
        ));
    }
}

fn is_topic_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=TOPIC_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.chars().all(legal)
}
