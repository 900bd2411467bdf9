//! Answers that follow `llm.schema_file`. Skipped until the processor knows that setting.
//!
//! The tiny model fills a schema with noise, and wherever it may write without end it does: enumerations, truth values and short texts only.

use kafka_llm_processor::records::result::ResultOutput;
use serde_json::{Value, json};

use crate::harness::{Job, SOON, Turn, described, knows, texts};

const DOCUMENTS: usize = 20;

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "sentiment": {"enum": ["positive", "neutral", "negative"]},
            "is_filing": {"type": "boolean"},
            "company": {"type": "string", "maxLength": 8},
        },
        "required": ["sentiment", "is_filing", "company"],
        "additionalProperties": false,
    })
}

/// Every answer is an object of the schema, and stands in the result as data.
#[tokio::test(flavor = "multi_thread")]
async fn answers_follow_the_schema() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("schema.json");
    std::fs::write(&path, schema().to_string()).expect("written");
    let setting = format!("llm.schema_file={}", path.display());
    if !knows(&[&setting]) {
        return;
    }
    let mut job = Job::new(&turn).await;
    job.set("llm.schema_file", &path.display().to_string());
    job.write(texts(DOCUMENTS));
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
        let ResultOutput::Data(data) = &result.output else {
            panic!("{result:?}");
        };
        let fields = data.as_object().expect("an object");
        assert_eq!(fields.len(), 3, "{data}");
        let sentiment = fields["sentiment"].as_str().expect("a text");
        assert!(["positive", "neutral", "negative"].contains(&sentiment));
        assert!(fields["is_filing"].is_boolean(), "{data}");
        let company = fields["company"].as_str().expect("a text");
        assert!(company.chars().count() <= 8, "{data}");
    }
}

/// The schema that is built in: too large for noise to end in time, so a document may be given up, but it has one outcome, and vLLM takes the
/// schema: a refused one would be a refused request.
#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_schema_is_one_that_the_server_takes() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    if !knows(&["llm.schema_file=builtin:financial"]) {
        return;
    }
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
        assert_ne!(letter.http_status, Some(400), "{letter:?}");
    }
}
