//! How far a command has come: a bar for a person, a line now and then for a log.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::cli::output::Terminal;

/// Lines are at least so far apart, but for the last.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// What is done, and to how many of what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task<'a> {
    /// Such as `sent`.
    pub(super) done: &'a str,
    /// Such as `documents`.
    pub(super) unit: &'a str,
    /// Such as `to news`.
    pub(super) place: &'a str,
    pub(super) total: u64,
}

/// A bar on standard error, or lines on `out`.
pub(super) struct Progress<'a> {
    out: &'a mut (dyn Write + Send),
    task: Task<'a>,
    at: u64,
    told: Option<(u64, Instant)>,
    bar: Option<ProgressBar>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(
        terminal: &Terminal,
        out: &'a mut (dyn Write + Send),
        task: Task<'a>,
    ) -> Self {
        let bar = terminal.is_interactive().then(|| {
            let template = format!(
                "{{bar:32}} {{pos}}/{{len}} {}, {{per_sec}}, {{eta}} left",
                task.unit
            );
            let style = ProgressStyle::with_template(&template);
            let style = style.unwrap_or_else(|_malformed| ProgressStyle::default_bar());
            ProgressBar::new(task.total).with_style(style)
        });
        Self {
            out,
            task,
            at: 0,
            told: None,
            bar,
        }
    }

    /// So many are done.
    pub(super) fn set(&mut self, at: u64) -> io::Result<()> {
        self.at = at;
        if let Some(bar) = &self.bar {
            bar.set_position(at);
            return Ok(());
        }
        match self.told {
            Some((_, at)) if at.elapsed() < LINE_EVERY => Ok(()),
            _ => self.line(),
        }
    }

    /// The last line; a bar goes away.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        match self.told {
            Some((told, _)) if told == self.at => self.out.flush(),
            _ => self.line(),
        }
    }

    fn line(&mut self) -> io::Result<()> {
        self.told = Some((self.at, Instant::now()));
        let Task {
            done,
            unit,
            place,
            total,
        } = self.task;
        writeln!(self.out, "{done} {} of {total} {unit} {place}", self.at)?;
        self.out.flush()
    }
}
