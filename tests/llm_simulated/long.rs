//! Documents longer than the context: one answer each, whatever happens on the way, and nothing of them is lost or read twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{
    AnswerSchema, Complete as _, CompleteError, Completion, LlmConfig, LongDocumentsConfig,
    LongPolicy, LongSummary, Prompt, PromptConfig, Setup, TruncateKeep, VllmClient,
};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, SeenRequest, Vllm, VllmConfig};
use kafka_llm_processor::types::DeadLetterReason;
use tokio::task::JoinHandle;

use crate::harness::{
    Outcome, PATIENCE, about_documents, ask, ask_now, client, complete, config, eventually, fixed,
    given_up, held_because, long_client, quick, request_with, serve, set_up, taking, until,
};

/// The context of all servers here.
const CONTEXT: usize = 2_048;

fn small(config: VllmConfig) -> VllmConfig {
    VllmConfig {
        max_model_len: CONTEXT,
        prompt_chars_logged: 100_000,
        ..config
    }
}

/// At least so many characters, no two sentences alike.
fn document(chars: usize) -> String {
    let mut text = String::with_capacity(chars + 200);
    let mut number = 0;
    while text.len() < chars {
        number += 1;
        text.push_str(&format!(
            "Item {number}: revenue of segment {number} rose by {} percent to {} million euro. ",
            number % 90,
            number * 7 % 1_000
        ));
        if number % 12 == 0 {
            text.push_str("\n\n");
        }
    }
    text
}

fn spawn(client: &Arc<VllmClient>, content: String) -> JoinHandle<Outcome> {
    tokio::spawn(ask(Arc::clone(client), 1, content))
}

async fn end(task: JoinHandle<Outcome>) -> Outcome {
    tokio::time::timeout(PATIENCE, task)
        .await
        .expect("the document waits for ever")
        .unwrap()
}

fn is_map(request: &SeenRequest) -> bool {
    request
        .request_id
        .as_deref()
        .is_some_and(|id| id.contains("-part"))
}

/// The text of the parts that were answered, put together in their order.
fn read_by_parts(server: &Vllm) -> String {
    let mut parts: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for request in about_documents(server) {
        if !is_map(&request) || request.status() != Some(200) {
            continue;
        }
        let (_, place) = request.prompt.rsplit_once("\nPart ").unwrap();
        let (number, rest) = place.split_once(" of ").unwrap();
        let (_, content) = rest.split_once(":\n").unwrap();
        let read = parts.entry(number.parse().unwrap()).or_default();
        // An answer may be lost on its way: the server knows nothing of that. How often it was asked is counted elsewhere.
        if !read.iter().any(|before| before == content) {
            read.push(content.to_owned());
        }
    }
    parts.into_values().flatten().collect()
}

/// Parts, levels and calls of a document that was read part by part.
fn map_reduced(answer: &Completion) -> (usize, u32, u32) {
    match answer.long {
        Some(LongSummary::MapReduce {
            parts,
            levels,
            calls,
            ..
        }) => (parts, levels, calls),
        other => panic!("not read part by part: {other:?}"),
    }
}

#[tokio::test]
async fn a_document_of_hundreds_of_contexts_has_one_answer_and_each_part_is_read_once() {
    let server = serve(small(taking(2))).await;
    let client = client(&fixed(config(&server), 8));
    let content = document(1_500_000);
    let answer = ask_now(&client, 1, &content).await.unwrap();
    let (parts, levels, calls) = map_reduced(&answer);
    assert!(parts > 200 && levels > 0, "{parts} parts, {levels} levels");
    assert_eq!(u64::from(calls), server.calls());
    assert_eq!(answer.usage.calls, calls);
    assert_eq!(answer.attempts, calls);
    let usage = answer.usage;
    assert_eq!(
        usage.total_tokens,
        usage.prompt_tokens + usage.completion_tokens
    );
    let context = u64::try_from(CONTEXT).unwrap();
    assert!(usage.total_tokens < context * u64::from(calls));
    assert!(usage.prompt_tokens > context * 8 / 10 * u64::try_from(parts).unwrap() * 8 / 10);
    assert!(read_by_parts(&server) == content, "a part is lost");
    assert!(
        about_documents(&server)
            .iter()
            .all(|seen| seen.status() == Some(200))
    );
    assert_eq!(
        server.peak_running(),
        8,
        "as many at once as may, and no more"
    );
}

#[tokio::test]
async fn other_documents_get_their_turn_beside_a_long_one() {
    let server = serve(small(taking(10))).await;
    let client = client(&fixed(config(&server), 4));
    let long = spawn(&client, document(300_000));
    until(&server, "it has begun", |server| server.calls() > 8).await;
    for offset in 2..7 {
        let before = server.calls();
        ask_now(&client, offset, "Revenue rose.").await.unwrap();
        // Those that stood before it, and those that came while it ran.
        assert!(server.calls() - before < 20, "{}", server.calls() - before);
    }
    assert!(!long.is_finished());
    end(long).await.unwrap();
    assert_eq!(server.peak_running(), 4);
}

#[tokio::test]
async fn a_server_that_does_not_count_is_asked_by_estimate() {
    let server = serve(VllmConfig {
        serves_tokenize: false,
        ..small(quick())
    })
    .await;
    let client = client(&fixed(config(&server), 8));
    let content = document(100_000);
    let answer = ask_now(&client, 1, &content).await.unwrap();
    assert!(map_reduced(&answer).0 > 10);
    assert!(read_by_parts(&server) == content, "a part is lost");
}

#[tokio::test]
async fn a_part_that_fails_is_asked_about_again_alone() {
    let server = serve(small(quick())).await;
    let client = client(&fixed(config(&server), 8));
    let content = document(60_000);
    for action in [Action::answer(500, "{}"), Action::HangUp, Action::Abort] {
        server
            .faults()
            .push(Fault::new(action).on_prompt("\nPart 5 of "));
    }
    let answer = ask_now(&client, 1, &content).await.unwrap();
    let (.., calls) = map_reduced(&answer);
    assert_eq!(server.faults().pending(), 0);
    assert_eq!(server.calls(), u64::from(calls) + 3);
    assert_eq!(answer.attempts, calls + 3);
    assert_eq!(answer.usage.calls, calls);
}

/// One part for good means the whole document, and what runs of it ends.
#[tokio::test]
async fn a_part_that_is_refused_for_good_is_told_of() {
    let server = serve(small(taking(20))).await;
    let client = client(&fixed(config(&server), 8));
    server
        .faults()
        .push(Fault::new(Action::answer(413, "{}")).on_prompt("\nPart 5 of "));
    let give_up = given_up(ask_now(&client, 1, &document(100_000)).await);
    assert_eq!(give_up.reason, DeadLetterReason::RequestRejected);
    assert!(
        give_up.detail.starts_with("part 5 of "),
        "{}",
        give_up.detail
    );
    until(&server, "nothing runs", |server| server.running() == 0).await;
    assert_eq!(client.state().running, 0);
}

#[tokio::test]
async fn an_outage_in_the_middle_repeats_only_what_was_in_flight() {
    let case = async |is_crash: bool| {
        let server = serve(small(taking(10))).await;
        let client = client(&LlmConfig {
            attempts: 1,
            ..fixed(config(&server), 8)
        });
        let content = document(200_000);
        let long = spawn(&client, content.clone());
        until(&server, "the middle", |server| server.calls() > 20).await;
        if is_crash {
            server.kill_engine(None);
        } else {
            server.stop_listener().await;
        }
        held_because(&client, "LLM_URL").await;
        server.start_listener().await.unwrap();
        let answer = end(long).await.unwrap();
        let (parts, ..) = map_reduced(&answer);
        assert!(read_by_parts(&server) == content, "a part is lost");
        let asked = about_documents(&server)
            .iter()
            .filter(|seen| is_map(seen))
            .count();
        assert!(
            (parts..=parts + 8).contains(&asked),
            "{asked} for {parts} parts"
        );
    };
    tokio::join!(case(false), case(true));
}

#[tokio::test]
async fn a_shortened_document_says_so() {
    for keep in [TruncateKeep::Head, TruncateKeep::Tail, TruncateKeep::Ends] {
        let server = serve(small(quick())).await;
        let client = long_client(
            &config(&server),
            LongDocumentsConfig {
                policy: LongPolicy::Truncate,
                truncate_keep: keep,
                ..LongDocumentsConfig::default()
            },
        );
        let content = format!("Alpha begins.\n\n{}\n\nOmega ends.", document(100_000));
        let answer = ask_now(&client, 1, &content).await.unwrap();
        let left_out = match answer.long {
            Some(LongSummary::Truncate {
                keep: kept,
                left_out_characters,
            }) if kept == keep => left_out_characters,
            other => panic!("{keep:?}: {other:?}"),
        };
        let seen = about_documents(&server);
        assert_eq!(seen.len(), 1, "{keep:?}");
        let prompt = &seen[0].prompt;
        let marker = format!("[… {left_out} characters left out …]");
        assert!(prompt.contains(&marker), "{keep:?}");
        assert_eq!(
            prompt.contains("Alpha begins."),
            keep != TruncateKeep::Tail,
            "{keep:?}"
        );
        assert_eq!(
            prompt.contains("Omega ends."),
            keep != TruncateKeep::Head,
            "{keep:?}"
        );
        // Most of the context is used: 1,024 tokens are the answer's.
        assert!(
            answer.usage.prompt_tokens > 850,
            "{keep:?}: {:?}",
            answer.usage
        );
        // What fits is not touched.
        let short = ask_now(&client, 2, "Revenue rose.").await.unwrap();
        assert_eq!(short.long, None);
    }
}

#[tokio::test]
async fn without_a_policy_for_it_a_long_document_is_given_up_uncalled() {
    let server = serve(small(quick())).await;
    let client = long_client(
        &config(&server),
        LongDocumentsConfig {
            policy: LongPolicy::DeadLetter,
            ..LongDocumentsConfig::default()
        },
    );
    let give_up = given_up(ask_now(&client, 1, &document(100_000)).await);
    assert_eq!(give_up.reason, DeadLetterReason::ContextLengthExceeded);
    assert!(give_up.detail.contains("2048"), "{}", give_up.detail);
    assert_eq!(server.calls(), 0);
}

#[tokio::test]
async fn more_calls_than_are_allowed_are_never_begun() {
    let server = serve(small(quick())).await;
    let client = long_client(
        &config(&server),
        LongDocumentsConfig {
            calls_max: 20,
            ..LongDocumentsConfig::default()
        },
    );
    let give_up = given_up(ask_now(&client, 1, &document(300_000)).await);
    assert_eq!(give_up.reason, DeadLetterReason::ContextLengthExceeded);
    assert!(
        give_up.detail.contains("calls_max = 20"),
        "{}",
        give_up.detail
    );
    assert_eq!(server.calls(), 0);
}

#[tokio::test]
async fn with_a_schema_the_answer_is_data_and_notes_are_text() {
    let server = serve(small(quick())).await;
    let mut llm = fixed(config(&server), 8);
    llm.schema_file = Some("builtin:financial".into());
    llm.max_tokens = 512;
    let schema = Arc::new(AnswerSchema::load(&llm).unwrap().unwrap());
    // The schema that ships takes most of so small a context when it is in the prompt as well.
    let prompt = Prompt::new(
        &PromptConfig {
            user: Some("Answer as JSON.\n\n{{ content }}".to_owned()),
            ..PromptConfig::default()
        },
        Some(schema.text()),
    )
    .unwrap();
    let client = set_up(Setup {
        schema: Some(schema),
        ..Setup::from(&llm)
    });
    let request = request_with(Arc::new(prompt), 1, &document(60_000));
    let answer = complete(client, request).await.unwrap();
    assert!(answer.data.unwrap()["summary"].is_string());
    let seen = about_documents(&server);
    let (last, notes) = seen.split_last().unwrap();
    assert_eq!(last.response_format.as_deref(), Some("json_schema"));
    assert!(notes.len() > 10);
    assert!(notes.iter().all(|seen| seen.response_format.is_none()));
}

/// A drain finishes what flows, and gives back what stands still.
#[tokio::test]
async fn a_drain_in_the_middle_finishes_the_document_or_gives_it_back() {
    let server = serve(small(taking(5))).await;
    let config = fixed(config(&server), 8);
    let flowing = client(&config);
    let long = spawn(&flowing, document(150_000));
    until(&server, "the middle", |server| server.calls() > 20).await;
    flowing.begin_drain();
    assert!(end(long).await.is_ok());

    let standing = client(&config);
    let before = server.calls();
    let long = spawn(&standing, document(150_000));
    until(&server, "the middle", |server| server.calls() > before + 20).await;
    server.stop_listener().await;
    held_because(&standing, "LLM_URL").await;
    standing.begin_drain();
    let outcome = end(long).await;
    assert!(
        matches!(outcome, Err(CompleteError::Abandoned)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_document_that_is_dropped_leaves_nothing_running() {
    let server = serve(small(taking(50))).await;
    let client = client(&fixed(config(&server), 8));
    let long = spawn(&client, document(150_000));
    until(&server, "all run", |server| server.running() == 8).await;
    long.abort();
    assert!(long.await.unwrap_err().is_cancelled());
    until(&server, "nothing runs", |server| {
        server.running() + server.waiting() == 0
    })
    .await;
    let calls = server.calls();
    eventually("the client has forgotten it", PATIENCE, || {
        let state = client.state();
        let lane = &state.endpoints[0];
        (
            state.running,
            state.waiting,
            lane.running,
            lane.outstanding_tokens,
        ) == (0, 0, 0, 0)
    })
    .await;
    ask_now(&client, 2, "Revenue rose.").await.unwrap();
    assert_eq!(server.calls(), calls + 1, "it runs on");
}

/// The server lists its models too late for the first document, which is asked about before its context is known.
#[tokio::test]
async fn the_first_document_may_be_long_before_the_context_is_known() {
    let server = serve(small(quick())).await;
    let late = Action::Delay(Duration::from_millis(300));
    server.faults().push(Fault::new(late).on_path("/v1/models"));
    let client = client(&fixed(config(&server), 8));
    let answer = ask_now(&client, 1, &document(30_000)).await.unwrap();
    map_reduced(&answer);
}

/// The processor is up before the server.
#[tokio::test]
async fn long_documents_may_come_before_the_server_is_up() {
    let server = serve(small(quick())).await;
    server.stop_listener().await;
    let client = client(&fixed(config(&server), 8));
    let long = spawn(&client, document(30_000));
    held_because(&client, "LLM_URL").await;
    server.start_listener().await.unwrap();
    let answer = end(long).await.unwrap();
    map_reduced(&answer);
}

/// It says nothing of itself when it is first asked: it is asked again before a document is given up for that.
#[tokio::test]
async fn a_context_that_was_not_told_at_first_is_asked_for_again() {
    let server = serve(small(quick())).await;
    server
        .faults()
        .push(Fault::new(Action::answer(500, "{}")).on_path("/v1/models"));
    let client = client(&fixed(config(&server), 8));
    let answer = ask_now(&client, 1, &document(30_000)).await.unwrap();
    map_reduced(&answer);
}
