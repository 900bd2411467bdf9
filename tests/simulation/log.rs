//! A partition's log, as the broker keeps it.

use kafka_llm_processor::types::{Offset, Record};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    Committed,
    /// Part of a transaction without an end in this partition.
    Open,
    Aborted,
}

#[derive(Debug, Clone)]
pub enum Entry {
    Data {
        record: Record,
        /// Producer id of the transaction that it is part of.
        transaction: Option<u64>,
        visibility: Visibility,
    },
    /// The end of a producer's transaction in this partition.
    Marker { producer: u64 },
    /// What compaction has left of a record.
    Gap,
}

#[derive(Debug, Default)]
pub struct Log(Vec<Entry>);

pub fn offset(index: usize) -> Offset {
    Offset::new(i64::try_from(index).unwrap())
}

pub fn index(offset: Offset) -> usize {
    usize::try_from(offset.value()).unwrap()
}

impl Log {
    /// The high watermark.
    pub fn end(&self) -> Offset {
        offset(self.0.len())
    }

    pub fn push(&mut self, entry: Entry) -> Offset {
        self.0.push(entry);
        offset(self.0.len() - 1)
    }

    /// Entries from an offset on.
    pub fn from(&self, start: Offset) -> impl Iterator<Item = (Offset, &Entry)> {
        self.0
            .iter()
            .enumerate()
            .skip(index(start))
            .map(|(at, entry)| (offset(at), entry))
    }

    /// What a reader with `read_committed` sees in the end.
    pub fn committed(&self) -> impl Iterator<Item = (Offset, &Record)> {
        self.from(Offset::ZERO)
            .filter_map(|(at, entry)| match entry {
                Entry::Data {
                    record,
                    visibility: Visibility::Committed,
                    ..
                } => Some((at, record)),
                _ => None,
            })
    }

    /// The record at an offset.
    pub fn record(&self, at: Offset) -> Option<&Record> {
        match self.0.get(index(at)) {
            Some(Entry::Data { record, .. }) => Some(record),
            _ => None,
        }
    }

    /// Whether the record at an offset is part of an aborted transaction.
    pub fn is_aborted(&self, at: Offset) -> bool {
        matches!(
            self.0.get(index(at)),
            Some(Entry::Data {
                visibility: Visibility::Aborted,
                ..
            })
        )
    }

    /// Writes the end of a producer's transaction.
    pub fn mark(&mut self, producer: u64, decided: Visibility) {
        for entry in &mut self.0 {
            if let Entry::Data {
                transaction: Some(by),
                visibility,
                ..
            } = entry
                && *by == producer
                && *visibility == Visibility::Open
            {
                *visibility = decided;
            }
        }
        self.0.push(Entry::Marker { producer });
    }
}
