//! What the audit trail says of a document, as its task knows it.

use std::sync::Arc;

use jiff::SignedDuration;

use super::outcome::Work;
use super::{Asked, Services};
use crate::llm::Prompt;
use crate::offsets::AuditWriter;
use crate::records::audit::{
    AuditAsked, AuditDocument, AuditEntry, AuditKind, AuditOutcome, AuditParameters, AuditTimes,
    Hash, server_text,
};
use crate::records::dead_letter::DeadLetter;
use crate::records::result::{ResultRecord, ResultSource};

/// Keeps an audit trail.
#[derive(Debug)]
pub struct Auditing {
    writer: Arc<AuditWriter>,
    model: String,
    parameters: AuditParameters,
}

impl Auditing {
    /// With the model and the parameters that documents are asked with.
    #[must_use]
    pub fn new(writer: AuditWriter, model: impl Into<String>, parameters: AuditParameters) -> Self {
        Self {
            writer: Arc::new(writer),
            model: model.into(),
            parameters,
        }
    }

    pub(super) fn writer(&self) -> Arc<AuditWriter> {
        Arc::clone(&self.writer)
    }

    /// Of an answer. Where it is written is noted later.
    pub(super) fn answered(
        &self,
        work: &Work,
        result: &ResultRecord,
        endpoint: &str,
    ) -> AuditEntry {
        let fingerprint = result.system_fingerprint.as_deref();
        AuditEntry {
            generation: result.generation.clone(),
            document: document(work, result.document_id.clone()),
            asked: Some(AuditAsked {
                prompt_hash: result.prompt_hash.clone(),
                schema_hash: result.schema_hash.clone(),
                model: server_text(&result.model),
                system_fingerprint: fingerprint.map(server_text),
                parameters: self.parameters,
                endpoint: Some(endpoint.to_owned()),
                request_id: Some(result.request_id.clone()),
            }),
            outcome: AuditOutcome {
                status: Some(result.status),
                finish_reason: Some(server_text(&result.finish_reason)),
                cached: result.cached,
                usage: Some(result.usage),
                ..outcome(AuditKind::Result, result.attempts)
            },
            times: AuditTimes {
                llm_ms: Some(result.timing.llm_ms),
                ..times(work, result.completed_at)
            },
        }
    }

    /// Of a document that is given up; `name` is its id, `asked` is what it was asked with, when it was read as a document.
    pub(super) fn given_up(
        &self,
        services: &Services,
        work: &Work,
        letter: &DeadLetter,
        name: &str,
        asked: Option<(&Asked, &Prompt)>,
    ) -> AuditEntry {
        let generation = match asked {
            Some((asked, _)) => asked.generation.clone(),
            None => services.asking.now().generation.clone(),
        };
        AuditEntry {
            generation,
            document: document(work, name.to_owned()),
            asked: asked.map(|(_, prompt)| AuditAsked {
                prompt_hash: prompt.template_hash().to_owned(),
                schema_hash: services.schema_hash.clone(),
                model: self.model.clone(),
                system_fingerprint: None,
                parameters: self.parameters,
                endpoint: None,
                request_id: letter.request_id.clone(),
            }),
            outcome: outcome(AuditKind::DeadLetter, letter.attempts),
            times: times(work, letter.at),
        }
    }
}

fn document(work: &Work, id: String) -> AuditDocument {
    let value = work.record.value.as_deref().unwrap_or_default();
    AuditDocument {
        id,
        source: ResultSource::new(&work.position, work.record.timestamp_ms),
        hash: Hash::of(value),
    }
}

const fn outcome(kind: AuditKind, attempts: u32) -> AuditOutcome {
    AuditOutcome {
        kind,
        status: None,
        reason: None,
        finish_reason: None,
        cached: false,
        topic: String::new(),
        partition: 0,
        hash: None,
        usage: None,
        attempts,
    }
}

fn times(work: &Work, completed_at: jiff::Timestamp) -> AuditTimes {
    let open = SignedDuration::try_from(work.fetched_at.elapsed()).unwrap_or_default();
    AuditTimes {
        fetched_at: completed_at.checked_sub(open).unwrap_or(completed_at),
        completed_at,
        llm_ms: None,
    }
}
