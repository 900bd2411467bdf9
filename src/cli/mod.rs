//! The commands.

pub mod check;
mod contact;
pub mod output;
pub mod produce;
pub mod results;
