//! The command line.

pub mod args;
pub mod audit;
pub mod check;
pub mod config;
mod contact;
pub mod dead_letters;
pub mod drift;
pub mod dry_run;
pub mod offsets;
pub mod output;
pub mod pause;
pub mod produce;
mod progress;
#[cfg(feature = "sandbox")]
mod quickstart;
pub mod results;
mod run;
pub mod samples;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod shell;
mod signals;
pub mod status;

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use tokio_util::sync::CancellationToken;

use self::args::{Cli, Command};
use self::check::CheckArgs;
use self::config::ConfigCommand;
use self::dead_letters::{Completion, DeadLetterSettings, DeadLettersArgs};
use self::drift::DriftArgs;
use self::dry_run::DryRunArgs;
use self::offsets::OffsetsArgs;
use self::output::{Terminal, has_seen_enough};
use self::pause::PauseArgs;
use self::produce::{ProduceArgs, ProduceTarget};
use self::results::{ResultTopics, ResultsArgs};
use self::signals::StopSignals;
use self::status::{StatusArgs, StatusError};
use crate::config::Settings;
use crate::telemetry::logging::{self, LogConfig, LogFile};
use crate::types::error_chain;

/// Usage or configuration: what no server can heal.
pub const EXIT_USAGE: u8 = 64;
/// A failure at start, or a check that did not pass.
pub const EXIT_FAILURE: u8 = 1;
/// The drain deadline passed, or a signal cut a command short.
pub const EXIT_CUT_SHORT: u8 = 2;

/// Another instance owns the partitions.
pub const EXIT_OWNED: u8 = 3;

/// Partitions of an input topic that `produce` creates.
const PARTITIONS_IF_CREATED: i32 = 4;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    execute(std::env::args_os())
}

/// Runs one command with the arguments of this process, for a program that is that command alone.
#[must_use]
pub fn main_as(command: &str) -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    execute([program, command.into()].into_iter().chain(arguments))
}

fn execute(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
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
        Err(problem) => return fail(EXIT_USAGE, &problem),
    };
    // Variables that are not Unicode are none of ours, as all our names and values are.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let environment: Vec<_> = environment.collect();
    #[cfg(feature = "sandbox")]
    let given = quickstart::Given::new(&environment, &overrides);
    let command = cli.command.unwrap_or_default();
    let config = cli.settings.config.as_deref();
    let load = || Settings::load(config, environment.iter().cloned(), &overrides);
    let settings = if command.reads_settings() {
        load()
    } else {
        Ok(Settings::default())
    };
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => return fail(EXIT_USAGE, &error.to_string()),
    };
    match command {
        Command::Run(args) => run::run(settings, &args, load),
        Command::Produce(args) => in_runtime(&settings, async |stop| {
            produce(args, &settings, &stop).await
        }),
        Command::Results(args) => in_runtime(&settings, async |stop| {
            results(args, &settings, &stop).await
        }),
        Command::DeadLetters(args) => in_runtime(&settings, async |stop| {
            Box::pin(dead_letters(args, &settings, &stop)).await
        }),
        Command::Drift(args) => in_runtime(&settings, async |stop| {
            Box::pin(drift_report(args, &settings, &stop)).await
        }),
        Command::Audit(args) => in_runtime(&settings, async |stop| {
            audit::execute(args, &settings, &stop).await
        }),
        Command::Check(args) => in_runtime(&settings, async |_stop| {
            Box::pin(check(args, &settings)).await
        }),
        Command::Status(args) => in_runtime(&settings, async |_stop| status(args, &settings).await),
        Command::DryRun(args) => in_runtime(&settings, async |stop| {
            Box::pin(dry_run(&args, &settings, &stop)).await
        }),
        Command::Config(command) => printed(|out| told_of_config(&command, &settings, out)),
        Command::Completions(args) => printed(|out| shell::completions(args, out)),
        Command::Man(args) => match shell::page(&args) {
            Ok(page) => printed(|out| out.write_all(&page)),
            Err(error) => fail(EXIT_USAGE, &error.to_string()),
        },
        Command::Offsets(args) => in_runtime(&settings, async |stop| {
            move_offsets(args, &settings, &stop).await
        }),
        Command::Pause(args) => {
            in_runtime(&settings, async |_stop| turn(args, &settings, true).await)
        }
        Command::Resume(args) => {
            in_runtime(&settings, async |_stop| turn(args, &settings, false).await)
        }
        #[cfg(feature = "sandbox")]
        Command::Sandbox(args) => in_runtime(&settings, async |stop| {
            sandbox::run(&args, &settings, &stop).await
        }),
        #[cfg(feature = "sandbox")]
        Command::Quickstart => in_runtime(&settings, async |stop| {
            Box::pin(quickstart::run(settings.clone(), given, &stop)).await
        }),
    }
}

fn told_of_config(
    command: &ConfigCommand,
    settings: &Settings,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let terminal = Terminal::stdout();
    match command {
        ConfigCommand::Show(args) => config::show(args, settings, &terminal, out),
        ConfigCommand::Reference(args) => config::reference(args, &terminal, out),
    }
}

async fn produce(args: ProduceArgs, settings: &Settings, stop: &CancellationToken) -> Outcome {
    let mut topics = settings.input.topics.iter();
    let topic = topics.next().map(|topic| topic.name.as_str());
    let target = ProduceTarget {
        kafka: &settings.kafka,
        topic: topic.unwrap_or_default(),
        partitions_if_created: PARTITIONS_IF_CREATED,
    };
    let (terminal, mut out) = (Terminal::stdout(), io::stdout());
    produce::run(&args, target, &terminal, &mut out, stop).await?;
    Ok(0)
}

async fn results(args: ResultsArgs, settings: &Settings, stop: &CancellationToken) -> Outcome {
    let topics = ResultTopics {
        output: &settings.output.topic,
        dead_letters: &settings.dead_letters.topic,
    };
    let (terminal, mut out) = (Terminal::stdout(), io::stdout());
    results::run(&args, &settings.kafka, topics, &terminal, &mut out, stop).await?;
    Ok(0)
}

async fn dead_letters(
    args: DeadLettersArgs,
    settings: &Settings,
    stop: &CancellationToken,
) -> Outcome {
    let given_up = DeadLetterSettings {
        kafka: &settings.kafka,
        topic: &settings.dead_letters.topic,
        guarantee: settings.processing.guarantee,
    };
    let (terminal, mut out) = (Terminal::stdout(), io::stdout());
    let done = dead_letters::run(&args, given_up, &terminal, &mut out, stop).await?;
    Ok(match done {
        Completion::Done => 0,
        Completion::Incomplete => EXIT_FAILURE,
        Completion::Stopped => EXIT_CUT_SHORT,
    })
}

async fn drift_report(args: DriftArgs, settings: &Settings, stop: &CancellationToken) -> Outcome {
    let (terminal, mut out) = (Terminal::stdout(), io::stdout());
    let ended = drift::run(&args, settings, &terminal, &mut out, stop).await?;
    Ok(match ended {
        drift::End::Reported => 0,
        drift::End::Shifted => EXIT_FAILURE,
        drift::End::Stopped => EXIT_CUT_SHORT,
    })
}

async fn check(args: CheckArgs, settings: &Settings) -> Outcome {
    match check::run(args, settings, &Terminal::stdout(), &mut io::stdout()).await {
        Ok(true) => Ok(0),
        Ok(false) => Ok(EXIT_FAILURE),
        Err(error) if has_seen_enough(&error) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

async fn status(args: StatusArgs, settings: &Settings) -> Outcome {
    let (terminal, listen) = (Terminal::stdout(), settings.admin.listen);
    match status::run(&args, listen, &terminal, &mut io::stdout()).await {
        Ok(true) => Ok(0),
        Ok(false) => Ok(EXIT_FAILURE),
        Err(error @ StatusError::NoAddress(_)) => Ok(told(EXIT_USAGE, &error)),
        Err(StatusError::Out(error)) if has_seen_enough(&error) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

async fn dry_run(args: &DryRunArgs, settings: &Settings, stop: &CancellationToken) -> Outcome {
    match dry_run::run(args, settings, &Terminal::stdout(), &mut io::stdout(), stop).await {
        Ok(true) => Ok(0),
        Ok(false) => Ok(EXIT_CUT_SHORT),
        Err(error) if error.is_usage() => {
            let _code = fail(EXIT_USAGE, &error.to_string());
            Ok(EXIT_USAGE)
        }
        Err(error) => Err(error.into()),
    }
}

/// Tells something that is known without asking anybody.
fn printed(tell: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> ExitCode {
    let mut out = io::stdout().lock();
    match tell(&mut out).and_then(|()| io::Write::flush(&mut out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if has_seen_enough(&error) => ExitCode::SUCCESS,
        Err(error) => fail(
            EXIT_FAILURE,
            &format!("the output cannot be written: {error}"),
        ),
    }
}

async fn move_offsets(args: OffsetsArgs, settings: &Settings, stop: &CancellationToken) -> Outcome {
    match offsets::run(
        &args,
        settings,
        &Terminal::stdout(),
        &mut io::stdout(),
        stop,
    )
    .await
    {
        Ok(()) => Ok(0),
        Err(error) => {
            complain(&error_chain(&error));
            Ok(error.exit_code())
        }
    }
}

async fn turn(args: PauseArgs, settings: &Settings, paused: bool) -> Outcome {
    match pause::run(&args, &settings.admin, paused, &mut io::stdout()).await {
        Ok(()) => Ok(0),
        Err(error) => {
            complain(&error_chain(&error));
            Ok(error.exit_code())
        }
    }
}

/// What a command for people comes to: its exit code, or what went wrong.
type Outcome = Result<u8, Box<dyn Error + Send + Sync>>;

/// Runs a command that ends by itself. The first signal cancels its token, the second ends the process. Only warnings are logged: its
/// output is what people came for.
fn in_runtime<F: Future<Output = Outcome>>(
    settings: &Settings,
    command: impl FnOnce(CancellationToken) -> F,
) -> ExitCode {
    let default_level = settings.log.level == LogConfig::default().level;
    let log = LogConfig {
        level: if default_level {
            "warn".to_owned()
        } else {
            settings.log.level.clone()
        },
        file: LogFile::Off,
        ..settings.log.clone()
    };
    let guard = match logging::init(&log) {
        Ok(guard) => guard,
        Err(error) => return fail(EXIT_USAGE, &error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(
                EXIT_FAILURE,
                &format!("the system gives no threads: {error}"),
            );
        }
    };
    let outcome = runtime.block_on(async {
        let mut signals = StopSignals::new()?;
        let stop = CancellationToken::new();
        let command = command(stop.clone());
        tokio::pin!(command);
        loop {
            tokio::select! {
                outcome = &mut command => return outcome,
                _ = signals.next() => {
                    if stop.is_cancelled() {
                        return Ok(EXIT_CUT_SHORT);
                    }
                    stop.cancel();
                }
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    drop(guard);
    match outcome {
        Ok(code) => code.into(),
        Err(error) => fail(EXIT_FAILURE, &error_chain(&*error)),
    }
}

fn fail(code: u8, problem: &str) -> ExitCode {
    told(code, &problem).into()
}

fn told(code: u8, problem: &dyn Display) -> u8 {
    complain(&problem.to_string());
    code
}

#[allow(clippy::print_stderr, reason = "the log may not be up")]
fn complain(problem: &str) {
    eprintln!("error: {problem}");
}
