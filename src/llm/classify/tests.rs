use super::*;
use reqwest::header::HeaderValue;

const TARGET: Target<'_> = Target {
    url: "http://vllm:8000",
    model: "m1",
};

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

fn judge(status: u16, body: &str) -> Result<Answer, Failure> {
    reply(
        TARGET,
        status,
        &HeaderMap::new(),
        body.as_bytes(),
        now(),
        |said| said,
    )
}

fn failure(status: u16, body: &str) -> Failure {
    let failure = judge(status, body).unwrap_err();
    assert_eq!(failure.status, Some(status));
    failure
}

fn fault(status: u16, body: &str) -> Fault {
    failure(status, body).fault
}

fn error(message: &str, kind: &str, param: Option<&str>, code: u16) -> String {
    serde_json::json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
        .to_string()
}

const BUSY: Fault = Fault::Capacity { retry_after: None };

#[test]
fn a_prompt_longer_than_the_context_is_too_long() {
    let counted = "This model's maximum context length is 512 tokens. However, your prompt contains at least 513 input tokens, \
                   which exceeds this limit even without any output tokens. (parameter=input_tokens, value=513)";
    let kind = "BadRequestError";
    assert_eq!(
        fault(400, &error(counted, kind, Some("input_tokens"), 400)),
        Fault::TooLong
    );
    let characters = "This model's maximum context length is 512 tokens. However, your prompt contains 16035 characters";
    assert_eq!(
        fault(400, &error(characters, kind, Some("input_text"), 400)),
        Fault::TooLong
    );
    let exact = "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)";
    assert_eq!(
        fault(400, &error(exact, kind, Some("max_tokens"), 400)),
        Fault::TooLong
    );
    assert_eq!(fault(400, &error(exact, kind, None, 400)), Fault::TooLong);
}

#[test]
fn more_max_tokens_than_context_is_the_requests_fault() {
    let message = "max_tokens=513 cannot be greater than max_model_len=512. Please request fewer output tokens.";
    let failure = failure(
        400,
        &error(message, "BadRequestError", Some("max_tokens"), 400),
    );
    assert_eq!(failure.fault, Fault::Request);
    assert!(
        failure.detail.contains("parameter max_tokens"),
        "{}",
        failure.detail
    );
    assert!(
        failure.detail.contains("max_model_len=512"),
        "{}",
        failure.detail
    );
}

#[test]
fn a_validation_error_is_the_requests_fault_and_its_echo_is_cut() {
    let message = "1 validation error(s):\n  {'type': 'less_than_equal', 'loc': 'body.temperature', 'msg': 'too large', 'input': \
                   'ACME CONFIDENTIAL'}";
    let failure = failure(400, &error(message, "Bad Request", None, 400));
    assert_eq!(failure.fault, Fault::Request);
    assert!(
        failure.detail.contains("body.temperature"),
        "{}",
        failure.detail
    );
    assert!(
        !failure.detail.contains("CONFIDENTIAL"),
        "{}",
        failure.detail
    );
}

/// A key that lies across the cut would keep its beginning.
#[test]
fn what_must_not_be_repeated_goes_before_the_sentence_is_cut() {
    const KEY: &str = "hush-key-of-some-length";
    let before = "x".repeat(QUOTED_CHARS_MAX - 8);
    let message = format!("{before}{KEY} by you");
    // What is before the sentence in a body without JSON counts as well.
    let blank = " ".repeat(505);
    for (status, body) in [
        (500, error(&message, "InternalServerError", None, 500)),
        (400, error(&message, "BadRequestError", None, 400)),
        (402, message.clone()),
        (500, format!("{blank}{KEY} by you")),
    ] {
        let redact = |said: String| said.replace(KEY, "***");
        let headers = HeaderMap::new();
        let judged = reply(TARGET, status, &headers, body.as_bytes(), now(), redact);
        let detail = judged.unwrap_err().detail;
        assert!(!detail.contains("hu") && detail.contains("***"), "{detail}");
    }
}

#[test]
fn what_a_sentence_quotes_is_cut() {
    for message in [
        "cannot use 'ACME CONFIDENTIAL' here",
        "cannot use \"ACME CONFIDENTIAL\" here",
        "cannot use `ACME CONFIDENTIAL` here",
        "cannot use 'ACME CONFIDENTIAL",
        "cannot use this\nACME CONFIDENTIAL",
    ] {
        let detail = failure(400, &error(message, "BadRequestError", None, 400)).detail;
        assert!(!detail.contains("CONFIDENTIAL"), "{detail}");
        assert!(detail.contains("cannot use"), "{detail}");
    }
    let long = failure(
        500,
        &error(&"x".repeat(5_000), "InternalServerError", None, 500),
    );
    assert!(long.detail.len() < 300);
}

#[test]
fn other_bad_requests_are_the_requests_fault() {
    for body in [
        r#"{"detail":"There was an error parsing the body"}"#.to_owned(),
        error(
            "TextEncodeInput must be Union[TextInputSequence]",
            "BadRequestError",
            None,
            400,
        ),
        error(
            "Grammar error: unknown",
            "BadRequestError",
            Some("response_format"),
            400,
        ),
        "Invalid HTTP request received.".to_owned(),
        String::new(),
    ] {
        assert_eq!(fault(400, &body), Fault::Request, "{body}");
    }
    assert_eq!(fault(422, "{}"), Fault::Request);
    assert_eq!(fault(409, "{}"), Fault::Request);
    assert_eq!(
        fault(501, &error("no", "NotImplementedError", None, 501)),
        Fault::Request
    );
}

#[test]
fn a_body_that_a_gateway_finds_too_large_is_the_documents_fault() {
    assert_eq!(
        fault(413, "<html>"),
        Fault::Document(DeadLetterReason::RequestRejected)
    );
}

#[test]
fn a_refused_key_names_the_setting() {
    for status in [401, 403] {
        let failure = failure(status, r#"{"error":"Unauthorized"}"#);
        assert_eq!(failure.fault, Fault::Endpoint);
        assert!(failure.detail.contains("llm.api_key"), "{}", failure.detail);
    }
}

#[test]
fn an_unknown_model_and_a_wrong_path_are_told_apart() {
    let model = failure(
        404,
        &error(
            "The model `nope` does not exist. Valid aliases: m1.",
            "NotFoundError",
            Some("model"),
            404,
        ),
    );
    assert_eq!(model.fault, Fault::Endpoint);
    assert!(model.detail.contains("MODEL_NAME"), "{}", model.detail);
    for (status, body) in [
        (404, r#"{"detail":"Not Found"}"#),
        (405, r#"{"detail":"Method Not Allowed"}"#),
        (404, "<html>"),
    ] {
        let path = failure(status, body);
        assert_eq!(path.fault, Fault::Endpoint);
        assert!(path.detail.contains("LLM_URL"), "{}", path.detail);
    }
}

#[test]
fn a_redirect_is_the_endpoints_fault() {
    let failure = failure(308, "");
    assert_eq!(failure.fault, Fault::Endpoint);
    assert!(failure.detail.contains("LLM_URL"));
}

#[test]
fn too_much_to_do_is_capacity() {
    let busy = error(
        "The engine is currently busy and cannot accept new requests.",
        "Service Unavailable",
        None,
        503,
    );
    assert_eq!(fault(503, &busy), BUSY);
    let scaling = r#"{"error":"The model is currently scaling. Please try again later."}"#;
    assert_eq!(fault(503, scaling), BUSY);
    assert_eq!(fault(429, ""), BUSY);
    assert_eq!(fault(529, ""), BUSY);
}

#[test]
fn retry_after_is_read_as_seconds_or_as_a_date() {
    for (text, expected) in [
        ("7", Some(7)),
        ("Mon, 23 Nov 2026 12:00:30 GMT", Some(30)),
        ("Mon, 23 Nov 2026 11:00:00 GMT", None),
        ("soon", None),
        ("-1", None),
        ("18446744073709551615", Some(u64::MAX)),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
        let failure = reply(TARGET, 429, &headers, b"", now(), |said| said).unwrap_err();
        assert_eq!(
            failure.fault,
            Fault::Capacity {
                retry_after: expected.map(Duration::from_secs)
            },
            "{text}"
        );
    }
}

#[test]
fn failures_of_the_server_are_transient() {
    let died = error(
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "InternalServerError",
        None,
        500,
    );
    assert_eq!(fault(500, &died), Fault::Transient);
    let draining = error(
        "cannot schedule new futures after shutdown",
        "InternalServerError",
        None,
        500,
    );
    assert_eq!(fault(500, &draining), Fault::Transient);
    assert_eq!(
        fault(500, &error("", "InternalServerError", None, 500)),
        Fault::Transient
    );
    for status in [408, 425, 500, 502, 504, 520, 599] {
        assert_eq!(fault(status, "<html>"), Fault::Transient, "{status}");
    }
}

fn chat(finish_reason: &str, content: &str) -> String {
    format!(
        r#"{{"choices":[{{"message":{{"content":{content}}},"finish_reason":{finish_reason}}}]}}"#
    )
}

#[test]
fn an_aborted_answer_is_never_a_result() {
    assert_eq!(
        fault(200, &chat(r#""abort""#, r#""partial text""#)),
        Fault::Aborted
    );
    assert_eq!(fault(200, &chat(r#""abort""#, "null")), Fault::Aborted);
    assert_eq!(fault(200, &chat(r#""error""#, r#""x""#)), Fault::Aborted);
}

#[test]
fn answers_with_text_are_answers() {
    for (finish_reason, content) in [
        (r#""stop""#, r#""text""#),
        (r#""length""#, r#""cut te""#),
        (r#""length""#, r#""""#),
        (r#""stop""#, r#""""#),
        (r#""repetition""#, r#""a a a""#),
    ] {
        judge(200, &chat(finish_reason, content)).unwrap();
    }
}

#[test]
fn an_answer_without_text_is_empty_and_says_why() {
    assert_eq!(fault(200, &chat(r#""tool_calls""#, "null")), Fault::Empty);
    assert_eq!(fault(200, &chat(r#""stop""#, "null")), Fault::Empty);
    let reasoning = failure(200, &chat(r#""length""#, "null"));
    assert_eq!(reasoning.fault, Fault::Empty);
    assert!(
        reasoning.detail.contains("llm.max_tokens"),
        "{}",
        reasoning.detail
    );
}

#[test]
fn what_is_no_answer_is_unreadable() {
    for body in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"choices":[]}"#,
        "null",
        "\u{0}",
    ] {
        assert_eq!(fault(200, body), Fault::Unreadable, "{body}");
    }
    assert_eq!(fault(200, &chat("null", r#""text""#)), Fault::Unreadable);
    assert_eq!(fault(204, ""), Fault::Unreadable);
}

/// Total: no status and no body panics, and no sentence is empty.
#[test]
fn every_status_has_a_fault() {
    for status in 100..=999 {
        if status == 200 {
            continue;
        }
        for body in ["", "{}", "null", "{\"error\":{}}", "<html>", "\u{fffd}"] {
            let failure = failure(status, body);
            assert!(!failure.detail.is_empty());
            assert_ne!(failure.fault, Fault::TooLong);
        }
    }
}

#[test]
fn transport_errors_are_told_apart() {
    let connect = |fault| TransportError::Connect {
        fault,
        detail: "the system's word".to_owned(),
    };
    for fault in [
        ConnectFault::Refused,
        ConnectFault::Dns,
        ConnectFault::Tls,
        ConnectFault::TimedOut,
        ConnectFault::Other,
    ] {
        let failure = transport(TARGET, &connect(fault));
        assert_eq!(failure.fault, Fault::Endpoint);
        assert!(failure.detail.contains("LLM_URL"), "{}", failure.detail);
    }
    for (error, expected) in [
        (TransportError::Disconnected, Fault::Disconnected),
        (TransportError::Broken, Fault::Transient),
        (TransportError::TimedOut, Fault::TimedOut),
        (TransportError::TooLarge(1024), Fault::Unreadable),
    ] {
        assert_eq!(transport(TARGET, &error).fault, expected);
    }
}

proptest::proptest! {
    /// Total: whatever the server says, there is a judgement, and its sentence holds nothing that was quoted.
    #[test]
    fn any_answer_is_judged(status in 0_u16..1000, body in ".{0,300}", param in "[a-z_]{0,20}", kind in "[A-Za-z ]{0,20}") {
        drop(judge(status, &body));
        let shaped = serde_json::json!({"error": {"message": format!("'{body}'"), "type": kind, "param": param}});
        drop(judge(status, &shaped.to_string()));
        drop(judge(200, &serde_json::json!({"choices": [{"message": body, "finish_reason": kind}], "usage": param}).to_string()));
    }

    /// Text between quotes never comes through, wherever in the sentence it stands.
    #[test]
    fn no_quoted_text_comes_through(before in "[a-z =]{0,40}", secret in "[A-Z]{8,40}", after in "[a-z ]{0,40}") {
        for quote in ['\'', '"', '`'] {
            let message = format!("{before} {quote}{secret}{quote}{after}");
            let detail = failure(400, &error(&message, "BadRequestError", None, 400)).detail;
            proptest::prop_assert!(!detail.contains(&secret), "{}", detail);
        }
    }
}
