//! The configuration read anew while the process runs: what can change safely does, what cannot is refused by name, and nothing of a
//! refused reload takes effect.

use std::sync::Arc;

use crate::config::{ConfigError, Settings};
use crate::llm::{PromptSetupError, VllmClient};
use crate::pipeline::{Asked, Asking, Topics};
use crate::telemetry::StatusBoard;
use crate::types::error_chain;

/// Changes a running process.
#[derive(Debug)]
pub struct Reloader {
    pub(super) settings: Settings,
    pub(super) asking: Asking,
    pub(super) schema_text: Option<String>,
    pub(super) client: Arc<VllmClient>,
    pub(super) board: StatusBoard,
}

/// Why a configuration does not take effect.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It changes what only a restart can change.
    #[error("only a restart changes {}", keys.join(", "))]
    Fixed {
        /// The keys.
        keys: Vec<String>,
    },
    /// A template is of no use.
    #[error(transparent)]
    Prompt(#[from] PromptSetupError),
}

impl Reloader {
    /// Takes what `load` reads into force, and tells.
    pub fn reload(&mut self, load: impl FnOnce() -> Result<Settings, ConfigError>) {
        match self.try_reload(load) {
            Ok(changed) => tracing::info!(
                changed = changed.join(", "),
                config_generation = self.board.config_generation(),
                generation = self.settings.generation(),
                "the configuration was read anew and is in force for documents that begin now"
            ),
            Err(error) => tracing::error!(
                error = error_chain(&error),
                "the configuration was read anew and nothing of it takes effect"
            ),
        }
    }

    /// The keys that have changed. Files that settings name may have changed without them.
    fn try_reload(
        &mut self,
        load: impl FnOnce() -> Result<Settings, ConfigError>,
    ) -> Result<Vec<String>, ReloadError> {
        let settings = load()?;
        let changes = self.settings.changes_to(&settings);
        if !changes.fixed.is_empty() {
            return Err(ReloadError::Fixed {
                keys: changes.fixed,
            });
        }
        let (inputs, prompt) = (&settings.input.topics, &settings.prompt);
        let topics = Topics::load(inputs, prompt, self.schema_text.as_deref())?;
        // From here on nothing can fail.
        for input in inputs {
            self.client.expect(topics.prompt(&input.name));
        }
        self.client.set_limits(&settings.llm);
        let generation = settings.generation();
        self.board.set_info("generation", generation.clone());
        self.asking.replace(Asked { topics, generation });
        self.board.count_config();
        self.settings = settings;
        Ok(changes.reloaded)
    }
}
