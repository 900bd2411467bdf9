//! What the simulated model says: an extract of the document, marked so that nobody takes it for a model's work.

use serde_json::{Value, json};

use super::schema::instance;

/// Begins every answer.
pub const SIMULATED: &str = "[simulated answer, no model was run]";

/// Only so much of a document is looked at, so that a huge one costs no time.
const LOOKED_AT_BYTES: usize = 64 * 1024;
/// Sentences with figures that follow the first one.
const FIGURES_MAX: usize = 2;
/// A longer sentence is cut at a word: figures in a table without full stops would become the answer.
const SENTENCE_CHARS_MAX: usize = 320;

/// The answer to a prompt: the first sentence of its document and the two that hold the most figures, in their order.
pub(super) fn extract(prompt: &str) -> String {
    let document = document_of(prompt);
    let sentences = sentences(document);
    let Some((first, others)) = sentences.split_first() else {
        return format!("{SIMULATED} The document holds no sentence.");
    };
    let mut ranked: Vec<(usize, usize)> = others
        .iter()
        .enumerate()
        .map(|(index, sentence)| (index, figures(sentence)))
        .filter(|(_, figures)| *figures > 0)
        .collect();
    // Most figures first; of equals the earlier. The sort is stable.
    ranked.sort_by_key(|(_, figures)| std::cmp::Reverse(*figures));
    ranked.truncate(FIGURES_MAX);
    ranked.sort_by_key(|(index, _)| *index);
    let mut answer = format!("{SIMULATED} {}", shortened(first));
    for (index, _) in ranked {
        if let Some(sentence) = others.get(index) {
            answer.push(' ');
            answer.push_str(&shortened(sentence));
        }
    }
    answer
}

/// The answer as JSON, for `response_format` `json_object` and `json_schema`: an instance of the schema with the extract in each text.
pub(super) fn extract_json(prompt: &str, schema: Option<&Value>) -> String {
    let text = extract(prompt);
    let value = match schema {
        Some(schema) => instance(schema, &text),
        None => json!({ "simulated_answer": text }),
    };
    value.to_string()
}

/// The document in a prompt: what stands between tags of that name, or below a line that ends with `document:`, or after the
/// instruction that ends with the first blank line, or all of it.
fn document_of(prompt: &str) -> &str {
    let end = prompt.floor_char_boundary(LOOKED_AT_BYTES);
    let prompt = prompt.get(..end).unwrap_or(prompt);
    if let Some((_, inside)) = prompt.split_once("<document>") {
        return inside
            .split_once("</document>")
            .map_or(inside, |(inside, _)| inside);
    }
    let announced = prompt.split_inclusive('\n').scan(0, |place, line| {
        *place += line.len();
        Some((*place, line))
    });
    for (below, line) in announced {
        if line.trim_end().to_lowercase().ends_with("document:") {
            return prompt.get(below..).unwrap_or_default();
        }
    }
    match prompt.split_once("\n\n") {
        Some((_, rest)) if !rest.trim().is_empty() => rest,
        _ => prompt,
    }
}

/// Splits at `.`, `!` and `?` before white space, and at blank lines. An abbreviation ends none.
fn sentences(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for paragraph in text.split("\n\n") {
        let mut sentence = String::new();
        for word in paragraph.split_whitespace() {
            if !sentence.is_empty() {
                sentence.push(' ');
            }
            sentence.push_str(word);
            if ends_sentence(word) {
                found.push(std::mem::take(&mut sentence));
            }
        }
        if !sentence.is_empty() {
            found.push(sentence);
        }
    }
    found.retain(|sentence| sentence.chars().any(char::is_alphabetic));
    found
}

/// Words that end with a full stop and end no sentence.
const ABBREVIATIONS: [&str; 12] = [
    "Inc.", "Corp.", "Ltd.", "Co.", "No.", "Mr.", "Ms.", "Dr.", "vs.", "e.g.", "i.e.", "approx.",
];

fn ends_sentence(word: &str) -> bool {
    let word = word.trim_end_matches(['"', '\'', ')', '”', '’']);
    // `J.`, `N.V.`, `U.S.`
    let letters = word.strip_suffix('.').is_some_and(|stem| {
        stem.split('.')
            .all(|part| part.chars().count() == 1 && part.chars().all(char::is_alphabetic))
    });
    word.ends_with(['.', '!', '?']) && !letters && !ABBREVIATIONS.contains(&word)
}

/// Words with a digit.
fn figures(sentence: &str) -> usize {
    sentence
        .split(' ')
        .filter(|word| word.chars().any(|letter| letter.is_ascii_digit()))
        .count()
}

fn shortened(sentence: &str) -> String {
    match sentence.char_indices().nth(SENTENCE_CHARS_MAX) {
        // A headline has no full stop of its own.
        None if sentence.ends_with(char::is_alphanumeric) => format!("{sentence}."),
        None => sentence.to_owned(),
        Some((end, _)) => {
            let cut = sentence.get(..end).unwrap_or(sentence);
            let whole_words = cut.rsplit_once(' ').map_or(cut, |(words, _)| words);
            format!("{whole_words} …")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "Summarise the document.\n\nAldgate Foods Inc. sells oats. It is old. Revenue was $12.5 \
                            million, up 4%, in 2025. The sun shone. Debt fell to $3 million.";

    #[test]
    fn the_first_sentence_and_those_with_figures_are_taken() {
        assert_eq!(
            extract(DOCUMENT),
            "[simulated answer, no model was run] Aldgate Foods Inc. sells oats. Revenue was $12.5 million, up 4%, in \
             2025. Debt fell to $3 million."
        );
    }

    #[test]
    fn a_document_below_its_line_is_found_and_a_headline_ends() {
        let prompt = "You are an analyst. Answer.\n\nWrite:\n1. Summary.\n\nDocument:\nOrrin buys Tallis\n\nOrrin N.V. \
                      pays $4 billion. More follows.";
        assert_eq!(
            extract(prompt),
            format!("{SIMULATED} Orrin buys Tallis. Orrin N.V. pays $4 billion.")
        );
    }

    #[test]
    fn a_document_in_tags_is_found() {
        let prompt = "Answer.\n\nRules.\n<document>\nOne thing. Another.\n</document>\nEnd.";
        assert_eq!(extract(prompt), format!("{SIMULATED} One thing."));
    }

    #[test]
    fn nothing_and_endless_text_are_answered() {
        assert_eq!(
            extract(" \n "),
            format!("{SIMULATED} The document holds no sentence.")
        );
        assert!(extract(&"word ".repeat(100_000)).chars().count() < 400);
        assert!(extract(&"ä".repeat(LOOKED_AT_BYTES)).starts_with(SIMULATED));
    }

    #[test]
    fn a_schema_is_obeyed() {
        let schema = json!({"type": "object", "required": ["summary", "score", "tone"], "properties": {
            "summary": {"type": "string"}, "score": {"type": "integer", "minimum": 1},
            "tone": {"enum": ["good", "bad"]}, "notes": {"type": "array"}}});
        let value: Value = serde_json::from_str(&extract_json(DOCUMENT, Some(&schema))).unwrap();
        assert!(value["summary"].as_str().unwrap().starts_with(SIMULATED));
        assert_eq!(value["score"], 1);
        assert_eq!(value["tone"], "good");
        assert_eq!(value.get("notes"), None);
    }
}
