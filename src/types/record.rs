//! A Kafka record, free of any client library.

use bytes::Bytes;

/// A record header; Kafka allows the same name twice and a null value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name.
    pub name: String,
    /// Value; `None` is Kafka's null.
    pub value: Option<Bytes>,
}

impl Header {
    /// A header with a value.
    pub fn new(name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self {
            name: name.into(),
            value: Some(value.into()),
        }
    }
}

/// What is in a record; its place is told apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Key; `None` is Kafka's null.
    pub key: Option<Bytes>,
    /// Value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in their order.
    pub headers: Vec<Header>,
    /// `CreateTime` or `LogAppendTime`, in milliseconds since the Unix epoch; −1 when there is none.
    pub timestamp_ms: i64,
}

impl Record {
    /// Bytes that the record holds: key, value and headers, uncompressed.
    #[must_use]
    pub fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|header| header.name.len() + header.value.as_ref().map_or(0, Bytes::len))
            .sum();
        self.key.as_ref().map_or(0, Bytes::len)
            + self.value.as_ref().map_or(0, Bytes::len)
            + headers
    }

    /// The record in memory of its own. What a driver hands out may be slices of a whole answer: one record that waits would keep all
    /// of it.
    #[must_use]
    pub fn detached(&self) -> Self {
        let own = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        Self {
            key: self.key.as_ref().map(own),
            value: self.value.as_ref().map(own),
            headers: self
                .headers
                .iter()
                .map(|header| Header {
                    name: header.name.clone(),
                    value: header.value.as_ref().map(own),
                })
                .collect(),
            timestamp_ms: self.timestamp_ms,
        }
    }

    /// The value of the last header of that name, when it is not null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers
            .iter()
            .rev()
            .find(|header| header.name == name)?
            .value
            .as_ref()
    }
}
