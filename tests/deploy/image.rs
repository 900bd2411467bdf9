//! What the build of the image reads.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{files, path, read};

/// The sources of the Dockerfile's COPY instructions that come from the build context.
fn copied() -> Vec<String> {
    let dockerfile = read("deploy/Dockerfile");
    let mut sources = Vec::new();
    for line in dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
    {
        let mut words: Vec<_> = line.split_whitespace().collect();
        let target = words.pop().unwrap();
        if words[0].starts_with("--from=") {
            continue;
        }
        for source in words {
            assert!(
                target == "./" || target == source,
                "{source} does not keep its name"
            );
            sources.push(source.to_owned());
        }
    }
    sources
}

/// What .dockerignore lets through. Two forms of lines are known here: everything, and a name at the root that is let through.
fn let_through() -> Vec<String> {
    let ignored = read(".dockerignore");
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "nothing, but for what is named");
    let name = |line: &str| {
        let name = line.strip_prefix('!');
        name.expect("a name that is let through").to_owned()
    };
    lines.map(name).collect()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// Cargo finds every target that the manifest names in what the Dockerfile copies, and no more than that is sent to the builder.
#[test]
fn the_build_has_every_target_that_the_manifest_names() {
    let (copied, let_through) = (copied(), let_through());
    assert_eq!(copied, let_through, "COPY, and what .dockerignore names");
    let folder = tempfile::tempdir().unwrap();
    for source in &copied {
        assert!(path(source).exists(), "{source} does not exist");
        copy(&path(source), &folder.path().join(source));
    }
    let asked = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success(), "{said}");
    let manifest: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    let package = &manifest["packages"][0];
    let readme = package["readme"].as_str().unwrap();
    assert!(folder.path().join(readme).exists(), "{readme}");
    let targets = package["targets"].as_array().unwrap();
    assert!(targets.len() > 2, "{targets:?}");
}

/// Files that the compiler takes into the program lie where the Dockerfile copies them.
#[test]
fn the_build_has_every_file_that_the_source_includes() {
    let copied = copied();
    let mut included = 0;
    for file in files("src", &[".rs"]) {
        let source = read(&file);
        for macro_name in ["include_str!(\"", "include_bytes!(\"", "include!(\""] {
            for rest in source.split(macro_name).skip(1) {
                let (name, _) = rest.split_once('"').unwrap();
                let whole = path(&file).parent().unwrap().join(name);
                let whole = whole.canonicalize().unwrap();
                let below = whole.strip_prefix(path("").canonicalize().unwrap());
                let below = below.expect("a file of this repository");
                let first = below.components().next().unwrap().as_os_str();
                assert!(
                    copied.iter().any(|source| first == source.as_str()),
                    "{file} includes {name}"
                );
                included += 1;
            }
        }
    }
    assert!(included > 5, "{included} files are included");
}

/// Each of these fails a build or ships what is not meant: a flag for static programs that macros cannot be built with, a checkout older than the
/// cache, and two builds that link one file.
#[test]
fn the_build_names_its_target_trusts_no_times_and_has_the_cache_to_itself() {
    let dockerfile = read("deploy/Dockerfile");
    let compiler = env!("CARGO_PKG_RUST_VERSION");
    assert!(
        dockerfile.contains(&format!("FROM rust:{compiler}-alpine AS build\n")),
        "{compiler}"
    );
    let (_, build) = dockerfile.split_once("RUN --mount=").unwrap();
    let (build, _) = build.split_once("\n\n").unwrap();
    let cache = build
        .lines()
        .find(|line| line.contains("target=/source/target"))
        .unwrap();
    assert!(cache.contains("sharing=locked"), "{cache}");
    let place = |what: &str| build.find(what).unwrap_or_else(|| panic!("{what}"));
    assert!(place("touch src/lib.rs src/main.rs") < place("cargo build"));
    assert!(build.contains("cargo build --release --locked --target \"$target\""));
    assert!(build.contains("cp \"target/$target/release/kafka-llm-processor\""));
}
