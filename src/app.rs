//! Builds every part from the settings, runs them, and ends them in order.

#[cfg(test)]
mod captured;
mod drift;
mod observe;
mod reload;
mod services;
mod traces;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Settings;
use crate::drift::Monitor;
use crate::kafka::topics::{self, Topics, TopicsError, WantedTopics};
use crate::kafka::wire::{Cluster, MembershipError};
use crate::kafka::{DriverChoice, Membership};
use crate::llm::{AnswerSchema, Hold, HttpTransport, LlmMetrics, Setup, VllmClient};
use crate::offsets::mirror;
use crate::pipeline::{
    self, Asking, Assignment, CommitOffsets, Ownership, PipelineEnd, PipelineMetrics,
};
use crate::retry::Backoff;
use crate::telemetry::holds::Holds;
use crate::telemetry::logging::Losses;
use crate::telemetry::registry::new_registry;
use crate::telemetry::server::AdminSources;
use crate::telemetry::status::{RunState, Summary};
use crate::telemetry::traces::{TraceMetrics, Traces};
use crate::telemetry::{AdminServer, Health, Metrics, PauseSwitch, StatusBoard};
use crate::types::error_chain;

use self::observe::Observer;
use self::services::SinkLayer;
pub use reload::{ReloadError, Reloader};

const RETRY_INITIAL: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(2);
/// What cannot be used is told within five seconds.
const PREFLIGHT_MAX: Duration = Duration::from_millis(4_500);
/// How often the input topics are looked at for partitions that were added.
const NEW_PARTITIONS_EVERY: Duration = Duration::from_secs(10);
/// How long the last copy of the offsets may take when the process ends.
const MIRROR_GRACE: Duration = Duration::from_secs(2);

/// How a run ended; the exit code follows from it.
#[derive(Debug)]
pub enum RunEnd {
    /// Everything in flight is finished and committed: exit code 0.
    Drained,
    /// It could not start, or an invariant is broken: exit code 1.
    Failed(anyhow::Error),
    /// The drain deadline passed: exit code 2.
    DeadlinePassed {
        /// Partitions that were not through.
        partitions: usize,
    },
    /// Another instance owns a partition: exit code 3.
    Fenced(String),
}

impl RunEnd {
    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Drained => 0,
            Self::Failed(_) => 1,
            Self::DeadlinePassed { .. } => 2,
            Self::Fenced(_) => 3,
        }
    }
}

/// A process that is built and not yet running.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    /// Names this run of the process.
    instance: String,
    driver: DriverChoice,
    asking: Asking,
    /// What answers must look like: SHA-256 of it, and the text that templates see.
    schema_hash: Option<String>,
    schema_text: Option<String>,
    client: Arc<VllmClient>,
    cluster: Cluster,
    health: Health,
    board: StatusBoard,
    holds: Holds,
    pipeline_metrics: PipelineMetrics,
    drift: Option<Monitor>,
    pause: PauseSwitch,
    traces: Option<Traces>,
    admin: Option<AdminServer>,
    sink_layer: SinkLayer,
    shutdown: CancellationToken,
}

impl App {
    /// Builds every part and starts the admin server. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When a setting, a template, a file or the admin server's address is of no use. Nothing that a server says is among them.
    pub fn build(settings: Settings) -> anyhow::Result<Self> {
        Self::build_with(settings, &Losses::default())
    }

    /// [`build`](Self::build), with the lines of the log that are lost among its metrics.
    ///
    /// # Errors
    /// The same.
    pub fn build_with(settings: Settings, log: &Losses) -> anyhow::Result<Self> {
        settings.check()?;
        let shutdown = CancellationToken::new();
        let mut registry = new_registry();
        log.register(&mut registry);
        let board = StatusBoard::new(&mut registry);
        board.endings().keep_payloads(settings.admin.show_payloads);
        let pipeline_metrics = PipelineMetrics::new(&mut registry);
        let llm_metrics = LlmMetrics::new(&mut registry);
        let trace_metrics = TraceMetrics::new(&mut registry);
        let setting = |error: &dyn std::error::Error| {
            anyhow::Error::msg(settings.origins.named_in(error_chain(error)))
        };
        let schema = AnswerSchema::load(&settings.llm).map_err(|error| setting(&error))?;
        let drift = drift::monitor(&settings.drift, schema.as_ref(), &mut registry);
        let schema_text = schema.as_ref().map(|schema| schema.text().to_owned());
        let inputs = &settings.input.topics;
        let input_topics = pipeline::Topics::load(inputs, &settings.prompt, schema_text.as_deref())
            .map_err(|error| setting(&error))?;
        let transport = HttpTransport::new(&settings.llm).map_err(|error| setting(&error))?;
        let transport = Arc::new(transport);
        let schema_hash = schema
            .as_ref()
            .map(|schema| schema.schema_hash().to_owned());
        let setup = Setup {
            llm: settings.llm.clone(),
            long: settings.long_documents.clone(),
            schema: schema.map(Arc::new),
        };
        let client = VllmClient::new(setup, transport, llm_metrics, &shutdown)
            .map_err(|error| setting(&error))?;
        for input in inputs {
            client.expect(input_topics.prompt(&input.name));
        }
        let client = Arc::new(client);
        let health = Health::new();
        let pause = PauseSwitch::new(board.clone(), {
            let client = Arc::clone(&client);
            move |paused| client.set_paused(paused)
        });
        let sources = AdminSources {
            metrics: Metrics::new(registry),
            health: health.clone(),
            status: board.clone(),
            pause: pause.clone(),
        };
        let instance = instance_name();
        let traces = traces::start(&settings, &instance, trace_metrics)?;
        let admin = AdminServer::start(&settings.admin, sources, shutdown.child_token())?;
        let cluster = Cluster::new(&settings.kafka);
        let holds = Holds::new(board.clone());
        let driver = settings.driver().map_err(anyhow::Error::msg)?;
        let settings_generation = settings.generation();
        Ok(Self {
            settings,
            instance,
            driver,
            asking: Asking::new(input_topics, settings_generation),
            schema_hash,
            schema_text,
            client,
            cluster,
            health,
            board,
            holds,
            pipeline_metrics,
            drift,
            pause,
            traces,
            admin,
            sink_layer: SinkLayer::default(),
            shutdown,
        })
    }

    /// Where the admin server listens; `None` when it is off.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(AdminServer::local_addr)
    }

    /// Changes what can change while it runs.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader {
            settings: self.settings.clone(),
            asking: self.asking.clone(),
            schema_text: self.schema_text.clone(),
            client: Arc::clone(&self.client),
            board: self.board.clone(),
        }
    }

    /// What is shown while it runs.
    #[must_use]
    pub fn board(&self) -> StatusBoard {
        self.board.clone()
    }

    /// Works until `drain` is cancelled and what is in flight is through, or until it cannot go on. With `fail_fast`, a server that cannot be
    /// used at start ends it.
    ///
    /// # Cancel safety
    /// Dropping it drops all work; what was not committed is done again after the restart.
    pub async fn run(self, drain: CancellationToken, fail_fast: bool) -> (RunEnd, Summary) {
        let board = self.board.clone();
        let topics_latch = self.health.latch("topics");
        let partitions_latch = self.health.latch("partitions");
        let mut helpers = JoinSet::new();
        helpers.spawn({
            let (health, shutdown) = (self.health.clone(), self.shutdown.clone());
            async move { health.beat(shutdown).await }
        });
        helpers.spawn(self.pause.clone().remind());
        helpers.spawn(show_holds(Arc::clone(&self.client), board.clone()));
        let observer = Observer {
            client: Arc::clone(&self.client),
            open: self.pipeline_metrics.open(),
            drift: self.drift.clone(),
            board: board.clone(),
            stall_after: self.settings.stall_after(),
        };
        helpers.spawn(observer.run());
        self.describe_start();

        let end = match self.start(&drain, fail_fast).await {
            Ok(Some(topics)) => {
                topics_latch.release();
                // On the heap: it is most of what a caller would hold.
                Box::pin(self.work(topics, partitions_latch, drain)).await
            }
            Ok(None) => RunEnd::Drained,
            Err(error) => RunEnd::Failed(error),
        };
        board.set_state(RunState::Stopped);
        let summary = board.summary();
        self.shutdown.cancel();
        helpers.shutdown().await;
        if let Some(traces) = self.traces {
            traces.end().await;
        }
        if let Some(admin) = self.admin {
            admin.stop().await;
        }
        (end, summary)
    }

    fn describe_start(&self) {
        let settings = &self.settings;
        let guarantee = settings.processing.guarantee.to_string();
        let driver = self.driver.driver.to_string();
        let assignment = settings.input.assignment.to_string();
        self.board.set_info("instance", self.instance.clone());
        self.board.set_info("assignment", assignment.clone());
        self.board.set_info("driver", driver.clone());
        self.board.set_info("guarantee", guarantee.clone());
        self.board
            .set_info("group_id", settings.kafka.group_id.clone());
        self.board.set_info("model", settings.llm.model.clone());
        self.board.set_info("llm_url", settings.llm.url.clone());
        self.board.set_info("generation", settings.generation());
        if let Some(admin) = &self.admin {
            self.board.set_info("admin", admin.local_addr().to_string());
        }
        tracing::info!(
            brokers = settings.kafka.brokers,
            group_id = settings.kafka.group_id,
            llm_url = settings.llm.url,
            model = settings.llm.model,
            concurrency = %settings.llm.concurrency,
            order = ?settings.pipeline.order,
            assignment,
            instance = self.instance,
            driver,
            driver_because_of = self.driver.reason,
            guarantee,
            "starting"
        );
    }

    /// Waits for Kafka and makes sure of the topics; `None` when the drain came first.
    async fn start(
        &self,
        drain: &CancellationToken,
        fail_fast: bool,
    ) -> anyhow::Result<Option<Topics>> {
        if fail_fast {
            tokio::select! {
                biased;
                () = drain.cancelled() => return Ok(None),
                usable = preflight(&self.settings) => usable?,
            }
        }
        let wanted = wanted_topics(&self.settings);
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_CAP);
        loop {
            let ensured = tokio::select! {
                biased;
                () = drain.cancelled() => return Ok(None),
                ensured = topics::ensure(&self.cluster, &wanted) => ensured,
            };
            match ensured {
                Ok(topics) => {
                    self.holds.release("kafka");
                    return Ok(Some(topics));
                }
                Err(error) if error.is_final() || fail_fast => return Err(error.into()),
                Err(TopicsError::Kafka(error)) => self.holds.hold("kafka", &error.to_string()),
                Err(error) => return Err(error.into()),
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return Ok(None),
                () = sleep(backoff.next_delay()) => {}
            }
        }
    }

    async fn work(
        &self,
        topics: Topics,
        owned: crate::telemetry::Latch,
        drain: CancellationToken,
    ) -> RunEnd {
        let partitions = match self.partitions(&topics) {
            Ok(partitions) => partitions,
            Err(error) => return RunEnd::Failed(error),
        };
        let (ownership, member) = match self.settings.input.assignment {
            Assignment::All => (Ownership::All, None),
            Assignment::Static => (Ownership::Static, None),
            Assignment::Group => {
                let member = Arc::new(self.group_member(&topics));
                let membership = Arc::clone(&member) as Arc<dyn Membership>;
                (Ownership::Group(membership), Some(member))
            }
        };
        let commit_offsets = CommitOffsets::default();
        let services = self.services(&topics, &partitions, commit_offsets.clone());
        let services = Arc::new(services);

        let mut membership = JoinSet::new();
        let leave = CancellationToken::new();
        if let Some(member) = &member {
            membership.spawn(Arc::clone(member).run(leave.clone()));
        }
        let mut mirroring = JoinSet::new();
        let stop_mirror = CancellationToken::new();
        mirroring.spawn(mirror(
            self.cluster.clone(),
            self.settings.kafka.group_id.clone(),
            move || member.as_ref().and_then(|member| member.identity()),
            move || commit_offsets.snapshot(),
            stop_mirror.clone(),
        ));
        let mut watching = JoinSet::new();
        watching.spawn(tell_new_partitions(
            self.cluster.clone(),
            topics.inputs,
            self.holds.clone(),
        ));
        let drain_timeout = self.settings.pipeline.drain_timeout;
        let end = tokio::select! {
            biased;
            Some(ended) = membership.join_next() => return lost_for_good(ended),
            end = pipeline::run(services, ownership, partitions, owned, drain, drain_timeout) => end,
        };
        stop_mirror.cancel();
        // Only an orderly end takes the time for a last copy.
        if end == PipelineEnd::Drained
            && timeout(MIRROR_GRACE, mirroring.join_next()).await.is_err()
        {
            tracing::debug!("the last copy of the group's offsets was given up");
        }
        // After the copy, which only a member may write. It has a deadline of its own.
        leave.cancel();
        while membership.join_next().await.is_some() {}
        match end {
            PipelineEnd::Drained => RunEnd::Drained,
            PipelineEnd::DeadlinePassed { partitions } => RunEnd::DeadlinePassed { partitions },
            PipelineEnd::Fenced { detail } => RunEnd::Fenced(detail),
            PipelineEnd::Broken { detail } => RunEnd::Failed(anyhow::anyhow!(detail)),
        }
    }
}

/// Tells of input topics that have more partitions than at the start: what lies in them is read after a restart only.
///
/// # Cancel safety
/// Safe: it only looks.
async fn tell_new_partitions(cluster: Cluster, inputs: Vec<(String, Uuid, i32)>, holds: Holds) {
    let names: Vec<_> = inputs.iter().map(|(topic, ..)| topic.as_str()).collect();
    loop {
        sleep(NEW_PARTITIONS_EVERY).await;
        // Where Kafka cannot be asked the partitions tell for themselves.
        let Ok(found) = cluster.describe_topics(&names).await else {
            continue;
        };
        for (topic, _, known) in &inputs {
            let now = found.get(topic).and_then(Option::as_ref);
            if let Some(now) = now.filter(|now| now.partitions > *known) {
                holds.hold(
                    &format!("new partitions of {topic}"),
                    &format!(
                        "topic `{topic}` has {} partitions, and had {known} when this instance started: nothing reads the new ones until every instance of kafka.group_id is restarted; with input.start = latest, what they have by then is passed over",
                        now.partitions
                    ),
                );
            }
        }
    }
}

/// The membership's task ends by itself only when another process has our place in the group.
fn lost_for_good(ended: Result<Result<(), MembershipError>, JoinError>) -> RunEnd {
    match ended {
        Ok(Err(error)) => RunEnd::Fenced(error_chain(&error)),
        Ok(Ok(())) => RunEnd::Failed(anyhow::anyhow!("the membership in the group ended")),
        Err(error) => RunEnd::Failed(error.into()),
    }
}

/// Whether the model server can be used, told within seconds: for commands that do not wait.
///
/// # Errors
/// With the setting to change.
///
/// # Cancel safety
/// Safe.
pub async fn preflight(settings: &Settings) -> anyhow::Result<()> {
    let transport = Arc::new(HttpTransport::new(&settings.llm)?);
    let asked = VllmClient::preflight(&settings.llm, transport);
    match timeout(PREFLIGHT_MAX, asked).await {
        Ok(usable) => usable.map(drop).map_err(Into::into),
        Err(_elapsed) => Err(anyhow::anyhow!(
            "{} (LLM_URL) gives no completion of one token within {PREFLIGHT_MAX:?}: it is busy or stuck; without --fail-fast `run` waits",
            settings.llm.url
        )),
    }
}

/// The topics that the settings ask for.
#[must_use]
pub fn wanted_topics(settings: &Settings) -> WantedTopics {
    WantedTopics {
        inputs: settings
            .input
            .topics
            .iter()
            .map(|topic| topic.name.clone())
            .collect(),
        output: settings.output.topic.clone(),
        dead_letters: settings.dead_letters.topic.clone(),
        commits: settings.kafka.commit_topic(),
        audit: settings.audit.enabled.then(|| settings.audit.topic.clone()),
        create: settings.kafka.create_topics,
        replication_factor: settings.kafka.replication_factor,
    }
}

/// Shows on the board what holds the model's side; its log lines are its own.
async fn show_holds(client: Arc<VllmClient>, board: StatusBoard) {
    tokio::join!(
        show(client.holds(), "llm", &board),
        show(client.budget_waits(), "llm budget", &board),
    );
}

async fn show(mut holds: watch::Receiver<Option<Hold>>, name: &'static str, board: &StatusBoard) {
    loop {
        let reason = holds
            .borrow_and_update()
            .as_ref()
            .map(|hold| hold.reason.clone());
        match reason {
            Some(reason) => drop(board.set_hold(name, reason)),
            None => drop(board.clear_hold(name)),
        }
        if holds.changed().await.is_err() {
            return;
        }
    }
}

/// Host and a random part: unique to this run, as a restart must be told from the run before it.
fn instance_name() -> String {
    let host = crate::config::host_name();
    let run = uuid::Uuid::new_v4().simple().to_string();
    let run: String = run.chars().take(8).collect();
    host.map_or_else(|| run.clone(), |host| format!("{host}-{run}"))
}
