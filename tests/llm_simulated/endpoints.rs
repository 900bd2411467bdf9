//! Several servers: the load is spread by what each has to do, one that fails costs nothing, and all together are waited for.

use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{BreakerState, LlmConfig, Prompt, PromptConfig, VllmClient};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Vllm, VllmConfig};
use kafka_llm_processor::types::Secret;
use tokio::time::Instant;

use crate::harness::{
    PATIENCE, about_documents, all_answered, ask_now, client, complete, config_of, eventually,
    fixed, flows, held_because, quick, request_with, serve, start, start_from, taking, until,
};

/// Waits until the endpoint of that number is held, or no more.
async fn endpoint_held(client: &VllmClient, number: usize, is_held: bool) {
    eventually("an endpoint turns", PATIENCE, || {
        client.state().endpoints[number].held.is_some() == is_held
    })
    .await;
}

fn calls_about_documents(server: &Vllm) -> usize {
    about_documents(server).len()
}

#[tokio::test]
async fn equal_servers_share_the_work_evenly() {
    let servers = [
        serve(taking(10)).await,
        serve(taking(10)).await,
        serve(taking(10)).await,
    ];
    let [a, b, c] = &servers;
    let client = client(&fixed(config_of(&[a, b, c]), 8));
    all_answered(start(&client, 300)).await;
    for server in &servers {
        let calls = calls_about_documents(server);
        assert!((80..=120).contains(&calls), "{calls} of 300");
        assert!(server.peak_running() <= 8, "{}", server.peak_running());
    }
}

/// Long prompts count for what they are: the tokens are shared evenly, not the documents.
#[tokio::test]
async fn the_load_is_measured_in_tokens() {
    let servers = [serve(taking(20)).await, serve(taking(20)).await];
    let [a, b] = &servers;
    let client = client(&fixed(config_of(&[a, b]), 32));
    let mut documents = start(&client, 20);
    for offset in 100..104 {
        let content = "Revenue rose by a lot. ".repeat(400);
        let client = Arc::clone(&client);
        documents.spawn(crate::harness::ask(client, offset, content));
    }
    until(a, "all run", |_| a.running() + b.running() == 24).await;
    let loads = client.state().endpoints.map_tokens();
    let (more, less) = (loads[0].max(loads[1]), loads[0].min(loads[1]));
    assert!(less * 10 >= more * 5, "{loads:?}");
    all_answered(documents).await;
    assert!(
        client
            .state()
            .endpoints
            .map_tokens()
            .iter()
            .all(|tokens| *tokens == 0)
    );
}

trait Tokens {
    fn map_tokens(&self) -> Vec<u64>;
}

impl Tokens for Vec<kafka_llm_processor::llm::EndpointState> {
    fn map_tokens(&self) -> Vec<u64> {
        self.iter()
            .map(|endpoint| endpoint.outstanding_tokens)
            .collect()
    }
}

#[tokio::test]
async fn the_faster_server_gets_more() {
    let (slow, fast) = (serve(taking(500)).await, serve(taking(10)).await);
    let client = client(&fixed(config_of(&[&slow, &fast]), 4));
    all_answered(start(&client, 100)).await;
    let (slow, fast) = (calls_about_documents(&slow), calls_about_documents(&fast));
    assert_eq!(slow + fast, 100);
    assert!(fast > slow * 3, "{fast} and {slow}");
}

#[tokio::test]
async fn when_one_dies_the_other_does_its_work_until_it_is_back() {
    let (first, second) = (serve(taking(20)).await, serve(taking(20)).await);
    let client = client(&LlmConfig {
        attempts: 2,
        ..fixed(config_of(&[&first, &second]), 8)
    });
    let holds = client.holds();
    let documents = start(&client, 200);
    until(&first, "it works", |server| server.calls() > 20).await;
    first.kill_engine(None);
    for answer in all_answered(documents).await {
        assert!(answer.attempts <= 3, "{}", answer.attempts);
    }
    assert!(!holds.has_changed().unwrap(), "the work stood still");
    let state = client.state();
    assert_eq!(state.held, None);
    assert_ne!(state.endpoints[0].breaker, BreakerState::Closed);
    assert!(
        state.endpoints[0]
            .held
            .as_ref()
            .unwrap()
            .reason
            .contains(&first.url())
    );
    first.start_listener().await.unwrap();
    endpoint_held(&client, 0, false).await;
    let before = calls_about_documents(&first);
    all_answered(start_from(&client, 200, 100)).await;
    assert!(calls_about_documents(&first) > before + 25);
}

#[tokio::test]
async fn with_both_down_the_work_resumes_within_two_seconds_of_the_first_return() {
    let case = async |returns: usize| {
        let servers = [serve(taking(10)).await, serve(taking(10)).await];
        let client = client(&LlmConfig {
            attempts: 1,
            ..fixed(config_of(&[&servers[0], &servers[1]]), 8)
        });
        let documents = start(&client, 100);
        until(&servers[0], "it works", |server| server.calls() > 10).await;
        servers[0].stop_listener().await;
        servers[1].stop_listener().await;
        held_because(&client, &servers[1].url()).await;
        // Long enough for the probes to slow down.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        servers[returns].start_listener().await.unwrap();
        flows(&client).await;
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        all_answered(documents).await;
    };
    tokio::join!(case(0), case(1));
}

#[tokio::test]
async fn one_that_is_set_up_wrong_is_told_of_and_the_other_does_the_work() {
    let right = serve(VllmConfig {
        api_key: Some("right".to_owned()),
        ..quick()
    })
    .await;
    let other_model = serve(VllmConfig {
        models: vec!["other".to_owned()],
        api_key: Some("right".to_owned()),
        ..quick()
    })
    .await;
    let other_key = serve(VllmConfig {
        api_key: Some("other".to_owned()),
        ..quick()
    })
    .await;
    for (wrong, told) in [(&other_model, "MODEL_NAME"), (&other_key, "llm.api_key")] {
        for order in [[wrong, &right], [&right, wrong]] {
            let client = client(&LlmConfig {
                api_key: Some(Secret::new("right")),
                attempts: 1,
                ..config_of(&order)
            });
            all_answered(start(&client, 40)).await;
            let state = client.state();
            assert_eq!(state.held, None);
            let endpoint = state
                .endpoints
                .iter()
                .find(|endpoint| endpoint.url == wrong.url());
            let reason = &endpoint.unwrap().held.as_ref().unwrap().reason;
            assert!(reason.contains(told), "{reason}");
            assert_eq!(
                calls_about_documents(wrong),
                0,
                "it was known before the first call"
            );
        }
    }
}

#[tokio::test]
async fn prompts_of_one_template_prefer_one_server() {
    let servers = [serve(quick()).await, serve(quick()).await];
    let client = client(&LlmConfig {
        prefix_affinity: true,
        ..config_of(&[&servers[0], &servers[1]])
    });
    for template in 0..16 {
        let before = servers[0].calls();
        let config = PromptConfig {
            user: Some(format!("Template {template}.\n\n{{{{ content }}}}")),
            ..PromptConfig::default()
        };
        let prompt = Arc::new(Prompt::new(&config, None).unwrap());
        for offset in 0..5 {
            let request = request_with(Arc::clone(&prompt), offset, "Revenue rose.");
            complete(Arc::clone(&client), request).await.unwrap();
        }
        let here = servers[0].calls() - before;
        assert!(here == 0 || here == 5, "template {template}: {here} of 5");
    }
    assert!(
        servers.iter().all(|server| server.calls() > 0),
        "all went to one"
    );
}

/// With the waits that are the default.
#[tokio::test]
async fn what_one_has_no_capacity_for_goes_to_the_other() {
    let (full, free) = (serve(taking(10)).await, serve(taking(10)).await);
    full.faults().push(
        Fault::new(Action::answer(
            503,
            r#"{"error":{"message":"busy","code":503}}"#,
        ))
        .kept(),
    );
    let defaults = LlmConfig::default();
    for adaptive in [false, true] {
        let mut config = LlmConfig {
            retry_backoff_initial: defaults.retry_backoff_initial,
            retry_backoff_max: defaults.retry_backoff_max,
            attempts: 1,
            ..config_of(&[&full, &free])
        };
        if !adaptive {
            config = fixed(config, 8);
        }
        let client = client(&config);
        let began = Instant::now();
        all_answered(start(&client, 20)).await;
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(client.state().held, None);
    }
    assert_eq!(calls_about_documents(&free), 40);
}

#[tokio::test]
async fn a_server_that_hangs_costs_one_timeout_and_the_other_answers() {
    let (silent, free) = (serve(quick()).await, serve(quick()).await);
    silent.faults().push(Fault::new(Action::HangForEver).kept());
    let client = client(&LlmConfig {
        timeout: Duration::from_millis(300),
        attempts: 3,
        ..fixed(config_of(&[&silent, &free]), 4)
    });
    let began = Instant::now();
    all_answered(start(&client, 60)).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    ask_now(&client, 99, "Another.").await.unwrap();
}
