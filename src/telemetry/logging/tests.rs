use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::*;
use crate::telemetry::registry::{Metrics, new_registry};

/// A console whose lines can be read when the guard is dropped.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn surroundings(folder: &Path) -> Surroundings {
    Surroundings {
        color: false,
        container: false,
        folder: folder.to_owned(),
    }
}

fn logged(config: &LogConfig, surroundings: &Surroundings, log: impl FnOnce()) -> String {
    let console = Console::default();
    let (subscriber, guard) = build(config, surroundings, || console.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, log);
    drop(guard);
    let lines = console.0.lock().unwrap().clone();
    String::from_utf8(lines).unwrap()
}

fn off() -> LogConfig {
    LogConfig {
        file: LogFile::Off,
        ..LogConfig::default()
    }
}

#[test]
fn a_line_has_time_level_message_and_fields() {
    let folder = tempfile::tempdir().unwrap();
    let lines = logged(&off(), &surroundings(folder.path()), || {
        tracing::info!(partition = 3, document = "r-1", "result written");
        tracing::debug!("not at this level");
    });
    let words: Vec<&str> = lines.split_whitespace().collect();
    assert!(words[0].parse::<jiff::Timestamp>().is_ok(), "{lines}");
    assert_eq!(
        words[1..].join(" "),
        r#"INFO result written partition=3 document="r-1""#
    );
}

#[test]
fn a_json_line_is_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig {
        format: LogFormat::Json,
        ..off()
    };
    let lines = logged(&config, &surroundings(folder.path()), || {
        tracing::warn!(offset = 7, "two\nlines");
    });
    let line: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["message"], "two\nlines");
    assert_eq!(line["offset"], 7);
}

#[test]
fn colour_is_only_where_it_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let plain = surroundings(folder.path());
    let colored = Surroundings {
        color: true,
        ..plain.clone()
    };
    let log = || tracing::info!("hello");
    assert!(!logged(&off(), &plain, log).contains('\u{1b}'));
    assert!(logged(&off(), &colored, log).contains('\u{1b}'));
}

#[test]
fn noisy_libraries_are_quiet_unless_named() {
    let folder = tempfile::tempdir().unwrap();
    let surroundings = surroundings(folder.path());
    let log = || {
        tracing::error!(target: "rskafka::client", "handed back as well");
        tracing::info!(target: "hyper::proto", "every connection");
        tracing::info!(target: "kafka_llm_processor::app", "ours");
    };
    let lines = logged(&off(), &surroundings, log);
    assert!(
        lines.contains("ours") && !lines.contains("handed back") && !lines.contains("connection")
    );
    let config = LogConfig {
        level: "info,rskafka=debug".to_owned(),
        ..off()
    };
    let lines = logged(&config, &surroundings, log);
    assert!(
        lines.contains("ours") && lines.contains("handed back") && !lines.contains("connection")
    );
}

#[test]
fn a_misspelt_level_is_refused() {
    for level in ["inof", "", "info,warm", "a=b=c=d"] {
        let error = filter(level).unwrap_err().to_string();
        assert!(error.contains("log.level"), "{error}");
    }
    assert!(filter("warn,kafka_llm_processor::kafka=trace").is_ok());
}

#[test]
fn the_default_file_is_written_where_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig::default();
    logged(&config, &surroundings(folder.path()), || {
        tracing::info!("kept")
    });
    let text = fs::read_to_string(folder.path().join(AUTO_FILE)).unwrap();
    assert!(text.contains("kept"), "{text}");
    // A second start goes on in the same file.
    logged(&config, &surroundings(folder.path()), || {
        tracing::info!("again")
    });
    let text = fs::read_to_string(folder.path().join(AUTO_FILE)).unwrap();
    assert!(text.contains("kept") && text.contains("again"), "{text}");
}

#[test]
fn there_is_no_default_file_in_a_container_or_without_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let container = Surroundings {
        container: true,
        ..surroundings(folder.path())
    };
    logged(&LogConfig::default(), &container, || {
        tracing::info!("hello")
    });
    assert!(!folder.path().join("logs").exists());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let lines = logged(&LogConfig::default(), &surroundings(&file), || {
        tracing::info!("hello")
    });
    assert!(lines.contains("hello"));
}

#[test]
fn a_named_file_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    fs::write(&blocked, "precious").unwrap();
    for path in [blocked.clone(), blocked.join("below.log")] {
        let config = LogConfig {
            file: LogFile::Path(path),
            ..LogConfig::default()
        };
        let error = build(&config, &surroundings(folder.path()), io::sink).map(|_| ());
        let message = error.unwrap_err().to_string();
        assert!(message.contains("log.file"), "{message}");
    }
    assert_eq!(fs::read_to_string(&blocked).unwrap(), "precious");
}

#[test]
fn a_second_init_does_no_harm() {
    let first = init(&off()).unwrap();
    let second = init(&off()).unwrap();
    assert_eq!(
        (first.losses().dropped(), second.losses().dropped()),
        (0, 0)
    );
}

#[test]
fn the_file_setting_is_a_word_or_a_path() {
    for (text, file) in [
        ("auto", LogFile::Auto),
        ("off", LogFile::Off),
        ("/var/log/a.log", LogFile::Path("/var/log/a.log".into())),
    ] {
        assert_eq!(LogFile::from(text.to_owned()), file);
        assert_eq!(String::from(file), text);
    }
}

/// The file that is written today.
fn todays(folder: &Path, prefix: &str) -> PathBuf {
    let day = clock::now().to_string();
    let day = day.split('T').next().unwrap();
    folder.join(format!("{prefix}.{day}.log"))
}

fn log_of_a_document() {
    let document = tracing::error_span!(
        "document",
        topic = "docs",
        partition = 0,
        offset = 7,
        document_id = tracing::field::Empty
    );
    let _document = document.entered();
    tracing::Span::current().record("document_id", "d-7");
    let attempt = tracing::error_span!("attempt", attempt = 2, request_id = "r");
    let _attempt = attempt.entered();
    tracing::warn!(request_id = "nearer", status = 500, "the attempt failed");
}

#[test]
fn a_json_line_has_the_fields_of_its_spans_beside_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let config = LogConfig {
        // Spans are there whatever the level.
        level: "warn".to_owned(),
        format: LogFormat::Json,
        file: LogFile::Path(folder.path().join("klp.log")),
        ..LogConfig::default()
    };
    let console = logged(&config, &surroundings(folder.path()), log_of_a_document);
    let file = fs::read_to_string(todays(folder.path(), "klp")).unwrap();
    for lines in [console, file] {
        let line: Value = serde_json::from_str(&lines).unwrap();
        for (name, value) in [
            ("level", Value::from("WARN")),
            ("message", "the attempt failed".into()),
            ("topic", "docs".into()),
            ("partition", 0.into()),
            ("offset", 7.into()),
            ("document_id", "d-7".into()),
            ("attempt", 2.into()),
            ("status", 500.into()),
            ("request_id", "nearer".into()),
        ] {
            assert_eq!(line[name], value, "{name} in {line}");
        }
        assert!(lines.starts_with(r#"{"timestamp":"#), "{lines}");
    }
}

#[test]
fn the_file_has_no_colours_and_says_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let colored = Surroundings {
        color: true,
        ..surroundings(folder.path())
    };
    let config = LogConfig {
        file: LogFile::Path(folder.path().join("klp.log")),
        ..LogConfig::default()
    };
    logged(&config, &colored, log_of_a_document);
    let file = fs::read_to_string(todays(folder.path(), "klp")).unwrap();
    let (_, line) = file.split_once("WARN ").unwrap();
    assert_eq!(
        line,
        "document{topic=\"docs\" partition=0 offset=7 document_id=\"d-7\"}:attempt{attempt=2 request_id=\"r\"}: \
         the attempt failed request_id=\"nearer\" status=500\n"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn lines_for_a_full_disk_are_counted_and_the_others_are_written() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", todays(folder.path(), "klp")).unwrap();
    let config = LogConfig {
        file: LogFile::Path(folder.path().join("klp.log")),
        ..LogConfig::default()
    };
    let console = Console::default();
    let (subscriber, guard) =
        build(&config, &surroundings(folder.path()), || console.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, || {
        (0..50).for_each(|number| tracing::info!(number, "hello"));
    });
    let losses = guard.losses().clone();
    drop(guard);
    assert_eq!((losses.dropped(), losses.unwritten()), (0, 50));
    let mut registry = new_registry();
    losses.register(&mut registry);
    let metrics = Metrics::new(registry).encode().unwrap();
    for sample in [
        "# TYPE klp_log_lines_lost counter\n",
        "klp_log_lines_lost_total{reason=\"unwritten\"} 50\n",
        "klp_log_lines_lost_total{reason=\"queue_full\"} 0\n",
    ] {
        assert!(metrics.contains(sample), "{metrics}");
    }
    let lines = String::from_utf8(console.0.lock().unwrap().clone()).unwrap();
    assert_eq!(lines.lines().count(), 50);
}

#[test]
fn as_many_daily_files_are_kept_as_is_set() {
    let folder = tempfile::tempdir().unwrap();
    for day in 1..=9 {
        fs::write(folder.path().join(format!("klp.2020-01-0{day}.log")), "old").unwrap();
    }
    fs::write(folder.path().join("other.2020-01-01.log"), "not ours").unwrap();
    let config = LogConfig {
        file: LogFile::Path(folder.path().join("klp.log")),
        max_files: 3,
        ..LogConfig::default()
    };
    logged(&config, &surroundings(folder.path()), || {
        tracing::info!("hello")
    });
    let names = fs::read_dir(folder.path()).unwrap();
    let names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let daily = names.iter().filter(|name| name.starts_with("klp.2"));
    assert_eq!(daily.count(), 3, "{names:?}");
    assert!(todays(folder.path(), "klp").exists(), "{names:?}");
    let others = ["klp.log", "other.2020-01-01.log"];
    assert!(
        others.iter().all(|name| names.iter().any(|n| n == name)),
        "{names:?}"
    );
}
