//! The Kubernetes files, as far as they speak of the program; schemas are checked by `just kubernetes-check`.

use std::collections::BTreeSet;
use std::time::Duration;

use kafka_llm_processor::config::Settings;
use kafka_llm_processor::offsets::Guarantee;
use kafka_llm_processor::pipeline::Assignment;
use serde_json::Value;

use crate::{
    assert_ends_in_time, assert_is_a_command, document, files, path, read, strings, text, yaml,
};

const BASE: &str = "deploy/kubernetes/base";
const OVERLAYS: &str = "deploy/kubernetes/overlays";

fn pod() -> Value {
    let documents = yaml(&format!("{BASE}/workload.yaml"));
    let workload = documents
        .iter()
        .find(|document| document["kind"] == "Deployment");
    workload.unwrap()["spec"]["template"]["spec"].clone()
}

fn settings(overlay: &str, environment: Vec<(String, String)>) -> Settings {
    let file = path(&format!("{OVERLAYS}/{overlay}/klp.toml"));
    Settings::load(Some(&file), environment, &[]).unwrap()
}

/// The settings of an overlay, with the variables that the pod sets.
fn both() -> Vec<(&'static str, Settings)> {
    let pod = pod();
    let environment = pod["containers"][0]["env"].as_array().unwrap();
    let environment = environment.iter().map(|variable| {
        let value = variable["value"].as_str().unwrap_or("a secret");
        (text(&variable["name"]).to_owned(), value.to_owned())
    });
    let environment: Vec<_> = environment.collect();
    let group = settings("group", environment.clone());
    // The overlay takes the ordinal from the pod's name, which a test has not.
    let ordinal = ("KLP_INPUT__STATIC_ORDINAL".to_owned(), "1".to_owned());
    let fixed = environment.into_iter().chain([ordinal]).collect();
    vec![("group", group), ("static", settings("static", fixed))]
}

#[test]
fn a_call_is_shorter_than_a_drain_and_a_drain_than_the_pods_grace() {
    let grace = pod()["terminationGracePeriodSeconds"].as_u64().unwrap();
    for (overlay, settings) in both() {
        assert_ends_in_time(&settings, Duration::from_secs(grace), overlay);
    }
}

#[test]
fn the_overlays_work_exactly_once_and_share_the_partitions_as_named() {
    for (overlay, settings) in both() {
        assert_eq!(
            settings.processing.guarantee,
            Guarantee::ExactlyOnce,
            "{overlay}"
        );
        assert_eq!(settings.input.assignment.to_string(), overlay);
    }
    assert!(
        both()
            .iter()
            .any(|(_, settings)| settings.input.assignment == Assignment::Group)
    );
}

/// As many pods as the ordinals are counted modulo: with fewer, partitions would have no owner.
#[test]
fn a_stateful_set_has_as_many_pods_as_the_configuration_counts() {
    let toml = read(&format!("{OVERLAYS}/static/klp.toml"));
    assert!(toml.contains("static_ordinal = \"hostname\""), "{toml}");
    let patches = document(&format!("{OVERLAYS}/static/kustomization.yaml"))["patches"].clone();
    let patch: Vec<Value> = serde_saphyr::from_str(text(&patches[0]["patch"])).unwrap();
    let set = |path: &str| {
        let found = patch.iter().find(|operation| operation["path"] == path);
        found.unwrap_or_else(|| panic!("{path} is not patched"))["value"].clone()
    };
    assert_eq!(set("/kind"), "StatefulSet");
    let (_, fixed) = both().remove(1);
    assert_eq!(set("/spec/replicas"), fixed.input.static_count);
}

#[test]
fn the_pod_may_nothing_that_it_does_not_need() {
    let pod = pod();
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(
        pod["enableServiceLinks"], false,
        "KLP_… of a Service would be unknown keys"
    );
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(strings(&security["capabilities"]["drop"]), ["ALL"]);
    // The user that the image has.
    let user = pod["securityContext"]["runAsUser"].as_u64().unwrap();
    assert!(read("deploy/Dockerfile").contains(&format!("USER {user}:{user}")));
    for (kind, name) in [
        ("PodDisruptionBudget", "disruption.yaml"),
        ("NetworkPolicy", "network.yaml"),
    ] {
        assert_eq!(document(&format!("{BASE}/{name}"))["kind"], kind);
    }
}

/// A list of ports is one value for `kubectl apply`: what the API server adds to one is a difference each time, and between two ways to apply a conflict.
#[test]
fn every_port_names_its_protocol() {
    let rules = &document(&format!("{BASE}/network.yaml"))["spec"];
    let mut ports = 0;
    for way in ["ingress", "egress"] {
        for rule in rules[way].as_array().unwrap() {
            for port in rule["ports"].as_array().unwrap() {
                assert!(port["protocol"].is_string(), "{way}: {port}");
                ports += 1;
            }
        }
    }
    assert_eq!(ports, 5);
}

/// Probes reach the admin server, and each asks what it is for: an outage restarts no pod.
#[test]
fn probes_ask_the_admin_server_where_it_listens() {
    let container = pod()["containers"][0].clone();
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    for (overlay, settings) in both() {
        let listen = settings.admin.listen.to_string();
        let port = &container["ports"][0]["containerPort"];
        assert_eq!(listen, format!("0.0.0.0:{port}"), "{overlay}");
        // Others reach it, so what changes state asks for a token.
        let token = settings.admin.token_file.unwrap();
        assert!(is_mounted(&token.display().to_string()), "{overlay}");
        let key = settings.llm.api_key_file.unwrap();
        assert!(is_mounted(&key.display().to_string()), "{overlay}");
    }
    assert_is_a_command(&strings(&container["args"]));
}

/// Whether a file is one of the Secret's, at the place where the pod mounts it.
fn is_mounted(file: &str) -> bool {
    let pod = pod();
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let volumes = pod["volumes"].as_array().unwrap();
    mounts.iter().any(|mount| {
        let volume = volumes
            .iter()
            .find(|volume| volume["name"] == mount["name"]);
        let items = volume.and_then(|volume| volume["secret"]["items"].as_array());
        let mut items = items.into_iter().flatten();
        items.any(|item| file == format!("{}/{}", text(&mount["mountPath"]), text(&item["path"])))
    })
}

/// The autoscaler's step is what one instance takes in at once, and nowhere is it another number.
#[test]
fn the_autoscaler_adds_an_instance_for_what_one_reads_ahead() {
    let step = Settings::default().pipeline.read_ahead_records;
    let scaler = document("deploy/kubernetes/components/autoscaling/scaler.yaml");
    let trigger = &scaler["spec"]["triggers"][0]["metadata"];
    assert_eq!(text(&trigger["threshold"]), step.to_string());
    let rules = read("deploy/prometheus/rules.yml");
    let held = format!("{step} * klp:instances:count");
    assert_eq!(rules.matches(&held).count(), 2, "{held}");
    for (overlay, settings) in both() {
        assert_eq!(settings.pipeline.read_ahead_records, step, "{overlay}");
    }
    let base = &document(&format!("{BASE}/namespace.yaml"))["metadata"]["name"];
    let asked = format!("namespace=\"{}\"", text(base));
    assert!(text(&trigger["query"]).contains(&asked), "{asked}");
}

#[test]
fn the_manifests_name_the_image_of_this_version() {
    let images = document(&format!("{BASE}/kustomization.yaml"))["images"].clone();
    assert_eq!(images[0]["name"], pod()["containers"][0]["image"]);
    assert_eq!(text(&images[0]["newTag"]), env!("CARGO_PKG_VERSION"));
}

/// Every file is in a kustomization, and every file that one names exists.
#[test]
fn no_file_is_left_out() {
    let mut named = BTreeSet::new();
    let all = files("deploy/kubernetes", &[".yaml", ".toml"]);
    for file in all
        .iter()
        .filter(|file| file.ends_with("kustomization.yaml"))
    {
        let (folder, _) = file.rsplit_once('/').unwrap();
        let kustomization = document(file);
        let mut names: Vec<_> = ["resources", "components"]
            .iter()
            .filter_map(|key| kustomization.get(*key))
            .flat_map(strings)
            .collect();
        for map in kustomization["configMapGenerator"]
            .as_array()
            .into_iter()
            .flatten()
        {
            names.extend(strings(&map["files"]));
        }
        for name in names {
            let target = path(&format!("{folder}/{name}"));
            assert!(target.exists(), "{file} names {name}");
            named.insert(target.canonicalize().unwrap());
        }
    }
    for file in all
        .iter()
        .filter(|file| !file.ends_with("kustomization.yaml"))
    {
        let found = path(file).canonicalize().unwrap();
        assert!(named.contains(&found), "no kustomization names {file}");
    }
}
