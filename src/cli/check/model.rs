//! Each server of `LLM_URL`: its health, the key, the model, and the room that its context leaves for documents.

use std::sync::Arc;

use tokio::time::timeout;

use super::{CheckItem, PROBE_WITHIN, judge};
use crate::config::Settings;
use crate::llm::{
    AnswerSchema, Call, Forecaster, HttpTransport, LlmConfig, Setup, Transport, VllmClient,
};
use crate::pipeline::{self, Topics};
use crate::records::document::{Document, Parsed};
use crate::types::{Offset, Record, SourcePosition, TopicPartition, error_chain};

/// The shortest document, so that what is counted is the prompt around it.
const SHORTEST: &str = r#"{"content":"."}"#;

/// Checks them side by side.
pub(super) async fn check(settings: &Settings) -> Vec<CheckItem> {
    let llm = &settings.llm;
    let urls = match llm.base_urls() {
        Ok(urls) => urls,
        Err(problem) => {
            return vec![CheckItem::fail(
                "model server",
                problem,
                "correct the setting",
            )];
        }
    };
    let several = urls.len() > 1;
    let checks = urls.into_iter().map(async |url| {
        let name = |what: &str| {
            if several {
                format!("{what}, {url}")
            } else {
                what.to_owned()
            }
        };
        let one = LlmConfig {
            url: url.clone(),
            ..llm.clone()
        };
        let (server, model, context) = tokio::join!(
            check_server(name("model server"), &one),
            check_model(name("model and key"), &one),
            check_context(name("context"), settings, &one),
        );
        let mut items = vec![server, model];
        items.extend(context);
        items
    });
    futures::future::join_all(checks).await.concat()
}

async fn check_server(name: String, llm: &LlmConfig) -> CheckItem {
    let remedy = "start vLLM, or set LLM_URL (llm.url) to its address";
    let transport = match HttpTransport::new(llm) {
        Ok(transport) => transport,
        Err(error) => return CheckItem::fail(name, error_chain(&error), "correct the setting"),
    };
    let call = Call {
        base: llm.url.as_str().into(),
        path: "/health",
        headers: Default::default(),
        body: None,
    };
    match timeout(PROBE_WITHIN, transport.exchange(call)).await {
        Err(_elapsed) => CheckItem::fail(
            name,
            format!("{} does not answer within {PROBE_WITHIN:?}", llm.url),
            remedy,
        ),
        Ok(Err(error)) => CheckItem::fail(name, format!("{}: {error}", llm.url), remedy),
        Ok(Ok(reply)) => judge::health(&name, &llm.url, reply.status),
    }
}

/// A completion of one token: reachable, right key, right model, and the engine works.
async fn check_model(name: String, llm: &LlmConfig) -> CheckItem {
    let transport = match HttpTransport::new(llm) {
        Ok(transport) => Arc::new(transport),
        Err(error) => return CheckItem::fail(name, error_chain(&error), "correct the setting"),
    };
    match timeout(PROBE_WITHIN, VllmClient::preflight(llm, transport)).await {
        Ok(Ok(served)) => {
            let context = served
                .and_then(|served| served.max_model_len)
                .map(|tokens| format!(", context of {tokens} tokens"));
            let detail = format!("`{}` answers{}", llm.model, context.unwrap_or_default());
            CheckItem::pass(name, detail)
        }
        // The sentence names what to change.
        Ok(Err(error)) => CheckItem {
            name,
            passed: false,
            detail: error_chain(&error),
            remedy: None,
        },
        Err(_elapsed) => CheckItem::fail(
            name,
            format!("a completion of one token takes longer than {PROBE_WITHIN:?}"),
            "the server is busy or stuck: look at its /metrics (vllm:num_requests_waiting) and its log",
        ),
    }
}

/// The tokens of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// All of them; `None` when the server does not tell.
    pub(super) context: Option<u64>,
    /// What the longest prompt takes without its document; `None` when no prompt can be made without one.
    pub(super) prompt: Option<u64>,
    /// Whether the server has counted it.
    pub(super) counted: bool,
}

/// `None` where the server does not answer, which others tell.
async fn check_context(name: String, settings: &Settings, llm: &LlmConfig) -> Option<CheckItem> {
    let parts = parts(settings, llm);
    let (forecaster, topics) = match parts {
        Ok(parts) => parts,
        Err(problem) => return Some(CheckItem::fail(name, problem, "correct the setting")),
    };
    let measured = timeout(PROBE_WITHIN, measure(&forecaster, &topics, settings)).await;
    let room = measured.ok().flatten()?;
    Some(judge::room(name, llm.max_tokens, room))
}

fn parts(settings: &Settings, llm: &LlmConfig) -> Result<(Forecaster, Topics), String> {
    let schema = AnswerSchema::load(llm).map_err(|error| error_chain(&error))?;
    let text = schema.as_ref().map(AnswerSchema::text);
    let topics = Topics::load(&settings.input.topics, &settings.prompt, text);
    let topics = topics.map_err(|error| error_chain(&error))?;
    let transport = HttpTransport::new(llm).map_err(|error| error_chain(&error))?;
    let setup = Setup {
        llm: llm.clone(),
        long: settings.long_documents.clone(),
        schema: schema.map(Arc::new),
    };
    let forecaster = Forecaster::new(setup, Arc::new(transport));
    Ok((forecaster.map_err(|error| error_chain(&error))?, topics))
}

/// `None` when the server cannot be asked.
async fn measure(forecaster: &Forecaster, topics: &Topics, settings: &Settings) -> Option<Room> {
    forecaster.look().await.ok()?;
    let mut room = Room {
        context: forecaster.context(),
        prompt: None,
        counted: true,
    };
    for topic in &settings.input.topics {
        let position = SourcePosition {
            topic_partition: TopicPartition::new(topic.name.as_str(), 0),
            offset: Offset::ZERO,
        };
        let record = Record {
            value: Some(SHORTEST.into()),
            ..Record::default()
        };
        let input = &settings.input;
        // The field is of that name in this one document, whatever it is in others.
        let parsed = Document::parse(&record, &position, input.format, "content");
        let Parsed::Document(document) = parsed else {
            continue;
        };
        let request = pipeline::request(topics, *document, &position, &record);
        if let Ok(forecast) = forecaster.forecast(&request).await {
            room.prompt = room.prompt.max(Some(forecast.prompt_tokens));
            room.counted &= forecast.counted;
        }
    }
    Some(room)
}
