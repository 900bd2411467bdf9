//! `run`: the processor itself.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::args::RunArgs;
use super::signals::{ReloadSignal, StopSignals};
use super::{EXIT_CUT_SHORT, EXIT_FAILURE, EXIT_USAGE};
use crate::app::{App, RunEnd};
use crate::config::{ConfigError, Settings};
use crate::telemetry::server::AdminError;
use crate::telemetry::{LogGuard, logging};

/// `load` reads the settings anew.
pub(super) fn run(
    settings: Settings,
    args: &RunArgs,
    load: impl Fn() -> Result<Settings, ConfigError>,
) -> ExitCode {
    let guard = match logging::init(&settings.log) {
        Ok(guard) => guard,
        Err(error) => return super::fail(EXIT_USAGE, &error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.pipeline.worker_threads.get())
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the system gives no threads");
            return EXIT_FAILURE.into();
        }
    };
    let (code, summary) = runtime.block_on(until_stopped(settings, args.fail_fast, &guard, load));
    // Whatever still runs has nothing left to say: what was not committed is done again.
    runtime.shutdown_timeout(Duration::from_millis(100));
    drop(guard);
    // After the log's last line, not in the middle of it. Whoever closed standard output does not want it.
    if let Some(summary) = summary {
        drop(writeln!(io::stdout(), "{summary}"));
    }
    code.into()
}

/// The exit code, and the summary when there was a run to sum up.
async fn until_stopped(
    settings: Settings,
    fail_fast: bool,
    log: &LogGuard,
    load: impl Fn() -> Result<Settings, ConfigError>,
) -> (u8, Option<String>) {
    let listening = StopSignals::new().and_then(|stop| Ok((stop, ReloadSignal::new()?)));
    let (mut signals, mut reloads) = match listening {
        Ok(listening) => listening,
        Err(error) => {
            tracing::error!(%error, "signals cannot be listened to");
            return (EXIT_FAILURE, None);
        }
    };
    if let Some(file) = log.file() {
        tracing::info!(file = %file.display(), "logging to");
    }
    let app = match App::build_with(settings, log.losses()) {
        Ok(app) => app,
        Err(error) => {
            tracing::error!("{error:#}");
            // A port that is taken is a failure of this start; everything else that fails here is a setting.
            let admin = error.downcast_ref::<AdminError>();
            let is_port = admin.is_some_and(|error| !error.is_setting());
            let code = if is_port { EXIT_FAILURE } else { EXIT_USAGE };
            return (code, None);
        }
    };
    let mut reloader = app.reloader();
    let drain = CancellationToken::new();
    let running = app.run(drain.clone(), fail_fast);
    tokio::pin!(running);
    let losses = log.losses().clone().tell();
    tokio::pin!(losses);
    let (end, summary) = loop {
        tokio::select! {
            ended = &mut running => break ended,
            () = &mut losses => {}
            () = reloads.next() => reloader.reload(&load),
            signal = signals.next() => {
                if drain.is_cancelled() {
                    tracing::warn!(signal, "second signal: ending at once; what is not committed is done again after the restart");
                    return (EXIT_CUT_SHORT, None);
                }
                tracing::info!(signal, "stopping; a second signal ends at once");
                drain.cancel();
            }
        }
    };
    match &end {
        RunEnd::Drained => tracing::info!("drained"),
        RunEnd::Failed(error) => tracing::error!("{error:#}"),
        RunEnd::DeadlinePassed { partitions } => tracing::error!(
            partitions,
            "pipeline.drain_timeout has passed; what is not committed is done again after the restart"
        ),
        RunEnd::Fenced(detail) => {
            tracing::error!("this instance stops, and commits nothing more: {detail}")
        }
    }
    (end.exit_code(), Some(summary.to_string()))
}
