use super::*;

fn listen(address: &str) -> Listen {
    address.parse().unwrap()
}

#[test]
fn the_address_is_that_of_the_settings_unless_one_is_given() {
    let none = StatusArgs::default();
    let given = StatusArgs {
        admin: Some("http://node-1:9105/".to_owned()),
        ..StatusArgs::default()
    };
    let asked = |args, at| address(args, listen(at)).unwrap();
    assert_eq!(asked(&none, "127.0.0.1:9100"), "127.0.0.1:9100");
    assert_eq!(asked(&none, "0.0.0.0:9100"), "127.0.0.1:9100");
    assert_eq!(asked(&none, "[::]:9100"), "[::1]:9100");
    assert_eq!(asked(&given, "off"), "node-1:9105");
    for unknown in ["off", "127.0.0.1:0"] {
        let error = address(&none, listen(unknown)).unwrap_err().to_string();
        assert!(error.contains("--admin HOST:PORT"), "{error}");
    }
}

fn page() -> serde_json::Value {
    serde_json::json!({
        "alive": true, "ready": true, "waiting_for": [], "version": "0.1.0", "state": "running",
        "uptime_seconds": 754, "info": {"instance": "node-1-3f", "group_id": "test"},
        "limiting": {
            "factor": "order",
            "detail": "7 answered documents wait for an earlier one",
            "blocker": {"topic": "docs", "partition": 0, "offset": 17},
            "since": "2026-01-01T00:00:00Z",
            "last_minute_percent": {"model_server": 10, "order": 90},
            "last_minute_documents": 33
        },
        "holds": [], "stalled": [],
        "model": {"waiting_for_slot": 4, "endpoints": [
            {"url": "http://a:8000", "breaker": "closed", "limit": 8, "in_flight": 1, "queued_there": 2}
        ]},
        "read_ahead": {"records": 8, "records_max": 1024, "bytes": 9000, "bytes_max": 16777216},
        "partitions": [{
            "topic": "docs", "partition": 0, "commit_offset": 17, "high_watermark": 30, "next_fetch_offset": 25,
            "open": 8, "in_flight": 1, "waiting_for_turn": 7, "unacknowledged": 0, "oldest_open_ms": 12_340,
            "head": {"offset": 17, "stage": "with_model"}
        }],
        "drift": {"state": "shifted", "generation": "m", "reference_documents": 4000, "window_documents": 100, "signals": [
            {"name": "refusal", "statistic": "psi", "value": 0.5, "threshold": 0.02, "state": "shifted"},
            {"name": "outcome", "statistic": "psi", "value": null, "threshold": 0.02, "state": "ok"}
        ], "alarms": []},
        "totals": {"processed": 17, "dead_lettered": {"invalid_json": 2}},
        "what a newer one tells": 1
    })
}

fn shown(page: serde_json::Value) -> (bool, String) {
    let page: Page = serde_json::from_value(page).unwrap();
    let mut out = Vec::new();
    show::write(&page, &Terminal::plain(), &mut out).unwrap();
    (page.works(), String::from_utf8(out).unwrap())
}

#[test]
fn the_page_tells_what_limits_and_the_numbers() {
    let (works, text) = shown(page());
    assert!(works);
    assert_eq!(
        text,
        "\
state         running for 12m 34s, version 0.1.0, instance node-1-3f, group test
limited by    order
              7 answered documents wait for an earlier one
last minute   33 documents; order 90 %, model_server 10 %
documents     17 results, 2 dead letters
model server  http://a:8000: 1 of 8 calls, 2 wait there
waiting       4 for a slot, 0 for a budget, 0 for their next attempt
read ahead    8 of 1024 records, 9000 of 16777216 bytes
drift         shifted: refusal (psi 0.500, threshold 0.020)

partition       lag unfinished in flight for turn    oldest  which
docs/0           13         13         1        7    12.3 s  17 with_model
"
    );
}

#[test]
fn a_processor_that_is_held_stalled_or_not_begun_does_not_work() {
    for (key, value) in [
        ("state", serde_json::json!("holding")),
        ("state", serde_json::json!("draining")),
        ("alive", serde_json::json!(false)),
        ("ready", serde_json::json!(false)),
        (
            "stalled",
            serde_json::json!([{"topic": "docs", "partition": 0, "offset": 17}]),
        ),
    ] {
        let mut page = page();
        page[key] = value;
        let (works, text) = shown(page);
        assert!(!works, "{key}: {text}");
    }
}

#[test]
fn of_many_partitions_those_with_most_to_do_are_shown() {
    let mut page = page();
    let partitions = (0..100).map(
        |partition| serde_json::json!({"topic": "docs", "partition": partition, "open": partition}),
    );
    page["partitions"] = partitions.collect();
    let (_, text) = shown(page);
    assert!(
        text.contains("docs/99 ") && text.contains("docs/80 "),
        "{text}"
    );
    assert!(!text.contains("docs/79 "), "{text}");
    assert!(text.ends_with("and 80 more with less to do\n"), "{text}");
}

#[test]
fn what_it_refuses_is_told_with_its_reason() {
    let refused = unexpected(
        "node-1:9100",
        STATUS,
        403,
        b"the host node-1 is not in admin.allowed_hosts\n\x1b[2J",
    )
    .to_string();
    assert_eq!(
        refused,
        "node-1:9100 refuses to answer: the host node-1 is not in admin.allowed_hosts"
    );
    let foreign = unexpected("node-1:9100", STATUS, 404, b"").to_string();
    assert!(foreign.contains("/status answers 404"), "{foreign}");
}
