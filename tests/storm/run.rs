//! A storm from its first document to its books.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use kafka_llm_processor::kafka::KafkaConfig;
use kafka_llm_processor::kafka::wire::{Cluster, Isolation, NewTopic, OffsetAt};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::TopicPartition;
use tokio::time::{Instant, sleep};

use crate::books::Balance;
use crate::brokers::Brokers;
use crate::documents;
use crate::foreign;
use crate::instance::Instance;
use crate::journal::Journal;
use crate::plan::Plan;
use crate::scenario::{Guarantee, PARTITIONS, Scenario};
use crate::summary::Summary;
use crate::support::eventually;
use crate::watch::Watch;

/// How long the model takes: a storm is about the rest.
const LATENCY: Duration = Duration::from_millis(5);
/// From the end of the storm until everything is finished: the last session ends, the last outage is over, and the rest is done.
const FINISHED_WITHIN: Duration = Duration::from_secs(120);
/// The group's offsets are mirrored every 5 s.
const MIRRORED_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);
const CREATED_WITHIN: Duration = Duration::from_secs(60);
/// Storms that last no longer prove at their end that their books would have noticed.
const PROVEN_UP_TO: Duration = Duration::from_secs(60);

pub(crate) struct Run {
    scenario: Scenario,
    tools: PathBuf,
    addresses: String,
    cluster: Cluster,
    vllm: Vllm,
}

impl Run {
    pub(crate) async fn through(scenario: Scenario, tools: PathBuf) -> Summary {
        let folder = scenario.folder();
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("an earlier storm's logs are removed");
        }
        fs::create_dir_all(&folder).expect("a folder for the logs");
        let brokers = Brokers::start(&tools, scenario.brokers).await;
        let addresses = brokers.addresses();
        let vllm = Vllm::start(VllmConfig {
            latency: Latency::fixed(LATENCY),
            ..VllmConfig::default()
        });
        let run = Self {
            tools,
            cluster: Cluster::new(&KafkaConfig {
                brokers: addresses.clone(),
                ..KafkaConfig::default()
            }),
            addresses,
            vllm: vllm.await.expect("the simulated vLLM"),
            scenario,
        };
        run.create_topics().await;
        run.storm(brokers).await
    }

    /// All but the commits', which is made with the right configuration by whoever needs it. On a cluster the results' leaders are asked
    /// for early.
    async fn create_topics(&self) {
        let scenario = &self.scenario;
        for name in [
            scenario.input(),
            scenario.results(),
            scenario.dead_letters(),
        ] {
            let topic = NewTopic {
                name: name.clone(),
                partitions: PARTITIONS,
                replication_factor: -1,
                configs: [("retention.ms".to_owned(), "-1".to_owned())].into(),
            };
            // Three brokers that have just begun know each other a moment later.
            eventually(&format!("{name} is created"), CREATED_WITHIN, async || {
                self.cluster.create_topic(&topic).await.ok()
            })
            .await;
        }
    }

    async fn storm(self, brokers: Brokers) -> Summary {
        let scenario = &self.scenario;
        let plan = Plan::of(scenario);
        let watch = Watch::new(&self.addresses, scenario);
        let journal = Journal::new();
        let url = self.vllm.url();
        let instances = plan.instances.iter().enumerate().map(|(slot, steps)| {
            let mut instance = Instance::new(scenario, slot, &self.addresses, &url, &journal);
            if slot < scenario.instances {
                instance.start();
            }
            instance.weather(steps)
        });
        let results = scenario.results();
        let (instances, brokers, ()) = tokio::join!(
            join_all(instances),
            brokers.weather(&journal, &plan.brokers, &results),
            documents::append(&self.addresses, scenario, journal.began()),
        );
        journal.tell("the storm is over");
        let instances = self.finish(instances, &watch, &journal).await;
        let recoveries = watch.recoveries(&journal.restarts());
        drop(watch);
        join_all(instances.into_iter().map(Instance::drain)).await;
        let calls = self.vllm.calls();
        let balance = self.balance().await;
        if scenario.lasts <= PROVEN_UP_TO {
            self.prove_that_books_can_fail(&balance).await;
        }
        drop(brokers);
        Summary::new(scenario, &balance, &journal, &recoveries, calls)
    }

    /// Leaves the instances alone until everything is finished, and the group's offsets say so.
    async fn finish(
        &self,
        mut instances: Vec<Instance>,
        watch: &Watch,
        journal: &Journal,
    ) -> Vec<Instance> {
        let ends = self.ends().await;
        let documents = ends.iter().sum::<i64>();
        let documents = usize::try_from(documents).expect("a count");
        let deadline = Instant::now() + FINISHED_WITHIN;
        while watch.finished() < documents && Instant::now() < deadline {
            for instance in &mut instances {
                instance.look().await;
            }
            sleep(LOOK).await;
        }
        let finished = watch.finished();
        if finished < documents {
            let what = format!("{finished} of {documents} documents after {FINISHED_WITHIN:?}");
            journal.fail(what);
            return instances;
        }
        journal.tell("every document is finished");
        let deadline = Instant::now() + MIRRORED_WITHIN;
        while self.mirrored().await != ends {
            if Instant::now() > deadline {
                let mirrored = self.mirrored().await;
                journal.fail(format!(
                    "the group's offsets are {mirrored:?}, not {ends:?}"
                ));
                break;
            }
            sleep(LOOK).await;
        }
        journal.tell("the group's offsets say so");
        instances
    }

    /// The ends of the input's partitions.
    async fn ends(&self) -> Vec<i64> {
        let mut ends = Vec::new();
        for partition in 0..PARTITIONS {
            let place = TopicPartition::new(self.scenario.input(), partition);
            let end = eventually("the input's end", FINISHED_WITHIN, async || {
                let end =
                    self.cluster
                        .list_offset(&place, OffsetAt::Latest, Isolation::ReadUncommitted);
                end.await.ok().flatten()
            });
            ends.push(end.await.value());
        }
        ends
    }

    /// The group's offsets, −1 where there is none.
    async fn mirrored(&self) -> Vec<i64> {
        let places: Vec<_> = (0..PARTITIONS)
            .map(|partition| TopicPartition::new(self.scenario.input(), partition))
            .collect();
        let group = self.scenario.group();
        let offsets = self.cluster.fetch_group_offsets(&group).await;
        let offsets = offsets.unwrap_or_default();
        let offset = |place| offsets.get(place).map_or(-1, |offset| offset.value());
        places.iter().map(offset).collect()
    }

    async fn balance(&self) -> Balance {
        let books = foreign::read(&self.tools, &self.addresses, &self.scenario).await;
        books.balance(self.scenario.guarantee, self.scenario.order)
    }

    /// A result that is there again and a document that nobody has seen have to show up in books that are done once more.
    async fn prove_that_books_can_fail(&self, before: &Balance) {
        documents::append_one_more(&self.addresses, &self.scenario).await;
        documents::append_result_again(&self.addresses, &self.scenario).await;
        let after = self.balance().await;
        assert_eq!(after.duplicates, before.duplicates + 1, "a planted repeat");
        assert_eq!(after.documents, before.documents + 1, "a planted document");
        let has = |what: &str| after.failures.iter().any(|failure| failure.contains(what));
        assert!(has("lost, such as"), "a planted loss: {after:?}");
        assert!(has("partition 0 ends at"), "its commit: {after:?}");
        assert!(has("partition 0 has a lag"), "its lag: {after:?}");
        let strict = self.scenario.guarantee == Guarantee::ExactlyOnce;
        assert_eq!(has("finished again"), strict, "a planted repeat: {after:?}");
    }
}
