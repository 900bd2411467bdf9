//! Answers that follow `llm.schema_file`.
//!
//! The tiny model fills a schema with noise, and wherever it may write without end it does: enumerations, truth values and short texts only.

use kafka_llm_processor::records::result::ResultOutput;
use kafka_llm_processor::types::DeadLetterReason;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Job, SOON, Turn, counted, described, texts};

const DOCUMENTS: usize = 20;
/// Tokens of an answer that is cut: too few for any object of the schema.
const CUT_TOKENS: u64 = 8;

/// What the schema that ships asks for, in a size that noise can end.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "company": {"type": "string", "maxLength": 8},
            "document_type": {"enum": ["annual_report", "quarterly_report", "news"]},
            "quarter": {"type": ["integer", "null"], "minimum": 1, "maximum": 4},
            "is_filing": {"type": "boolean"},
            "figures": {
                "type": "array",
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"enum": ["revenue", "net_income", "eps"]},
                        "unit": {"type": "string", "minLength": 1, "maxLength": 6},
                    },
                    "required": ["name", "unit"],
                    "additionalProperties": false,
                },
            },
            "sentiment": {"enum": ["positive", "neutral", "negative"]},
        },
        "required": ["company", "document_type", "quarter", "is_filing", "figures", "sentiment"],
        "additionalProperties": false,
    })
}

/// A job with documents and that schema.
async fn job(turn: &Turn) -> (Job, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("schema.json");
    std::fs::write(&path, schema().to_string()).expect("written");
    let mut job = Job::new(turn).await;
    job.set("llm.schema_file", &path.display().to_string());
    job.write(texts(DOCUMENTS));
    (job, folder)
}

/// Every answer is an object of the schema, and stands in the result as data.
#[tokio::test(flavor = "multi_thread")]
async fn answers_follow_the_schema() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let (mut job, _folder) = job(&turn).await;
    job.answer_tokens(400);
    let processor = job.start();
    job.outcomes(DOCUMENTS).await;
    processor.drain(SOON).await;
    assert_eq!(described(&job.dead_letters()), "");
    let results = job.results();
    for number in 0..DOCUMENTS {
        let [result] = &results[&number][..] else {
            panic!("{:?}", results[&number]);
        };
        assert_eq!(result.finish_reason, "stop", "{result:?}");
        assert_eq!(result.attempts, 1, "the server kept to it: {result:?}");
        assert!(result.schema_hash.is_some());
        let ResultOutput::Data(data) = &result.output else {
            panic!("{result:?}");
        };
        if number == 0 {
            eprintln!("{data}");
        }
        let fields = data.as_object().expect("an object");
        assert_eq!(fields.len(), 6, "{data}");
        let is_of =
            |field: &str, words: &[&str]| words.contains(&fields[field].as_str().expect("a text"));
        assert!(is_of("sentiment", &["positive", "neutral", "negative"]));
        assert!(is_of(
            "document_type",
            &["annual_report", "quarterly_report", "news"]
        ));
        assert!(fields["is_filing"].is_boolean(), "{data}");
        let quarter = &fields["quarter"];
        let is_quarter = quarter
            .as_u64()
            .is_some_and(|quarter| (1..=4).contains(&quarter));
        assert!(quarter.is_null() || is_quarter, "{data}");
        let company = fields["company"].as_str().expect("a text");
        assert!(company.chars().count() <= 8, "{data}");
        let figures = fields["figures"].as_array().expect("a list");
        assert!(figures.len() <= 2, "{data}");
        assert!(figures.iter().all(|figure| figure["unit"].is_string()));
    }
}

/// An answer that is cut is no object: it is to be mended once, and then the document is given up with what the model wrote.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_cut_are_violations_with_what_was_written() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let (mut job, _folder) = job(&turn).await;
    job.answer_tokens(CUT_TOKENS);
    let processor = job.start();
    job.outcomes(DOCUMENTS).await;
    let mended = counted(&processor, r#"klp_llm_retries_total{fault="schema"}"#).await;
    processor.drain(SOON).await;
    assert_eq!(usize::try_from(mended), Ok(DOCUMENTS));
    assert!(job.results().is_empty());
    job.assert_given_up(0..DOCUMENTS, DeadLetterReason::SchemaViolation);
    for letter in job.dead_letters().values().flatten() {
        assert_eq!((letter.attempts, letter.http_status), (2, Some(200)));
        assert!(letter.detail.contains("llm.max_tokens"), "{letter:?}");
        let answer = letter.answer.as_ref().expect("what the model wrote");
        assert!(answer.starts_with('{'), "{answer}");
        assert!(serde_json::from_str::<Value>(answer).is_err(), "{answer}");
    }
}

/// The schema that is built in: too large for noise to end in time, so a document may be given up, but it has one outcome, and vLLM takes the
/// schema: a refused one would be a refused request.
#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_schema_is_one_that_the_server_takes() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.set("llm.schema_file", "builtin:financial");
    job.answer_tokens(400);
    job.write(texts(DOCUMENTS));
    let processor = job.start();
    job.outcomes(DOCUMENTS).await;
    processor.drain(SOON).await;
    let (results, letters) = (job.results(), job.dead_letters());
    eprintln!("{} results, {} dead letters", results.len(), letters.len());
    for number in 0..DOCUMENTS {
        let outcomes =
            results.get(&number).map_or(0, Vec::len) + letters.get(&number).map_or(0, Vec::len);
        assert_eq!(outcomes, 1, "document {number}");
    }
    for letter in letters.values().flatten() {
        assert_eq!(
            letter.reason,
            DeadLetterReason::SchemaViolation,
            "{letter:?}"
        );
        assert!(letter.answer.is_some(), "{letter:?}");
    }
    for result in results.values().flatten() {
        assert!(matches!(result.output, ResultOutput::Data(_)), "{result:?}");
    }
}
