//! Whether each broker can be reached, at the address that it advertises, and speaks what we do.

use std::time::Duration;

use futures::{StreamExt as _, stream};

use super::admin::BrokerDescription;
use super::api::SPOKEN;
use super::cluster::Cluster;
use super::connection::{BrokerVersions, join_address};
use crate::kafka::KafkaError;

/// Brokers that are asked side by side.
const LOOKS_MAX: usize = 16;

/// An API in which a broker and this program have no version in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiGap {
    /// Kafka's name of it.
    pub api: &'static str,
    /// The versions that this program speaks, both inclusive.
    pub ours: (i16, i16),
    /// Those of the broker; `None` when it has no such API.
    pub theirs: Option<(i16, i16)>,
}

/// What one broker speaks.
#[derive(Debug, Clone)]
pub struct BrokerSpeech {
    /// Who it is.
    pub broker: BrokerDescription,
    /// What it lacks, or why it cannot be asked.
    pub gaps: Result<Vec<ApiGap>, KafkaError>,
}

impl Cluster {
    /// Asks each of the brokers at the address that it advertises; each has `within` to itself.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn speech_of(
        &self,
        brokers: Vec<BrokerDescription>,
        within: Duration,
    ) -> Vec<BrokerSpeech> {
        let looks = brokers.into_iter().map(async |broker| {
            let address = join_address(&broker.host, broker.port);
            let asked = tokio::time::timeout(within, self.versions_at(&address)).await;
            let versions = asked.unwrap_or(Err(KafkaError::Timeout {
                operation: "ApiVersions",
                after: within,
            }));
            BrokerSpeech {
                broker,
                gaps: versions.map(|versions| gaps(&versions)),
            }
        });
        stream::iter(looks).buffered(LOOKS_MAX).collect().await
    }
}

fn gaps(versions: &BrokerVersions) -> Vec<ApiGap> {
    let lacking = SPOKEN.iter().filter_map(|&(key, api, ours)| {
        let theirs = versions.ranges.get(&key).copied();
        let is_common = theirs.is_some_and(|(min, max)| min <= ours.max && ours.min <= max);
        (!is_common).then_some(ApiGap {
            api,
            ours: (ours.min, ours.max),
            theirs,
        })
    });
    lacking.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_an_api_without_a_common_version() {
        let mut versions = BrokerVersions::default();
        for &(key, _, ours) in SPOKEN {
            versions.ranges.insert(key, (0, ours.min));
        }
        assert_eq!(gaps(&versions), []);
        // InitProducerId of Kafka 2.4, Fetch of a broker that has dropped ours, and no DescribeGroups at all.
        versions.ranges.insert(22, (0, 2));
        versions.ranges.insert(1, (99, 100));
        versions.ranges.remove(&15);
        let found = gaps(&versions);
        let names: Vec<_> = found.iter().map(|gap| gap.api).collect();
        assert_eq!(names, ["Fetch", "InitProducerId", "DescribeGroups"]);
        assert_eq!(found[1].ours, (3, 4));
        assert_eq!(found[1].theirs, Some((0, 2)));
        assert_eq!(found[2].theirs, None);
    }
}
