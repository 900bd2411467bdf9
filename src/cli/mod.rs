//! (to be written)

pub mod samples;
