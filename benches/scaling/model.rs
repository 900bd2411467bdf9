//! The arithmetic of `docs/scaling.md`: what a load costs Kafka and the processor, each term with the module that makes it so.

/// `pipeline::worker`: a commit of a partition in which nothing moves.
pub(crate) const REFRESH: f64 = 15.0;
/// `pipeline::supervisor`: the look for claims of others, and for the ids of the topics.
const LOOK: f64 = 5.0;
/// `app`: the look for partitions that were added.
const NEW_PARTITIONS: f64 = 10.0;
/// `offsets::mirror`.
const MIRROR: f64 = 5.0;
/// `kafka.heartbeat_interval`.
const HEARTBEAT: f64 = 3.0;
/// `input.fetch_wait`, and the long poll of `kafka::wire::fetcher`.
const POLL: f64 = 0.5;
/// `pipeline::intake`: the wait of a fetch doubles while nothing comes, up to this.
const POLL_IDLE: f64 = 1.5;
/// `kafka::wire::fetcher`: the short poll beside it.
const SIDE: f64 = 0.1;
/// Bytes of one partition in a Fetch of version 12, and in its answer, without records.
const FETCH_ENTRY: f64 = 33.0 + 37.0;
/// What a Fetch and its answer have beside their partitions.
const FETCH_FRAME: f64 = 100.0;
/// rskafka's Fetch of one partition, both ways.
const FETCH_ALONE: f64 = 138.0;
/// What it takes to ask for all partitions and to answer, beside the wait for a document: what comes meanwhile shares a poll. Measured.
const MAIN_PAUSE: f64 = 0.003_5;
/// Bytes of one partition in an answer of Metadata: three numbers, three lists with one replica.
const METADATA_ENTRY: f64 = 26.0;
const METADATA_FRAME: f64 = 170.0;
/// What a record takes beyond its value when it is a batch of its own: its header, its key, its lengths.
const BATCH: f64 = 95.0;
/// What any batch takes beyond its records.
const BATCH_FRAME: f64 = 61.0;
/// A commit record without ranges, its key and its lengths, not packed.
const COMMIT_RECORD: f64 = 213.0;
/// The marker that ends a transaction in each partition that it wrote to.
const MARKER: f64 = 78.0;
/// `offsets::log`: commit partitions that an instance reads at the same time.
const READING: f64 = 32.0;
/// Metadata that a start asks for before anything is claimed: half of it names the input topic.
const START_METADATA: f64 = 4.0;
/// Looks for each wave of [`READING`] partitions in a take-over, and how often they ask for the ids of the input topic and of the commit topic.
/// Measured: who asks at the same time shares, and not all do.
const WAVE_LOOKS: f64 = 1.5;
const WAVE_INPUT_IDS: f64 = 1.5;
const WAVE_COMMIT_IDS: f64 = 1.0;
/// Looks for each step of a take-over that all partitions of an instance do at the same time, when there are as many. Measured.
const SHARED_LOOKS: f64 = 2.5;
/// `kafka::wire::pool`: the bursts of the two lanes in which a round of flushes, or a take-over, goes out; the polls are beside them.
const BURST: f64 = 62.0;

/// `kafka::driver`: whether `auto` takes the own client to read.
pub(crate) fn is_wire(exactly_once: bool, partitions: f64) -> bool {
    exactly_once || partitions > 256.0
}

/// What is worked on, and by whom. Counts and rates are of the whole group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) partitions: f64,
    pub(crate) commit_partitions: f64,
    pub(crate) instances: f64,
    pub(crate) brokers: f64,
    /// Documents a second.
    pub(crate) documents: f64,
    pub(crate) exactly_once: bool,
    /// Whether the own driver reads, which exactly once needs.
    pub(crate) is_wire: bool,
    /// Bytes of a document.
    pub(crate) document_bytes: f64,
    /// Whether `input.assignment = group`. Otherwise the group is claimed as a whole, and there are no heartbeats.
    pub(crate) is_group: bool,
    /// `processing.commit_interval_ms`, in seconds.
    pub(crate) interval: f64,
    /// Seconds that a flush takes.
    pub(crate) flush: f64,
    /// Seconds of a request that does not wait.
    pub(crate) round_trip: f64,
    /// Seconds after which an idle partition commits; infinite where what is looked at ends before the first time.
    pub(crate) refresh: f64,
    /// Refreshes a second that come all the same, as the first partitions were taken over long before the last.
    pub(crate) early_refreshes: f64,
}

/// Events a second over the whole cluster, unless it says otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) flushes: f64,
    pub(crate) fetches: f64,
    /// Bytes of Fetch both ways.
    pub(crate) fetch_bytes: f64,
    /// Of them, those that are documents.
    pub(crate) document_bytes: f64,
    pub(crate) produces: f64,
    /// Transactions: each is one AddPartitionsToTxn and one EndTxn at its coordinator.
    pub(crate) transactions: f64,
    pub(crate) list_offsets: f64,
    /// Each answer names all partitions.
    pub(crate) metadata: f64,
    pub(crate) mirrors: f64,
    pub(crate) heartbeats: f64,
    /// Bytes that the commit topic grows by.
    pub(crate) commit_bytes: f64,
}

/// The mean wait for the next of events that come by chance, at most `longest`.
fn wait(rate: f64, longest: f64) -> f64 {
    if rate * longest < 1e-9 {
        longest
    } else {
        -(-rate * longest).exp_m1() / rate
    }
}

/// How many polls of one partition a second are ended by a document or a wait that grows from [`POLL`] to [`POLL_IDLE`] while nothing comes.
/// The waits end 0.5, 1.5, 3, 4.5, … s after a document, and are reached when none came before.
fn polls_alone(rate: f64) -> f64 {
    if rate * POLL_IDLE < 1e-9 {
        return 1.0 / POLL_IDLE;
    }
    let none_within = |seconds: f64| (-rate * seconds).exp();
    let long_waits = none_within(3.0 * POLL) / -(-rate * POLL_IDLE).exp_m1();
    rate * (1.0 + none_within(POLL) + long_waits)
}

/// How many of `places` are hit by `throws`.
fn hit(places: f64, throws: f64) -> f64 {
    places * (1.0 - (1.0 - 1.0 / places).powf(throws))
}

impl Load {
    pub(crate) fn cost(&self) -> Cost {
        let per_partition = self.documents / self.partitions;
        let flushes = self.flushes_of_a_partition() * self.partitions + self.early_refreshes;
        let of_a_flush = if flushes > 0.0 {
            self.documents / flushes
        } else {
            0.0
        };
        let lanes = hit(self.partitions, of_a_flush);
        let (fetches, fetch_bytes) = self.fetches(per_partition);
        let marker = if self.exactly_once { MARKER } else { 0.0 };
        let commit_bytes = flushes * (BATCH_FRAME + COMMIT_RECORD + marker);
        let looks = self.instances / LOOK;
        // `pipeline::claims`: where the commit partitions end, in two ListOffsets for each broker, and a Fetch of each that was written to
        // since. Exactly once only the claim on the group is looked at.
        let watched = if !self.exactly_once {
            self.commit_partitions_of_an_instance()
        } else if self.is_group {
            0.0
        } else {
            1.0
        };
        let written = flushes / self.commit_partitions * LOOK;
        let claim_fetches = looks * watched * -(-written).exp_m1();
        let claim_bytes = self.instances * watched * commit_bytes / self.commit_partitions;
        let produces = if self.exactly_once {
            flushes * hit(self.brokers, lanes + 1.0)
        } else {
            flushes * (hit(self.brokers, lanes) + 1.0)
        };
        let document_bytes = self.documents * (self.document_bytes + BATCH);
        Cost {
            flushes,
            fetches: fetches + claim_fetches,
            fetch_bytes: fetch_bytes + claim_bytes + FETCH_ALONE * claim_fetches + document_bytes,
            document_bytes,
            produces,
            transactions: if self.exactly_once { flushes } else { 0.0 },
            list_offsets: 2.0 * looks * hit(self.brokers, watched),
            // The ids of the input topic and of the commit topic.
            metadata: looks + looks * watched.min(1.0) + self.instances / NEW_PARTITIONS,
            mirrors: self.instances / MIRROR,
            heartbeats: if self.is_group {
                self.instances / HEARTBEAT
            } else {
                0.0
            },
            commit_bytes,
        }
    }

    /// Commit partitions in which an instance has commits: partitions are dealt out in turn.
    fn commit_partitions_of_an_instance(&self) -> f64 {
        let named = self.partitions / self.instances;
        let dealt = self.commit_partitions / self.instances;
        dealt.max(1.0).min(named)
    }

    /// `pipeline::worker::flush_due_at`: a flush follows the last one after the interval, when the next answer is there, or after the
    /// refresh. That it need not wait where nothing else is on its way counts for little.
    pub(crate) fn flushes_of_a_partition(&self) -> f64 {
        let rate = self.documents / self.partitions;
        let pause = self.flush + self.interval;
        let refresh = (self.refresh - pause).max(0.0);
        let next = if self.refresh.is_finite() {
            wait(rate, refresh)
        } else if rate > 0.0 {
            1.0 / rate
        } else {
            return 0.0;
        };
        1.0 / (pause + (-rate * pause).exp() * next)
    }

    /// Requests, and bytes without records.
    fn fetches(&self, per_partition: f64) -> (f64, f64) {
        if !self.is_wire {
            // `kafka::rskafka::fetch`: each partition polls for itself.
            let fetches = self.partitions / (self.round_trip + 1.0 / polls_alone(per_partition));
            return (fetches, fetches * FETCH_ALONE);
        }
        // `kafka::wire::fetcher`: each instance polls each broker for all of its partitions; the first document ends a poll.
        let pairs = self.instances * self.brokers;
        let rate = self.documents / pairs;
        let named = self.partitions / pairs;
        let polls = 1.0 / (self.round_trip + wait(rate, POLL));
        if named <= 1.0 {
            return (pairs * polls, pairs * polls * (FETCH_ENTRY + FETCH_FRAME));
        }
        // Whose document has ended a poll is asked for in a second one beside it, short polls one after the other, until a long poll brings
        // nothing: then the two are one again.
        let all = 1.0 / (MAIN_PAUSE + wait(rate, POLL));
        let apart = -(-rate * POLL).exp_m1();
        let total = (1.0 - apart) / POLL + apart * (polls + 1.0 / SIDE);
        let bytes = all * (named * FETCH_ENTRY + FETCH_FRAME)
            + (total - all).max(0.0) * (1.0 * FETCH_ENTRY + FETCH_FRAME);
        (pairs * total, pairs * bytes)
    }

    /// Connections that stay open, of all brokers together.
    pub(crate) fn connections(&self) -> f64 {
        // `kafka::rskafka`: one for each partition, and one to begin with.
        let reading = if self.is_wire {
            0.0
        } else {
            self.partitions + self.instances
        };
        reading + self.instances * self.own()
    }

    /// `kafka::wire::pool`: as many to each broker as a round of flushes needs at once.
    fn own(&self) -> f64 {
        let named = self.partitions / self.instances;
        self.brokers * (named / self.brokers).clamp(2.0, BURST)
    }

    /// What it takes to begin: all partitions once.
    pub(crate) fn take_over(&self, commit_log_bytes: f64) -> TakeOver {
        let claims = self.partitions + if self.is_group { 0.0 } else { 1.0 };
        let named = self.partitions / self.instances;
        let watched = self.commit_partitions_of_an_instance();
        // `kafka::rskafka`: where the input ends, twice, and the stream.
        let dials = if self.is_wire {
            0.0
        } else {
            3.0 * self.partitions
        };
        let input_bounds = if self.is_wire {
            0.0
        } else {
            4.0 * self.partitions
        };
        // `kafka::wire::look`: who asks at the same time shares a look. At the first step of a take-over all do; at each further one there are
        // looks for those that come first and for those that came meanwhile, and some for each wave of requests that do not share.
        let shared = |steps: f64| steps * named.min(SHARED_LOOKS);
        let waves = (named / READING).floor();
        // The claim on the group: a sample, what was claimed before, whether the claim holds, and the first look of the watch.
        let group = if self.is_group { 0.0 } else { 4.0 };
        // Loads before and after the fence, whether the claims hold; on the own driver where the input ends, twice.
        let loads = if self.is_group { 2.0 } else { 3.0 };
        let bounds = if self.is_wire { 2.0 } else { 0.0 };
        let looks = group + 1.0 + shared(loads + bounds) + WAVE_LOOKS * waves;
        // Each reading of the commits looks at the topic's id, the first one twice; and the input's id is asked for once.
        let ids = group + 1.0 + shared(loads) + 1.0;
        let input_ids = shared(2.0) + WAVE_INPUT_IDS * waves;
        let metadata_of_input = self.instances * (START_METADATA / 2.0 + input_ids);
        let metadata_of_commits =
            self.instances * (START_METADATA / 2.0 + ids + WAVE_COMMIT_IDS * waves);
        let input_bytes = self.partitions * METADATA_ENTRY + METADATA_FRAME;
        let commit_bytes = self.commit_partitions * METADATA_ENTRY + METADATA_FRAME;
        TakeOver {
            list_offsets: input_bounds + 2.0 * looks * self.instances * hit(self.brokers, named),
            metadata: dials + metadata_of_input + metadata_of_commits,
            metadata_bytes: (dials + metadata_of_input) * input_bytes
                + metadata_of_commits * commit_bytes,
            fences: claims,
            connections: dials + self.instances * self.own(),
            // `offsets::log`: each commit partition once.
            read_bytes: self.instances * watched * commit_log_bytes / self.commit_partitions,
        }
    }
}

/// What all take-overs of a start come to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TakeOver {
    pub(crate) list_offsets: f64,
    pub(crate) metadata: f64,
    pub(crate) metadata_bytes: f64,
    /// InitProducerId, exactly once each with a look for its coordinator.
    pub(crate) fences: f64,
    /// Connections that are opened.
    pub(crate) connections: f64,
    /// Bytes of the commit topic that are read.
    pub(crate) read_bytes: f64,
}
