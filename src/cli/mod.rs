//! The command line.

pub mod args;
pub mod check;
mod contact;
pub mod output;
pub mod produce;
pub mod results;
mod run;
pub mod samples;
mod signals;

use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Cli, Command};
use crate::config::Settings;

/// Usage or configuration: what no server can heal.
pub const EXIT_USAGE: u8 = 64;
/// A failure at start, or a check that did not pass.
pub const EXIT_FAILURE: u8 = 1;

/// Reads the command line, runs the command, and answers with the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            drop(error.print());
            return code.into();
        }
    };
    let overrides = match cli.settings.overrides() {
        Ok(overrides) => overrides,
        Err(problem) => return usage(&problem),
    };
    let settings =
        match Settings::load(cli.settings.config.as_deref(), std::env::vars(), &overrides) {
            Ok(settings) => settings,
            Err(error) => return usage(&error.to_string()),
        };
    match cli.command.unwrap_or_default() {
        Command::Run(args) => run::run(settings, &args),
    }
}

#[allow(clippy::print_stderr, reason = "the log is not up yet")]
fn usage(problem: &str) -> ExitCode {
    eprintln!("error: {problem}");
    EXIT_USAGE.into()
}
