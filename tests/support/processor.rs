//! The processor's own binary, as a process.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::eventually;
use super::process::{self, Lines};

/// A processor that is killed when this is dropped.
pub(crate) struct Processor {
    child: Child,
    lines: Lines,
}

impl Processor {
    /// Starts it with these arguments and variables; nothing else of the environment reaches it. `KLP_TEST_BINARY` names another build of it,
    /// such as the one that is shipped.
    pub(crate) fn start(arguments: &[String], variables: &[(&str, &str)]) -> Self {
        let built = env!("CARGO_BIN_EXE_kafka-llm-processor").to_owned();
        let binary = std::env::var("KLP_TEST_BINARY").unwrap_or(built);
        let mut command = process::mortal(&binary);
        command
            .args(arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(variables.iter().copied())
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = process::spawn(command);
        let lines = Lines::new();
        lines.gather(child.stderr.take().expect("its log is piped"));
        lines.gather(child.stdout.take().expect("its output is piped"));
        Self { child, lines }
    }

    /// What it has printed, log and output.
    pub(crate) fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Waits for a line with all the words.
    pub(crate) async fn line(&self, words: &[&str], within: Duration) -> String {
        let line = self.lines.wait_for(words, within).await;
        line.unwrap_or_else(|| panic!("not within {within:?}: a line with {words:?}"))
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = process::signal(signal, &self.child.id().to_string());
        assert!(sent, "kill {signal}");
    }

    /// `kill -9`, and its end.
    pub(crate) fn kill(mut self) {
        assert!(self.is_running(), "it runs until it is killed");
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        let ended = self.child.try_wait().expect("it can be asked for");
        ended.is_none()
    }

    /// Waits for its end and gives back the exit code; a signal has none.
    pub(crate) async fn exit_code(&mut self, within: Duration) -> Option<i32> {
        eventually("the processor ends", within, async || {
            self.child.try_wait().expect("it can be asked for")
        })
        .await
        .code()
    }

    /// Asks it to stop, and waits until it has drained.
    pub(crate) async fn drain(mut self, within: Duration) {
        self.signal("-TERM");
        let code = self.exit_code(within).await;
        assert_eq!(code, Some(0), "drained");
    }

    /// The most memory that was ever resident, in KiB.
    pub(crate) fn peak_resident_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// The memory that is resident, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.expect("the kernel tells").split_whitespace().next();
        words.and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// The processor time that it has used so far, its own and the kernel's for it.
    pub(crate) fn cpu_time(&self) -> Duration {
        process::cpu_time(&self.child.id().to_string())
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        if self.is_running() {
            if let Err(error) = self.child.kill() {
                eprintln!("the processor could not be killed: {error}");
            }
            if let Err(error) = self.child.wait() {
                eprintln!("the processor could not be waited for: {error}");
            }
        }
        if std::thread::panicking() {
            let lines = self.lines.all();
            let tail = lines.len().saturating_sub(60);
            eprintln!("the processor's last lines:");
            for line in lines.iter().skip(tail) {
                eprintln!("  {line}");
            }
        }
    }
}
