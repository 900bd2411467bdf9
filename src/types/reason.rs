//! Why a document was given up.

use std::fmt;

/// Why a document went to the dead-letter topic. The name is the header value and the metric label, so the set is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadLetterReason {
    /// The value has no text: zero bytes, white space, or an empty content field.
    EmptyDocument,
    /// The value begins as a JSON object and is not one.
    InvalidJson,
    /// The value is not valid UTF-8.
    InvalidUtf8,
    /// The JSON object lacks the content field, or it is not text.
    MissingContent,
    /// The prompt template could not be rendered for this document.
    PromptFailed,
    /// The prompt is longer than the model's context.
    ContextLengthExceeded,
    /// The server refuses this document's request, and not others'.
    RequestRejected,
    /// The attempts are spent while the server succeeds for other documents.
    AttemptsExhausted,
    /// The document's deadline has passed while the server succeeds for other documents.
    DeadlineExceeded,
    /// The server's answer cannot be read, each time.
    InvalidResponse,
    /// The answer does not follow the schema, nor does the one that was asked for after it.
    SchemaViolation,
    /// The result is larger than the output topic accepts.
    ResultTooLarge,
    /// The engine died each time that it was asked about this document alone.
    EngineKilled,
}

impl DeadLetterReason {
    /// All of them, for metrics and documents.
    pub const ALL: [Self; 13] = [
        Self::EmptyDocument,
        Self::InvalidJson,
        Self::InvalidUtf8,
        Self::MissingContent,
        Self::PromptFailed,
        Self::ContextLengthExceeded,
        Self::RequestRejected,
        Self::AttemptsExhausted,
        Self::DeadlineExceeded,
        Self::InvalidResponse,
        Self::SchemaViolation,
        Self::ResultTooLarge,
        Self::EngineKilled,
    ];

    /// The stable name, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EmptyDocument => "empty_document",
            Self::InvalidJson => "invalid_json",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::MissingContent => "missing_content",
            Self::PromptFailed => "prompt_failed",
            Self::ContextLengthExceeded => "context_length_exceeded",
            Self::RequestRejected => "request_rejected",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::InvalidResponse => "invalid_response",
            Self::SchemaViolation => "schema_violation",
            Self::ResultTooLarge => "result_too_large",
            Self::EngineKilled => "engine_killed",
        }
    }
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
