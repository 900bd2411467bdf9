//! What a reader relies on and no compiler checks: the import ladder, the length of files, the top level, documents in step with the code.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kafka_llm_processor::config::{Settings, reference};
use kafka_llm_processor::types::DeadLetterReason;

/// From top to bottom: a line may import what stands below it, and the names on one line do not import each other.
const LADDER: [&[&str]; 8] = [
    &["cli"],
    &["app"],
    &["config"],
    &["pipeline"],
    &["offsets"],
    &["kafka", "llm", "telemetry", "records"],
    &["retry"],
    &["types", "clock"],
];

/// Longer files hold more than one idea.
const FILE_LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty());
    found
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The text of a source file before its unit tests.
fn production(path: &Path) -> String {
    if path
        .components()
        .any(|part| part.as_os_str() == "tests.rs" || part.as_os_str() == "tests")
    {
        return String::new();
    }
    let text = read(path);
    text.split("#[cfg(test)]")
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn rung(module: &str) -> Option<usize> {
    LADDER.iter().position(|line| line.contains(&module))
}

#[test]
fn imports_go_down_the_ladder() {
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let module = module_of(&path);
        let text = production(&path);
        let imported: BTreeSet<_> = text
            .split("crate::")
            .skip(1)
            .map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                end.map_or(rest, |end| rest.split_at(end).0)
            })
            .filter(|name| !name.is_empty() && *name != module)
            .collect();
        for name in imported {
            let allowed = match module.as_str() {
                // Fuzzers call into every rung.
                "lib" | "main" | "fuzzing" => true,
                "sandbox" => matches!(name, "types" | "clock"),
                "cli" if name == "sandbox" => true,
                _ => match (rung(&module), rung(name)) {
                    (Some(from), Some(to)) => to > from,
                    _ => false,
                },
            };
            if !allowed {
                wrong.push(format!("{} imports {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_are_short_enough_to_be_one_room() {
    let long: Vec<_> = files("src", "rs")
        .into_iter()
        .map(|path| (production(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn no_file_is_a_drawer() {
    let drawers = ["util", "utils", "common", "helpers", "misc", "manager"];
    for path in files("src", "rs") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(!drawers.contains(&name), "{}", path.display());
    }
}

#[test]
fn vendors_stay_in_their_rooms() {
    let rooms: [(&str, &[&str]); 4] = [
        ("rskafka::client", &["kafka"]),
        ("kafka_protocol::", &["kafka", "sandbox"]),
        ("figment::", &["config"]),
        ("backoff::", &["retry"]),
    ];
    for path in files("src", "rs") {
        let (module, text) = (module_of(&path), production(&path));
        for (vendor, rooms) in rooms {
            assert!(
                !text.contains(vendor) || rooms.contains(&module.as_str()),
                "{vendor} in {}",
                path.display()
            );
        }
    }
}

#[test]
fn the_top_level_is_as_promised() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "examples",
        "tests",
        "benches",
        "compose.yaml",
        "deploy",
        "docs",
        "justfile",
        "README.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "CHANGELOG.md",
        // What building and running leave behind; git ignores them.
        "target",
        "logs",
        "proptest-regressions",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with('.') || allowed.contains(&name.as_str()),
            "{name}"
        );
    }
}

#[test]
fn the_sample_configuration_loads() {
    let settings =
        Settings::load(Some(&root().join("examples/config.toml")), [], &[]).expect("it loads");
    assert_eq!(settings.kafka.group_id, "filings");
    kafka_llm_processor::llm::Prompt::new(&settings.prompt, None).expect("its template parses");
}

/// Every key that the README's tables name exists, and the defaults of the promised variables are the program's.
#[test]
fn the_readme_is_in_step_with_the_settings() {
    let readme = read("README.md");
    let settings = serde_json::to_value(Settings::default()).unwrap();
    let mut keys = 0;
    for line in readme.lines().filter(|line| line.starts_with("| `")) {
        let first = line.split('|').nth(1).unwrap();
        for name in first
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| name.contains('.'))
        {
            let found = name
                .split('.')
                .try_fold(&settings, |value, part| value.get(part));
            assert!(
                found.is_some(),
                "README.md names {name}, and no setting has that name"
            );
            keys += 1;
        }
    }
    assert!(keys > 15, "{keys} keys were looked up");
    for (variable, default) in [
        ("KAFKA_BROKERS", settings["kafka"]["brokers"].as_str()),
        ("OUTPUT_TOPIC", settings["output"]["topic"].as_str()),
        (
            "INPUT_TOPIC",
            settings["input"]["topics"][0]["name"].as_str(),
        ),
        ("LLM_URL", settings["llm"]["url"].as_str()),
        ("MODEL_NAME", settings["llm"]["model"].as_str()),
    ] {
        let row = format!("| `{variable}` | `{}` |", default.unwrap());
        assert!(readme.contains(&row), "README.md lacks {row}");
    }
}

/// The table of all keys is the program's own.
#[test]
fn the_readmes_table_of_keys_is_that_of_config_reference() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once(reference::MARKDOWN_BEGIN).unwrap();
    let (table, _) = rest.split_once(reference::MARKDOWN_END).unwrap();
    assert!(
        table.trim() == reference::markdown().trim(),
        "README.md is not in step with src/config/reference.rs: run `just readme-table`"
    );
}

#[test]
fn the_readme_names_every_reason_for_a_dead_letter() {
    let readme = read("README.md");
    for reason in DeadLetterReason::ALL {
        assert!(
            readme.contains(&format!("`{reason}`")),
            "README.md lacks `{reason}`"
        );
    }
}

/// Paths of one machine, and packages' download hosts, have no place in the project.
#[test]
fn no_file_names_a_machine() {
    let mut texts = files("src", "rs");
    for (folder, ending) in [
        ("tests", "rs"),
        ("examples", "rs"),
        ("docs", "md"),
        ("benches", "rs"),
    ] {
        texts.extend(files(folder, ending));
    }
    texts.extend(["README.md", "justfile", "CHANGELOG.md"].map(|name| root().join(name)));
    for path in texts {
        let text = read(&path);
        for folder in ["work", "root", "home"] {
            let named = format!("/{folder}/");
            assert!(
                !text.contains(&named) || path.ends_with("architecture.rs"),
                "{named} in {}",
                path.display()
            );
        }
    }
}
