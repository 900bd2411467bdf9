//! No panel, alert or autoscaler names a metric or a label that does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use assert_cmd::cargo::CommandCargoExt as _;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Vllm, VllmConfig};
use kafka_llm_processor::types::Record;
use serde_json::Value;
use tokio::time::Instant;

use crate::{document, files, read, text};

/// What the surroundings of a scrape add.
const SURROUNDINGS: [&str; 4] = ["namespace", "pod", "instance", "job"];

struct Running {
    child: Child,
    address: String,
}

impl Running {
    /// A processor whose page has everything that can be there from the start: a budget, and rebalances.
    fn start(broker: &Broker, llm: &str) -> Self {
        let mut child = Command::cargo_bin("kafka-llm-processor")
            .unwrap()
            .env_clear()
            .env("KAFKA_BROKERS", broker.bootstrap())
            .env("LLM_URL", llm)
            .env("KLP_ADMIN__LISTEN", "127.0.0.1:0")
            .env("KLP_LOG__FILE", "off")
            .env("KLP_INPUT__ASSIGNMENT", "group")
            .env("KLP_LLM__TOKENS_PER_MINUTE", "100000000")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("admin server listens") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
        }
        let (_, port) = line.split_once("127.0.0.1:").unwrap();
        let address = format!("127.0.0.1:{}", port.trim());
        std::thread::spawn(move || log.lines().count());
        Self { child, address }
    }

    fn page(&self) -> String {
        crate::metrics::page(&self.address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn page(address: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// A metric's labels, each with the values that were seen.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// Every metric that a running processor has shown.
fn series() -> BTreeMap<String, Labels> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (broker, vllm) = runtime.block_on(async {
        let broker = Broker::start(BrokerConfig::default()).await.unwrap();
        let vllm = Vllm::start(VllmConfig::default()).await.unwrap();
        (broker, vllm)
    });
    broker.create_topic("financial-documents", 1, &[]).unwrap();
    let record = Record {
        value: Some("A document.".into()),
        ..Record::default()
    };
    broker
        .append("financial-documents", 0, vec![record])
        .unwrap();
    let processor = Running::start(&broker, &vllm.url());
    let deadline = Instant::now() + Duration::from_secs(30);
    let page = loop {
        let page = processor.page();
        if page.contains("klp_documents_total{status=\"ok\"} 1") {
            break page;
        }
        assert!(Instant::now() < deadline, "{page}");
    };
    let mut series: BTreeMap<String, Labels> = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("klp_")) {
        let (sample, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let labels = labels
            .split("\",")
            .filter_map(|label| label.split_once('='));
        let known = series.entry(name.to_owned()).or_default();
        for (label, value) in labels {
            let value = value.trim_matches(['"', '}']);
            let values = known.entry(label.to_owned()).or_default();
            values.insert(value.to_owned());
        }
    }
    series
}

/// The identifiers of a query, each with the text behind it.
fn words(query: &str) -> Vec<(&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(begin) = rest.find(is_part) {
        let word = &rest[begin..];
        let end = word.find(|c| !is_part(c)).unwrap_or(word.len());
        found.push((&word[..end], &word[end..]));
        rest = &word[end..];
    }
    found
}

/// Every query of the dashboard, the rules and the autoscaler.
fn queries() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let dashboard: Value =
        serde_json::from_str(&read("deploy/grafana/dashboards/kafka-llm-processor.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((
                text(&panel["title"]).to_owned(),
                text(&target["expr"]).to_owned(),
            ));
        }
    }
    assert!(found.len() > 30, "the dashboard's panels were found");
    for group in document("deploy/prometheus/rules.yml")["groups"]
        .as_array()
        .unwrap()
    {
        for rule in group["rules"].as_array().unwrap() {
            let name = rule.get("alert").unwrap_or(&rule["record"]);
            found.push((text(name).to_owned(), text(&rule["expr"]).to_owned()));
        }
    }
    let scaler = document("deploy/kubernetes/components/autoscaling/scaler.yaml");
    let query = &scaler["spec"]["triggers"][0]["metadata"]["query"];
    found.push(("autoscaler".to_owned(), text(query).to_owned()));
    found
}

#[test]
fn every_metric_and_label_that_is_asked_for_exists() {
    let series = series();
    let recorded: BTreeSet<_> = document("deploy/prometheus/rules.yml")["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .filter_map(|rule| rule["record"].as_str().map(str::to_owned))
        .collect();
    let (mut asked, mut compared) = (0, 0);
    for (of, query) in queries() {
        for (word, behind) in words(&query) {
            if word.starts_with("klp:") {
                assert!(recorded.contains(word), "{of}: no rule records {word}");
            }
            if !word.starts_with("klp_") {
                continue;
            }
            let labels = series.get(word);
            let labels = labels.unwrap_or_else(|| panic!("{of}: there is no metric {word}"));
            asked += 1;
            let Some(matchers) = behind.strip_prefix('{') else {
                continue;
            };
            let (matchers, _) = matchers.split_once('}').unwrap();
            for matcher in matchers.split(',') {
                let (label, wanted) = matcher.split_once(['=', '!']).unwrap();
                let known = labels.get(label);
                assert!(
                    known.is_some() || SURROUNDINGS.contains(&label),
                    "{of}: {word} has no label {label}"
                );
                // All values of these are shown from the start; one that was renamed would silence the query.
                if let Some(known) = known.filter(|_| ["factor", "state"].contains(&label)) {
                    let wanted = wanted.trim_start_matches(['=', '~']).trim_matches('"');
                    for value in wanted.split('|') {
                        assert!(known.contains(value), "{of}: no {label} is named {value}");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 6, "{compared} values were looked up");
    assert!(asked > 60, "{asked} metrics were looked up");
    // Names in comments and elsewhere, such as in documents beside them.
    for file in files("deploy", &[".yaml", ".yml", ".json", ".toml", ".service"]) {
        for (word, _) in words(&read(&file)) {
            let known = series.contains_key(word) || series.contains_key(&format!("{word}_bucket"));
            assert!(!word.starts_with("klp_") || known, "{file} names {word}");
        }
    }
}

/// Prometheus and its operator's resource have the same rules.
#[test]
fn both_files_of_rules_have_the_same_groups() {
    let plain = document("deploy/prometheus/rules.yml");
    let resource = document("deploy/kubernetes/components/monitoring/rules.yaml");
    assert_eq!(plain["groups"], resource["spec"]["groups"]);
}

/// Whoever is woken up is told what to do.
#[test]
fn every_alert_has_a_runbook() {
    let mut alerts = 0;
    for group in document("deploy/prometheus/rules.yml")["groups"]
        .as_array()
        .unwrap()
    {
        for rule in group["rules"].as_array().unwrap() {
            if rule.get("alert").is_some() {
                let name = text(&rule["alert"]);
                assert!(text(&rule["annotations"]["runbook"]).len() > 40, "{name}");
                assert!(rule["annotations"]["summary"].is_string(), "{name}");
                assert!(rule["labels"]["severity"].is_string(), "{name}");
                alerts += 1;
            }
        }
    }
    assert!(alerts >= 8, "{alerts}");
}
