//! The bytes that members hand to each other through the coordinator: Kafka's `ConsumerProtocol`, so that its tools can show who
//! reads what, and a little of our own in the field that is left to assignors.
//!
//! Members are other processes: no count in their bytes is trusted before it was compared with the bytes that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};

use crate::types::TopicPartition;

/// Topics with the number of their partitions.
pub(super) type Topics = BTreeMap<Arc<str>, i32>;

/// Owned partitions came with version 1 (KIP-429), the generation with version 2 (KIP-792). Readers skip what newer versions append.
const SUBSCRIPTION_VERSION: i16 = 2;

/// Without owned partitions nothing changed in an assignment since version 0.
const ASSIGNMENT_VERSION: i16 = 0;

/// The version of our part of an assignment.
const NOTE_VERSION: i16 = 0;

/// Bytes of a member that are not what they claim to be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("it ends in the middle of a field")]
    Cut,
    #[error("it announces {0} entries, more than its bytes can hold")]
    Count(i32),
    #[error("a name is not UTF-8")]
    Name,
    #[error("a name or list is too long for its length field")]
    TooLong,
}

impl From<TryGetError> for ProtocolError {
    fn from(_: TryGetError) -> Self {
        Self::Cut
    }
}

/// What a member tells when it joins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) topics: BTreeSet<Arc<str>>,
    /// What it still works on.
    pub(super) owned: BTreeSet<TopicPartition>,
    /// The generation that gave it those, −1 for none that still counts.
    pub(super) generation: i32,
}

impl Subscription {
    pub(super) fn encode(&self) -> Result<Bytes, ProtocolError> {
        let mut to = BytesMut::new();
        to.put_i16(SUBSCRIPTION_VERSION);
        put_count(&mut to, self.topics.len())?;
        for topic in &self.topics {
            put_name(&mut to, topic)?;
        }
        put_no_bytes(&mut to);
        put_partitions(&mut to, &self.owned)?;
        to.put_i32(self.generation);
        Ok(to.freeze())
    }

    pub(super) fn decode(mut from: &[u8]) -> Result<Self, ProtocolError> {
        let version = from.try_get_i16()?;
        let mut topics = BTreeSet::new();
        for _ in 0..count(&mut from, 2)? {
            topics.insert(name(&mut from)?);
        }
        opaque(&mut from)?;
        let owned = if version >= 1 {
            partitions(&mut from)?
        } else {
            BTreeSet::new()
        };
        let generation = if version >= 2 {
            from.try_get_i32()?
        } else {
            -1
        };
        Ok(Self {
            topics,
            owned,
            generation,
        })
    }
}

/// What the leader deals to a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) partitions: BTreeSet<TopicPartition>,
    /// Our part of it; `None` when an assignor of another kind dealt.
    pub(super) note: Option<Note>,
}

/// What the leader wants to be remembered with an assignment, also by a static member that restarts and is handed the old one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// What the member owns and somebody else is to get: when it has let go of it, it joins again.
    pub(super) give_up: BTreeSet<TopicPartition>,
    /// The topics as the leader knew them.
    pub(super) topics: Topics,
}

impl Assignment {
    pub(super) fn encode(&self) -> Result<Bytes, ProtocolError> {
        let mut to = BytesMut::new();
        to.put_i16(ASSIGNMENT_VERSION);
        put_partitions(&mut to, &self.partitions)?;
        let Some(note) = &self.note else {
            put_no_bytes(&mut to);
            return Ok(to.freeze());
        };
        let mut inner = BytesMut::new();
        inner.put_i16(NOTE_VERSION);
        put_partitions(&mut inner, &note.give_up)?;
        put_count(&mut inner, note.topics.len())?;
        for (topic, partitions) in &note.topics {
            put_name(&mut inner, topic)?;
            inner.put_i32(*partitions);
        }
        put_count(&mut to, inner.len())?;
        to.put(inner);
        Ok(to.freeze())
    }

    /// No bytes at all stand for no partitions: what the coordinator hands to a member that the leader has not heard of.
    pub(super) fn decode(mut from: &[u8]) -> Result<Self, ProtocolError> {
        if from.is_empty() {
            return Ok(Self::default());
        }
        from.try_get_i16()?;
        let partitions = partitions(&mut from)?;
        let note = opaque(&mut from)?.map(Note::decode).transpose()?;
        Ok(Self { partitions, note })
    }
}

impl Note {
    fn decode(mut from: &[u8]) -> Result<Self, ProtocolError> {
        from.try_get_i16()?;
        let give_up = partitions(&mut from)?;
        let mut topics = Topics::new();
        for _ in 0..count(&mut from, 6)? {
            topics.insert(name(&mut from)?, from.try_get_i32()?);
        }
        Ok(Self { give_up, topics })
    }
}

fn put_count(to: &mut BytesMut, count: usize) -> Result<(), ProtocolError> {
    to.put_i32(i32::try_from(count).map_err(|_large| ProtocolError::TooLong)?);
    Ok(())
}

fn put_name(to: &mut BytesMut, name: &str) -> Result<(), ProtocolError> {
    to.put_i16(i16::try_from(name.len()).map_err(|_large| ProtocolError::TooLong)?);
    to.put_slice(name.as_bytes());
    Ok(())
}

/// The absent value of a field that is left to assignors.
fn put_no_bytes(to: &mut BytesMut) {
    to.put_i32(-1);
}

fn put_partitions(
    to: &mut BytesMut,
    partitions: &BTreeSet<TopicPartition>,
) -> Result<(), ProtocolError> {
    let mut by_topic: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        let indexes = by_topic.entry(&partition.topic).or_default();
        indexes.push(partition.partition);
    }
    put_count(to, by_topic.len())?;
    for (topic, indexes) in by_topic {
        put_name(to, topic)?;
        put_count(to, indexes.len())?;
        for index in indexes {
            to.put_i32(index);
        }
    }
    Ok(())
}

/// Reads a count of entries of at least `entry_bytes` each; an absent list counts none.
fn count(from: &mut &[u8], entry_bytes: usize) -> Result<usize, ProtocolError> {
    let announced = from.try_get_i32()?;
    if announced == -1 {
        return Ok(0);
    }
    usize::try_from(announced)
        .ok()
        .filter(|count| *count <= from.len() / entry_bytes)
        .ok_or(ProtocolError::Count(announced))
}

fn name(from: &mut &[u8]) -> Result<Arc<str>, ProtocolError> {
    let length = from.try_get_i16()?;
    let length = usize::try_from(length).map_err(|_negative| ProtocolError::Name)?;
    let (name, rest) = from.split_at_checked(length).ok_or(ProtocolError::Cut)?;
    *from = rest;
    let name = std::str::from_utf8(name).map_err(|_bytes| ProtocolError::Name)?;
    Ok(name.into())
}

fn opaque<'a>(from: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ProtocolError> {
    let length = from.try_get_i32()?;
    let Ok(length) = usize::try_from(length) else {
        return Ok(None);
    };
    let (bytes, rest) = from.split_at_checked(length).ok_or(ProtocolError::Cut)?;
    *from = rest;
    Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
}

fn partitions(from: &mut &[u8]) -> Result<BTreeSet<TopicPartition>, ProtocolError> {
    let mut partitions = BTreeSet::new();
    for _ in 0..count(from, 6)? {
        let topic = name(from)?;
        for _ in 0..count(from, 4)? {
            partitions.insert(TopicPartition::new(Arc::clone(&topic), from.try_get_i32()?));
        }
    }
    Ok(partitions)
}

#[cfg(test)]
pub(super) mod tests {
    use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
    use kafka_protocol::protocol::{Decodable, Encodable};
    use proptest::prelude::*;

    use super::*;

    pub(in crate::kafka::wire::membership) fn some_partitions()
    -> impl Strategy<Value = BTreeSet<TopicPartition>> {
        prop::collection::btree_set(
            ("[a-c]", 0..6_i32).prop_map(|(topic, index)| TopicPartition::new(topic, index)),
            0..12,
        )
    }

    fn as_pairs<'a>(
        topics: impl IntoIterator<Item = (&'a str, &'a Vec<i32>)>,
    ) -> BTreeSet<TopicPartition> {
        let pairs = topics.into_iter().flat_map(|(topic, indexes)| {
            let topic: Arc<str> = topic.into();
            let partition = move |index: &i32| TopicPartition::new(Arc::clone(&topic), *index);
            indexes.iter().map(partition)
        });
        pairs.collect()
    }

    proptest! {
        #[test]
        fn a_subscription_is_read_as_it_was_written_by_us_and_by_others(
            topics in prop::collection::btree_set("[a-z.]{1,9}", 0..4),
            owned in some_partitions(),
            generation in -1..1000,
        ) {
            let topics: BTreeSet<Arc<str>> = topics.iter().map(|name| name.as_str().into()).collect();
            let ours = Subscription { topics, owned, generation };
            let bytes = ours.encode().unwrap();
            prop_assert_eq!(&Subscription::decode(&bytes).unwrap(), &ours);

            let mut body = bytes.slice(2..);
            let theirs = ConsumerProtocolSubscription::decode(&mut body, 2).unwrap();
            prop_assert!(body.is_empty());
            prop_assert_eq!(theirs.generation_id, generation);
            let named = theirs.topics.iter().map(|name| Arc::from(name.as_str()));
            prop_assert_eq!(&named.collect::<BTreeSet<_>>(), &ours.topics);
            let pairs = theirs.owned_partitions.iter();
            let pairs = as_pairs(pairs.map(|owned| (owned.topic.as_str(), &owned.partitions)));
            prop_assert_eq!(&pairs, &ours.owned);

            for version in 0..=3_i16 {
                let mut written = BytesMut::new();
                written.put_i16(version);
                let mut known = theirs.clone();
                if version < 2 {
                    known.generation_id = -1;
                }
                if version < 1 {
                    known.owned_partitions.clear();
                }
                known.encode(&mut written, version).unwrap();
                let read = Subscription::decode(&written).unwrap();
                prop_assert_eq!(&read.topics, &ours.topics);
                prop_assert_eq!(read.owned.is_empty(), version < 1 || ours.owned.is_empty());
                prop_assert_eq!(read.generation, if version < 2 { -1 } else { generation });
            }
        }

        #[test]
        fn an_assignment_is_read_as_it_was_written_and_others_see_the_partitions(
            partitions in some_partitions(),
            give_up in some_partitions(),
            count in 0..100_i32,
        ) {
            let topics = Topics::from([("orders".into(), count)]);
            let ours = Assignment { partitions, note: Some(Note { give_up, topics }) };
            let bytes = ours.encode().unwrap();
            prop_assert_eq!(&Assignment::decode(&bytes).unwrap(), &ours);
            let mut body = bytes.slice(2..);
            let theirs = ConsumerProtocolAssignment::decode(&mut body, 0).unwrap();
            prop_assert!(body.is_empty());
            let pairs = theirs.assigned_partitions.iter();
            let pairs = as_pairs(pairs.map(|dealt| (dealt.topic.as_str(), &dealt.partitions)));
            prop_assert_eq!(&pairs, &ours.partitions);
        }

        #[test]
        fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            drop(Subscription::decode(&bytes));
            drop(Assignment::decode(&bytes));
        }

        #[test]
        fn whatever_is_cut_short_is_refused(owned in some_partitions(), at in any::<prop::sample::Index>()) {
            let bytes = Subscription { owned, ..Subscription::default() }.encode().unwrap();
            let cut = at.index(bytes.len());
            prop_assert!(Subscription::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn counts_are_compared_with_the_bytes_that_are_there() {
        let bytes = [0, 1, 0x7f, 0xff, 0xff, 0xff, 0, 1, b'a'];
        assert_eq!(
            Subscription::decode(&bytes),
            Err(ProtocolError::Count(i32::MAX))
        );
        assert_eq!(
            Assignment::decode(&bytes),
            Err(ProtocolError::Count(i32::MAX))
        );
    }

    #[test]
    fn no_bytes_are_no_partitions() {
        assert_eq!(Assignment::decode(&[]), Ok(Assignment::default()));
    }
}
