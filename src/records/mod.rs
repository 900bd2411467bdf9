//! What is written in Kafka, as pure schemas: how an input record is read as a document, what a result, a dead letter and a record of the
//! audit trail look like,
//! and to which partition a record goes. Nothing here does I/O.

pub mod audit;
pub mod dead_letter;
pub mod document;
pub mod headers;
pub mod partitioner;
pub mod result;
