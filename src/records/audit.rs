//! The record of the audit trail: who has done what to which document with which outcome, chained by hash.
//!
//! What is hashed is the value of the record, byte for byte as it lies in Kafka: nobody has to write it again in the same way to verify it. It has
//! the hash of the record before it, so none can be changed, left out or moved without that showing in the next; and the hash of the last stands
//! in the commit record.

pub mod chain;
#[cfg(test)]
pub(crate) mod fixture;

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use crate::records::dead_letter::DeadLetter;
use crate::records::headers;
use crate::records::result::{ResultSource, ResultStatus, ResultUsage};
use crate::types::{Record, TopicPartition};

/// Version of the value's schema. It rises when a field changes its meaning; new fields leave it.
pub const AUDIT_VERSION: u32 = 1;

/// What a record takes of the bound on open documents, with its place in the chain.
pub const AUDIT_BYTES: usize = 2 * 1024;

/// The longest text of a server that is written; a longer one is cut.
const SERVER_TEXT_BYTES_MAX: usize = 256;

/// A SHA-256, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("no SHA-256 of 64 hex digits"))
    }
}

/// Where a chain ends, in the commit record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// How many records it has.
    pub length: u64,
    /// Hash of the last of them.
    pub head: Hash,
}

/// The place of a record in its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// `kafka.group_id`: each group has chains of its own.
    pub group: String,
    /// Input topic.
    pub topic: String,
    /// Input partition.
    pub partition: i32,
    /// Counts the records of the chain, from 0.
    pub sequence: u64,
    /// Hash of the record before it; null in the first.
    pub previous: Option<Hash>,
    /// How many records of the chain were committed when it was written. Those from there on were written together with it, and are
    /// committed together with it.
    pub committed: u64,
    /// Whether it is the first of an owner since it took the partition over. Then the owner before may have written others in its place, and not
    /// have committed them.
    pub take_over: bool,
}

/// Who has written a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Name of this run of the process, as in commit records.
    pub instance: String,
    /// Version of the program.
    pub version: String,
    /// Counts the take-overs of the partition.
    pub owner_epoch: u64,
    /// `processing.guarantee`.
    pub guarantee: String,
    /// Hash of the configuration that was in force, as in results.
    pub generation: String,
}

/// The name of the guarantee under which nothing is written twice.
pub const EXACTLY_ONCE: &str = "exactly_once";

/// What was processed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditDocument {
    /// Its name.
    pub id: String,
    /// Where it lies.
    pub source: ResultSource,
    /// Hash of the value of the input record.
    pub hash: Hash,
}

/// What the model was asked with; the parameters are those of section `[llm]`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct AuditParameters {
    /// `llm.max_tokens`.
    pub max_tokens: u32,
    /// `llm.temperature`.
    pub temperature: f64,
    /// `llm.top_p`.
    pub top_p: Option<f64>,
    /// `llm.seed`.
    pub seed: Option<i64>,
}

/// How the model was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditAsked {
    /// Hash of the prompt template.
    pub prompt_hash: String,
    /// Hash of the JSON Schema; null without one.
    pub schema_hash: Option<String>,
    /// The model that answered, by its own word; of a document without an answer the one that was asked for.
    pub model: String,
    /// The server's build, when told.
    pub system_fingerprint: Option<String>,
    /// With what.
    pub parameters: AuditParameters,
    /// Base URL of the server that answered; null without an answer.
    pub endpoint: Option<String>,
    /// `X-Request-Id` of the attempt that counted.
    pub request_id: Option<String>,
}

/// Where a document ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditKind {
    /// In the output topic.
    Result,
    /// In the dead letters.
    DeadLetter,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditOutcome {
    /// Result or dead letter.
    pub kind: AuditKind,
    /// Of a result.
    pub status: Option<ResultStatus>,
    /// Of a dead letter: the name of the reason.
    pub reason: Option<String>,
    /// As vLLM names it; null without an answer.
    pub finish_reason: Option<String>,
    /// Whether it is the answer that an identical document got.
    pub cached: bool,
    /// Topic of the record that was written.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Hash of its value; null where it has none.
    pub hash: Option<Hash>,
    /// Tokens; null where the model gave no answer.
    pub usage: Option<ResultUsage>,
    /// Attempts that were made.
    pub attempts: u32,
}

/// When.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditTimes {
    /// When the document was fetched.
    pub fetched_at: Timestamp,
    /// When its outcome stood.
    pub completed_at: Timestamp,
    /// Milliseconds of the call that succeeded; null where none did.
    pub llm_ms: Option<u64>,
}

/// A document's part of a record, before it has a place in the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// Hash of the configuration that was in force.
    pub generation: String,
    /// What was processed.
    pub document: AuditDocument,
    /// How the model was asked; `None` for what could not be read as a document.
    pub asked: Option<AuditAsked>,
    /// What came of it.
    pub outcome: AuditOutcome,
    /// When.
    pub times: AuditTimes,
}

impl AuditEntry {
    /// Notes what is written: hash and place, and how it ended where it ends otherwise than it seemed, as a result that is too large.
    pub fn written(&mut self, to: &TopicPartition, record: &Record) {
        let outcome = &mut self.outcome;
        to.topic.as_ref().clone_into(&mut outcome.topic);
        outcome.partition = to.partition;
        outcome.hash = record.value.as_deref().map(Hash::of);
        if let Some(letter) = DeadLetter::read(record) {
            outcome.kind = AuditKind::DeadLetter;
            outcome.status = None;
            outcome.reason = Some(letter.reason.as_str().to_owned());
        }
    }
}

/// A text that a server has sent, cut where it is long: it must not decide the size of a record.
#[must_use]
pub fn server_text(text: &str) -> String {
    let end = text.floor_char_boundary(SERVER_TEXT_BYTES_MAX);
    text.get(..end).unwrap_or(text).to_owned()
}

/// The value of a record. Readers tolerate fields that they do not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// [`AUDIT_VERSION`] of the writer.
    pub v: u32,
    /// Its place.
    pub chain: Link,
    /// Who wrote it.
    pub by: Writer,
    /// What was processed.
    pub document: AuditDocument,
    /// How the model was asked.
    pub asked: Option<AuditAsked>,
    /// What came of it.
    pub outcome: AuditOutcome,
    /// When.
    pub times: AuditTimes,
}

/// The key of a chain's records.
#[must_use]
pub fn chain_key(group: &str, topic: &str, partition: i32) -> Bytes {
    Bytes::from(format!("{group}/{topic}/{partition}"))
}

impl AuditRecord {
    /// The record for the audit topic, and the hash of its value.
    ///
    /// # Panics
    /// Never: text and numbers can always be written to memory.
    #[must_use]
    pub fn into_record(self) -> (Record, Hash) {
        #[allow(
            clippy::expect_used,
            reason = "text and numbers can always be written to memory"
        )]
        let value = serde_json::to_vec(&self).expect("an audit record is plain data");
        let hash = Hash::of(&value);
        let mut headers = Vec::with_capacity(4);
        headers::set_source(&mut headers, &self.document.source.position());
        headers::set(&mut headers, headers::DOCUMENT_ID, self.document.id);
        let record = Record {
            key: Some(chain_key(
                &self.chain.group,
                &self.chain.topic,
                self.chain.partition,
            )),
            value: Some(Bytes::from(value)),
            headers,
            timestamp_ms: self.times.completed_at.as_millisecond(),
        };
        (record, hash)
    }

    /// Reads the value of a record of the audit topic.
    ///
    /// # Errors
    /// When it is none: no JSON, or a field is missing or of another type.
    pub fn parse(value: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(value)
    }
}
