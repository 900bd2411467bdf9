use std::io::Write as _;

use super::*;
use crate::llm::{LongPolicy, Prompt, TruncateKeep};

fn load(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Settings, ConfigError> {
    let mut toml = tempfile::NamedTempFile::new().unwrap();
    toml.write_all(file.as_bytes()).unwrap();
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let overrides: Vec<_> = flags
        .iter()
        .map(|(key, value)| Override {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
            flag: "--set".to_owned(),
        })
        .collect();
    Settings::load(Some(toml.path()), environment, &overrides)
}

fn problem(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> String {
    let error = load(file, environment, flags).unwrap_err();
    assert_eq!(error.problems().len(), 1, "{error}");
    error.problems()[0].clone()
}

#[test]
fn the_promised_variables_have_the_promised_defaults() {
    let settings = Settings::load(None, [], &[]).unwrap();
    assert_eq!(settings.kafka.brokers, "localhost:9092");
    assert_eq!(settings.input.topics[0].name, "financial-documents");
    assert_eq!(settings.output.topic, "llm-results");
    assert_eq!(settings.llm.url, "http://localhost:8000");
    assert_eq!(settings.llm.model, "mistralai/Mistral-7B-Instruct-v0.2");
    assert_eq!(settings.llm.timeout.as_secs(), 30);
    assert_eq!(settings.kafka.commit_topic(), "kafka-llm-processor-commits");
}

#[test]
fn each_layer_overrides_the_one_below() {
    let file = "[llm]\nmodel = \"file\"\nconcurrency = 2\nattempts = 7\n";
    let environment = [("MODEL_NAME", "environment"), ("KLP_LLM__CONCURRENCY", "3")];
    let settings = load(file, &environment, &[("llm.concurrency", "4")]).unwrap();
    assert_eq!(settings.llm.attempts, 7);
    assert_eq!(settings.llm.model, "environment");
    assert_eq!(settings.llm.concurrency, crate::llm::Concurrency::Fixed(4));
}

#[test]
fn promised_variables_are_read() {
    let settings = load(
        "",
        &[
            ("KAFKA_BROKERS", "a:1,b:2"),
            ("INPUT_TOPIC", "one, two"),
            ("OUTPUT_TOPIC", "out"),
            ("LLM_URL", "http://gpu:8000"),
            ("LLM_TIMEOUT", "1.5"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(settings.kafka.bootstrap(), ["a:1", "b:2"]);
    assert_eq!(settings.input.topics.len(), 2);
    assert_eq!(settings.input.topics[1].name, "two");
    assert_eq!(settings.llm.timeout.as_millis(), 1_500);
    assert_eq!(
        load("", &[("LLM_TIMEOUT", "2m")], &[])
            .unwrap()
            .llm
            .timeout
            .as_secs(),
        120
    );
}

#[test]
fn text_that_looks_like_a_number_stays_text() {
    let settings = load(
        "",
        &[
            ("MODEL_NAME", "007"),
            ("KLP_KAFKA__SASL_PASSWORD", "0123"),
            ("KLP_LLM__SEED", "9"),
        ],
        &[("kafka.group_id", "1e3")],
    )
    .unwrap();
    assert_eq!(settings.llm.model, "007");
    assert_eq!(settings.kafka.sasl_password.unwrap().expose(), "0123");
    assert_eq!(settings.llm.seed, Some(9));
    assert_eq!(settings.kafka.group_id, "1e3");
}

/// A new optional key has to say whether it is text.
#[test]
fn every_key_without_a_default_has_a_known_type() {
    let numbers = [
        "llm.price_per_million_completion_tokens",
        "llm.price_per_million_prompt_tokens",
        "llm.requests_per_minute",
        "llm.seed",
        "llm.tokens_per_day",
        "llm.tokens_per_minute",
        "llm.top_p",
        "processing.commit_interval_ms",
        "long_documents.map_tokens",
        "long_documents.context_tokens",
    ];
    let defaults = layers::defaults();
    for key in layers::leaves(&defaults, "") {
        let value = key.split('.').fold(&defaults, |value, part| &value[part]);
        if value.is_null() {
            assert!(
                layers::OPTIONAL_TEXT.contains(&key.as_str()) || numbers.contains(&key.as_str()),
                "{key} has no default: add it to OPTIONAL_TEXT or to this test's numbers"
            );
        }
    }
}

#[test]
fn an_unknown_key_is_an_error_with_a_suggestion_in_every_layer() {
    let message = problem("[pipelin]\norder = \"key\"\n", &[], &[]);
    assert!(
        message.contains("pipelin") && message.contains("unknown key in file"),
        "{message}"
    );
    let message = problem("[pipeline]\nordr = \"key\"\n", &[], &[]);
    assert!(
        message.contains("did you mean `pipeline.order`?"),
        "{message}"
    );
    let message = problem("", &[("KLP_PIPELINE__ORDR", "key")], &[]);
    assert!(
        message.contains("KLP_PIPELINE__ORDR") && message.contains("`pipeline.order`"),
        "{message}"
    );
    let message = problem("", &[], &[("llm.concurency", "8")]);
    assert!(
        message.contains("--set") && message.contains("`llm.concurrency`"),
        "{message}"
    );
}

#[test]
fn a_bad_value_names_key_value_and_layer() {
    let message = problem("[pipeline]\norder = \"sideways\"\n", &[], &[]);
    assert!(
        message.contains("pipeline.order")
            && message.contains("sideways")
            && message.contains("file"),
        "{message}"
    );
    let message = problem("", &[("KLP_LLM__CONCURRENCY", "many")], &[]);
    assert!(
        message.contains("llm.concurrency")
            && message.contains("many")
            && message.contains("environment"),
        "{message}"
    );
    let message = problem("", &[("LLM_TIMEOUT", "soon")], &[]);
    assert!(
        message.contains("llm.timeout") && message.contains("soon"),
        "{message}"
    );
    let message = problem("", &[("LLM_TIMEOUT", "-5")], &[]);
    assert!(message.contains("`-5` is negative"), "{message}");
    let message = problem("", &[], &[("pipeline", "3")]);
    assert!(message.contains("pipeline: is a section"), "{message}");
    let message = problem("", &[], &[("llm.concurrency", "0")]);
    assert!(
        message.contains("llm.concurrency = 0") && message.contains("command line"),
        "{message}"
    );
    let message = problem("", &[("KAFKA_BROKERS", "localhost")], &[]);
    assert!(
        message.contains("KAFKA_BROKERS") && message.contains("host:port"),
        "{message}"
    );
}

#[test]
fn one_topic_for_two_purposes_is_refused() {
    let message = problem("", &[("OUTPUT_TOPIC", "financial-documents")], &[]);
    assert!(
        message.contains("output.topic") && message.contains("INPUT_TOPIC"),
        "{message}"
    );
}

#[test]
fn a_broken_file_is_named_with_its_line() {
    let message = problem("[llm\n", &[], &[]);
    assert!(
        message.contains("file ") && message.contains("line 1"),
        "{message}"
    );
    let missing = Settings::load(Some(Path::new("no/such.toml")), [], &[]).unwrap_err();
    assert!(missing.to_string().contains("no/such.toml"), "{missing}");
}

#[test]
fn a_driver_that_cannot_keep_the_guarantee_is_refused() {
    let eos = ("processing.guarantee", "exactly_once");
    let problem = problem("", &[], &[eos, ("kafka.driver", "rskafka")]);
    assert!(problem.contains("kafka.driver = rskafka") && problem.contains("exactly_once"));
    let auto = load("", &[], &[eos]).unwrap();
    assert_eq!(auto.driver().unwrap().driver, crate::kafka::Driver::Wire);
}

#[test]
fn static_assignment_needs_its_partitions() {
    let fixed = ("input.assignment", "static");
    assert!(problem("", &[], &[fixed]).contains("input.static_partitions"));
    let settings = load("", &[], &[fixed, ("input.static_partitions", "0,2")]).unwrap();
    let share = settings.static_share().unwrap().unwrap();
    assert!(share.contains(2) && !share.contains(1));
}

#[test]
fn the_generation_follows_what_decides_an_answer() {
    let base = load("", &[], &[]).unwrap();
    let same = load("", &[("KLP_KAFKA__GROUP_ID", "other")], &[]).unwrap();
    let other = load("", &[("MODEL_NAME", "other")], &[]).unwrap();
    assert_eq!(base.generation(), same.generation());
    assert_ne!(base.generation(), other.generation());
    assert_eq!(base.generation().len(), 16);
}

#[test]
fn long_documents_are_set_like_the_rest_and_checked() {
    let file = "[long_documents]\npolicy = \"truncate\"\ntruncate_keep = \"ends\"\n";
    let settings = load(file, &[("KLP_LONG_DOCUMENTS__CONTEXT_TOKENS", "4096")], &[]).unwrap();
    assert_eq!(settings.long_documents.policy, LongPolicy::Truncate);
    assert_eq!(settings.long_documents.truncate_keep, TruncateKeep::Ends);
    assert_eq!(settings.long_documents.context_tokens, Some(4_096));
    assert_ne!(
        settings.generation(),
        load("", &[], &[]).unwrap().generation()
    );
    let message = problem("", &[], &[("long_documents.calls_max", "0")]);
    assert!(
        message.starts_with("long_documents.calls_max = 0:")
            && message.ends_with("(from the command line)"),
        "{message}"
    );
}

#[test]
fn input_topics_have_weights_and_prompts_of_their_own() {
    let file = r#"
        [prompt]
        system = "Be brief."
        [[input.topics]]
        name = "filings"
        weight = 3
        prompt = { user = "Filing: {{ content }}" }
        [[input.topics]]
        name = "news"
        [input.topics.prompt]
        map = "Notes: {{ content }}"
    "#;
    let topics = load(file, &[], &[]).unwrap().input.topics;
    assert_eq!(topics[0].weight.value().get(), 3);
    assert_eq!(
        topics[0].prompt.user.as_deref(),
        Some("Filing: {{ content }}")
    );
    assert_eq!(topics[1].weight.value().get(), 1);
    assert_eq!(
        topics[1].prompt.map.as_deref(),
        Some("Notes: {{ content }}")
    );
    let short = load(file, &[("INPUT_TOPIC", "docs")], &[]).unwrap();
    assert_eq!(
        short.input.topics,
        [crate::pipeline::InputTopic::named("docs")]
    );
}

#[test]
fn a_bad_key_of_an_input_topic_is_named() {
    let topic = |line: &str| format!("[[input.topics]]\nname = \"news\"\n{line}\n");
    for bad in ["0", "-1", "1001"] {
        let found = problem(&topic(&format!("weight = {bad}")), &[], &[]);
        assert!(
            found.starts_with("input.topics.0.weight: ")
                && found.contains(&format!("{bad}: must be a whole number from 1 to 1000")),
            "{found}"
        );
    }
    for bad in ["1.5", "\"much\""] {
        let found = problem(&topic(&format!("weight = {bad}")), &[], &[]);
        assert!(
            found.starts_with("input.topics.0.weight: ") && found.contains("is not a whole number"),
            "{found}"
        );
    }
    let found = problem(&topic("wieght = 2"), &[], &[]);
    assert!(
        found.contains("wieght") && found.contains("`weight`"),
        "{found}"
    );
    let found = problem(
        &topic("prompt = { user = \"a\", user_file = \"b\" }"),
        &[],
        &[],
    );
    assert!(
        found.starts_with("input.topics `news`: prompt.user and prompt.user_file"),
        "{found}"
    );
}

/// The general one must not be empty, and a topic's own says so that it has none.
#[test]
fn a_topic_can_do_without_a_system_message() {
    let general = "[prompt]\nsystem = \"Be brief.\"\n";
    let topic = |system: &str| {
        let own = format!("prompt = {{ system = \"{system}\" }}");
        format!("{general}[[input.topics]]\nname = \"news\"\n{own}\n")
    };
    let settings = load(&topic(""), &[], &[]).unwrap();
    let own = &settings.input.topics[0].prompt;
    let prompt = Prompt::for_topic("news", own, &settings.prompt, None).unwrap();
    assert!(!prompt.has_system());
    let found = problem(&topic(" "), &[], &[]);
    assert!(
        found.starts_with("input.topics `news`: prompt.system"),
        "{found}"
    );
    let found = problem("[prompt]\nsystem = \"\"\n", &[], &[]);
    assert!(found.starts_with("prompt.system"), "{found}");
}

/// What stands in results changes with a topic's prompt, and not with its weight.
#[test]
fn a_topics_prompt_makes_another_generation() {
    let generation = |line: &str| {
        let file = format!("[[input.topics]]\nname = \"news\"\n{line}\n");
        load(&file, &[], &[]).unwrap().generation()
    };
    assert_eq!(generation("weight = 9"), generation(""));
    assert_eq!(generation(""), Settings::default().generation());
    assert_ne!(
        generation("prompt = { user = \"{{ content }}\" }"),
        generation("")
    );
}

#[test]
fn settings_that_were_put_together_in_code_are_checked_too() {
    let mut settings = Settings::default();
    assert!(settings.check().is_ok());
    settings.output.topic = "no such name".to_owned();
    let problem = settings.check().unwrap_err().to_string();
    assert!(problem.contains("output.topic"), "{problem}");
    let refused = crate::app::App::build(settings).unwrap_err();
    assert!(refused.to_string().contains("output.topic"), "{refused}");
}

#[test]
fn open_telemetrys_variables_are_honoured_and_yield_to_ours() {
    let load = |variables: &[(&str, &str)]| {
        let environment = variables.iter();
        let environment =
            environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::load(None, environment.collect::<Vec<_>>(), &[]).unwrap()
    };
    let settings = load(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=2"),
        ("OTEL_SERVICE_NAME", "filings"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=prod",
        ),
        ("OTEL_BSP_SCHEDULE_DELAY", "5000"),
    ]);
    let telemetry = &settings.telemetry;
    let endpoint = telemetry.endpoint();
    assert_eq!(endpoint.as_deref(), Some("http://c:4318/v1/traces"));
    assert_eq!(telemetry.otlp_headers.as_ref().unwrap().expose(), "a=2");
    assert_eq!(telemetry.service_name, "filings");
    let attributes = "deployment.environment.name=prod";
    assert_eq!(telemetry.resource_attributes, attributes);
    let settings = load(&[
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t/x"),
        ("OTEL_SERVICE_NAME", "theirs"),
        ("KLP_TELEMETRY__SERVICE_NAME", "ours"),
    ]);
    assert_eq!(settings.telemetry.endpoint().as_deref(), Some("http://t/x"));
    assert_eq!(settings.telemetry.service_name, "ours");
    let settings = load(&[
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://theirs:4318/x"),
        ("KLP_TELEMETRY__OTLP_ENDPOINT", "http://ours:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
        ("KLP_TELEMETRY__OTLP_HEADERS_FILE", "headers"),
    ]);
    let endpoint = settings.telemetry.endpoint();
    assert_eq!(endpoint.as_deref(), Some("http://ours:4318/v1/traces"));
    assert_eq!(settings.telemetry.otlp_headers, None);
}

/// They are another protocol's, and another program may need them.
#[test]
fn addresses_of_collectors_that_are_not_http_are_passed_over_and_remembered() {
    const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const EXACT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let ours = "KLP_TELEMETRY__OTLP_ENDPOINT";
    for (variables, endpoint, passed_over) in [
        (&[(BASE, "collector:4317")][..], None, &[BASE][..]),
        (
            &[(BASE, "grpc://c:4317"), (EXACT, "c")],
            None,
            &[BASE, EXACT],
        ),
        (
            &[(BASE, "http://c:4318"), (EXACT, "c:4317")],
            Some("http://c:4318/v1/traces"),
            &[EXACT],
        ),
        // Nobody asks these.
        (
            &[(BASE, "c:4317"), (EXACT, "http://t/x")],
            Some("http://t/x"),
            &[],
        ),
        (
            &[(BASE, "c:4317"), (ours, "http://o")],
            Some("http://o/v1/traces"),
            &[],
        ),
        (&[(BASE, " ")], None, &[]),
    ] {
        let environment = variables.iter();
        let environment =
            environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings = Settings::load(None, environment.collect::<Vec<_>>(), &[]).unwrap();
        assert_eq!(settings.telemetry.endpoint().as_deref(), endpoint);
        assert_eq!(settings.passed_over, passed_over, "{variables:?}");
    }
}

/// Everybody on a machine can read the command lines of its processes.
#[test]
fn secrets_are_not_taken_from_the_command_line() {
    for (key, variable) in [
        ("kafka.sasl_password", "KLP_KAFKA__SASL_PASSWORD"),
        ("llm.api_key", "KLP_LLM__API_KEY"),
        ("telemetry.otlp_headers", "KLP_TELEMETRY__OTLP_HEADERS"),
        (
            "kafka.sasl_oauthbearer_client_credentials_client_secret",
            "KLP_KAFKA__SASL_OAUTHBEARER_CLIENT_CREDENTIALS_CLIENT_SECRET",
        ),
    ] {
        let told = problem("", &[], &[(key, "hush")]);
        assert!(told.starts_with(key) && told.contains("--set"), "{told}");
        assert!(told.contains(variable), "{told}");
        assert!(told.contains(&format!("{key}_file")), "{told}");
        assert!(!told.contains("hush"), "{told}");
    }
}

/// A section could hold one.
#[test]
fn no_section_is_taken_from_the_command_line() {
    let told = problem("", &[], &[("kafka", "{sasl_password=\"hush\"}")]);
    assert!(told.starts_with("kafka: is a section"), "{told}");
    assert!(!told.contains("hush"), "{told}");
}

/// A mistake beside a secret shows where it is, and not what stands there.
#[test]
fn no_message_about_a_file_shows_a_secret() {
    for file in [
        "[kafka]\nsasl_password = 48151623\n",
        "[kafka]\nsasl_password = \"48151623\n",
        "[kafka]\nsasl_password = [\"48151623\"]\n",
        "[llm]\napi_key = 48151623x\n",
    ] {
        let told = load(file, &[], &[]).unwrap_err().to_string();
        assert!(!told.contains("48151623"), "{told}");
        let placed = ["line 2", "kafka.sasl_password"];
        assert!(placed.iter().any(|place| told.contains(place)), "{told}");
    }
}

#[test]
fn what_security_needs_of_each_other_is_told_with_the_key() {
    let set = |file: &str| problem(&format!("[kafka]\n{file}"), &[], &[]);
    for (file, key, says) in [
        (
            "security_protocol = \"SASL_SSL\"",
            "kafka.security_protocol",
            "kafka.sasl_password_file",
        ),
        (
            "ssl_truststore_location = \"ca.pem\"",
            "kafka.ssl_truststore_location",
            "uses no TLS",
        ),
        (
            "security_protocol = \"SSL\"\nssl_key_location = \"key.pem\"",
            "kafka.ssl_key_location",
            "kafka.ssl_keystore_location",
        ),
        (
            "security_protocol = \"SSL\"\ndriver = \"rskafka\"",
            "kafka.driver",
            "kafka.security_protocol = SSL",
        ),
        (
            "security_protocol = \"SASL_SSL\"\nsasl_mechanism = \"OAUTHBEARER\"",
            "kafka.sasl_mechanism",
            "kafka.sasl_oauthbearer_token_file",
        ),
        (
            "security_protocol = \"SASL_SSL\"\nsasl_mechanism = \"OAUTHBEARER\"\nsasl_oauthbearer_token_endpoint_url = \"https://idp/token\"",
            "kafka.sasl_oauthbearer_token_endpoint_url",
            "client_id",
        ),
        (
            "sasl_oauthbearer_token_endpoint_url = \"https://me:hush@idp/token\"",
            "kafka.sasl_oauthbearer_token_endpoint_url",
            "without a user",
        ),
        (
            "sasl_oauthbearer_extensions = \"auth=other\"",
            "kafka.sasl_oauthbearer_extensions",
            "`auth`",
        ),
        (
            "sasl_password = \"hush\"\nsasl_password_file = \"password\"",
            "kafka.sasl_password_file",
            "one of them",
        ),
        (
            "ssl_endpoint_identification_algorithm = \"\"",
            "kafka.ssl_endpoint_identification_algorithm",
            "https, none",
        ),
    ] {
        let told = set(file);
        assert!(told.starts_with(key) && told.contains(says), "{told}");
        assert!(!told.contains("hush"), "{told}");
    }
}

#[test]
fn tls_takes_the_wire_driver_and_says_why() {
    let file = "[kafka]\nsecurity_protocol = \"SSL\"\n";
    let choice = load(file, &[], &[]).unwrap().driver().unwrap();
    assert_eq!(choice.driver, crate::kafka::Driver::Wire);
    assert_eq!(choice.reason, "kafka.security_protocol = SSL");
}
