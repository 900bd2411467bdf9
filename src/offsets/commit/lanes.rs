//! What a flush has to write, by where it goes.

use std::collections::{BTreeMap, VecDeque};

use super::{FlushObserver, Output};
use crate::kafka::{BATCH_BYTES_MAX, Batch};
use crate::types::TopicPartition;

/// Most records of one appended batch.
const BATCH_RECORDS_MAX: usize = 1_000;

/// Outputs by the partition they go to, each lane in order.
pub(super) struct Lanes {
    lanes: BTreeMap<TopicPartition, Lane>,
    /// What was written instead of outputs that were too large.
    replaced: Vec<Output>,
}

struct Lane {
    waiting: VecDeque<Output>,
    records_max: usize,
    /// The size of the batch at the head whose outcome is unknown: it has to go out again as it was.
    unresolved: usize,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            records_max: BATCH_RECORDS_MAX,
            unresolved: 0,
        }
    }
}

impl Lanes {
    pub(super) fn new(outputs: Vec<Output>) -> Self {
        let mut lanes = Self {
            lanes: BTreeMap::new(),
            replaced: Vec::new(),
        };
        lanes.extend(outputs);
        lanes
    }

    /// Adds outputs behind those that are there.
    pub(super) fn extend(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let lane = self.lanes.entry(output.to.clone()).or_default();
            lane.waiting.push_back(output);
        }
    }

    /// What was written instead of outputs that were too large; of one source the last counts.
    pub(super) fn replaced(&self) -> &[Output] {
        &self.replaced
    }

    pub(super) fn into_replaced(self) -> Vec<Output> {
        self.replaced
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// The head of each lane, as much as one batch takes, and at least one record.
    pub(super) fn next_batches(&self) -> Vec<Batch> {
        let heads = self.lanes.iter().map(|(to, lane)| {
            let mut bytes = 0;
            let fits = lane
                .waiting
                .iter()
                .take(lane.records_max)
                .take_while(|output| {
                    bytes += output.record.size();
                    bytes <= BATCH_BYTES_MAX
                });
            let count = match lane.unresolved {
                0 => fits.count().max(1),
                unresolved => unresolved,
            };
            let records = lane
                .waiting
                .iter()
                .take(count)
                .map(|output| output.record.clone())
                .collect();
            Batch {
                to: to.clone(),
                records,
            }
        });
        heads.collect()
    }

    pub(super) fn acknowledged(&mut self, to: &TopicPartition, count: usize) {
        if let Some(lane) = self.lanes.get_mut(to) {
            lane.waiting.drain(..count.min(lane.waiting.len()));
            lane.records_max = BATCH_RECORDS_MAX;
            lane.unresolved = 0;
            if lane.waiting.is_empty() {
                self.lanes.remove(to);
            }
        }
    }

    pub(super) fn unresolved(&mut self, to: &TopicPartition, count: usize) {
        if let Some(lane) = self.lanes.get_mut(to) {
            lane.unresolved = count;
        }
    }

    /// A batch was refused for its size: halve it, or replace its only record. False when nothing smaller can be made, as of a commit
    /// record, which has no lane.
    pub(super) fn make_smaller(
        &mut self,
        to: &TopicPartition,
        count: usize,
        shrink: &(dyn Fn(Output) -> Option<Output> + Sync),
        observer: &dyn FlushObserver,
    ) -> bool {
        let Some(lane) = self.lanes.get_mut(to) else {
            return false;
        };
        // What is too large now was not written before.
        lane.unresolved = 0;
        if count > 1 {
            lane.records_max = (count / 2).max(1);
            return true;
        }
        let Some(output) = lane.waiting.pop_front() else {
            return true;
        };
        let source = output.source;
        let smaller = shrink(output.clone());
        observer.too_large(source, smaller.is_some());
        self.replaced.extend(smaller.clone());
        match smaller {
            // It may go elsewhere; where it goes on in the same lane it keeps its turn.
            Some(smaller) if smaller.to == *to => lane.waiting.push_front(smaller),
            Some(smaller) => {
                if lane.waiting.is_empty() {
                    self.lanes.remove(to);
                }
                let other = self.lanes.entry(smaller.to.clone()).or_default();
                // Never into a batch whose outcome is unknown.
                other.waiting.insert(other.unresolved, smaller);
            }
            None => {
                lane.waiting.push_front(output);
                return false;
            }
        }
        true
    }
}
