//! The way of a document: fetch, admit, complete, order, append, commit. Begin with `worker.rs`.

mod config;
mod emit;
mod read_ahead;

pub use config::{
    DeadLettersConfig, InputConfig, InputTopic, OnDataLoss, OutputConfig, Partitioner,
    PipelineConfig, ProcessingConfig,
};
pub use emit::{Order, OrderBuffer};
pub use read_ahead::ReadAhead;
