//! What is sent: documents of a file, repeated under new names when more are asked for.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Map, Value};

/// The largest file that is read: it is kept in memory.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A document as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputDocument {
    /// Its name, which becomes the key.
    pub id: String,
    /// Its value: a JSON object, or text.
    pub value: Bytes,
}

/// Why a file cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("--file {}: it cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large.
    #[error("--file {}: it is larger than {} MiB; split it", path.display(), FILE_BYTES_MAX >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line is not JSON although the file is JSON lines.
    #[error("--file {}: line {line} is not a JSON object: {detail}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
}

/// Reads a file. When it begins with `{` it is one JSON object, or JSON lines; else it is one document of text, whatever its bytes.
///
/// # Errors
/// As [`FileError`] says. An empty file holds no document, which is not an error here.
pub fn read_file(path: &Path) -> Result<Vec<InputDocument>, FileError> {
    let unreadable = |source| FileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    let name = path
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    split(&name, bytes).map_err(|(line, detail)| FileError::Line {
        path: path.to_owned(),
        line,
        detail,
    })
}

/// The documents of a file's content; an error is a line, from 1, and what is wrong with it.
fn split(name: &str, bytes: Vec<u8>) -> Result<Vec<InputDocument>, (usize, String)> {
    let trimmed = bytes.trim_ascii();
    if trimmed.is_empty() {
        return Ok(Vec::new());
    }
    let single = |id: Option<String>, bytes: Vec<u8>| InputDocument {
        id: id.unwrap_or_else(|| name.to_owned()),
        value: Bytes::from(bytes),
    };
    if !trimmed.starts_with(b"{") {
        return Ok(vec![single(None, bytes)]);
    }
    if let Ok(object) = serde_json::from_slice::<Map<String, Value>>(trimmed) {
        return Ok(vec![single(own_id(&object), bytes)]);
    }
    let bytes = Bytes::from(bytes);
    let mut documents = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let object = serde_json::from_slice::<Map<String, Value>>(line)
            // It counts lines too, and to it each is the first.
            .map_err(|error| {
                let detail = error
                    .to_string()
                    .replace(" at line 1 column ", " at column ");
                (index + 1, detail)
            })?;
        documents.push(InputDocument {
            id: own_id(&object).unwrap_or_else(|| format!("{name}-{}", index + 1)),
            value: bytes.slice_ref(line),
        });
    }
    Ok(documents)
}

fn own_id(object: &Map<String, Value>) -> Option<String> {
    match object.get("id")? {
        Value::String(id) if !id.is_empty() => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

/// How many documents are to be sent: all, or `count`; `None` when there is none.
pub(super) fn planned(documents: &[InputDocument], count: Option<u64>) -> Option<u64> {
    let all = u64::try_from(documents.len()).unwrap_or(u64::MAX);
    let planned = count.unwrap_or(all);
    (all > 0 && planned > 0).then_some(planned)
}

/// Document number `index` of an endless repetition. From the second round on it has a name of its own, as each is a new document.
pub(super) fn repeated(documents: &[InputDocument], index: u64) -> Option<InputDocument> {
    let all = u64::try_from(documents.len()).ok()?;
    let position = usize::try_from(index.checked_rem(all)?).ok()?;
    let document = documents.get(position)?;
    let round = index / all + 1;
    if round == 1 {
        return Some(document.clone());
    }
    let id = format!("{}-{round}", document.id);
    let value = renamed(&document.value, &id).unwrap_or_else(|| document.value.clone());
    Some(InputDocument { id, value })
}

/// The JSON object with another `id`; `None` for text, whose name is its key alone.
fn renamed(value: &Bytes, id: &str) -> Option<Bytes> {
    let mut object: Map<String, Value> = serde_json::from_slice(value).ok()?;
    object.insert("id".to_owned(), Value::String(id.to_owned()));
    serde_json::to_vec(&object).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(name: &str, content: &str) -> Vec<String> {
        split(name, content.into())
            .unwrap()
            .into_iter()
            .map(|document| document.id)
            .collect()
    }

    #[test]
    fn json_lines_are_a_document_each() {
        let content = "{\"id\":\"a\",\"content\":\"x\"}\r\n\n{\"id\":7}\n{\"content\":\"y\"}\n";
        assert_eq!(ids("f.jsonl", content), ["a", "7", "f.jsonl-4"]);
        let documents = split("f.jsonl", content.into()).unwrap();
        assert_eq!(documents[0].value, r#"{"id":"a","content":"x"}"#);
    }

    #[test]
    fn an_object_over_several_lines_is_one_document() {
        assert_eq!(ids("f.json", "{\n \"id\": \"a\"\n}\n"), ["a"]);
        assert_eq!(ids("f.json", "{\"content\":\n\"a\"}"), ["f.json"]);
    }

    #[test]
    fn anything_else_is_one_document_as_it_is() {
        let documents = split("report.txt", b"one\ntwo\xff\n".to_vec()).unwrap();
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0].id, "report.txt");
        assert_eq!(documents[0].value.as_ref(), b"one\ntwo\xff\n");
        assert!(ids("empty.txt", " \n").is_empty());
    }

    #[test]
    fn a_broken_line_is_named() {
        let (line, _) = split("f", b"{\"id\":1}\n{\"id\":\n".to_vec()).unwrap_err();
        assert_eq!(line, 2);
        let (line, _) = split("f", b"{\"id\":1}\ntext\n".to_vec()).unwrap_err();
        assert_eq!(line, 2);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_file(Path::new("/nowhere/a.jsonl")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/a.jsonl"), "{error}");
    }

    #[test]
    fn more_than_there_are_have_new_names() {
        let documents = split("f", b"{\"id\":\"a\"}\n{\"id\":\"b\"}".to_vec()).unwrap();
        assert_eq!(planned(&documents, None), Some(2));
        assert_eq!(planned(&documents, Some(5)), Some(5));
        assert_eq!(planned(&documents, Some(0)), None);
        assert_eq!(planned(&[], Some(5)), None);
        let all: Vec<InputDocument> = (0..5)
            .filter_map(|index| repeated(&documents, index))
            .collect();
        let ids: Vec<&str> = all.iter().map(|document| document.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "a-2", "b-2", "a-3"]);
        assert_eq!(all[2].value, r#"{"id":"a-2"}"#);
        assert_eq!(repeated(&[], 0), None);
    }

    #[test]
    fn any_number_of_samples_has_unique_names() {
        let samples = crate::cli::produce::sample_documents().unwrap();
        let nth = |index| repeated(&samples, index).unwrap();
        let ids: std::collections::BTreeSet<String> = (0..100).map(|index| nth(index).id).collect();
        assert_eq!(ids.len(), 100);
        assert_eq!(planned(&samples, Some(0)), None);
        let first: Vec<_> = (0..6).map(nth).collect();
        assert_eq!(first, samples);
    }

    #[test]
    fn repeated_text_stays_as_it_is() {
        let documents = split("t", b"text".to_vec()).unwrap();
        let second = repeated(&documents, 1).unwrap();
        assert_eq!(
            (second.id.as_str(), second.value.as_ref()),
            ("t-2", b"text".as_slice())
        );
    }
}
