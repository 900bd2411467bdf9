//! Processes that never outlive the tests, however these end.
//!
//! A guard ends its process when it is dropped. For what no guard sees (a static, `kill -9` of the test process) the kernel does: the
//! processes are started by a thread that lives as long as the test process, with that thread's death as their signal.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

type Order = (Command, SyncSender<io::Result<Child>>);

static SPAWNER: LazyLock<Mutex<SyncSender<Order>>> = LazyLock::new(|| {
    let (orders, ordered) = mpsc::sync_channel::<Order>(1);
    thread::spawn(move || {
        for (mut command, answer) in ordered {
            answer
                .send(command.spawn())
                .expect("the caller waits for it");
        }
    });
    Mutex::new(orders)
});

/// A command that is killed when the test process ends; start it with [`spawn`].
pub(crate) fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Starts a [`mortal`] command.
pub(crate) fn spawn(command: Command) -> Child {
    let (answer, answered) = mpsc::sync_channel(1);
    let orders = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    orders.send((command, answer)).expect("the spawner lives");
    answered
        .recv()
        .expect("the spawner answers")
        .expect("the process starts")
}

/// Sends a signal such as `-STOP`; `target` is a process id, or a process group's with a minus sign.
pub(crate) fn signal(signal: &str, target: &str) -> bool {
    let status = Command::new("kill")
        .args([signal, "--", target])
        .stderr(std::process::Stdio::null())
        .status();
    status.expect("kill runs").success()
}

/// Linux counts processor time in hundredths of a second towards programs, on every architecture that we run on.
const MILLIS_PER_TICK: u64 = 10;

/// The processor time that a process, or `self`, has used so far, its own and the kernel's for it.
pub(crate) fn cpu_time(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name, in parentheses, may hold anything; the state follows it, then ten numbers, then user and system time.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * MILLIS_PER_TICK)
}

/// Whether a program can be found.
pub(crate) fn is_installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok()
}

/// The lines that a process has printed so far, gathered by threads of their own. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    changed: watch::Sender<()>,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self {
            lines: Arc::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Gathers from another stream until it ends.
    pub(crate) fn gather(&self, stream: impl Read + Send + 'static) {
        let this = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                let mut lines = this.lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push(line);
                drop(lines);
                this.changed.send_replace(());
            }
        });
    }

    pub(crate) fn all(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clone()
    }

    /// The first line with all the words, as far as lines were printed.
    pub(crate) fn find(&self, words: &[&str]) -> Option<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lines
            .iter()
            .find(|line| words.iter().all(|word| line.contains(word)));
        found.cloned()
    }

    /// Waits for a line with all the words; `None` when it does not come in time.
    pub(crate) async fn wait_for(&self, words: &[&str], within: Duration) -> Option<String> {
        let deadline = Instant::now() + within;
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(line) = self.find(words) {
                return Some(line);
            }
            match timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return self.find(words),
            }
        }
    }
}
