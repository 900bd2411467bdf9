//! (to be written)

pub mod vllm;
