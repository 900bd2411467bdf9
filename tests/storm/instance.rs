//! One place for an instance of the processor: what is started, stopped and killed there.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::journal::Journal;
use crate::plan::{At, Step};
use crate::scenario::Scenario;
use crate::support::processor::Processor;

/// Fenced: another instance has the place.
const FENCED: i32 = 3;
/// How often one that should run is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// What restarts a container waits about so long.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// The drain's own deadline is 45 s.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

pub(crate) struct Instance {
    slot: usize,
    arguments: Vec<String>,
    journal: Journal,
    logs: PathBuf,
    processor: Option<Processor>,
    /// Those that another was started for while they stood still.
    replaced: Vec<Processor>,
    started: usize,
    /// Whether the last one was killed.
    was_killed: bool,
}

impl Instance {
    pub(crate) fn new(
        scenario: &Scenario,
        slot: usize,
        brokers: &str,
        llm: &str,
        journal: &Journal,
    ) -> Self {
        Self {
            slot,
            arguments: scenario.arguments(slot, brokers, llm),
            journal: journal.clone(),
            logs: scenario.folder(),
            processor: None,
            replaced: Vec::new(),
            started: 0,
            was_killed: false,
        }
    }

    /// Meets one thing after the other.
    pub(crate) async fn weather(mut self, steps: &[At<Step>]) -> Self {
        for step in steps {
            let at = self.journal.began() + step.at;
            while Instant::now() < at {
                self.look().await;
                sleep_until(at.min(Instant::now() + LOOK)).await;
            }
            self.meet(step.what).await;
        }
        self
    }

    async fn meet(&mut self, step: Step) {
        let slot = self.slot;
        match step {
            Step::Start => self.start(),
            Step::Kill => {
                if let Some(processor) = self.processor.take() {
                    processor.signal("-KILL");
                    self.journal
                        .count("kills", &format!("instance {slot}: killed"));
                    self.was_killed = true;
                    self.ended(processor, &[None]).await;
                }
            }
            Step::Drain => {
                if let Some(processor) = self.processor.take() {
                    // Before its first line it may not listen to the signal yet, which then ends it as any program.
                    processor.lines().wait_for(&[], ENDS_WITHIN).await;
                    processor.signal("-TERM");
                    self.journal
                        .count("drains", &format!("instance {slot}: told to drain"));
                    self.ended(processor, &[Some(0), Some(FENCED)]).await;
                }
            }
            Step::Stop => {
                if let Some(processor) = &self.processor {
                    processor.signal("-STOP");
                    self.journal
                        .count("stops", &format!("instance {slot}: stopped"));
                }
            }
            Step::Continue => {
                if let Some(processor) = &self.processor {
                    processor.signal("-CONT");
                    self.journal.tell(&format!("instance {slot}: continued"));
                }
            }
            Step::Replace => {
                if let Some(processor) = self.processor.take() {
                    processor.signal("-STOP");
                    let what = format!("instance {slot}: stopped, and replaced");
                    self.journal.count("replaced", &what);
                    self.replaced.push(processor);
                    self.start();
                }
            }
            Step::Wake => {
                for processor in &self.replaced {
                    processor.signal("-CONT");
                }
                let what = format!("instance {slot}: the replaced one is continued");
                self.journal.tell(&what);
            }
        }
    }

    /// Starts one, where none runs.
    pub(crate) fn start(&mut self) {
        if self.processor.is_some() {
            return;
        }
        self.started += 1;
        let (slot, started) = (self.slot, self.started);
        self.journal.count(
            "starts",
            &format!("instance {slot}: start number {started}"),
        );
        if self.was_killed {
            self.was_killed = false;
            self.journal.restarted_after_kill();
        }
        self.processor = Some(Processor::start(&self.arguments, &[]));
    }

    /// Starts it again where it has ended by itself, which only a fenced one may.
    pub(crate) async fn look(&mut self) {
        let mut index = 0;
        while index < self.replaced.len() {
            if self.replaced[index].is_running() {
                index += 1;
            } else {
                let processor = self.replaced.remove(index);
                self.ended(processor, &[Some(FENCED)]).await;
            }
        }
        let ended = self.processor.take_if(|processor| !processor.is_running());
        if let Some(processor) = ended {
            self.ended(processor, &[Some(FENCED)]).await;
            sleep(RESTART_AFTER).await;
            self.start();
        }
    }

    /// Drains it, and whoever was replaced.
    pub(crate) async fn drain(mut self) {
        let replaced = std::mem::take(&mut self.replaced);
        let processors: Vec<_> = self.processor.take().into_iter().chain(replaced).collect();
        for processor in &processors {
            processor.signal("-TERM");
        }
        for processor in processors {
            self.ended(processor, &[Some(0), Some(FENCED)]).await;
        }
    }

    /// Waits for the end, and keeps the log.
    async fn ended(&self, mut processor: Processor, allowed: &[Option<i32>]) {
        let slot = self.slot;
        let code = processor.exit_code(ENDS_WITHIN).await;
        match code {
            Some(FENCED) => self
                .journal
                .count("fenced", &format!("instance {slot}: ended as fenced")),
            _ => self
                .journal
                .tell(&format!("instance {slot}: ended with {code:?}")),
        }
        let lines = processor.lines().all();
        if !allowed.contains(&code) {
            let last = lines.last().cloned().unwrap_or_default();
            let what = format!("instance {slot} ended with {code:?}: {last}");
            self.journal.fail(what);
        }
        let number = self.journal.number("logs");
        let file = self.logs.join(format!("instance-{slot}-end-{number}.log"));
        fs::write(file, lines.join("\n")).expect("the log is kept");
    }
}
