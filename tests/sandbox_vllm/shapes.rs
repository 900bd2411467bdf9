//! Statuses and bodies.

use kafka_llm_processor::sandbox::vllm::{SIMULATED, VllmConfig};
use serde_json::{Value, json};

use super::client::{
    CHAT, MODEL, answer, chat, chat_body, client, get, post, quick, server, server_with, value,
};

#[tokio::test]
async fn a_completion_has_every_key_in_vllms_order() {
    let server = server().await;
    let body = chat_body("Summarise.\n\nAldgate sold 12 oats. Rain fell.", &json!({}));
    let response = post(&server, CHAT)
        .header("x-request-id", "doc-1")
        .json(&body)
        .send()
        .await
        .unwrap();
    let (status, text) = answer(response).await;
    assert_eq!(status, 200, "{text}");
    let parsed = value(&text);
    let created = parsed["created"].as_i64().unwrap();
    let usage = &parsed["usage"];
    let (prompt, completion) = (&usage["prompt_tokens"], &usage["completion_tokens"]);
    let total = prompt.as_u64().unwrap() + completion.as_u64().unwrap();
    let content = format!("{SIMULATED} Aldgate sold 12 oats.");
    let expected = format!(
        r#"{{"id":"chatcmpl-doc-1","object":"chat.completion","created":{created},"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null,"routed_experts":null}}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-simulated","usage":{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{completion},"prompt_tokens_details":null,"completion_tokens_details":null}},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#
    );
    assert_eq!(text, expected);
}

#[tokio::test]
async fn the_same_prompt_has_the_same_answer() {
    let server = server().await;
    let body = chat_body("Costs rose 4%. Sales fell.", &json!({}));
    let (_, first) = chat(&server, &body).await;
    let (_, second) = chat(&server, &body).await;
    assert_eq!(value(&first)["choices"], value(&second)["choices"]);
    assert_ne!(value(&first)["id"], value(&second)["id"]);
}

/// Each line: fields of the body, and what vLLM 0.32.0 answered to them, byte for byte. Its context was 2048 tokens too.
const REFUSALS: &str = include_str!("refusals.jsonl");

#[tokio::test]
async fn refused_requests_are_answered_in_vllms_words() {
    let server = server().await;
    for line in REFUSALS.lines() {
        let case = value(line);
        let (status, text) = chat(&server, &chat_body("Say hello.", &case["fields"])).await;
        let got = (json!(status), json!(text));
        assert_eq!(
            got,
            (case["status"].clone(), case["body"].clone()),
            "{}",
            case["case"]
        );
    }
}

#[tokio::test]
async fn what_vllm_lets_pass_is_answered() {
    let server = server().await;
    let accepted = [
        json!({"model": null}),
        json!({"model": ""}),
        json!({"temperature": "0.5"}),
        json!({"temperature": null}),
        json!({"n": 2, "temperature": 1}),
        json!({"seed": -5}),
        json!({"guided_json": {"type": "object"}, "a_misspelt_option": 1, "priority": 5}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "user", "content": ""}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
        json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]}),
        json!({"messages": [{"role": "user", "content": "a\u{0}b"}]}),
    ];
    for fields in accepted {
        let (status, text) = chat(&server, &chat_body("Hello.", &fields)).await;
        assert_eq!(status, 200, "{fields}: {text}");
    }
}

#[tokio::test]
async fn bodies_that_are_no_request_are_refused() {
    let server = server().await;
    let json = "application/json";
    let content_type = r#"{"error":{"message":"1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed","type":"Bad Request","param":null,"code":400}}"#;
    let missing = r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}","type":"Bad Request","param":"body","code":400}}"#;
    let cases: [(&str, &[u8], &str); 9] = [
        ("text/plain", b"{}", content_type),
        ("", b"{}", content_type),
        (json, b"", missing),
        (json, b"null", missing),
        (
            json,
            b"\xff\xfe",
            r#"{"detail":"There was an error parsing the body"}"#,
        ),
        (
            json,
            b"[1]",
            r#"{"error":{"message":"1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object to extract fields from', 'input': '<list of 1 items>'}","type":"Bad Request","param":"body","code":400}}"#,
        ),
        (
            json,
            b"not json at all",
            r#"{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.0', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting value'}}","type":"Bad Request","param":"body.0","code":400}}"#,
        ),
        (
            json,
            br#"{"model":"m"}"#,
            r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}","type":"Bad Request","param":"body.messages","code":400}}"#,
        ),
        (
            json,
            br#"{"messages":[{"role":"user","content":"\ud800"}]}"#,
            r#"{"error":{"message":"TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]","type":"BadRequestError","param":null,"code":400}}"#,
        ),
    ];
    for (content_type, body, expected) in cases {
        let mut request = post(&server, CHAT).body(body.to_vec());
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let got = answer(request.send().await.unwrap()).await;
        assert_eq!(
            got,
            (400, expected.to_owned()),
            "{}",
            String::from_utf8_lossy(body)
        );
    }
}

#[tokio::test]
async fn the_context_bounds_prompts_and_cuts_answers() {
    let server = server().await;
    let count = |text: String| {
        let server = server.clone();
        async move {
            let body = json!({"model": MODEL, "messages": [{"role": "user", "content": text}]});
            let (_, text) =
                answer(post(&server, "/tokenize").json(&body).send().await.unwrap()).await;
            value(&text)["count"].as_u64().unwrap()
        }
    };
    // One mark is one token, beside those of the template.
    let template = count("!".to_owned()).await - 1;
    let marks = |tokens: u64| "!".repeat(usize::try_from(tokens - template).unwrap());
    assert_eq!(count(marks(2048)).await, 2048);

    let body = chat_body(&marks(2046), &json!({}));
    let (status, text) = chat(&server, &body).await;
    let usage = &value(&text)["usage"];
    assert_eq!(
        (status, &usage["completion_tokens"], &usage["total_tokens"]),
        (200, &json!(2), &json!(2048)),
        "max_tokens is cut to what is left"
    );
    assert_eq!(value(&text)["choices"][0]["finish_reason"], "length");

    let (status, text) = chat(&server, &chat_body(&marks(2048), &json!({}))).await;
    assert_eq!(status, 400);
    assert_eq!(
        text,
        r#"{"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)","type":"BadRequestError","param":"max_tokens","code":400}}"#
    );

    let (status, text) = chat(
        &server,
        &chat_body(&marks(3000), &json!({"temperature": 9})),
    )
    .await;
    assert_eq!(status, 400);
    assert_eq!(
        text,
        r#"{"error":{"message":"This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=2049)","type":"BadRequestError","param":"input_tokens","code":400}}"#
    );

    let (status, text) = chat(&server, &chat_body(&"word ".repeat(9000), &json!({}))).await;
    assert_eq!(status, 400);
    let error = &value(&text)["error"];
    assert_eq!(error["param"], "input_text");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with(
            "This model's maximum context length is 2048 tokens. However, your prompt contains 45"
        ),
        "{message}"
    );
    assert!(message.contains(" characters (more than 14336 characters, which is the upper bound for 2048 input tokens). Please reduce the length of the input prompt. (parameter=input_text, value=45"), "{message}");
}

#[tokio::test]
async fn stop_strings_and_max_tokens_end_an_answer() {
    let server = server().await;
    let (_, text) = chat(
        &server,
        &chat_body("Hello there.", &json!({"stop": ["run]"]})),
    )
    .await;
    let choice = &value(&text)["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["stop_reason"], "run]");
    assert_eq!(
        choice["message"]["content"],
        "[simulated answer, no model was "
    );
    let (_, text) = chat(
        &server,
        &chat_body("Hello there.", &json!({"max_tokens": 3})),
    )
    .await;
    let value = value(&text);
    assert_eq!(value["choices"][0]["finish_reason"], "length");
    assert_eq!(value["usage"]["completion_tokens"], 3);
    let (_, text) = chat(
        &server,
        &chat_body("Hi.", &json!({"n": 2, "temperature": 1})),
    )
    .await;
    assert_eq!(
        super::client::value(&text)["choices"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn a_template_may_refuse_the_system_role() {
    let server = server_with(VllmConfig {
        accepts_system_role: false,
        ..quick()
    })
    .await;
    let messages =
        json!({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]});
    let (status, text) = chat(&server, &chat_body("", &messages)).await;
    assert_eq!(status, 400);
    assert_eq!(
        text,
        r#"{"error":{"message":"Conversation roles must alternate user/assistant/user/assistant/...","type":"BadRequestError","param":null,"code":400}}"#
    );
}

#[tokio::test]
async fn a_key_guards_v1_and_nothing_else() {
    let server = server_with(VllmConfig {
        api_key: Some("sekret".to_owned()),
        ..quick()
    })
    .await;
    let unauthorized = (401, r#"{"error":"Unauthorized"}"#.to_owned());
    for path in ["/v1/models", "/v1/nope", CHAT] {
        let bare = answer(get(&server, path).send().await.unwrap()).await;
        assert_eq!(bare, unauthorized, "{path}");
        let wrong = get(&server, path).header("authorization", "Bearer other");
        assert_eq!(
            answer(wrong.send().await.unwrap()).await,
            unauthorized,
            "{path}"
        );
        let basic = get(&server, path).header("authorization", "Basic sekret");
        assert_eq!(
            answer(basic.send().await.unwrap()).await,
            unauthorized,
            "{path}"
        );
    }
    let models = get(&server, "/v1/models").header("authorization", "bearer sekret");
    assert_eq!(models.send().await.unwrap().status(), 200);
    for path in ["/health", "/version", "/load", "/metrics", "/ping"] {
        assert_eq!(
            get(&server, path).send().await.unwrap().status(),
            200,
            "{path}"
        );
    }
}

#[tokio::test]
async fn routes_and_methods_are_vllms() {
    let server = server().await;
    let health = get(&server, "/health").send().await.unwrap();
    assert_eq!(
        (health.status().as_u16(), health.content_length()),
        (200, Some(0))
    );
    assert_eq!(post(&server, "/ping").send().await.unwrap().status(), 200);
    let head = client().head(format!("{}/health", server.url()));
    assert_eq!(head.send().await.unwrap().status(), 405);
    let not_allowed = get(&server, CHAT).send().await.unwrap();
    assert_eq!(not_allowed.headers()["allow"], "POST");
    assert_eq!(
        answer(not_allowed).await,
        (405, r#"{"detail":"Method Not Allowed"}"#.to_owned())
    );
    let missing = (404, r#"{"detail":"Not Found"}"#.to_owned());
    for path in ["/", "/v1", "//v1/models", "/v1/files", "/is_paused"] {
        assert_eq!(
            answer(get(&server, path).send().await.unwrap()).await,
            missing,
            "{path}"
        );
    }
    let version = answer(get(&server, "/version").send().await.unwrap()).await;
    assert_eq!(version, (200, r#"{"version":"0.32.0"}"#.to_owned()));
    let load = answer(get(&server, "/load").send().await.unwrap()).await;
    assert_eq!(load, (200, r#"{"server_load":0}"#.to_owned()));
}

#[tokio::test]
async fn models_tell_the_context() {
    let server = server_with(VllmConfig {
        models: vec!["m1".to_owned(), "alias2".to_owned()],
        ..quick()
    })
    .await;
    let (status, text) = answer(get(&server, "/v1/models").send().await.unwrap()).await;
    assert_eq!(status, 200);
    let list = value(&text);
    assert_eq!(list["data"][1]["id"], "alias2");
    assert_eq!(list["data"][0]["max_model_len"], 2048);
    assert_eq!(
        list["data"][0]["permission"][0]["object"],
        "model_permission"
    );
    // The answer bears the first name, whichever was asked for.
    let (_, text) = chat(&server, &chat_body("Hi.", &json!({"model": "alias2"}))).await;
    assert_eq!(value(&text)["model"], "m1");
    let (status, text) = chat(&server, &chat_body("Hi.", &json!({"model": "m3"}))).await;
    assert_eq!(status, 404);
    assert!(text.contains("Valid aliases: m1, alias2."), "{text}");
}

#[tokio::test]
async fn tokens_count_as_usage_counts_and_decode_to_their_text() {
    let server = server().await;
    let prompt = "Net sales were €1,234.5 million, up 4%.";
    let messages = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}]});
    let (_, text) = answer(
        post(&server, "/tokenize")
            .json(&messages)
            .send()
            .await
            .unwrap(),
    )
    .await;
    let tokenized = value(&text);
    assert_eq!(tokenized["max_model_len"], 2048);
    assert_eq!(tokenized["token_strs"], Value::Null);
    let (_, completion) = chat(&server, &chat_body(prompt, &json!({}))).await;
    assert_eq!(
        value(&completion)["usage"]["prompt_tokens"],
        tokenized["count"]
    );
    let ids = json!({"model": MODEL, "tokens": tokenized["tokens"]});
    let (status, text) = answer(
        post(&server, "/detokenize")
            .json(&ids)
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(
        (status, value(&text)["prompt"].as_str()),
        (200, Some(format!("<s>[INST] {prompt} [/INST]").as_str()))
    );
    let (status, text) = answer(
        post(&server, "/tokenize")
            .json(&json!({"model": MODEL}))
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(status, 400);
    assert_eq!(
        text,
        r#"{"error":{"message":"2 validation errors:\n  {'type': 'missing', 'loc': 'body.prompt', 'msg': 'Field required', 'input': '<dict of 1 items>'}\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}","type":"Bad Request","param":"body.prompt","code":400}}"#
    );
}

#[tokio::test]
async fn a_format_gives_json() {
    let server = server().await;
    let schema = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
        {"type": "object", "properties": {"summary": {"type": "string"}}, "required": ["summary"]}}}});
    for format in [json!({"response_format": {"type": "json_object"}}), schema] {
        let (status, text) = chat(&server, &chat_body("Sales rose.", &format)).await;
        assert_eq!(status, 200, "{text}");
        let content = value(&text)["choices"][0]["message"]["content"].clone();
        assert!(value(content.as_str().unwrap()).is_object(), "{text}");
    }
}

#[tokio::test]
async fn structured_outputs_take_one_constraint() {
    let server = server().await;
    let with = |outputs: Value| json!({ "structured_outputs": outputs });
    let one = chat_body("Hi.", &with(json!({"choice": ["good", "bad"]})));
    let (_, text) = chat(&server, &one).await;
    assert_eq!(value(&text)["choices"][0]["message"]["content"], "good");
    let two = chat_body("Hi.", &with(json!({"json": {}, "regex": "a"})));
    assert_eq!(
        chat(&server, &two).await,
        (400, r#"{"error":{"message":"You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice').","type":"BadRequestError","param":null,"code":400}}"#.to_owned())
    );
    let wrong = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objec"}}}});
    assert_eq!(
        chat(&server, &chat_body("Hi.", &wrong)).await,
        (400, r#"{"error":{"message":"Grammar error: Invalid type: objec","type":"BadRequestError","param":null,"code":400}}"#.to_owned())
    );
}
