//! compose.yaml, its override and the image.

use std::collections::BTreeSet;
use std::time::Duration;

use kafka_llm_processor::config::Settings;
use kafka_llm_processor::offsets::Guarantee;
use serde_json::Value;

use crate::{assert_ends_in_time, assert_is_a_command, document, read, strings, text};

const COMPOSE: &str = "compose.yaml";
const ZOOKEEPER: &str = "deploy/compose.zookeeper.yaml";

/// A service with what it merges in (`<<`).
fn service(name: &str) -> Value {
    let mut service = document(COMPOSE)["services"][name].clone();
    assert!(service.is_object(), "there is no service {name}");
    if let Some(Value::Object(merged)) = service.as_object_mut().unwrap().remove("<<") {
        for (key, value) in merged {
            service.as_object_mut().unwrap().entry(key).or_insert(value);
        }
    }
    service
}

fn names() -> Vec<String> {
    let compose = document(COMPOSE);
    let services = compose["services"].as_object().unwrap();
    services.keys().cloned().collect()
}

/// `${NAME:-default}` becomes the default, and `$$` a dollar sign, as where nothing is set.
fn interpolated(value: &str) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("${") {
        let (variable, behind) = after.split_once('}').unwrap();
        let (_, default) = variable.split_once(":-").unwrap_or((variable, ""));
        out.push_str(before);
        out.push_str(default);
        rest = behind;
    }
    out.push_str(rest);
    out.replace("$$", "$")
}

fn environment(service: &Value) -> Vec<(String, String)> {
    let pairs = service["environment"].as_object().unwrap().iter();
    let plain = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), interpolated)
    };
    pairs
        .map(|(name, value)| (name.clone(), plain(value)))
        .collect()
}

#[test]
fn the_processor_of_compose_works_exactly_once_and_ends_in_time() {
    let processor = service("processor");
    let settings = Settings::load(None, environment(&processor), &[]).unwrap();
    assert_eq!(settings.processing.guarantee, Guarantee::ExactlyOnce);
    assert_eq!(settings.kafka.brokers, "kafka:29092");
    assert_eq!(settings.llm.model, Settings::default().llm.model);
    let grace = text(&processor["stop_grace_period"]).trim_end_matches('s');
    let grace = Duration::from_secs(grace.parse().unwrap());
    assert_ends_in_time(&settings, grace, COMPOSE);
    // Nothing is written, and nobody may more than needed.
    assert_eq!(processor["read_only"], true);
    assert_eq!(strings(&processor["cap_drop"]), ["ALL"]);
}

/// A processor answers under the names that it knows, and one that Prometheus has is not refused.
#[test]
fn prometheus_may_ask_the_processor_under_the_name_it_has() {
    let prometheus = document("deploy/prometheus/prometheus.yml");
    let configs = prometheus["scrape_configs"].as_array().unwrap();
    let of = |job: &str| {
        let config = configs.iter().find(|config| config["job_name"] == job);
        strings(&config.unwrap()["static_configs"][0]["targets"])
    };
    let settings = Settings::load(None, environment(&service("processor")), &[]).unwrap();
    for target in of("kafka-llm-processor") {
        assert!(settings.admin.allowed_hosts.allows(target), "{target}");
    }
    // That of the host is started by hand: the file says how.
    for target in of("kafka-llm-processor-host") {
        let (host, _) = target.split_once(':').unwrap();
        let setting = format!("KLP_ADMIN__ALLOWED_HOSTS={host}");
        assert!(read(COMPOSE).contains(&setting), "{setting}");
    }
}

#[test]
fn the_names_of_the_seed_are_the_defaults_of_compose() {
    let processor = environment(&service("processor"));
    let value = |name: &str| {
        let found = processor.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(value("INPUT_TOPIC"), Some("financial-documents"));
    assert_eq!(value("OUTPUT_TOPIC"), Some("llm-results"));
    assert_eq!(
        value("MODEL_NAME"),
        Some("mistralai/Mistral-7B-Instruct-v0.2")
    );
    assert_eq!(value("LLM_TIMEOUT"), Some("30"));
    let topics = &service("topics")["command"][0];
    for setting in [
        "\"$$INPUT_TOPIC\"",
        "\"$$OUTPUT_TOPIC\"",
        "llm-dead-letters --config retention.ms=-1",
    ] {
        assert!(text(topics).contains(setting), "{setting}");
    }
    let gpu = service("vllm");
    assert!(environment(&gpu).iter().any(|(name, _)| name == "HF_TOKEN"));
    assert!(strings(&gpu["volumes"])[0].starts_with("model-cache:"));
}

/// What runs on has a health check; whoever needs it waits for that, and for what ends, for its success.
#[test]
fn everything_waits_until_what_it_needs_is_healthy() {
    let override_services = document(ZOOKEEPER)["services"].clone();
    let all = names();
    for name in &all {
        let service = service(name);
        let ends = name == "topics";
        assert!(ends || service["healthcheck"]["test"].is_array(), "{name}");
        let needs = service.get("depends_on").and_then(Value::as_object);
        for (needed, how) in needs.into_iter().flatten() {
            assert!(all.contains(needed), "{name} needs {needed}");
            let condition = if needed == "topics" {
                "service_completed_successfully"
            } else {
                "service_healthy"
            };
            assert_eq!(how["condition"], condition, "{name} needs {needed}");
        }
        assert!(
            needs.is_some() || ["kafka", "prometheus"].contains(&name.as_str()),
            "{name}"
        );
    }
    assert!(override_services["zookeeper"]["healthcheck"]["test"].is_array());
    let kafka = &override_services["kafka"]["depends_on"]["zookeeper"]["condition"];
    assert_eq!(kafka, "service_healthy");
}

/// The profile that is in force where none is named starts one vLLM, and each of the three answers to the name that the processor asks.
#[test]
fn profiles_choose_one_of_three_model_servers() {
    let profile = |name: &str| {
        let service = service(name);
        let profiles = service.get("profiles").map(strings).unwrap_or_default();
        profiles.first().map(|name| (*name).to_owned())
    };
    for (name, expected) in [
        ("kafka", None),
        ("topics", None),
        ("vllm", Some("gpu")),
        ("vllm-cpu", Some("cpu")),
        ("vllm-sim", Some("sim")),
        ("processor", Some("processor")),
        ("prometheus", Some("monitoring")),
        ("grafana", Some("monitoring")),
    ] {
        assert_eq!(profile(name).as_deref(), expected, "{name}");
    }
    let by_default = read(".env");
    assert!(
        by_default
            .lines()
            .any(|line| line == "COMPOSE_PROFILES=gpu")
    );
    let assigned: Vec<_> = by_default
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert_eq!(
        assigned.len(),
        1,
        "nothing else, and no secret, is kept there"
    );
    let processor = service("processor");
    for name in ["vllm", "vllm-cpu", "vllm-sim"] {
        let service = service(name);
        assert_eq!(
            strings(&service["networks"]["default"]["aliases"]),
            ["llm"],
            "{name}"
        );
        assert_eq!(processor["depends_on"][name]["required"], false, "{name}");
    }
}

/// No image is "whatever is newest", ports are open on this machine only, and what is mounted exists.
#[test]
fn images_are_pinned_ports_are_local_and_mounts_exist() {
    let mut images = BTreeSet::new();
    let zookeeper = document(ZOOKEEPER)["services"].clone();
    let overridden = zookeeper.as_object().unwrap().values().cloned();
    for service in names().iter().map(|name| service(name)).chain(overridden) {
        let image = interpolated(text(&service["image"]));
        let (_, tag) = image.rsplit_once(':').expect("a tag");
        assert!(!tag.starts_with("latest"), "{image}");
        images.insert(image);
        let ports = service.get("ports").map(strings).unwrap_or_default();
        assert!(
            ports.iter().all(|port| port.starts_with("127.0.0.1:")),
            "{ports:?}"
        );
        for volume in service.get("volumes").map(strings).unwrap_or_default() {
            if let Some(mounted) = volume.strip_prefix("./") {
                let (host, _) = mounted.split_once(':').unwrap();
                assert!(crate::path(host).exists(), "{host}");
            }
        }
    }
    assert!(images.contains("apache/kafka:3.9.2"), "{images:?}");
    assert!(images.len() >= 8, "{images:?}");
}

/// The health checks and commands of our own image are commands of the program.
#[test]
fn the_image_runs_commands_that_exist() {
    let dockerfile = read("deploy/Dockerfile");
    let stages: Vec<_> = dockerfile
        .lines()
        .filter(|line| line.starts_with("FROM "))
        .collect();
    assert_eq!(stages.len(), 2, "{stages:?}");
    assert_eq!(stages[1], "FROM scratch");
    for line in [
        "USER 65534:65534",
        "STOPSIGNAL SIGTERM",
        "ENV PATH=/",
        "ENTRYPOINT [\"/kafka-llm-processor\"]",
    ] {
        assert!(dockerfile.lines().any(|found| found == line), "{line}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert!(dockerfile.contains(&format!("ARG VERSION={version}\n")));
    let instruction = |name: &str| {
        let line = dockerfile
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap();
        let (_, list) = line.split_once('[').unwrap();
        serde_json::from_str::<Vec<String>>(&format!("[{list}")).unwrap()
    };
    let check = instruction("HEALTHCHECK ");
    assert_eq!(check[0], "/kafka-llm-processor");
    assert_eq!(
        check[1..],
        ["status", "--live"],
        "an outage is no reason for a restart"
    );
    assert_eq!(instruction("CMD "), ["run"]);
    for name in ["vllm-sim", "processor"] {
        let service = service(name);
        let test = strings(&service["healthcheck"]["test"]);
        assert_eq!(test[..2], ["CMD", "/kafka-llm-processor"], "{name}");
        assert_is_a_command(&test[2..]);
    }
    assert_is_a_command(&strings(&service("vllm-sim")["command"]));
}
