//! The adapter to the pipeline: the only file that knows how it is started and how it may end.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use kafka_llm_processor::kafka::Membership;
use kafka_llm_processor::llm::{Class, Complete, Prompt, PromptConfig};
use kafka_llm_processor::offsets::{COMMIT_BYTES_MAX, CommitStore, Guarantee};
use kafka_llm_processor::pipeline::{
    self, Asking, CommitOffsets, Destinations, InputConfig, OnDataLoss, Ownership, PipelineEnd,
    PipelineMetrics, ReadAhead, Services, Topics,
};
use kafka_llm_processor::records::dead_letter::HeaderStyle;
use kafka_llm_processor::spans::Spans;
use kafka_llm_processor::telemetry::holds::Holds;
use kafka_llm_processor::telemetry::registry::new_registry;
use kafka_llm_processor::telemetry::{Health, StatusBoard};
use kafka_llm_processor::types::TopicPartition;
use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::group::Member;
use crate::instance::Instance;
use crate::kafka::{KafkaEdge, TOPIC_ID};
use crate::model::Model;
use crate::oracle::{COMMITS, DEAD_LETTERS, INPUT, OUTPUT};
use crate::scenario::{Flavour, Shares};

pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(45);
/// Long, so that an idle processor costs few turns.
const FETCH_WAIT: Duration = Duration::from_secs(5);

static PROMPT: LazyLock<Arc<Prompt>> = LazyLock::new(|| {
    let config = PromptConfig {
        user: Some("{{ content }}".to_owned()),
        ..PromptConfig::default()
    };
    Arc::new(Prompt::new(&config, None).unwrap())
});

/// Runs the pipeline for an instance.
pub async fn run(instance: Arc<Instance>, drain: CancellationToken) -> PipelineEnd {
    let partitions = instance
        .partitions
        .iter()
        .map(|partition| (TopicPartition::new(INPUT, *partition), TOPIC_ID))
        .collect();
    let owned = Health::new().latch("partitions");
    let services = Arc::new(services(&instance));
    let member = Arc::new(Member::new(&instance));
    let shares = instance.world.scenario.shares;
    let ownership = match shares {
        Shares::All => Ownership::All,
        Shares::Disjoint | Shares::Overlapping => Ownership::Static,
        Shares::Group => Ownership::Group(Arc::clone(&member) as Arc<dyn Membership>),
    };
    let work = pipeline::run(services, ownership, partitions, owned, drain, DRAIN_TIMEOUT);
    if shares != Shares::Group {
        return work.await;
    }
    let end = tokio::select! {
        biased;
        end = work => end,
        () = member.stay() => unreachable!("a member stays"),
    };
    member.leave().await;
    end
}

/// The end's name.
pub const fn name_of(end: &PipelineEnd) -> &'static str {
    match end {
        PipelineEnd::Drained => "ended: drained",
        PipelineEnd::DeadlinePassed { .. } => "ended: deadline passed",
        PipelineEnd::Fenced { .. } => "ended: fenced",
        PipelineEnd::Broken { .. } => "ended: broken",
    }
}

/// Whether an instance may end like that. `asked` tells whether it was asked to drain, `overruled` whether somebody else has claimed what the
/// settings gave to it.
pub fn may_end(end: &PipelineEnd, asked: bool, overruled: bool) -> bool {
    match end {
        PipelineEnd::Drained | PipelineEnd::DeadlinePassed { .. } => asked,
        // A broker that ended a transaction, or forgot the writer, is no reason to end: the partition is taken over anew.
        PipelineEnd::Fenced { .. } => overruled,
        PipelineEnd::Broken { .. } => false,
    }
}

fn services(instance: &Arc<Instance>) -> Services {
    let scenario = &instance.world.scenario;
    let kafka = KafkaEdge(Arc::clone(instance));
    let mut registry = new_registry();
    let board = StatusBoard::new(&mut registry);
    let partitions = usize::try_from(scenario.input_partitions).unwrap();
    Services {
        source: Arc::new(kafka.clone()),
        sink: Arc::new(kafka.clone()),
        store: CommitStore::new(Arc::new(kafka), COMMITS, scenario.commit_partitions),
        guarantee: match scenario.flavour {
            Flavour::ExactlyOnce => Guarantee::ExactlyOnce,
            Flavour::Idempotent | Flavour::Plain => Guarantee::AtLeastOnce,
        },
        commit_bytes_max: COMMIT_BYTES_MAX,
        complete: Arc::new(Model::new(instance)) as Arc<dyn Complete>,
        asking: Asking::new(Topics::any(Arc::clone(&PROMPT)), "g"),
        schema_hash: None,
        input: InputConfig {
            fetch_wait: FETCH_WAIT,
            on_data_loss: if instance.world.state().faults_on {
                scenario.on_data_loss
            } else {
                OnDataLoss::Resume
            },
            ..InputConfig::default()
        },
        destinations: Destinations {
            output: OUTPUT.into(),
            output_partitions: scenario.output_partitions,
            partitioner: scenario.partitioner,
            dead_letters: DEAD_LETTERS.into(),
            dead_letter_partitions: 1,
            group_id: "simulation".to_owned(),
            header_style: HeaderStyle::default(),
        },
        audit: scenario.is_audited.then(|| audit::keeper(scenario)),
        order: scenario.order,
        commit_interval: scenario.commit_interval,
        read_ahead: ReadAhead::new(
            scenario.read_ahead_records,
            1 << 20,
            &vec![Class::ONLY; partitions],
        ),
        commit_offsets: CommitOffsets::default(),
        metrics: PipelineMetrics::new(&mut registry),
        holds: Holds::new(board.clone()),
        board,
        drift: None,
        spans: Spans::default(),
        instance: instance.name.clone(),
    }
}
