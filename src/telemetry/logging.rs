//! Logs: to standard error for people or collectors, and to a file that turns over daily.
//!
//! Both are written by a thread of their own behind a bounded queue: a blocked terminal, a slow disk or a full one never stops the work.
//! Lines that are lost are counted, and the count is told while it grows and at the end.
//!
//! Levels are by what an operator has to do: ERROR at once, WARN soon, INFO nothing (milestones), DEBUG is what becomes of each document.
//! Prompts, answers and secrets are in no line.

mod json;
mod losses;

use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, JsonFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as layer};

use crate::clock;

use json::FlatJson;
pub use losses::Losses;

/// Lines that wait to be written, for each of console and file: some 2 MiB at most.
const QUEUED_LINES_MAX: usize = 8192;

/// Where `log.file = "auto"` writes.
const AUTO_FILE: &str = "logs/kafka-llm-processor.log";

/// Libraries that log what they also hand back as an error, or every connection: quiet unless named in `log.level`.
const QUIET: &str = "rskafka=off,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,h2=warn";

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Time, level, message, fields.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Whether there is a log file, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum LogFile {
    /// `logs/kafka-llm-processor.log` where that can be written, none in a container.
    #[default]
    Auto,
    /// None.
    Off,
    /// This file; a file that cannot be written is an error at start.
    Path(PathBuf),
}

impl From<String> for LogFile {
    fn from(text: String) -> Self {
        match text.trim() {
            "auto" => Self::Auto,
            "" | "off" => Self::Off,
            path => Self::Path(PathBuf::from(path)),
        }
    }
}

impl From<LogFile> for String {
    fn from(file: LogFile) -> Self {
        match file {
            LogFile::Auto => "auto".to_owned(),
            LogFile::Off => "off".to_owned(),
            LogFile::Path(path) => path.display().to_string(),
        }
    }
}

/// Section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info` (default), `debug`, `trace`, or a list such as `info,kafka_llm_processor::kafka=debug`.
    pub level: String,
    /// `human` (default) or `json`.
    pub format: LogFormat,
    /// `auto` (default), `off` or a path. The file turns over daily; the path itself is a link to today's.
    pub file: LogFile,
    /// Daily files that are kept, at least 1. Default 7.
    pub max_files: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::default(),
            file: LogFile::default(),
            max_files: 7,
        }
    }
}

/// What the logs need to know about the process's surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether standard error may be coloured: it is a terminal and `NO_COLOR` is not set.
    pub color: bool,
    /// Whether the process runs in a container, where files are lost and collectors read standard error.
    pub container: bool,
    /// The folder that `auto` is relative to.
    pub folder: PathBuf,
}

impl Surroundings {
    /// Looks around.
    #[must_use]
    pub fn detect() -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let container = Path::new("/.dockerenv").exists()
            || Path::new("/run/.containerenv").exists()
            || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        Self {
            color: io::stderr().is_terminal() && !no_color,
            container,
            folder: PathBuf::from("."),
        }
    }
}

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter has a word that is no level.
    #[error(
        "log.level: `{directive}` is neither a level (error, warn, info, debug, trace, off) nor `target=level`"
    )]
    Level {
        /// The word.
        directive: String,
    },
    /// The file cannot be written.
    #[error(
        "log.file: {} cannot be written ({detail}); name another file, or set log.file = \"off\"",
        path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
}

/// Writes what is queued when it is dropped: keep it until the end of `main`.
#[must_use = "dropping the guard ends the log"]
pub struct LogGuard {
    workers: Vec<WorkerGuard>,
    losses: Losses,
    file: Option<PathBuf>,
}

impl fmt::Debug for LogGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogGuard")
            .field("file", &self.file)
            .field("losses", &self.losses)
            .finish_non_exhaustive()
    }
}

impl LogGuard {
    /// The log file, when there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Lines that were lost so far.
    #[must_use]
    pub const fn losses(&self) -> &Losses {
        &self.losses
    }

    fn queue<W: Write + Send + 'static>(&mut self, writer: W, name: &str) -> NonBlocking {
        let (queue, worker) = NonBlockingBuilder::default()
            .buffered_lines_limit(QUEUED_LINES_MAX)
            .lossy(true)
            .thread_name(name)
            .finish(self.losses.count_in(writer));
        self.workers.push(worker);
        self.losses.watch(queue.error_counter());
        queue
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.workers.clear();
        let (dropped, unwritten) = (self.losses.dropped(), self.losses.unwritten());
        if dropped + unwritten > 0 {
            // The log itself is closed by now; a standard error that is closed too has no reader to miss it.
            let line = format!(
                "log: {dropped} lines were dropped because a queue was full, {unwritten} could not be written\n"
            );
            drop(io::stderr().write_all(line.as_bytes()));
        }
    }
}

/// The outputs, as far as their spans are written apart.
const CONSOLE: u8 = 0;
const FILE: u8 = 1;

/// Fields of spans as people read them. Of one type for both outputs they would be written once: with the console's colours, and twice what
/// becomes known later.
struct SpanFields<const OUTPUT: u8>;

impl<'writer, const OUTPUT: u8> FormatFields<'writer> for SpanFields<OUTPUT> {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        DefaultFields::new().format_fields(writer, fields)
    }
}

/// The wall clock, to the millisecond.
struct WallClock;

impl FormatTime for WallClock {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{:.3}", clock::now())
    }
}

/// Begins to log. When the process already has a subscriber (in tests), that one stays.
///
/// # Errors
/// When the filter cannot be read, or a file that was asked for by name cannot be written.
pub fn init(config: &LogConfig) -> Result<LogGuard, LogError> {
    let (subscriber, guard) = build(config, &Surroundings::detect(), io::stderr)?;
    // The one error is that somebody else was first, which is as good.
    drop(subscriber.try_init());
    Ok(guard)
}

/// The subscriber of `config`, with `console` in the place of standard error.
fn build<W, F>(
    config: &LogConfig,
    surroundings: &Surroundings,
    console: F,
) -> Result<
    (
        impl SubscriberInitExt + tracing::Subscriber + Send + Sync,
        LogGuard,
    ),
    LogError,
>
where
    W: Write + Send + 'static,
    F: FnOnce() -> W,
{
    let mut guard = LogGuard {
        workers: Vec::new(),
        losses: Losses::default(),
        file: None,
    };
    let filter = filter(&config.level)?;
    let file = open_file(config, surroundings)?;
    let console = guard.queue(console(), "log-console");
    let mut layers = vec![lines::<CONSOLE>(config.format, console, surroundings.color)];
    if let Some((path, appender)) = file {
        let queue = guard.queue(appender, "log-file");
        layers.push(lines::<FILE>(config.format, queue, false));
        guard.file = Some(path);
    }
    Ok((
        tracing_subscriber::registry().with(layers.with_filter(filter)),
        guard,
    ))
}

fn lines<const OUTPUT: u8>(
    format: LogFormat,
    writer: NonBlocking,
    color: bool,
) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = layer::layer()
        .with_timer(WallClock)
        .with_writer(writer)
        .with_ansi(color);
    match format {
        LogFormat::Human => lines
            .with_target(false)
            .fmt_fields(SpanFields::<OUTPUT>)
            .boxed(),
        LogFormat::Json => lines
            .fmt_fields(JsonFields::new())
            .event_format(FlatJson)
            .boxed(),
    }
}

/// Reads `log.level`. A misspelt level alone would count as the name of a target and silence all others.
fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let refused = |directive: &str| LogError::Level {
        directive: directive.to_owned(),
    };
    for directive in level.split(',').map(str::trim) {
        let is_level = !directive.is_empty() && directive.parse::<LevelFilter>().is_ok();
        if !is_level && !directive.contains(['=', '[']) {
            return Err(refused(directive));
        }
    }
    EnvFilter::try_new(format!("{QUIET},{level}"))
        .map_err(|error| refused(&format!("{level} ({error})")))
}

fn open_file(
    config: &LogConfig,
    surroundings: &Surroundings,
) -> Result<Option<(PathBuf, RollingFileAppender)>, LogError> {
    match &config.file {
        LogFile::Off => Ok(None),
        LogFile::Auto if surroundings.container => Ok(None),
        // A folder that cannot be written is the usual case of a service: standard error has it all.
        LogFile::Auto => Ok(open(&surroundings.folder.join(AUTO_FILE), config.max_files).ok()),
        LogFile::Path(path) => open(path, config.max_files).map(Some),
    }
}

fn open(path: &Path, max_files: usize) -> Result<(PathBuf, RollingFileAppender), LogError> {
    let refused = |detail: String| LogError::File {
        path: path.to_owned(),
        detail,
    };
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| refused("the path has no file name".to_owned()))?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    // The appender would replace it by its link.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_symlink()) {
        return Err(refused(
            "something that is not a link to a log is already there".to_owned(),
        ));
    }
    fs::create_dir_all(folder).map_err(|error| refused(error.to_string()))?;
    let (prefix, suffix) = name.rsplit_once('.').unwrap_or((name, "log"));
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(prefix)
        .filename_suffix(suffix)
        .latest_symlink(name)
        .max_log_files(max_files.max(1))
        .build(folder)
        .map_err(|error| refused(source_text(&error)))?;
    Ok((path.to_owned(), appender))
}

/// What the system said, without the library's own words around it.
fn source_text(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests;
