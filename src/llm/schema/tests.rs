use proptest::prelude::*;
use serde_json::json;

use super::*;

const FINANCIAL: &str = BUILTINS[0].1;

fn schema(text: &str) -> AnswerSchema {
    AnswerSchema::parse(text).unwrap()
}

fn refused(text: &str) -> String {
    AnswerSchema::parse(text).unwrap_err()
}

fn loaded(path: impl AsRef<Path>) -> Result<Option<AnswerSchema>, LlmError> {
    AnswerSchema::load(&LlmConfig {
        schema_file: Some(path.as_ref().to_owned()),
        ..LlmConfig::default()
    })
}

/// An answer as a model may give it for a quarterly report.
fn example() -> Value {
    json!({
        "company": "Northwind Grid plc",
        "document_type": "quarterly_report",
        "period": "Q3 2026",
        "figures": [
            {"name": "revenue", "value": 412.7, "unit": "million GBP", "period": null, "change": "up 8 percent year on year"},
            {"name": "operating margin", "value": 14, "unit": "percent", "period": "first nine months of 2026", "change": null},
        ],
        "sentiment": "mixed",
        "risks": ["Higher copper prices", "A pending review of network tariffs"],
        "summary": "Revenue rose while margins narrowed. Guidance for the year was kept."
    })
}

fn violation(schema: &AnswerSchema, answer: &Value) -> Violation {
    schema.read(&answer.to_string()).unwrap_err()
}

#[test]
fn the_schema_that_ships_takes_a_real_answer_and_refuses_broken_ones() {
    let schema = loaded("builtin:financial").unwrap().unwrap();
    let example = example();
    assert_eq!(schema.read(&example.to_string()).unwrap(), example);
    for (pointer, wrong, place) in [
        ("/sentiment", json!("hopeful"), "`/sentiment`"),
        ("/document_type", json!(null), "`/document_type`"),
        ("/company", json!("x".repeat(121)), "`/company`"),
        ("/summary", json!(""), "`/summary`"),
        ("/figures", json!("none"), "`/figures`"),
        ("/figures/0/value", json!("412.7"), "`/figures/0/value`"),
        ("/figures/1", json!({"name": "x"}), "`/figures/1`"),
        ("/risks", json!(vec!["r"; 7]), "`/risks`"),
        ("/risks/0", json!("r".repeat(161)), "`/risks/0`"),
    ] {
        let mut answer = example.clone();
        *answer.pointer_mut(pointer).unwrap() = wrong;
        let violation = violation(&schema, &answer);
        assert!(violation.problem.contains(place), "{violation:?}");
    }
    for name in ["company", "figures", "summary"] {
        let mut answer = example.clone();
        answer.as_object_mut().unwrap().remove(name);
        let problem = violation(&schema, &answer).problem;
        assert!(
            problem.contains("the whole answer") && problem.contains(name),
            "{problem}"
        );
    }
    let mut answer = example;
    answer["advice"] = json!("buy");
    let problem = violation(&schema, &answer).problem;
    assert!(problem.contains("'advice' was unexpected"), "{problem}");
}

/// Every text and list of the schema that ships has a bound, so that a model that is held to it comes to an end, and it names only
/// what the servers' constraints know and enforce.
#[test]
fn the_schema_that_ships_is_bounded_and_plain() {
    fn walk(schema: &Value, seen: &mut usize) {
        let known = [
            "$schema",
            "additionalProperties",
            "description",
            "enum",
            "items",
            "maxItems",
            "maxLength",
            "minLength",
            "properties",
            "required",
            "title",
            "type",
        ];
        let keywords = schema.as_object().unwrap();
        for keyword in keywords.keys() {
            assert!(known.contains(&keyword.as_str()), "{keyword}");
        }
        *seen += 1;
        let types = schema["type"].to_string();
        if types.contains("string") {
            assert!(
                schema["enum"].is_array() || schema["maxLength"].is_u64(),
                "{schema}"
            );
        }
        if types.contains("array") {
            assert!(schema["maxItems"].is_u64(), "{schema}");
            walk(&schema["items"], seen);
        }
        if types.contains("object") {
            assert_eq!(schema["additionalProperties"], false);
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            assert_eq!(required.len(), properties.len(), "{schema}");
            properties
                .values()
                .for_each(|property| walk(property, seen));
        }
    }
    let mut seen = 0;
    walk(&serde_json::from_str(FINANCIAL).unwrap(), &mut seen);
    assert!(seen > 12, "{seen}");
}

#[test]
fn the_server_is_sent_the_schema_in_the_order_in_which_it_was_written() {
    let schema = schema(
        "\u{feff} {\n \"type\": \"object\", \"properties\": {\"b c\": {\"enum\": [\" \\\" \", \"\\\\\"]}, \"a\": {} } }\n",
    );
    assert_eq!(
        schema.response_format().get(),
        r#"{"type":"json_schema","json_schema":{"name":"answer","schema":{"type":"object","properties":{"b c":{"enum":[" \" ","\\"]},"a":{}}}}}"#
    );
    let sent: Value = serde_json::from_str(schema.response_format().get()).unwrap();
    let written: Value = serde_json::from_str(schema.text()).unwrap();
    assert_eq!(sent["json_schema"]["schema"], written);
}

#[test]
fn the_hash_follows_the_schema_and_not_its_layout() {
    let hash = |text| schema(text).schema_hash().to_owned();
    let one = hash(r#"{"type":"object"}"#);
    // Other tools must come to the same: sha256sum of the compact text.
    assert_eq!(
        one,
        "a2c799262a3ce3c19ef5cdd983bf3d12b43ab3c426227091b909dcb7054738c0"
    );
    assert_eq!(one, hash("{ \"type\" :\n\"object\" }\n"));
    assert_ne!(one, hash(r#"{"type":"object","title":"x"}"#));
}

#[test]
fn no_setting_is_no_schema() {
    assert!(AnswerSchema::load(&LlmConfig::default()).unwrap().is_none());
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_its_setting() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answer.json");
    let message = |path: &Path| crate::types::error_chain(&loaded(path).unwrap_err());
    for (path, expected) in [
        (folder.path().join("none.json"), "cannot be read: "),
        (folder.path().to_owned(), "cannot be read: "),
        ("builtin:legal".into(), "use builtin:financial"),
    ] {
        let message = message(&path);
        let named = format!("llm.schema_file = `{}`", path.display());
        assert!(
            message.starts_with(&named) && message.contains(expected),
            "{message}"
        );
    }
    let large = format!(r#"{{"type":"object","title":"{}"}}"#, "x".repeat(300_000));
    for (content, expected) in [
        (
            "{\"type\": \"object\",\n oops}",
            "is not JSON: key must be a string at line 2 column 2",
        ),
        ("", "is not JSON: EOF"),
        (&large, "is larger than 262144 bytes"),
        (
            r#"{"type": "object", "properties": []}"#,
            "is not a valid schema, at `/properties`",
        ),
    ] {
        std::fs::write(&file, content).unwrap();
        let message = message(&file);
        assert!(
            message.starts_with("llm.schema_file = `") && message.contains("answer.json"),
            "{message}"
        );
        assert!(message.contains(expected), "{message}");
    }
    std::fs::write(&file, FINANCIAL).unwrap();
    assert_eq!(
        loaded(&file).unwrap().unwrap().schema_hash(),
        schema(FINANCIAL).schema_hash()
    );
}

#[test]
fn an_answer_is_an_object() {
    for text in [
        "true",
        "{}",
        r#"{"type": "string"}"#,
        r#"{"type": ["object", "null"]}"#,
        "[]",
    ] {
        let problem = refused(text);
        assert!(problem.contains(r#""type": "object""#), "{text}: {problem}");
    }
}

#[test]
fn nothing_is_fetched() {
    for reference in [
        "https://example.com/figure.json",
        "http://127.0.0.1:1/x#/$defs/a",
        "file:///etc/hostname",
        "figure.json",
    ] {
        let problem = refused(
            &json!({"type": "object", "properties": {"a": {"$ref": reference}}}).to_string(),
        );
        assert!(
            problem.contains("nothing is fetched") && problem.contains("$defs"),
            "{problem}"
        );
    }
    let problem = refused(r##"{"type": "object", "$ref": "#/$defs/none"}"##);
    assert!(problem.contains("leads nowhere"), "{problem}");
    assert!(problem.contains("$defs/none"), "{problem}");
}

#[test]
fn references_within_the_schema_are_followed_however_they_turn() {
    let tree = schema(
        r##"{"type": "object", "properties": {"child": {"$ref": "#"}, "name": {"$ref": "#/$defs/name"}},
            "$defs": {"name": {"type": "string"}}}"##,
    );
    assert!(tree.read(r#"{"child": {"child": {"name": "x"}}}"#).is_ok());
    let problem = tree.read(r#"{"child": {"name": 1}}"#).unwrap_err().problem;
    assert!(problem.contains("`/child/name`"), "{problem}");
    // A reference to itself says nothing.
    let circle = schema(r##"{"type": "object", "allOf": [{"$ref": "#"}]}"##);
    assert!(circle.read("{}").is_ok());
    assert!(circle.read("1").is_err());
}

#[test]
fn a_pattern_costs_little_or_is_refused() {
    let with = |pattern: &str| json!({"type": "object", "properties": {"a": {"pattern": pattern}}});
    for pattern in ["(", "(?=x)x", r"(a)\1", r"((\w{1,90}){1,90}){1,90}"] {
        let problem = refused(&with(pattern).to_string());
        assert!(
            problem.contains("/properties/a") || problem.contains("pattern"),
            "{problem}"
        );
    }
    // Exponential for engines that go back.
    let schema = schema(&with("^(a+)+$").to_string());
    let answer = json!({"a": format!("{}!", "a".repeat(50_000))});
    assert!(schema.read(&answer.to_string()).is_err());
}

#[test]
fn white_space_is_allowed_and_nothing_else_around_the_answer() {
    let schema = schema(r#"{"type": "object"}"#);
    assert_eq!(
        schema.read("\n\t {\"a\"\t:\r\n 1, \"a\": 2 }\n\n").unwrap(),
        json!({"a": 2})
    );
    for text in [
        "",
        " ",
        "{\"a\": 1",
        "{} {}",
        "Here it is: {}",
        "```json\n{}\n```",
        "{'a': 1}",
        "{\"a\": NaN}",
        "{\"a\": 1e999}",
    ] {
        let violation = schema.read(text).unwrap_err();
        assert!(
            violation.problem.starts_with("It is not one JSON value: "),
            "{text}: {violation:?}"
        );
        assert!(violation.label().contains("line "), "{violation:?}");
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let problem = schema.read(&deep).unwrap_err().problem;
    assert!(problem.contains("recursion limit"), "{problem}");
}

#[test]
fn a_violation_tells_some_problems_in_a_bounded_text_and_its_label_none_of_the_answer() {
    let schema = schema(
        r#"{"type": "object", "additionalProperties": {"enum": ["one", "two", "three", "four"]}}"#,
    );
    let secret = "confidential".repeat(100);
    let fields = |count: usize| -> Value {
        let name = |number| format!("{number}{secret}");
        (0..count)
            .map(|number| (name(number), json!(secret)))
            .collect()
    };
    for count in [1, 5, 6, 300] {
        let violation = violation(&schema, &fields(count));
        assert!(violation.problem.chars().count() <= PROBLEM_CHARS_MAX);
        assert!(!violation.problem.contains(&secret), "{violation:?}");
        assert!(!violation.label().contains("confidential"), "{violation:?}");
        assert!(
            violation.label().contains("`/additionalProperties/enum`"),
            "{violation:?}"
        );
    }
    let violation = violation(
        &schema,
        &json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}),
    );
    assert!(
        violation
            .problem
            .contains(r#"`/a`: value is not one of ["one","two","three","four"]"#)
    );
    assert_eq!(violation.problem.lines().count(), PROBLEMS_MAX + 1);
    assert!(violation.problem.ends_with("- and 1 more"), "{violation:?}");
    assert!(violation.label().ends_with("the first of 6 problems"));
}

#[test]
fn a_large_answer_costs_one_problem() {
    let schema =
        schema(r#"{"type": "object", "additionalProperties": {"items": {"type": "null"}}}"#);
    let large = json!({"a": vec![1; PROBLEMS_ANSWER_BYTES_MAX]});
    assert_eq!(violation(&schema, &large).problem.lines().count(), 1);
}

#[test]
fn a_repair_keeps_the_conversation_and_alternates() {
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let violation = schema(FINANCIAL).read("{}").unwrap_err();
    for original in [
        vec![message("user", "The document.")],
        vec![
            message("system", "You read."),
            message("user", "The document."),
        ],
    ] {
        let repair = repair_messages(&original, " {} ", &violation);
        assert_eq!(repair[..original.len()], original[..]);
        let roles: Vec<_> = repair[original.len() - 1..]
            .iter()
            .map(|message| message.role.as_str())
            .collect();
        assert_eq!(roles, ["user", "assistant", "user"]);
        assert_eq!(repair[original.len()].content, "{}");
        let last = &repair[original.len() + 1].content;
        assert!(last.contains(&violation.problem), "{last}");
    }
    let answer_shown = |answer: &str| repair_messages(&[], answer, &violation)[0].content.clone();
    assert_eq!(answer_shown("\n"), "(no answer)");
    let long = answer_shown(&"ä".repeat(REPAIR_ANSWER_CHARS_MAX + 1));
    assert_eq!(long.chars().count(), REPAIR_ANSWER_CHARS_MAX);
    assert!(long.ends_with("ä…"));
}

#[test]
fn texts_are_cut_at_a_character() {
    assert_eq!(cut("äöü", 3), "äöü");
    assert_eq!(cut("äöüß", 3), "äö…");
    assert_eq!(cut("", 3), "");
}

/// JSON of any shape, its names partly those of the schema that ships.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let name = prop_oneof![
            Just("figures".to_owned()),
            Just("risks".to_owned()),
            Just("value".to_owned()),
            any::<String>(),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_in_bounds(text in ".*", json in json_value(), end in any::<prop::sample::Index>()) {
        let schema = schema(FINANCIAL);
        let written = json.to_string();
        let cut_off = written.get(..end.index(written.len())).unwrap_or_default();
        for text in [text.as_str(), &written, cut_off] {
            if let Err(violation) = schema.read(text) {
                prop_assert!(violation.problem.chars().count() <= PROBLEM_CHARS_MAX);
                prop_assert!(violation.label().chars().count() <= LABEL_CHARS_MAX);
            }
        }
    }

    #[test]
    fn what_is_compact_says_the_same(json in json_value()) {
        let pretty = serde_json::to_string_pretty(&json).unwrap();
        prop_assert_eq!(compact(&pretty), json.to_string());
    }
}

/// What xgrammar lets pass where a text has a `maxLength`.
#[test]
fn control_characters_within_texts_are_read_as_they_stand() {
    let schema = schema(
        r#"{"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}}, "required": ["a"]}"#,
    );
    for text in ["x\u{0}y", "\t", "\u{1f}\r\n", "\u{7f}é\u{1}"] {
        let answer = format!("\n{{\t\"a\": \"{text}\"\r\n}}");
        assert_eq!(
            schema.read(&answer).unwrap(),
            json!({"a": text}),
            "{text:?}"
        );
    }
    let escaped = "{\"a\": \"\t\\\"\\\\\"}";
    assert_eq!(schema.read(escaped).unwrap(), json!({"a": "\t\"\\"}));
    // Its other rules hold as before.
    assert!(schema.read("{\"a\": \"\t\t\t\t\t\"}").is_err());
    for broken in [
        "{\"a\": \"\t",
        "{\"a\": \"\\\t\"}",
        "{\"a\u{1}\": }",
        "{\u{1}\"a\": \"\"}",
    ] {
        assert!(schema.read(broken).is_err(), "{broken:?}");
    }
}

proptest! {
    /// No text is read otherwise than it was meant, and what was JSON before is left alone.
    #[test]
    fn what_stands_unescaped_is_what_it_would_be_escaped(text in "[a\\x00-\\x1f]{0,20}") {
        let schema = schema(r#"{"type": "object"}"#);
        let escaped = json!({"a": text});
        prop_assert_eq!(schema.read(&escaped.to_string()).unwrap(), escaped.clone());
        prop_assert_eq!(schema.read(&format!("{{\"a\":\"{text}\"}}")).unwrap(), escaped);
    }
}
