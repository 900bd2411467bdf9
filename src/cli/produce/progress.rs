//! How far the sending has come: a bar for a person, a line now and then for a log.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::cli::output::Terminal;

/// Lines are at least so far apart, but for the last.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// A bar on standard error, or lines on `out`.
pub(super) struct Progress<'a> {
    out: &'a mut (dyn Write + Send),
    topic: &'a str,
    sent: u64,
    total: u64,
    told: Option<(u64, Instant)>,
    bar: Option<ProgressBar>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(
        terminal: &Terminal,
        out: &'a mut (dyn Write + Send),
        topic: &'a str,
        total: u64,
    ) -> Self {
        let bar = terminal.is_interactive().then(|| {
            let template = "{bar:32} {pos}/{len} documents, {per_sec}, {eta} left";
            let style = ProgressStyle::with_template(template);
            let style = style.unwrap_or_else(|_malformed| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style)
        });
        Self {
            out,
            topic,
            sent: 0,
            total,
            told: None,
            bar,
        }
    }

    /// So many were acknowledged.
    pub(super) fn sent(&mut self, sent: u64) -> io::Result<()> {
        self.sent = sent;
        if let Some(bar) = &self.bar {
            bar.set_position(sent);
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
            Some((told, _)) if told == self.sent => self.out.flush(),
            _ => self.line(),
        }
    }

    fn line(&mut self) -> io::Result<()> {
        self.told = Some((self.sent, Instant::now()));
        let Self {
            sent, total, topic, ..
        } = self;
        writeln!(self.out, "sent {sent} of {total} documents to {topic}")?;
        self.out.flush()
    }
}
