//! From what the brokers tell about rights to ticks and crosses, each cross with the ACL to add; pure.

use super::CheckItem;
use super::judge::Role;
use super::look::{Found, TopicFound};
use crate::config::Settings;
use crate::kafka::wire::{Operation, Operations};
use crate::kafka::{KafkaConfig, SaslMechanism, SecurityProtocol};

const NAME: &str = "rights";

/// What an ACL is about.
#[derive(Debug, Clone)]
enum Resource {
    Topic(String),
    Group(String),
    /// All transactional ids that begin so.
    TransactionalIds(String),
    Cluster,
}

impl Resource {
    fn told(&self) -> String {
        match self {
            Self::Topic(name) => format!("topic `{name}`"),
            Self::Group(name) => format!("group `{name}`"),
            Self::TransactionalIds(prefix) => format!("transactional ids `{prefix}…`"),
            Self::Cluster => "the cluster".to_owned(),
        }
    }

    /// The arguments of `kafka-acls.sh` that name it.
    fn arguments(&self) -> String {
        match self {
            Self::Topic(name) => format!("--topic {}", quoted(name)),
            Self::Group(name) => format!("--group {}", quoted(name)),
            Self::TransactionalIds(prefix) => format!(
                "--transactional-id {} --resource-pattern-type prefixed",
                quoted(prefix)
            ),
            Self::Cluster => "--cluster".to_owned(),
        }
    }
}

/// What is found about one resource.
enum Finding {
    Allowed,
    Missing(Vec<Operation>),
    NotTold(Option<String>),
}

/// What a run does with a topic. `Describe` comes with either of the others.
const fn needed(role: Role) -> &'static [Operation] {
    match role {
        Role::Input => &[Operation::Read],
        Role::Output | Role::DeadLetters | Role::Audit => &[Operation::Write],
        Role::Commits => &[
            Operation::Read,
            Operation::Write,
            Operation::DescribeConfigs,
        ],
    }
}

/// A cross for each resource on which something is missing, a tick for what is allowed, and one for what is not told.
pub(super) fn judge(settings: &Settings, found: &Found) -> Vec<CheckItem> {
    let mut looks = Vec::new();
    for topic in &found.topics {
        // What cannot be asked about has a cross as a topic.
        if let Ok(rights) = &topic.rights {
            let operations = needed(topic.role);
            let resource = || Resource::Topic(topic.name.clone());
            looks.push((
                resource(),
                operations,
                compare(rights.operations, operations),
            ));
            looks.extend(creation(topic).map(|finding| (resource(), CREATE, finding)));
        }
    }
    let group = Resource::Group(settings.kafka.group_id.clone());
    let finding = match &found.group {
        Ok(operations) => compare(*operations, READ),
        Err(problem) => Finding::NotTold(Some(problem.clone())),
    };
    looks.push((group, READ, finding));
    if let Some(told) = &found.transactions {
        let ids = Resource::TransactionalIds(format!("{}/", settings.kafka.group_id));
        looks.push((ids, WRITE, yes_or_no(told, WRITE)));
    }
    if let Some(told) = &found.idempotence {
        let finding = yes_or_no(told, IDEMPOTENT_WRITE);
        // Since Kafka 2.8 a `Write` on any topic suffices: whether it does shows once that is there.
        let lacks_write = looks.iter().any(|(_, _, finding)| {
            matches!(finding, Finding::Missing(missing) if missing.contains(&Operation::Write))
        });
        if !(lacks_write && matches!(finding, Finding::Missing(_))) {
            looks.push((Resource::Cluster, IDEMPOTENT_WRITE, finding));
        }
    }
    items(settings, looks)
}

const READ: &[Operation] = &[Operation::Read];
const WRITE: &[Operation] = &[Operation::Write];
const CREATE: &[Operation] = &[Operation::Create];
const IDEMPOTENT_WRITE: &[Operation] = &[Operation::IdempotentWrite];

fn items(
    settings: &Settings,
    looks: Vec<(Resource, &'static [Operation], Finding)>,
) -> Vec<CheckItem> {
    let (mut items, mut allowed, mut not_told) = (Vec::new(), Vec::new(), Vec::new());
    for (resource, operations, finding) in looks {
        match finding {
            Finding::Allowed => {
                allowed.push(format!(
                    "{} on {}",
                    names(operations, ", "),
                    resource.told()
                ));
            }
            Finding::NotTold(why) => {
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                let (names, resource) = (names(operations, ", "), resource.told());
                not_told.push(format!("{names} on {resource}{why}"));
            }
            Finding::Missing(missing) => {
                let detail = format!(
                    "{} is not allowed on {}",
                    names(&missing, ", "),
                    resource.told()
                );
                items.push(CheckItem::fail(
                    NAME,
                    detail,
                    acl(settings, &missing, &resource),
                ));
            }
        }
    }
    if !allowed.is_empty() {
        items.push(CheckItem::pass(
            NAME,
            format!("allowed: {}", allowed.join("; ")),
        ));
    }
    if !not_told.is_empty() {
        items.push(CheckItem::pass(
            NAME,
            format!("not told: {}", not_told.join("; ")),
        ));
    }
    items
}

fn compare(told: Option<Operations>, needed: &[Operation]) -> Finding {
    let Some(told) = told else {
        return Finding::NotTold(None);
    };
    let missing = needed.iter().copied();
    let missing: Vec<_> = missing
        .filter(|operation| !told.allow(*operation))
        .collect();
    if missing.is_empty() {
        Finding::Allowed
    } else {
        Finding::Missing(missing)
    }
}

fn yes_or_no(told: &Result<Option<bool>, String>, needed: &[Operation]) -> Finding {
    match told {
        Ok(Some(true)) => Finding::Allowed,
        Ok(Some(false)) => Finding::Missing(needed.to_vec()),
        Ok(None) => Finding::NotTold(None),
        Err(problem) => Finding::NotTold(Some(problem.clone())),
    }
}

fn creation(topic: &TopicFound) -> Option<Finding> {
    Some(match topic.creation.as_ref()? {
        Ok(true) => Finding::Allowed,
        Ok(false) => Finding::Missing(CREATE.to_vec()),
        Err(problem) => Finding::NotTold(Some(problem.clone())),
    })
}

fn names(operations: &[Operation], between: &str) -> String {
    let names: Vec<_> = operations
        .iter()
        .map(|operation| operation.as_str())
        .collect();
    names.join(between)
}

/// The command that allows it, for somebody who may; `--command-config` is theirs to add.
fn acl(settings: &Settings, operations: &[Operation], resource: &Resource) -> String {
    let kafka = &settings.kafka;
    let user = principal(kafka);
    let operations = operations.iter();
    let operations: Vec<_> = operations
        .map(|operation| format!("--operation {}", operation.as_str()))
        .collect();
    format!(
        "kafka-acls.sh --bootstrap-server {} --add --allow-principal {} {} {}",
        quoted(&kafka.brokers),
        quoted(&format!("User:{user}")),
        operations.join(" "),
        resource.arguments()
    )
}

/// Whom the broker takes us for, as far as the settings tell.
fn principal(kafka: &KafkaConfig) -> &str {
    match kafka.security_protocol {
        SecurityProtocol::Ssl if kafka.ssl_keystore_location.is_some() => {
            "<subject of kafka.ssl_keystore_location>"
        }
        SecurityProtocol::Plaintext | SecurityProtocol::Ssl => "ANONYMOUS",
        SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl => match kafka.sasl_mechanism {
            SaslMechanism::Oauthbearer => "<subject of the token>",
            SaslMechanism::Plain | SaslMechanism::ScramSha256 | SaslMechanism::ScramSha512 => {
                &kafka.sasl_username
            }
        },
    }
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/:,@=+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
