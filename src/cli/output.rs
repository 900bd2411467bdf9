//! How the commands look on a terminal: ticks, colours, wrapped text. On anything else the same words without colours.

use std::borrow::Cow;
use std::io::{self, IsTerminal};

use anstyle::{AnsiColor, Style};

/// Whether the output cannot be written because its reader went away, as `head` does: that is no failure.
#[must_use]
pub fn has_seen_enough(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

/// Width where the terminal tells none, and the widest line of running text.
const WIDTH_DEFAULT: usize = 80;
const WIDTH_MAX: usize = 110;
const WIDTH_MIN: usize = 30;

/// What a colour means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// It went well.
    Good,
    /// It went well, with a remark.
    Caution,
    /// It failed.
    Bad,
    /// A label, or something beside the point.
    Faint,
    /// A title.
    Strong,
}

impl Tone {
    const fn style(self) -> Style {
        match self {
            Self::Good => AnsiColor::Green.on_default(),
            Self::Caution => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
            Self::Faint => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
        }
    }
}

/// What the place that is written to can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    color: bool,
    interactive: bool,
    width: usize,
}

impl Terminal {
    /// Looks at standard output. Colours follow `NO_COLOR`, `CLICOLOR` and `CLICOLOR_FORCE`.
    #[must_use]
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        let interactive = stdout.is_terminal();
        let width = if interactive {
            comfy_table::Table::new().width().map(usize::from)
        } else {
            None
        };
        Self {
            color: anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never,
            interactive,
            width: width.unwrap_or(WIDTH_DEFAULT).clamp(WIDTH_MIN, WIDTH_MAX),
        }
    }

    /// No colours, nothing that moves, 80 characters.
    #[must_use]
    pub const fn plain() -> Self {
        Self {
            color: false,
            interactive: false,
            width: WIDTH_DEFAULT,
        }
    }

    /// Whether a person looks on, so that a progress bar may move.
    #[must_use]
    pub const fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// How many characters a line has, where a person looks on; anything else takes lines of any length.
    #[must_use]
    pub const fn line_width(&self) -> Option<usize> {
        if self.interactive {
            Some(self.width)
        } else {
            None
        }
    }

    /// The text in the colour of its tone.
    #[must_use]
    pub fn paint<'a>(&self, tone: Tone, text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
        let text = text.into();
        if !self.color {
            return text;
        }
        let style = tone.style();
        Cow::Owned(format!("{style}{text}{style:#}"))
    }

    /// A tick or a cross.
    #[must_use]
    pub fn mark(&self, passed: bool) -> Cow<'static, str> {
        if passed {
            self.paint(Tone::Good, "✔")
        } else {
            self.paint(Tone::Bad, "✘")
        }
    }

    /// Running text in lines that fit, each behind `indent`; paragraphs and lists keep their lines. What could move the cursor or
    /// change colours is shown as a replacement character: the text may come from anywhere.
    #[must_use]
    pub fn wrapped(&self, text: &str, indent: &str) -> String {
        let room = self
            .width
            .saturating_sub(indent.chars().count())
            .max(WIDTH_MIN / 2);
        let mut wrapped = String::with_capacity(text.len() + text.len() / 8);
        for line in text.trim().lines() {
            let mut used = 0;
            for word in harmless(line).split_whitespace() {
                let length = word.chars().count();
                if used > 0 && used + 1 + length > room {
                    wrapped.push('\n');
                    used = 0;
                }
                if used == 0 {
                    wrapped.push_str(indent);
                } else {
                    wrapped.push(' ');
                    used += 1;
                }
                wrapped.push_str(word);
                used += length;
            }
            wrapped.push('\n');
        }
        wrapped
    }
}

/// The text without control characters: on a terminal they would act instead of being read.
#[must_use]
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = |character: char| match character {
        '\t' => ' ',
        control if control.is_control() => char::REPLACEMENT_CHARACTER,
        character => character,
    };
    Cow::Owned(text.chars().map(shown).collect())
}

/// The first line of an answer: whoever listens there may be somebody else.
#[must_use]
pub fn first_line(body: &[u8]) -> String {
    const CHARS_MAX: usize = 400;
    let text = String::from_utf8_lossy(body);
    let line = text.lines().next().unwrap_or_default();
    harmless(line).chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrow() -> Terminal {
        Terminal {
            width: 30,
            ..Terminal::plain()
        }
    }

    #[test]
    fn text_is_wrapped_at_words_and_keeps_its_paragraphs() {
        let text = "Revenue rose by twelve percent in the third quarter.\n\n- one\n- two\n";
        assert_eq!(
            narrow().wrapped(text, "  "),
            "  Revenue rose by twelve\n  percent in the third\n  quarter.\n\n  - one\n  - two\n"
        );
    }

    #[test]
    fn a_word_longer_than_the_line_stays_whole() {
        let word = "w".repeat(50);
        assert_eq!(
            narrow().wrapped(&format!("a {word} b"), ""),
            format!("a\n{word}\nb\n")
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(
            narrow().wrapped("\u{1b}[31mred\u{7}", ""),
            "\u{fffd}[31mred\u{fffd}\n"
        );
        assert_eq!(harmless("plain"), "plain");
    }

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        let colored = Terminal {
            color: true,
            ..Terminal::plain()
        };
        assert_eq!(Terminal::plain().mark(true), "✔");
        assert_eq!(Terminal::plain().mark(false), "✘");
        assert_eq!(colored.mark(true), "\u{1b}[32m✔\u{1b}[0m");
    }
}
