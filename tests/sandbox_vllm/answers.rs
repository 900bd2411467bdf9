//! What answers hold: instances of schemas, and what no client should take for one.

use kafka_llm_processor::sandbox::vllm::{Action, Vllm, VllmConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{
    CHAT, DEADLINE, MODEL, answer, chat, chat_body, client, get, post, quick, server, server_with,
    value,
};

fn schema() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["summary", "tone", "figures", "author"], "properties": {
        "summary": {"type": "string", "minLength": 10, "maxLength": 40},
        "tone": {"enum": ["good", "bad"]},
        "figures": {"type": "array", "minItems": 2, "items": {"type": "number", "exclusiveMinimum": 0}},
        "author": {"anyOf": [{"$ref": "#/$defs/person"}, {"type": "null"}]}},
        "$defs": {"person": {"type": "object", "required": ["name"], "properties": {"name": {"type": ["string", "null"]}}}}})
}

fn formatted(fields: &Value) -> Value {
    let mut body = chat_body("Sales rose 4%. Costs fell.", fields);
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema()}});
    body
}

/// The content and the reason of the only choice.
async fn said(server: &Vllm, body: &Value) -> (String, String) {
    let (status, text) = chat(server, body).await;
    assert_eq!(status, 200, "{text}");
    let choice = &value(&text)["choices"][0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (
        text(&choice["message"]["content"]),
        text(&choice["finish_reason"]),
    )
}

#[tokio::test]
async fn a_schema_of_either_field_is_obeyed() {
    let server = server().await;
    let body = chat_body(
        "Sales rose 4%.",
        &json!({"structured_outputs": {"json": schema()}, "max_tokens": 500}),
    );
    for body in [formatted(&json!({"max_tokens": 500})), body] {
        let (content, reason) = said(&server, &body).await;
        let instance = value(&content);
        let verdict = jsonschema::validate(&schema(), &instance);
        assert!(verdict.is_ok(), "{content}: {verdict:?}");
        assert_eq!(reason, "stop");
    }
}

#[tokio::test]
async fn a_schema_is_cut_at_max_tokens_and_by_a_hook() {
    let server = server().await;
    let (whole, _) = said(&server, &formatted(&json!({"max_tokens": 500}))).await;
    let (cut, reason) = said(&server, &formatted(&json!({"max_tokens": 5}))).await;
    assert_eq!(reason, "length");
    assert!(whole.starts_with(&cut), "{cut}");
    server.faults().push(Action::Truncated);
    let (half, reason) = said(&server, &formatted(&json!({"max_tokens": 500}))).await;
    assert_eq!(reason, "length");
    assert!(whole.starts_with(&half) && half.len() > cut.len(), "{half}");
    for text in [cut, half] {
        assert!(serde_json::from_str::<Value>(&text).is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_hook_chooses_the_content() {
    let server = server().await;
    let content = "Here it is:\n```json\n{\"a\"\t:\"x\"}\n```";
    server.faults().push(Action::Content(content.to_owned()));
    let body = formatted(&json!({"max_tokens": 1, "stop": ["json"]}));
    let expected = (content.to_owned(), "stop".to_owned());
    assert_eq!(said(&server, &body).await, expected);
    assert_eq!(said(&server, &body).await.1, "length");
}

#[tokio::test]
async fn the_log_tells_what_was_asked_for() {
    let server = server().await;
    let asked = json!({"max_tokens": 9, "temperature": 0.25, "messages":
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]});
    let mut body = formatted(&asked);
    let sent = post(&server, CHAT)
        .header("x-request-id", "doc-1")
        .header("traceparent", "00-1-2-01")
        .json(&body);
    assert_eq!(sent.send().await.unwrap().status(), 200);
    // What is refused is told too.
    body["temperature"] = json!(9);
    body["max_completion_tokens"] = json!(3);
    body["response_format"] = Value::Null;
    assert_eq!(chat(&server, &body).await.0, 400);
    let garbage = post(&server, CHAT).body("no JSON").send().await.unwrap();
    assert_eq!(garbage.status(), 400);
    let seen = server.requests();
    assert_eq!(seen[0].response_format.as_deref(), Some("json_schema"));
    assert_eq!(
        (seen[0].max_tokens, seen[0].temperature),
        (Some(9), Some(0.25))
    );
    assert_eq!(seen[0].messages, 2);
    assert_eq!(seen[0].roles, ["system", "user"]);
    assert_eq!(seen[0].request_id.as_deref(), Some("doc-1"));
    assert_eq!(seen[0].traceparent.as_deref(), Some("00-1-2-01"));
    assert_eq!(seen[1].response_format, None);
    assert_eq!(
        (seen[1].max_tokens, seen[1].temperature),
        (Some(3), Some(9.0))
    );
    assert_eq!((seen[2].messages, seen[2].max_tokens), (0, None));
}

#[tokio::test]
async fn the_tokenizer_may_be_hidden() {
    let server = server_with(VllmConfig {
        serves_tokenize: false,
        ..quick()
    })
    .await;
    let missing = (404, r#"{"detail":"Not Found"}"#.to_owned());
    for path in ["/tokenize", "/tokenize/", "/detokenize"] {
        let body = json!({"model": MODEL, "prompt": "Hi."});
        let got = post(&server, path).json(&body).send().await.unwrap();
        assert_eq!(answer(got).await, missing, "{path}");
    }
}

/// Over several shapes of conversation: what `/tokenize` counts is what the context is charged.
#[tokio::test]
async fn tokenize_counts_what_the_context_is_charged() {
    let server = server().await;
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let conversations = [
        json!([turn("user", "")]),
        json!([
            turn("system", "Be brief."),
            turn("user", "[INST] </s> 12345")
        ]),
        json!([
            turn("user", "a"),
            turn("assistant", "b c"),
            turn("user", "d")
        ]),
        json!([{"role": "user", "content": [{"type": "text", "text": "ä"}, {"type": "text", "text": "€ 4"}]}]),
    ];
    for messages in conversations {
        let tokenize = post(&server, "/tokenize").json(&json!({ "messages": messages }));
        let (_, counted) = answer(tokenize.send().await.unwrap()).await;
        let (_, answered) = chat(&server, &chat_body("", &json!({ "messages": messages }))).await;
        assert_eq!(
            value(&counted)["count"],
            value(&answered)["usage"]["prompt_tokens"],
            "{messages}"
        );
    }
}

#[tokio::test]
async fn a_header_of_megabytes_comes_and_is_taken() {
    let server = server().await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let large = "x".repeat(6_000_000);
    let many: String = (0..2000).map(|n| format!("x-{n}: y\r\n")).collect();
    let request = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-large: {large}\r\n{many}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");

    let bytes = 5_000_000;
    server.faults().push(Action::HugeHeader { bytes });
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let body = chat_body("Hi.", &json!({})).to_string();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.len() > bytes);
    assert_eq!(value(body)["object"], "chat.completion");
}

/// Longer than the pause after which an idle connection is closed, and more than any bound of a client.
#[tokio::test]
async fn an_endless_body_ends_with_its_client() {
    let server = server().await;
    server.faults().push(Action::EndlessBody);
    let body = chat_body("Hi.", &json!({}));
    let mut response = post(&server, CHAT).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.content_length(), None);
    let mut read = 0;
    while read < 50_000_000 {
        read += response.chunk().await.unwrap().unwrap().len();
    }
    // The server still works for others, and its end does not wait for this one.
    assert_eq!(
        client().get(server.url()).send().await.unwrap().status(),
        404
    );
    tokio::time::timeout(DEADLINE, server.shutdown())
        .await
        .unwrap();
}

/// A reader that pauses for longer than the time after which idle connections close is not idle.
#[tokio::test]
async fn a_slow_reader_is_not_idle() {
    let server = server().await;
    server.faults().push(Action::EndlessBody);
    let body = chat_body("Hi.", &json!({}));
    let mut response = post(&server, CHAT).json(&body).send().await.unwrap();
    response.chunk().await.unwrap().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let mut read = 0;
    // More than what the sockets and the client could hold.
    while read < 50_000_000 {
        read += response.chunk().await.unwrap().unwrap().len();
    }
}

#[tokio::test]
async fn a_body_may_be_deep() {
    let server = server().await;
    server.faults().push(Action::deep_body(100_000));
    let (status, text) = chat(&server, &chat_body("Hi.", &json!({}))).await;
    assert_eq!((status, text.len()), (200, 200_039));
    let error = serde_json::from_str::<Value>(&text).unwrap_err();
    assert!(error.to_string().contains("recursion limit"), "{error}");
    // The depth is what is wrong with it.
    server.faults().push(Action::deep_body(2));
    let (_, text) = chat(&server, &chat_body("Hi.", &json!({}))).await;
    assert_eq!(value(&text)["choices"], json!([[]]));
    // A deep request is refused, not followed.
    let deep = format!(r#"{{"messages":{}"#, "[".repeat(100_000));
    let sent = post(&server, CHAT)
        .header("content-type", "application/json")
        .body(deep);
    assert_eq!(sent.send().await.unwrap().status(), 400);
    assert_eq!(get(&server, "/health").send().await.unwrap().status(), 200);
}
