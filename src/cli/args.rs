//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::audit::AuditArgs;
use super::check::CheckArgs;
use super::config::ConfigCommand;
use super::dead_letters::DeadLettersArgs;
use super::drift::DriftArgs;
use super::dry_run::DryRunArgs;
use super::offsets::OffsetsArgs;
use super::pause::PauseArgs;
use super::produce::ProduceArgs;
use super::results::ResultsArgs;
#[cfg(feature = "sandbox")]
use super::sandbox::SandboxArgs;
use super::shell::{CompletionsArgs, ManArgs};
use super::status::StatusArgs;
use crate::config::Override;

const EXIT_CODES: &str = "\
Exit codes:
   0  done or drained
   1  failure at start, a check that did not pass, an audit trail that is broken, a status that is not well,
      documents that cannot be replayed, or drift that --fail-on-shift asked for
   2  the drain deadline passed, a second signal, or a replay that was stopped
   3  another instance owns the partitions
  64  usage or configuration";

/// Reads documents from Kafka, asks vLLM about each, writes the answers back to Kafka.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 120, after_help = EXIT_CODES)]
pub struct Cli {
    /// Settings that any command takes.
    #[command(flatten)]
    pub settings: SettingArgs,
    /// What to do; `run` when nothing is named.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Process documents until told to stop (the default)
    Run(RunArgs),
    /// Try everything in seconds: sandbox, six documents, processor, results; real servers where KAFKA_BROKERS or LLM_URL name them
    #[cfg(feature = "sandbox")]
    Quickstart,
    /// An in-memory Kafka on port 9092 and a simulated vLLM on port 8000, until Ctrl-C
    #[cfg(feature = "sandbox")]
    Sandbox(SandboxArgs),
    /// Send documents to the input topic
    Produce(ProduceArgs),
    /// Show results, or dead letters
    Results(ResultsArgs),
    /// List documents that were given up, show one, or replay them
    DeadLetters(DeadLettersArgs),
    /// Verify the audit trail, or show what it says about a document
    Audit(AuditArgs),
    /// Check servers, topics and a running processor: a tick or a cross each, and what to do
    Check(CheckArgs),
    /// What a running processor does, and what limits it; exit code 0 while it works
    Status(StatusArgs),
    /// Whether answers have changed, by what the output topic holds
    Drift(DriftArgs),
    /// Show where each input partition stands, or go on elsewhere
    Offsets(OffsetsArgs),
    /// Have a running processor begin no new calls, until `resume` or a restart; what is in flight is finished and committed
    Pause(PauseArgs),
    /// Have a paused processor go on
    Resume(PauseArgs),
    /// Tell what would become of the input, and what its backlog would take, without writing or committing anything
    DryRun(DryRunArgs),
    /// The configuration in force, and what can be set
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write the completions of a shell
    Completions(CompletionsArgs),
    /// Write the manual page, of the program or of a command
    Man(ManArgs),
}

impl Command {
    /// Whether it needs the settings; what tells of the program itself works also where they are wrong.
    pub(super) const fn reads_settings(&self) -> bool {
        !matches!(
            self,
            Self::Config(ConfigCommand::Reference(_)) | Self::Completions(_) | Self::Man(_)
        )
    }
}

impl Default for Command {
    fn default() -> Self {
        Self::Run(RunArgs::default())
    }
}

/// Arguments of `run`.
#[derive(Debug, Args, Default)]
pub struct RunArgs {
    /// End with exit code 1 when Kafka or the model server cannot be used at start, instead of waiting for them
    #[arg(long)]
    pub fail_fast: bool,
}

/// Settings: above the environment, which is above the file, which is above the defaults.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingArgs {
    /// TOML file
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set any key, such as pipeline.order=key (repeatable)
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// kafka.brokers: host:port, comma separated
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub brokers: Option<String>,
    /// kafka.group_id: names the commit topic and the group that lag tools see
    #[arg(long, global = true, value_name = "NAME")]
    pub group_id: Option<String>,
    /// input.topics, comma separated
    #[arg(long, global = true, value_name = "TOPIC")]
    pub input_topic: Option<String>,
    /// output.topic
    #[arg(long, global = true, value_name = "TOPIC")]
    pub output_topic: Option<String>,
    /// llm.url
    #[arg(long, global = true, value_name = "URL")]
    pub llm_url: Option<String>,
    /// llm.model: the served model name
    #[arg(long, global = true, value_name = "NAME")]
    pub model: Option<String>,
    /// llm.concurrency: calls in flight
    #[arg(long, global = true, value_name = "N")]
    pub concurrency: Option<String>,
    /// pipeline.order: input, key or completion
    #[arg(long, global = true, value_name = "ORDER")]
    pub order: Option<String>,
}

impl SettingArgs {
    /// The settings that the flags change.
    ///
    /// # Errors
    /// When a `--set` is not `KEY=VALUE`.
    pub fn overrides(&self) -> Result<Vec<Override>, String> {
        let mut overrides = Vec::new();
        for set in &self.set {
            let (key, value) = set.split_once('=').ok_or_else(|| {
                format!("--set {set}: must be KEY=VALUE, such as pipeline.order=key")
            })?;
            overrides.push(Override {
                key: key.trim().to_owned(),
                value: value.to_owned(),
                flag: "--set".to_owned(),
            });
        }
        for (flag, key, value) in [
            ("--brokers", "kafka.brokers", &self.brokers),
            ("--group-id", "kafka.group_id", &self.group_id),
            ("--input-topic", "input.topics", &self.input_topic),
            ("--output-topic", "output.topic", &self.output_topic),
            ("--llm-url", "llm.url", &self.llm_url),
            ("--model", "llm.model", &self.model),
            ("--concurrency", "llm.concurrency", &self.concurrency),
            ("--order", "pipeline.order", &self.order),
        ] {
            if let Some(value) = value {
                overrides.push(Override {
                    key: key.to_owned(),
                    value: value.clone(),
                    flag: flag.to_owned(),
                });
            }
        }
        Ok(overrides)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_named_is_run() {
        let cli = Cli::try_parse_from(["klp", "--order", "key"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.settings.overrides().unwrap()[0].key, "pipeline.order");
        assert!(matches!(Command::default(), Command::Run(_)));
    }

    #[test]
    fn a_set_without_a_value_is_refused() {
        let cli = Cli::try_parse_from(["klp", "--set", "pipeline.order"]).unwrap();
        assert!(cli.settings.overrides().unwrap_err().contains("KEY=VALUE"));
    }
}
