//! What `audit verify` tells.

use std::io::{self, Write};

use serde::Serialize;

use crate::cli::output::{Terminal, Tone, harmless};
use crate::records::audit::chain::{Break, Verdict};

/// Forks of one chain that are told in text.
const FORKS_SHOWN_MAX: usize = 3;

/// One chain.
#[derive(Debug, Serialize)]
pub(super) struct ChainReport {
    /// Input topic.
    pub(super) topic: String,
    /// Input partition.
    pub(super) partition: i32,
    #[serde(flatten)]
    pub(super) verdict: Verdict,
}

/// All chains of a group.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The audit topic.
    pub(super) topic: String,
    pub(super) group_id: String,
    #[serde(rename = "broken")]
    pub(super) is_broken: bool,
    /// Records in the topic that belong to no chain of the group.
    pub(super) foreign_records: u64,
    pub(super) chains: Vec<ChainReport>,
}

impl Report {
    pub(super) fn write_text(
        &self,
        terminal: &Terminal,
        out: &mut (dyn Write + Send),
    ) -> io::Result<()> {
        let names = self.chains.iter().map(ChainReport::name);
        let width = names.map(|name| name.chars().count()).max().unwrap_or(0);
        for chain in &self.chains {
            chain.write_text(width, terminal, out)?;
        }
        let records = self.chains.iter().map(|chain| chain.verdict.records);
        let records = counted(records.sum(), "record");
        let chains = self.chains.iter().filter(|chain| !chain.verdict.is_empty());
        let chains = counted(u64::try_from(chains.count()).unwrap_or(u64::MAX), "chain");
        let broken = self.chains.iter().filter(|chain| chain.verdict.breaks > 0);
        let end = match broken.count() {
            0 => format!("{records} in {chains}, none is broken"),
            broken => format!("{records} in {chains}, {broken} broken"),
        };
        writeln!(out, "{}", terminal.paint(Tone::Strong, end))?;
        if self.foreign_records > 0 {
            let foreign = counted(self.foreign_records, "record");
            let line = format!(
                "{foreign} of `{}` belong to no chain of group `{}`",
                self.topic, self.group_id
            );
            writeln!(out, "{}", terminal.paint(Tone::Faint, line))?;
        }
        Ok(())
    }
}

impl ChainReport {
    fn name(&self) -> String {
        format!("{}/{}", harmless(&self.topic), self.partition)
    }

    fn write_text(
        &self,
        width: usize,
        terminal: &Terminal,
        out: &mut (dyn Write + Send),
    ) -> io::Result<()> {
        let verdict = &self.verdict;
        let mark = terminal.mark(verdict.breaks == 0);
        let name = self.name();
        let end = verdict
            .head
            .map_or_else(String::new, |head| format!(", the last is {head}"));
        let summary = match (verdict.length, verdict.is_empty()) {
            (_, true) if verdict.committed > 0 => {
                let committed = counted(verdict.committed, "record");
                format!(
                    "nothing left to verify of {committed}: all were deleted, as by the retention of the topic"
                )
            }
            (_, true) => "no records".to_owned(),
            (length, false) => format!("{}{end}", counted(length, "record")),
        };
        writeln!(out, "{mark} {name:<width$}  {summary}")?;
        for (tone, note) in self.notes() {
            writeln!(out, "  {:<width$}  {}", "", terminal.paint(tone, note))?;
        }
        Ok(())
    }

    fn notes(&self) -> Vec<(Tone, String)> {
        let verdict = &self.verdict;
        let mut notes = Vec::new();
        if let Some(first) = &verdict.first_break {
            notes.push((Tone::Bad, told(first)));
            if verdict.breaks > 1 {
                notes.push((Tone::Bad, format!("{} breaks in all", verdict.breaks)));
            }
        }
        match verdict.verified_from {
            Some(0) => {}
            Some(from) => notes.push((
                Tone::Caution,
                format!("verified from number {from} on: what lies before it was deleted, as by the retention of the topic"),
            )),
            None => {}
        }
        if verdict.repeats > 0 {
            let repeats = counted(verdict.repeats, "repeat");
            notes.push((
                Tone::Caution,
                format!("{repeats}: there once more, byte for byte, as at least once does it"),
            ));
        }
        let forks = verdict.told_forks.iter().take(FORKS_SHOWN_MAX);
        for fork in forks {
            let behind = if fork.had_commits {
                ", more than one flush: the former owner wrote on before it learnt of that, or the commit topic was set back"
            } else {
                " that were not committed"
            };
            notes.push((
                Tone::Caution,
                format!(
                    "fork at {}, number {}: `{}` took over in owner epoch {} and left {} behind{behind}",
                    fork.at, fork.sequence, harmless(&fork.instance), fork.owner_epoch, counted(fork.left_behind, "record")
                ),
            ));
        }
        let shown = u64::try_from(FORKS_SHOWN_MAX).unwrap_or(u64::MAX);
        if verdict.forks > shown {
            notes.push((Tone::Caution, format!("{} forks in all", verdict.forks)));
        }
        if verdict.late > 0 {
            let late = counted(verdict.late, "record");
            notes.push((
                Tone::Caution,
                format!("{late} of an owner that another had taken over from"),
            ));
        }
        if verdict.uncommitted > 0 && verdict.breaks == 0 {
            let uncommitted = counted(verdict.uncommitted, "record");
            notes.push((
                Tone::Faint,
                format!("{uncommitted} at the end not committed when the commit topic was read"),
            ));
        }
        notes
    }
}

fn told(found: &Break) -> String {
    match (found.at, found.sequence) {
        (Some(at), Some(sequence)) => format!("broken at {at}, number {sequence}: {}", found.what),
        (Some(at), None) => format!("broken at {at}: {}", found.what),
        (None, _) => format!("broken at its end: {}", found.what),
    }
}

fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}
