//! Six documents to try the service with: two earnings reports, two filings, two news items. They were written for this project;
//! the companies, people and figures in them do not exist.

use serde::{Deserialize, Serialize};

const FILES: [&str; 6] = [
    include_str!("samples/earnings-harrow-vale.json"),
    include_str!("samples/filing-10k-caldera-grid.json"),
    include_str!("samples/news-sable-river-outage.json"),
    include_str!("samples/earnings-brightwater-grocers.json"),
    include_str!("samples/filing-8k-norwick.json"),
    include_str!("samples/news-orrin-tallis-merger.json"),
];

/// A document as the input topic takes it; its JSON has these fields in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleDocument {
    /// Names the document, also as the Kafka key.
    pub id: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: DocumentKind,
    /// Whom it is about.
    pub company: String,
    /// Its headline.
    pub title: String,
    /// When it came out, RFC 3339.
    pub published_at: String,
    /// Its text.
    pub content: String,
}

/// Kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentKind {
    /// A company's results.
    EarningsReport,
    /// A form of the Securities and Exchange Commission.
    SecFiling,
    /// An item of an agency.
    News,
}

impl SampleDocument {
    /// The Kafka key: the document's id.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.id
    }

    /// The Kafka value: the document as JSON.
    ///
    /// # Errors
    /// None for a document of this module; those of the serializer otherwise.
    pub fn value(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// The six documents; kinds take turns.
///
/// # Errors
/// When an embedded file is not a document, which a test rules out.
pub fn documents() -> serde_json::Result<Vec<SampleDocument>> {
    FILES
        .iter()
        .map(|file| serde_json::from_str(file))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_two_documents_of_each_kind_of_realistic_length() {
        let documents = documents().unwrap();
        for kind in [
            DocumentKind::EarningsReport,
            DocumentKind::SecFiling,
            DocumentKind::News,
        ] {
            let of_kind = documents.iter().filter(|document| document.kind == kind);
            assert_eq!(of_kind.count(), 2, "{kind:?}");
        }
        for document in &documents {
            let words = document.content.split_whitespace().count();
            assert!(
                (250..=600).contains(&words),
                "{}: {words} words",
                document.id
            );
            let published = document.published_at.parse::<jiff::Timestamp>();
            assert!(published.is_ok(), "{}: {published:?}", document.id);
        }
    }

    #[test]
    fn a_value_is_the_json_of_its_document() {
        let document = documents().unwrap().remove(0);
        let value: serde_json::Value = serde_json::from_slice(&document.value().unwrap()).unwrap();
        assert_eq!(value["id"], document.key());
        assert_eq!(value["type"], "earnings_report");
        assert_eq!(value["content"], document.content.as_str());
    }
}
