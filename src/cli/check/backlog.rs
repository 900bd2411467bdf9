//! How much of the input is unfinished, and whether that grows: two looks, a moment apart.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::PROBE_WITHIN;
use crate::cli::offsets::OffsetsError;
use crate::cli::offsets::look::{Found, look as look_once};
use crate::config::Settings;
use crate::kafka::wire::Cluster;
use crate::types::{TopicPartition, error_chain};

/// Between the two looks.
const APART: Duration = Duration::from_millis(1_500);

/// The unfinished input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backlog {
    /// Records that are not finished, by partition; those with none are left out.
    pub(super) unfinished: Vec<(TopicPartition, u64)>,
    /// Records that came between the looks, markers included.
    pub(super) arrived: u64,
    /// Records that were finished between them.
    pub(super) finished: u64,
    /// What lies between the looks.
    pub(super) apart: Duration,
}

impl Backlog {
    pub(super) fn total(&self) -> u64 {
        self.unfinished.iter().map(|(_, records)| records).sum()
    }
}

/// `None` where an input topic is not there; `Err` says why it is not known.
pub(super) async fn look(
    cluster: &Cluster,
    settings: &Settings,
) -> Result<Option<Backlog>, String> {
    let looks = async {
        let before = match look_once(cluster, settings, &[]).await {
            Ok(found) => found,
            Err(OffsetsError::NoTopic(_)) => return Ok(None),
            Err(error) => return Err(error_chain(&error)),
        };
        let began = Instant::now();
        if unfinished(&before, settings) > 0 {
            sleep(APART).await;
        }
        let after = look_once(cluster, settings, &[]).await;
        let after = after.map_err(|error| error_chain(&error))?;
        let backlog = compare(&before, &after, settings, began.elapsed());
        Ok(Some(backlog))
    };
    let looked = tokio::time::timeout(PROBE_WITHIN, looks).await;
    looked.unwrap_or_else(|_elapsed| {
        Err(format!(
            "the commits of all partitions are not read within {PROBE_WITHIN:?}"
        ))
    })
}

fn unfinished(found: &Found, settings: &Settings) -> u64 {
    let partitions = found.partitions.iter();
    let each = partitions.map(|seen| seen.unfinished(settings.input.start));
    each.sum()
}

fn compare(before: &Found, after: &Found, settings: &Settings, apart: Duration) -> Backlog {
    let end = |found: &Found| -> u64 {
        let partitions = found.partitions.iter();
        let ends = partitions.map(|seen| u64::try_from(seen.high_watermark.value()).unwrap_or(0));
        ends.sum()
    };
    let arrived = end(after).saturating_sub(end(before));
    let were = unfinished(before, settings).saturating_add(arrived);
    let each = after.partitions.iter().map(|seen| {
        let records = seen.unfinished(settings.input.start);
        (seen.partition.clone(), records)
    });
    Backlog {
        unfinished: each.filter(|(_, records)| *records > 0).collect(),
        arrived,
        finished: were.saturating_sub(unfinished(after, settings)),
        apart,
    }
}
