//! What begins a section in filings and reports: Markdown, the items and parts of a 10-K, short lines in capitals, HTML tags. Pure.

use super::split::Boundary;

/// The longest line that is looked at as a heading, in bytes: a longer one is a paragraph.
const LINE_BYTES_MAX: usize = 120;
/// The longest line in capitals that is a heading: a longer one is a legend or a warning.
const CAPITALS_BYTES_MAX: usize = 80;
/// The fewest letters of a heading in capitals: fewer are a unit or a symbol.
const CAPITALS_LETTERS_MIN: usize = 4;
/// Tags that begin a block, with what they are: the parts of a document in HTML that has no line ends.
const TAGS: [(&str, Boundary); 13] = [
    ("h1", Boundary::Heading),
    ("h2", Boundary::Heading),
    ("h3", Boundary::Heading),
    ("h4", Boundary::Heading),
    ("h5", Boundary::Heading),
    ("h6", Boundary::Heading),
    ("p", Boundary::Paragraph),
    ("div", Boundary::Paragraph),
    ("table", Boundary::Paragraph),
    ("page", Boundary::Paragraph),
    ("tr", Boundary::Line),
    ("li", Boundary::Line),
    ("br", Boundary::Line),
];
/// The longest of them with its bracket and what follows it, in bytes.
const TAG_BYTES_MAX: usize = 8;

/// What the tag that `text` begins with opens, when it is one of [`TAGS`].
pub(super) fn tag(text: &str) -> Option<Boundary> {
    let bytes = text.as_bytes();
    let opening = bytes.get(..bytes.len().min(TAG_BYTES_MAX))?;
    let inner = opening.strip_prefix(b"<")?;
    TAGS.iter().find_map(|(name, boundary)| {
        let (found, after) = inner.split_at_checked(name.len())?;
        let ends = matches!(after.first(), Some(b'>' | b' ' | b'/' | b'\n' | b'\t'));
        (found.eq_ignore_ascii_case(name.as_bytes()) && ends).then_some(*boundary)
    })
}

/// Whether the line that `text` begins with is a heading. Looks at no more than [`LINE_BYTES_MAX`] bytes and the character after.
pub(super) fn is_heading(text: &str) -> bool {
    let bytes = text.as_bytes();
    let window = bytes
        .get(..bytes.len().min(LINE_BYTES_MAX))
        .unwrap_or(bytes);
    let line_end = window.iter().position(|byte| *byte == b'\n');
    let is_whole = line_end.is_some() || window.len() == bytes.len();
    let mut end = line_end.unwrap_or(window.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let line = text.get(..end).unwrap_or_default().trim();
    if tag(line) == Some(Boundary::Heading) || is_markdown(line) {
        return true;
    }
    is_whole && (is_item(line) || is_part(line) || is_capitals(line))
}

/// One to six `#`, a space, and something.
fn is_markdown(line: &str) -> bool {
    let title = line.trim_start_matches('#');
    let marks = line.len() - title.len();
    (1..=6).contains(&marks) && title.starts_with(' ') && !title.trim().is_empty()
}

/// `Item 1A. Risk Factors`, `ITEM 7`; not `Item 7 of this report`.
fn is_item(line: &str) -> bool {
    let Some(rest) = after_word(line, "item") else {
        return false;
    };
    let number = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    if number.len() == rest.len() {
        return false;
    }
    let letter = number.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    number.len() - letter.len() <= 1 && ends_label(letter)
}

/// `PART II`, `Part IV - Signatures`; not `Part I of the report`.
fn is_part(line: &str) -> bool {
    let Some(rest) = after_word(line, "part") else {
        return false;
    };
    let after = rest.trim_start_matches(['I', 'V', 'X', 'i', 'v', 'x']);
    after.len() < rest.len() && ends_label(after)
}

/// What follows `word`, in any case, and white space.
fn after_word<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    let (found, rest) = line.split_at_checked(word.len())?;
    let number = rest.trim_start();
    (found.eq_ignore_ascii_case(word) && number.len() < rest.len()).then_some(number)
}

/// Whether a label such as `Item 7` is complete where `rest` begins: the line ends there, or a mark or a gap sets the title off.
fn ends_label(rest: &str) -> bool {
    rest.is_empty()
        || rest.starts_with(['.', ':', '-', '–', '—', '\t'])
        || rest.starts_with("  ")
        || [" -", " –", " —", " |"]
            .iter()
            .any(|mark| rest.starts_with(mark))
}

/// A short line whose letters are all capitals, that is more letters than anything else and does not end like a sentence.
fn is_capitals(line: &str) -> bool {
    if line.len() > CAPITALS_BYTES_MAX || line.ends_with(['.', ',', ';']) {
        return false;
    }
    let mut letters = 0_usize;
    let mut others = 0_usize;
    for character in line.chars().filter(|character| !character.is_whitespace()) {
        if character.is_lowercase() {
            return false;
        }
        if character.is_uppercase() {
            letters += 1;
        } else {
            others += 1;
        }
    }
    letters >= CAPITALS_LETTERS_MIN && letters > others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_of_filings_are_found() {
        for line in [
            "# Risks",
            "###### Note 4\n\ntext",
            "Item 1A. Risk Factors\n",
            "ITEM 7",
            "Item 7A — Market risk",
            "item 8:",
            "  Item 9.  Controls",
            "PART II",
            "Part IV - Signatures",
            "MANAGEMENT'S DISCUSSION AND ANALYSIS",
            "NOTE 12 - INCOME TAXES",
            "ÜBERSICHT",
            "<h1>Risks</h1>",
            "<H2 class=\"x\">",
        ] {
            assert!(is_heading(line), "{line:?}");
        }
    }

    #[test]
    fn other_lines_are_none() {
        for line in [
            "",
            "\n",
            "#",
            "#5 of the list",
            "####### seven",
            "Item 7 of this report describes the risks",
            "Items are listed below",
            "Itemized deductions",
            "Part I of the report",
            "Partners",
            "TOTAL 1,234 2,345 3,456",
            "USD",
            "IN NO EVENT SHALL THE COMPANY BE LIABLE.",
            "Revenue rose.",
            "<hr>",
            "<header>",
        ] {
            assert!(!is_heading(line), "{line:?}");
        }
        assert!(!is_heading(&"A".repeat(200)));
        // The cut at the longest line falls within a character.
        assert!(!is_heading(&"é".repeat(200)));
        assert!(!is_heading(&format!("a{}", "é".repeat(200))));
    }

    #[test]
    fn tags_are_told_apart() {
        assert_eq!(tag("<p>text"), Some(Boundary::Paragraph));
        assert_eq!(tag("<PAGE>\n"), Some(Boundary::Paragraph));
        assert_eq!(tag("<br/>"), Some(Boundary::Line));
        assert_eq!(tag("<pre>"), None);
        assert_eq!(tag("<"), None);
        assert_eq!(tag("<é"), None);
    }
}
