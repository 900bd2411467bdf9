//! The configurations of a topic: the names, defaults and limits of Kafka 4.3.
//!
//! All names are known and described; the broker itself acts on `cleanup.policy`, `max.message.bytes`, `message.timestamp.*` and
//! `segment.bytes`. It does not compress anew, so `compression.type` is refused unless it is `producer`: stricter than Kafka.

use std::collections::BTreeMap;

/// What values a configuration takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    /// A 32-bit number from the first to `i32::MAX`.
    Int(i64),
    /// A 64-bit number from the first.
    Long(i64),
    /// From 0 to 1.
    Ratio,
    /// A comma-separated list of these.
    List(&'static [&'static str]),
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A list that is not checked.
    Any,
}

impl Kind {
    /// The type as `DescribeConfigs` names it.
    pub(super) fn wire_type(self) -> i8 {
        match self {
            Self::Boolean => 1,
            Self::OneOf(_) => 2,
            Self::Int(_) => 3,
            Self::Long(_) => 5,
            Self::Ratio => 6,
            Self::List(_) | Self::Any => 7,
        }
    }

    /// What a value must be, for the client.
    fn expected(self) -> String {
        match self {
            Self::Boolean => "true or false".to_owned(),
            Self::Int(least) => format!("a 32-bit number, at least {least}"),
            Self::Long(least) => format!("a 64-bit number, at least {least}"),
            Self::Ratio => "a number from 0 to 1".to_owned(),
            Self::List(words) => format!("a list of: {}", words.join(", ")),
            Self::OneOf(words) => format!("one of: {}", words.join(", ")),
            Self::Any => "text".to_owned(),
        }
    }

    fn accepts(self, value: &str) -> bool {
        match self {
            Self::Boolean => {
                value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false")
            }
            Self::Int(least) => value
                .trim()
                .parse::<i32>()
                .is_ok_and(|number| i64::from(number) >= least),
            Self::Long(least) => value
                .trim()
                .parse::<i64>()
                .is_ok_and(|number| number >= least),
            Self::Ratio => value
                .trim()
                .parse::<f64>()
                .is_ok_and(|number| (0.0..=1.0).contains(&number)),
            Self::List(words) => value
                .split(',')
                .map(str::trim)
                .all(|word| words.contains(&word)),
            Self::OneOf(words) => words.contains(&value),
            Self::Any => true,
        }
    }
}

/// One configuration: its name, its default, the broker's name for the default, and what it takes.
#[derive(Debug)]
pub(super) struct Definition {
    pub name: &'static str,
    pub default: &'static str,
    /// The broker configuration that the default comes from, when there is one by that value.
    pub synonym: Option<&'static str>,
    pub kind: Kind,
}

const fn define(
    name: &'static str,
    default: &'static str,
    synonym: &'static str,
    kind: Kind,
) -> Definition {
    Definition {
        name,
        default,
        synonym: if synonym.is_empty() {
            None
        } else {
            Some(synonym)
        },
        kind,
    }
}

const NEVER: &str = "9223372036854775807";

/// All of them, in the order of their names, with the defaults of Kafka 4.3.1.
#[rustfmt::skip]
pub(super) const DEFINITIONS: &[Definition] = &[
    define("cleanup.policy", "delete", "log.cleanup.policy", Kind::List(&["delete", "compact"])),
    define("compression.gzip.level", "-1", "compression.gzip.level", Kind::Int(-1)),
    define("compression.lz4.level", "9", "compression.lz4.level", Kind::Int(1)),
    define("compression.type", "producer", "compression.type", Kind::OneOf(&["producer"])),
    define("compression.zstd.level", "3", "compression.zstd.level", Kind::Int(-131_072)),
    define("delete.retention.ms", "86400000", "log.cleaner.delete.retention.ms", Kind::Long(0)),
    define("file.delete.delay.ms", "60000", "log.segment.delete.delay.ms", Kind::Long(0)),
    define("flush.messages", NEVER, "log.flush.interval.messages", Kind::Long(1)),
    define("flush.ms", NEVER, "", Kind::Long(0)),
    define("follower.replication.throttled.replicas", "", "", Kind::Any),
    define("index.interval.bytes", "4096", "log.index.interval.bytes", Kind::Int(0)),
    define("leader.replication.throttled.replicas", "", "", Kind::Any),
    define("local.retention.bytes", "-2", "log.local.retention.bytes", Kind::Long(-2)),
    define("local.retention.ms", "-2", "log.local.retention.ms", Kind::Long(-2)),
    define("max.compaction.lag.ms", NEVER, "log.cleaner.max.compaction.lag.ms", Kind::Long(1)),
    define("max.message.bytes", "1048588", "message.max.bytes", Kind::Int(0)),
    define("message.timestamp.after.max.ms", "3600000", "log.message.timestamp.after.max.ms", Kind::Long(0)),
    define("message.timestamp.before.max.ms", NEVER, "log.message.timestamp.before.max.ms", Kind::Long(0)),
    define("message.timestamp.type", "CreateTime", "log.message.timestamp.type", Kind::OneOf(&["CreateTime", "LogAppendTime"])),
    define("min.cleanable.dirty.ratio", "0.5", "log.cleaner.min.cleanable.ratio", Kind::Ratio),
    define("min.compaction.lag.ms", "0", "log.cleaner.min.compaction.lag.ms", Kind::Long(0)),
    define("min.insync.replicas", "1", "min.insync.replicas", Kind::Int(1)),
    define("preallocate", "false", "log.preallocate", Kind::Boolean),
    define("remote.log.copy.disable", "false", "", Kind::Boolean),
    define("remote.log.delete.on.disable", "false", "", Kind::Boolean),
    define("remote.storage.enable", "false", "", Kind::Boolean),
    define("retention.bytes", "-1", "log.retention.bytes", Kind::Long(i64::MIN)),
    define("retention.ms", "604800000", "", Kind::Long(-1)),
    define("segment.bytes", "1073741824", "log.segment.bytes", Kind::Int(1_048_576)),
    define("segment.index.bytes", "10485760", "log.index.size.max.bytes", Kind::Int(4)),
    define("segment.jitter.ms", "0", "", Kind::Long(0)),
    define("segment.ms", "604800000", "", Kind::Long(1)),
    define("unclean.leader.election.enable", "false", "unclean.leader.election.enable", Kind::Boolean),
];

/// The definition of that name.
pub(super) fn definition(name: &str) -> Option<&'static Definition> {
    DEFINITIONS
        .iter()
        .find(|definition| definition.name == name)
}

/// The configurations set on one topic, above the defaults.
#[derive(Debug, Clone)]
pub(super) struct TopicConfig {
    set: BTreeMap<String, String>,
    /// The broker's default of `max.message.bytes`.
    message_max_bytes: String,
}

impl TopicConfig {
    pub(super) fn new(message_max_bytes: i32) -> Self {
        Self {
            set: BTreeMap::new(),
            message_max_bytes: message_max_bytes.to_string(),
        }
    }

    /// Sets a configuration; the error is the sentence that goes to the client with `INVALID_CONFIG`.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), String> {
        let Some(definition) = definition(name) else {
            return Err(format!("Unknown topic config name: {name}"));
        };
        let Some(value) = value else {
            return Err(format!(
                "Null value not supported for topic configs: {name}"
            ));
        };
        if !definition.kind.accepts(value) {
            return Err(format!(
                "Invalid value {value} for configuration {name}: it must be {}",
                definition.kind.expected()
            ));
        }
        self.set.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Goes back to the default.
    pub(super) fn unset(&mut self, name: &str) -> Result<(), String> {
        if definition(name).is_none() {
            return Err(format!("Unknown topic config name: {name}"));
        }
        self.set.remove(name);
        Ok(())
    }

    /// What the broker gives a topic that does not set it.
    pub(super) fn default_of(&self, definition: &Definition) -> &str {
        if definition.name == "max.message.bytes" {
            &self.message_max_bytes
        } else {
            definition.default
        }
    }

    /// The value and whether it was set on the topic.
    pub(super) fn lookup(&self, name: &str) -> Option<(&str, bool)> {
        match self.set.get(name) {
            Some(value) => Some((value, true)),
            None => definition(name).map(|definition| (self.default_of(definition), false)),
        }
    }

    fn text(&self, name: &str) -> &str {
        self.lookup(name).map_or("", |(value, _)| value)
    }

    fn number(&self, name: &str) -> i64 {
        // Values were checked when they were set.
        self.text(name).trim().parse().unwrap_or(i64::MAX)
    }

    pub(super) fn max_message_bytes(&self) -> usize {
        usize::try_from(self.number("max.message.bytes")).unwrap_or(0)
    }

    pub(super) fn segment_bytes(&self) -> usize {
        usize::try_from(self.number("segment.bytes")).unwrap_or(usize::MAX)
    }

    pub(super) fn timestamp_before_max_ms(&self) -> i64 {
        self.number("message.timestamp.before.max.ms")
    }

    pub(super) fn timestamp_after_max_ms(&self) -> i64 {
        self.number("message.timestamp.after.max.ms")
    }

    pub(super) fn is_log_append_time(&self) -> bool {
        self.text("message.timestamp.type") == "LogAppendTime"
    }

    fn has_policy(&self, policy: &str) -> bool {
        let policies = self.text("cleanup.policy");
        policies.split(',').any(|word| word.trim() == policy)
    }

    pub(super) fn is_compacted(&self) -> bool {
        self.has_policy("compact")
    }

    pub(super) fn may_delete_records(&self) -> bool {
        self.has_policy("delete")
    }
}
