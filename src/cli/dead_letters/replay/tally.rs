//! What became of the dead letters that a replay has looked at.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{Value, json};

use super::ReplayArgs;
use crate::cli::output::{Terminal, Tone, harmless};
use crate::types::DeadLetterReason;

/// Characters of the longest bar of the histogram.
const BAR_WIDTH: u64 = 32;

/// Dead letters that are named among those that could not be replayed; of the others there is the number.
const NAMED_MAX: usize = 10;

/// Why a document could not be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    /// The dead letter is a pointer, and the document is not there any more.
    Gone,
    /// The topic that it came from is not there any more.
    NoTopic,
    /// The topic does not accept a record of that size.
    TooLarge,
}

impl Left {
    const ALL: [Self; 3] = [Self::Gone, Self::NoTopic, Self::TooLarge];

    const fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::NoTopic => "no_topic",
            Self::TooLarge => "too_large",
        }
    }

    const fn why(self) -> &'static str {
        match self {
            Self::Gone => {
                "the document was left out of the dead letter, as it is too large, and is not in its input topic any more"
            }
            Self::NoTopic => "the input topic does not exist: --to names another",
            Self::TooLarge => "larger than the topic's max.message.bytes",
        }
    }
}

#[derive(Debug, Default)]
struct LeftOnes {
    count: u64,
    /// The first of them.
    places: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    replayed: u64,
    parked: u64,
}

/// Counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    reasons: BTreeMap<&'static str, Counts>,
    topics: BTreeMap<String, u64>,
    left: BTreeMap<Left, LeftOnes>,
    /// Records that are not of this program.
    pub(super) foreign: u64,
    /// Those that the filters do not take.
    pub(super) not_meant: u64,
    /// Those that have a mark.
    pub(super) replayed_before: u64,
}

impl Tally {
    pub(super) fn replay(&mut self, reason: DeadLetterReason, topic: &str) {
        self.reasons.entry(reason.as_str()).or_default().replayed += 1;
        match self.topics.get_mut(topic) {
            Some(count) => *count += 1,
            None => drop(self.topics.insert(topic.to_owned(), 1)),
        }
    }

    pub(super) fn park(&mut self, reason: DeadLetterReason) {
        self.reasons.entry(reason.as_str()).or_default().parked += 1;
    }

    pub(super) fn leave(&mut self, why: Left, place: String) {
        let left = self.left.entry(why).or_default();
        left.count += 1;
        if left.places.len() < NAMED_MAX {
            left.places.push(place);
        }
    }

    /// Those that were replayed, or would be.
    pub(super) fn replayed(&self) -> u64 {
        self.reasons.values().map(|counts| counts.replayed).sum()
    }

    fn parked(&self) -> u64 {
        self.reasons.values().map(|counts| counts.parked).sum()
    }

    /// Whether everything that was meant was replayed, or was replayed often enough.
    pub(super) fn is_complete(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn as_json(&self, args: &ReplayArgs) -> Value {
        let by_reason = |count: fn(&Counts) -> u64| {
            let reasons = self.reasons.iter();
            let counts = reasons.map(|(reason, counts)| (*reason, count(counts)));
            counts
                .filter(|(_, count)| *count > 0)
                .collect::<BTreeMap<_, _>>()
        };
        let left = Left::ALL.map(|why| {
            let count = self.left.get(&why).map_or(0, |left| left.count);
            (why.name(), count)
        });
        json!({
            "dry_run": args.dry_run,
            "replayed": self.replayed(),
            "replayed_by_reason": by_reason(|counts| counts.replayed),
            "replayed_by_topic": self.topics,
            "parked": self.parked(),
            "parked_by_reason": by_reason(|counts| counts.parked),
            "max_replays": args.max_replays,
            "left": BTreeMap::from(left),
            "replayed_before": self.replayed_before,
            "not_meant": self.not_meant,
            "foreign": self.foreign,
        })
    }

    pub(super) fn write_text(
        &self,
        args: &ReplayArgs,
        terminal: &Terminal,
        out: &mut (dyn Write + Send),
    ) -> io::Result<()> {
        let replayed = self.replayed();
        let verb = if args.dry_run {
            "would replay"
        } else {
            "replayed"
        };
        let mut head = format!("{verb} {}", counted(replayed, "document"));
        let topics = self.topics.iter();
        let topics: Vec<_> = match self.topics.len() {
            1 => topics.map(|(topic, _)| topic.clone()).collect(),
            _ => topics
                .map(|(topic, count)| format!("{topic} ({count})"))
                .collect(),
        };
        if !topics.is_empty() {
            head.push_str(&format!(" to {}", harmless(&topics.join(", "))));
        }
        if args.dry_run {
            head.push_str("; nothing was written");
        }
        writeln!(out, "{}", terminal.paint(Tone::Strong, head))?;
        self.write_histogram(terminal, out)?;
        let parked = self.parked();
        if parked > 0 {
            let reasons = self.reasons.iter().filter(|(_, counts)| counts.parked > 0);
            let reasons = reasons.map(|(reason, counts)| format!("{reason} {}", counts.parked));
            let reasons: Vec<_> = reasons.collect();
            let max = args.max_replays;
            let line = format!(
                "parked {parked}: replayed {} or more already (--max-replays): {}",
                counted(u64::from(max), "time"),
                reasons.join(", ")
            );
            writeln!(out, "{}", terminal.paint(Tone::Caution, line))?;
        }
        for (why, left) in &self.left {
            let mut line = format!("left {}: {}: ", left.count, why.why());
            line.push_str(&left.places.join(", "));
            if left.count > u64::try_from(left.places.len()).unwrap_or(u64::MAX) {
                line.push_str(", …");
            }
            writeln!(out, "{}", terminal.paint(Tone::Bad, line))?;
        }
        for (count, what) in [
            (self.replayed_before, "replayed before"),
            (self.not_meant, "not meant by the filters"),
            (self.foreign, "not of this program"),
        ] {
            if count > 0 {
                writeln!(
                    out,
                    "{}",
                    terminal.paint(Tone::Faint, format!("passed over {count}: {what}"))
                )?;
            }
        }
        Ok(())
    }

    /// A bar for each reason, the most frequent first.
    fn write_histogram(&self, terminal: &Terminal, out: &mut (dyn Write + Send)) -> io::Result<()> {
        let reasons = self.reasons.iter();
        let mut replayed: Vec<_> = reasons
            .map(|(reason, counts)| (counts.replayed, *reason))
            .filter(|(count, _)| *count > 0)
            .collect();
        replayed.sort_by(|(a, a_name), (b, b_name)| b.cmp(a).then(a_name.cmp(b_name)));
        let largest = replayed.first().map_or(1, |(count, _)| *count).max(1);
        let width = largest.to_string().len();
        for (count, reason) in replayed {
            // At least one character for what is there at all.
            let length = (u128::from(count) * u128::from(BAR_WIDTH)).div_ceil(u128::from(largest));
            let bar = "█".repeat(usize::try_from(length).unwrap_or(0));
            let bar = terminal.paint(Tone::Faint, bar);
            writeln!(out, "  {reason:<23} {count:>width$} {bar}")?;
        }
        Ok(())
    }
}

fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let mut tally = Tally::default();
        for _ in 0..64 {
            tally.replay(DeadLetterReason::AttemptsExhausted, "docs");
        }
        tally.replay(DeadLetterReason::InvalidJson, "docs");
        tally.park(DeadLetterReason::InvalidJson);
        tally.not_meant = 2;
        tally
    }

    fn text(tally: &Tally, args: &ReplayArgs) -> String {
        let mut out = Vec::new();
        tally
            .write_text(args, &Terminal::plain(), &mut out)
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_dry_run_shows_a_histogram_by_reason() {
        let args = ReplayArgs {
            dry_run: true,
            ..ReplayArgs::default()
        };
        assert_eq!(
            text(&tally(), &args),
            format!(
                "would replay 65 documents to docs; nothing was written\n\
                 \x20 attempts_exhausted      64 {}\n\
                 \x20 invalid_json             1 █\n\
                 parked 1: replayed 3 times or more already (--max-replays): invalid_json 1\n\
                 passed over 2: not meant by the filters\n",
                "█".repeat(32)
            )
        );
    }

    #[test]
    fn what_could_not_be_replayed_is_named_up_to_a_bound() {
        let mut tally = tally();
        tally.replay(DeadLetterReason::InvalidJson, "news");
        assert!(tally.is_complete(), "parked ones are where they belong");
        for offset in 0..12 {
            tally.leave(Left::Gone, format!("0:{offset}"));
        }
        assert!(!tally.is_complete());
        let text = text(&tally, &ReplayArgs::default());
        assert!(
            text.starts_with("replayed 66 documents to docs (65), news (1)\n"),
            "{text}"
        );
        assert!(text.contains("left 12: the document"), "{text}");
        assert!(
            text.contains("0:0, 0:1") && text.contains("0:9, …"),
            "{text}"
        );
        let json = tally.as_json(&ReplayArgs::default());
        assert_eq!(json["left"]["gone"], 12);
        assert_eq!(json["left"]["too_large"], 0);
        assert_eq!(json["replayed_by_reason"]["attempts_exhausted"], 64);
        assert_eq!(json["parked_by_reason"], json!({"invalid_json": 1}));
    }
}
