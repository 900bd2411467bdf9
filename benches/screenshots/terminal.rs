//! What a command prints on a terminal, as a picture: lines of text with the few colours that the commands use.

use std::fmt::Write as _;

const LINE: usize = 19;
const MARGIN: usize = 20;
const HEAD: usize = 16;
/// Of a character at this size, in tenths of a pixel.
const CHARACTER_TENTHS: usize = 79;
const COLUMNS_MIN: usize = 84;

/// A dark terminal with the command and its output.
pub fn picture(command: &str, output: &str) -> String {
    let lines: Vec<&str> = output.trim_end().lines().collect();
    let columns = lines.iter().map(|line| plain(line)).max().unwrap_or(0);
    let width = columns.max(COLUMNS_MIN) * CHARACTER_TENTHS / 10 + 2 * MARGIN;
    let height = HEAD + (lines.len() + 1) * LINE + MARGIN;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">
<rect width="{width}" height="{height}" rx="8" fill="#161b22"/>
<g font-family="ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', 'DejaVu Sans Mono', monospace" font-size="13" fill="#e6e9ee">
"##
    );
    let prompt = format!("\u{1b}[2m$\u{1b}[0m kafka-llm-processor {command}");
    for (number, line) in std::iter::once(prompt.as_str()).chain(lines).enumerate() {
        let y = HEAD + (number + 1) * LINE;
        writeln!(svg, r#"<text x="{MARGIN}" y="{y}">{}</text>"#, spans(line)).unwrap();
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

/// Characters that are seen.
fn plain(line: &str) -> usize {
    pieces(line).map(|(_, text)| text.chars().count()).sum()
}

/// Pieces of one look each: the codes before a piece, and its text.
fn pieces(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut pieces = line.split("\u{1b}[");
    let first = pieces.next().map(|text| ("0", text));
    first.into_iter().chain(pieces.map(|piece| {
        piece
            .split_once('m')
            .expect("a code for colours, as nothing else is printed")
    }))
}

fn spans(line: &str) -> String {
    let mut spans = String::new();
    let mut look = String::new();
    for (codes, text) in pieces(line) {
        for code in codes.split(';') {
            match code {
                "" | "0" => look.clear(),
                "1" => look.push_str(r#" font-weight="bold""#),
                "2" => look.push_str(r##" fill="#9aa5b3""##),
                "31" => look.push_str(r##" fill="#ff8f86""##),
                "32" => look.push_str(r##" fill="#6bd394""##),
                "33" => look.push_str(r##" fill="#f1bd5d""##),
                other => panic!("no look for code {other}"),
            }
        }
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        // Others would be drawn as one.
        let text = text.replace(' ', "\u{a0}");
        if !text.is_empty() {
            write!(spans, "<tspan{look}>{text}</tspan>").unwrap();
        }
    }
    spans
}
