//! What documents are asked about with, as far as it can change while the process runs.

use std::sync::{Arc, PoisonError, RwLock};

use super::Topics;

/// Prompts, and the name of the configuration that they belong to.
#[derive(Debug, Clone)]
pub struct Asked {
    /// What is particular to each input topic: its share and its prompt.
    pub topics: Topics,
    /// Hash of the configuration in force, in results.
    pub generation: String,
}

/// What is in force; cheap to clone.
#[derive(Debug, Clone)]
pub struct Asking(Arc<RwLock<Arc<Asked>>>);

impl Asking {
    /// With these.
    #[must_use]
    pub fn new(topics: Topics, generation: impl Into<String>) -> Self {
        let generation = generation.into();
        Self(Arc::new(RwLock::new(Arc::new(Asked {
            topics,
            generation,
        }))))
    }

    /// What a document that begins now is asked with, to its end: its result names what it was asked with.
    #[must_use]
    pub fn now(&self) -> Arc<Asked> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on with these. Documents that have begun go on with what they began with.
    pub fn replace(&self, asked: Asked) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(asked);
    }
}
