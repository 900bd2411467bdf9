//! What is particular to each input topic: its share of the work, and what is asked about its documents.
//!
//! A topic is a flow of the model's side and its partitions are the members of that, so that shares are the topics', whatever their partitions.

use std::num::NonZeroU32;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::InputTopic;
use crate::llm::{Class, Prompt, PromptConfig, PromptSetupError};
use crate::types::TopicPartition;

/// The largest weight: beside it a topic of weight 1 still has a call in a thousand.
const WEIGHT_MAX: u32 = 1_000;

/// A topic's share relative to that of the others: a whole number from 1 to 1,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "u32")]
pub struct Weight(NonZeroU32);

/// A weight that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}: must be a whole number from 1 to {WEIGHT_MAX}")]
pub struct WeightError(i64);

impl Weight {
    /// As a number.
    #[must_use]
    pub const fn value(self) -> NonZeroU32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(NonZeroU32::MIN)
    }
}

impl TryFrom<i64> for Weight {
    type Error = WeightError;

    fn try_from(weight: i64) -> Result<Self, WeightError> {
        u32::try_from(weight)
            .ok()
            .filter(|weight| *weight <= WEIGHT_MAX)
            .and_then(NonZeroU32::new)
            .map(Self)
            .ok_or(WeightError(weight))
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.0.get()
    }
}

#[derive(Debug, Clone)]
struct Topic {
    name: String,
    weight: Weight,
    prompt: Arc<Prompt>,
}

/// The input topics.
#[derive(Debug, Clone)]
pub struct Topics {
    general: Arc<Prompt>,
    topics: Vec<Topic>,
}

impl Topics {
    /// Those topics, each with the templates of its own and for the rest the general ones. `schema` is what templates see under that name.
    ///
    /// # Errors
    /// When a template is of no use; it is named.
    pub fn load(
        inputs: &[InputTopic],
        general: &PromptConfig,
        schema: Option<&str>,
    ) -> Result<Self, PromptSetupError> {
        let all = Arc::new(Prompt::new(general, schema)?);
        let topic = |input: &InputTopic| {
            let InputTopic {
                name,
                weight,
                prompt: own,
            } = input;
            let prompt = if own.is_empty() {
                Arc::clone(&all)
            } else {
                Arc::new(Prompt::for_topic(name, own, general, schema)?)
            };
            Ok(Topic {
                name: name.clone(),
                weight: *weight,
                prompt,
            })
        };
        Ok(Self {
            topics: inputs.iter().map(topic).collect::<Result<_, _>>()?,
            general: all,
        })
    }

    /// No topic in particular: what is read is asked about with `prompt`.
    #[must_use]
    pub const fn any(prompt: Arc<Prompt>) -> Self {
        Self {
            general: prompt,
            topics: Vec::new(),
        }
    }

    /// The templates that ask about a topic's documents.
    #[must_use]
    pub fn prompt(&self, topic: &str) -> &Arc<Prompt> {
        let mut topics = self.topics.iter();
        let own = topics.find(|known| known.name == topic);
        own.map_or(&self.general, |topic| &topic.prompt)
    }

    /// With whom a partition shares the model.
    #[must_use]
    pub fn class(&self, partition: &TopicPartition) -> Class {
        let mut topics = self.topics.iter().enumerate();
        let known = topics.find(|(_, known)| known.name == *partition.topic);
        let (flow, weight) = known
            .map_or((self.topics.len(), Weight::default()), |(flow, topic)| {
                (flow, topic.weight)
            });
        Class {
            flow: u32::try_from(flow).unwrap_or(u32::MAX),
            weight: weight.value(),
            member: partition.partition.unsigned_abs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_a_whole_number_from_1_to_1000() {
        for good in [1, 3, 1_000] {
            assert_eq!(i64::from(u32::from(Weight::try_from(good).unwrap())), good);
        }
        for bad in [i64::MIN, -1, 0, 1_001, i64::MAX] {
            let error = Weight::try_from(bad).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("{bad}: must be a whole number from 1 to 1000")
            );
        }
    }

    #[test]
    fn partitions_of_a_topic_share_its_weight_and_its_prompt() {
        let topic = |name: &str, weight, user: Option<&str>| InputTopic {
            weight: Weight::try_from(weight).unwrap(),
            prompt: PromptConfig {
                user: user.map(str::to_owned),
                ..PromptConfig::default()
            },
            ..InputTopic::named(name)
        };
        let inputs = [
            topic("filings", 3, None),
            topic("news", 1, Some("News: {{ content }}")),
        ];
        let topics = Topics::load(&inputs, &PromptConfig::default(), None).unwrap();
        let class = |topic, partition| topics.class(&TopicPartition::new(topic, partition));
        assert_eq!(class("filings", 0).weight.get(), 3);
        assert_eq!(class("filings", 0).flow, class("filings", 7).flow);
        assert_eq!(class("filings", 7).member, 7);
        assert_ne!(class("filings", 0).flow, class("news", 0).flow);
        let hash = |topic| topics.prompt(topic).template_hash();
        assert_ne!(hash("filings"), hash("news"));
        assert_eq!(hash("filings"), topics.general.template_hash());
    }
}
