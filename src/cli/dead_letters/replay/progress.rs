//! How far a replay has come: a bar for a person, a line now and then for a log.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::ReplayArgs;
use super::tally::Tally;
use crate::cli::output::Terminal;

/// Lines are at least so far apart; the report is the last.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A bar on standard error, or lines on the output.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    told: Instant,
    is_silent: bool,
}

impl Progress {
    /// `total` is how many offsets there are.
    pub(super) fn new(terminal: &Terminal, total: u64, args: &ReplayArgs) -> Self {
        let bar = terminal.is_interactive().then(|| {
            let template = "{bar:32} {pos}/{len} dead letters, {msg}, {eta} left";
            let style = ProgressStyle::with_template(template);
            let style = style.unwrap_or_else(|_malformed| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style)
        });
        Self {
            bar,
            total,
            told: Instant::now(),
            is_silent: args.json,
        }
    }

    /// So many offsets are behind us.
    pub(super) fn passed(
        &mut self,
        passed: u64,
        tally: &Tally,
        out: &mut (dyn Write + Send),
    ) -> io::Result<()> {
        let replayed = tally.replayed();
        if let Some(bar) = &self.bar {
            bar.set_position(passed);
            bar.set_message(format!("{replayed} replayed"));
            return Ok(());
        }
        if self.is_silent || self.told.elapsed() < LINE_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        let total = self.total;
        writeln!(
            out,
            "looked at {passed} of {total} dead letters, {replayed} replayed"
        )?;
        out.flush()
    }

    /// A bar goes away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
