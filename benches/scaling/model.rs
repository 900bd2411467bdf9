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
/// `kafka::wire::fetcher`: the short poll beside it.
const SIDE: f64 = 0.1;
/// Bytes of one partition in a Fetch of version 12, and in its answer, without records.
const FETCH_ENTRY: f64 = 33.0 + 37.0;
/// What a Fetch and its answer have beside their partitions.
const FETCH_FRAME: f64 = 100.0;
/// rskafka's Fetch of one partition, both ways.
const FETCH_ALONE: f64 = 138.0;
/// The pause between two polls that name all partitions, beside the wait for a document. Measured.
const MAIN_PAUSE: f64 = 0.003_5;
/// Bytes of one partition in an answer of Metadata: three numbers, three lists with one replica.
const METADATA_ENTRY: f64 = 26.0;
const METADATA_FRAME: f64 = 170.0;
/// What a record takes beyond its value when it is a batch of its own: its header, its key, its lengths.
const BATCH: f64 = 95.0;
/// A commit record without ranges as it lies in the log; some 197 bytes of it are its JSON.
const COMMIT_BATCH: f64 = 257.0;
/// The marker that ends a transaction in each partition that it wrote to.
const MARKER: f64 = 78.0;
/// `kafka::wire::pool`: the bursts of the two lanes in which a round of flushes, or a take-over, goes out; the polls are beside them.
const BURST: f64 = 62.0;
/// `pipeline::take_over`: partitions that look at the same time.
const LOOKING: f64 = 32.0;

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
    /// Whether the own driver works, which exactly once needs.
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

/// How many of `places` are hit by `throws`.
fn hit(places: f64, throws: f64) -> f64 {
    places * (1.0 - (1.0 - 1.0 / places).powf(throws))
}

impl Load {
    pub(crate) fn cost(&self) -> Cost {
        let per_partition = self.documents / self.partitions;
        let flushes = self.flushes_of_a_partition() * self.partitions + self.early_refreshes;
        let gathered = if flushes > 0.0 {
            self.documents / flushes
        } else {
            0.0
        };
        let lanes = hit(self.partitions, gathered);
        let (fetches, fetch_bytes) = self.fetches(per_partition);
        let looks = self.instances / LOOK;
        // `pipeline::claims`: two ListOffsets for each claim, and a Fetch where something was written to its partition since.
        let claims = if self.exactly_once {
            0.0
        } else {
            self.partitions / LOOK
        };
        let group_claims = if self.is_group { 0.0 } else { looks };
        let written = flushes / self.commit_partitions * LOOK;
        let claim_fetches = (claims + group_claims) * -(-written).exp_m1();
        let claim_bytes = (claims + group_claims) * written * self.commit_record_bytes();
        let produces = if self.exactly_once {
            flushes * hit(self.brokers, lanes + 1.0)
        } else if self.is_wire {
            flushes * (hit(self.brokers, lanes) + 1.0)
        } else {
            flushes * (lanes + 1.0)
        };
        let document_bytes = self.documents * (self.document_bytes + BATCH);
        Cost {
            flushes,
            fetches: fetches + claim_fetches,
            fetch_bytes: fetch_bytes + claim_bytes + FETCH_ALONE * claim_fetches + document_bytes,
            document_bytes,
            produces,
            transactions: if self.exactly_once { flushes } else { 0.0 },
            list_offsets: 2.0 * (claims + group_claims),
            metadata: looks + self.instances / NEW_PARTITIONS,
            mirrors: self.instances / MIRROR,
            heartbeats: if self.is_group {
                self.instances / HEARTBEAT
            } else {
                0.0
            },
            commit_bytes: flushes * self.commit_record_bytes(),
        }
    }

    fn commit_record_bytes(&self) -> f64 {
        COMMIT_BATCH + if self.exactly_once { MARKER } else { 0.0 }
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
            let fetches = self.partitions / (self.round_trip + wait(per_partition, POLL));
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
        // Streams that began at different times are asked for in two requests side by side: one long, one short. When nothing comes each
        // names about half of them.
        let all = 1.0 / (MAIN_PAUSE + wait(rate, POLL));
        let total = polls + 1.0 / SIDE;
        let few = 1.0 + named / 2.0 * (-rate * POLL).exp();
        let bytes = all * (named * FETCH_ENTRY + FETCH_FRAME)
            + (total - all) * (few * FETCH_ENTRY + FETCH_FRAME);
        (pairs * total, pairs * bytes)
    }

    /// Connections that stay open, of all brokers together, after so many documents.
    pub(crate) fn connections(&self, documents: f64) -> f64 {
        let named = self.partitions / self.instances;
        if self.is_wire {
            // `kafka::wire::pool`: as many to each broker as a round of flushes needs at once.
            return self.instances * self.brokers * (named / self.brokers).clamp(2.0, BURST);
        }
        // `kafka::rskafka`: one for each partition that is read, that is committed to, that results went to. By the hash of the key each
        // instance writes to every output partition in the end.
        let outputs = self.instances * hit(self.partitions, documents / self.instances);
        let own = self.instances * (named.min(LOOKING) + 4.0);
        self.partitions
            + self.partitions.min(self.commit_partitions * self.instances)
            + outputs
            + own
    }

    /// What it takes to begin: all partitions once.
    pub(crate) fn take_over(&self, commit_log_bytes: f64) -> TakeOver {
        let claims = self.partitions + if self.is_group { 0.0 } else { 1.0 };
        // Before and after the fence: where the commit topic ends (4 + 2) and the input (2 + 2), and once more for the claim (2); with a
        // claim on the group, whether that still holds (2).
        let group = if self.is_group { 0.0 } else { 2.0 };
        let named = self.partitions / self.instances;
        let dials = if self.is_wire {
            0.0
        } else {
            4.0 * self.partitions
        };
        // Those that look first, side by side, each ask for the leaders. The claim on the group has done so before.
        let looks = if self.is_group {
            named.min(LOOKING)
        } else {
            0.0
        };
        let metadata = self.partitions + dials + self.instances * (looks + 4.0);
        let own = if self.is_wire {
            self.brokers * (named / self.brokers).clamp(2.0, BURST)
        } else {
            named.min(LOOKING) + 4.0
        };
        TakeOver {
            list_offsets: (12.0 + group) * self.partitions + 6.0 * group,
            metadata,
            metadata_bytes: metadata * (self.partitions * METADATA_ENTRY + METADATA_FRAME),
            fences: if self.exactly_once { claims } else { 0.0 },
            connections: dials + self.instances * own,
            // `offsets::store`: each partition reads the whole of the commit partition that it shares with others. Whoever claims the group
            // reads one for a sample and one for its claim.
            read_bytes: (claims + claims - self.partitions) * commit_log_bytes
                / self.commit_partitions,
        }
    }
}

/// What all take-overs of a start come to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TakeOver {
    pub(crate) list_offsets: f64,
    pub(crate) metadata: f64,
    pub(crate) metadata_bytes: f64,
    /// InitProducerId, each with a look for its coordinator.
    pub(crate) fences: f64,
    /// Connections that are opened.
    pub(crate) connections: f64,
    /// Bytes of the commit topic that are read.
    pub(crate) read_bytes: f64,
}
