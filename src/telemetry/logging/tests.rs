use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::*;

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
    assert_eq!((first.dropped_lines(), second.dropped_lines()), (0, 0));
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
