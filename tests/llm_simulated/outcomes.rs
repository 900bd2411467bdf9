//! Every document ends with exactly one right outcome, whatever goes wrong once.

use kafka_llm_processor::llm::{
    CompleteError, Concurrency, HttpTransport, LlmConfig, LlmError, VllmClient,
};
use kafka_llm_processor::sandbox::vllm::{
    Action, Answers, EngineState, Fault, Latency, SIMULATED, SeenRequest, Vllm, VllmConfig,
};
use kafka_llm_processor::types::DeadLetterReason;
use std::sync::Arc;
use std::time::Duration;

use crate::harness::{
    PATIENCE, about_documents, all_answered, ask, client, config, fixed, held_because, reason,
    serve, short_client, start, taking,
};

/// The default model's chat template may refuse a system message: the defaults must not need one.
#[tokio::test]
async fn the_defaults_work_with_a_chat_template_that_refuses_the_system_role() {
    let server = Vllm::start(VllmConfig {
        accepts_system_role: false,
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let completion = ask(client(&config(&server)), 1, "Revenue rose.".to_owned())
        .await
        .unwrap();
    assert!(completion.text.contains(SIMULATED));
    assert!(completion.usage.prompt_tokens > 0);
    assert_eq!(
        server.requests().last().unwrap().request_id.as_deref(),
        Some(completion.request_id.as_str())
    );
}

#[tokio::test]
async fn every_fault_once_and_each_document_is_answered() {
    let server = Vllm::start(VllmConfig {
        latency: Latency::ZERO,
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let client = client(&config(&server));
    for action in [
        Action::answer(500, r#"{"error":{"message":"","code":500}}"#),
        Action::answer(502, "<html>"),
        Action::too_many_requests(None),
        Action::too_many_requests(Some(Duration::ZERO)),
        Action::HangUp,
        Action::CutMidBody,
        Action::HangForEver,
        Action::Garbage,
        Action::Abort,
        Action::NullContent,
        Action::Delay(Duration::from_millis(50)),
    ] {
        server
            .faults()
            .push(Fault::new(action).on_path("/v1/chat/completions"));
    }
    all_answered(start(&client, 100)).await;
    assert_eq!(server.faults().pending(), 0);
}

#[tokio::test]
async fn an_outage_in_the_middle_costs_no_document() {
    let server = Vllm::start(VllmConfig {
        latency: Latency::fixed(Duration::from_millis(20)),
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let mut config = config(&server);
    config.attempts = 1;
    config.concurrency = Concurrency::Fixed(16);
    let client = client(&config);
    let documents = start(&client, 200);
    assert!(
        server
            .wait_until(PATIENCE, |server| server.calls() > 50)
            .await
    );
    server.stop_listener().await;
    held_because(&client, "LLM_URL").await;
    server.start_listener().await.unwrap();
    all_answered(documents).await;
}

#[tokio::test]
async fn a_dead_engine_holds_until_it_serves_again() {
    let server = Vllm::start(VllmConfig {
        latency: Latency::fixed(Duration::from_millis(20)),
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let mut config = config(&server);
    config.attempts = 2;
    let client = client(&config);
    let documents = start(&client, 200);
    assert!(
        server
            .wait_until(PATIENCE, |server| server.calls() > 50)
            .await
    );
    server.faults().set_engine(EngineState::Dead);
    held_because(&client, "500").await;
    server.faults().set_engine(EngineState::Serving);
    all_answered(documents).await;
}

#[tokio::test]
async fn refused_admission_is_waited_for_and_costs_no_attempt() {
    let server = Vllm::start(VllmConfig {
        latency: Latency::fixed(Duration::from_millis(5)),
        max_num_seqs: 4,
        max_num_queued_reqs: Some(8),
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let mut config = config(&server);
    config.attempts = 1;
    config.concurrency = Concurrency::Fixed(32);
    let client = client(&config);
    let documents = start(&client, 200);
    all_answered(documents).await;
    assert!(
        server.calls() > 200,
        "nothing was refused: {}",
        server.calls()
    );
    assert!(server.peak_running() <= 4);
}

#[tokio::test]
async fn a_document_longer_than_the_context_is_given_up_and_no_other() {
    let server = Vllm::start(VllmConfig {
        max_model_len: 600,
        latency: Latency::ZERO,
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let mut config = config(&server);
    config.max_tokens = 64;
    let client = short_client(&config);
    let documents = start(&client, 5);
    for words in [700, 20_000] {
        let outcome = ask(Arc::clone(&client), 9, "word ".repeat(words)).await;
        assert_eq!(reason(outcome), DeadLetterReason::ContextLengthExceeded);
    }
    all_answered(documents).await;
}

/// Each length around the edge, where vLLM's refusal of a prompt that fills the context exactly is worded misleadingly.
#[tokio::test]
async fn at_the_edge_of_the_context_a_document_is_answered_or_too_long() {
    let server = Vllm::start(VllmConfig {
        max_model_len: 400,
        latency: Latency::ZERO,
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let mut config = config(&server);
    config.max_tokens = 16;
    let client = short_client(&config);
    let (mut answered, mut too_long) = (0, 0);
    for words in 100..400 {
        match ask(
            Arc::clone(&client),
            words,
            "word ".repeat(usize::try_from(words).unwrap()),
        )
        .await
        {
            Ok(_) => answered += 1,
            Err(CompleteError::DeadLetter(give_up)) => {
                assert_eq!(give_up.reason, DeadLetterReason::ContextLengthExceeded);
                too_long += 1;
            }
            Err(CompleteError::Abandoned) => panic!("abandoned"),
        }
    }
    assert!(answered > 10 && too_long > 10, "{answered} and {too_long}");
}

/// Words of one letter have more than twice the tokens that they are thought to have. A prompt of them that leaves less than an answer is
/// found out by its answer, which vLLM cuts at the end of the context without a word.
#[tokio::test]
async fn an_answer_that_is_cut_at_the_end_of_the_context_is_none() {
    let server = Vllm::start(VllmConfig {
        max_model_len: 600,
        latency: Latency::ZERO,
        answers: Answers::Fixed("word ".repeat(100)),
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let mut config = config(&server);
    config.max_tokens = 64;
    let (mut whole, mut in_parts) = (0, 0);
    for words in (300..560).step_by(20) {
        // Each knows nothing yet.
        let outcome = ask(client(&config), 0, "a ".repeat(words)).await.unwrap();
        if outcome.long.is_some() {
            in_parts += 1;
            assert!(outcome.attempts > outcome.usage.calls, "{outcome:?}");
            let outcome = ask(short_client(&config), 0, "a ".repeat(words)).await;
            assert_eq!(reason(outcome), DeadLetterReason::ContextLengthExceeded);
        } else {
            whole += 1;
            assert_eq!(outcome.usage.completion_tokens, 64, "{words}");
        }
    }
    assert!(whole > 2 && in_parts > 2, "{whole} and {in_parts}");
}

#[tokio::test]
async fn wrong_settings_are_told_with_what_to_change() {
    async fn problem(config: LlmConfig) -> String {
        let transport = Arc::new(HttpTransport::new(&config).unwrap());
        match VllmClient::preflight(&config, transport).await {
            Err(LlmError::Unusable(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }
    let server = Vllm::start(VllmConfig {
        api_key: Some("right".to_owned()),
        max_model_len: 2048,
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    let right = || LlmConfig {
        api_key: Some(kafka_llm_processor::types::Secret::new("right")),
        ..config(&server)
    };
    let mut no_key = right();
    no_key.api_key = None;
    assert!(problem(no_key).await.contains("llm.api_key"));
    let mut model = right();
    model.model = "nope".to_owned();
    let told = problem(model).await;
    assert!(
        told.contains("mistralai/Mistral-7B-Instruct-v0.2: set MODEL_NAME"),
        "{told}"
    );
    let mut tokens = right();
    tokens.max_tokens = 4096;
    assert!(problem(tokens).await.contains("llm.max_tokens = 4096"));
    let mut path = right();
    path.url = format!("{}/elsewhere", server.url());
    let told = problem(path).await;
    assert!(told.contains("LLM_URL"), "{told}");
    let transport = Arc::new(HttpTransport::new(&right()).unwrap());
    let served = VllmClient::preflight(&right(), transport).await.unwrap();
    assert_eq!(served.unwrap().max_model_len, Some(2048));
}

/// Behind what was read ahead it would keep open all that is answered meanwhile.
#[tokio::test]
async fn what_is_asked_again_does_not_wait_behind_what_was_read_ahead() {
    let server = serve(taking(20)).await;
    let error = r#"{"error":{"message":"","code":500}}"#;
    server.faults().push(
        Fault::new(Action::answer(500, error))
            .on_prompt("Document 0:")
            .times(1),
    );
    let client = client(&fixed(config(&server), 2));
    all_answered(start(&client, 60)).await;
    let asked = about_documents(&server);
    let is_second = |request: &SeenRequest| {
        let id = request.request_id.as_deref();
        id.is_some_and(|id| id.starts_with("klp-documents-0-0-2-"))
    };
    let again = asked.iter().position(is_second).unwrap();
    assert!(again < 15, "{again} of {}", asked.len());
}
