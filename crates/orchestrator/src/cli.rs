//! What the daemon's executable does: read the configuration, bind, start, serve, and say why not.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use mosaic_node::with_causes;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    app::{self, Config, ConfigError, StartError},
    offline,
};

/// Why the daemon ended.
#[derive(Debug, Error)]
enum RunError {
    #[error("failed to read the configuration")]
    Config(#[from] ConfigError),
    #[error("failed to listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to start")]
    Start(#[from] StartError),
    #[error("failed to start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("failed to listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("failed to serve")]
    Serve(#[source] std::io::Error),
}

/// Runs the daemon with the configuration in `path` until SIGTERM or SIGINT.
#[must_use]
pub fn run(path: &Path) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let outcome = mosaic_node::runtime()
        .map_err(RunError::Runtime)
        .and_then(|runtime| {
            let served = runtime.block_on(serve(path));
            // What still works in the data folder, on a fetch say, ends with this process: the folder's lock is given up
            // already. It is left as by a crash, which every step survives.
            runtime.shutdown_background();
            served
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "stopped");
            ExitCode::FAILURE
        }
    }
}

/// How to stop every agent of a data folder.
#[derive(Debug, Args)]
pub struct KillAll {
    /// By the kernel and the data folder alone. With a daemon that answers: `mosaic kill --all --node URL`.
    #[arg(long, required = true)]
    pub offline: bool,
    /// Configuration file (TOML), for its data folder.
    #[arg(long, env = "MOSAIC_ORCHESTRATOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// The data folder, where there is no configuration to read.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// First see to it that nothing starts, until `mosaic hold release`.
    #[arg(long)]
    pub hold: bool,
    /// How long the kernel may take to confirm, in seconds.
    #[arg(long, default_value_t = offline::PROOF_WITHIN.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub within: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A death is not proven.
const UNPROVEN: u8 = 5;

/// Stops every agent of a data folder without a daemon: 0 if all are proven dead (and held, if asked for), 5 if not,
/// 1 if that could not be tried or the hold is not on disk, 2 if it is not said which folder.
#[must_use]
pub fn kill_all(args: KillAll, config: Option<PathBuf>) -> ExitCode {
    let data_dir = match (args.data_dir, args.config.or(config)) {
        (Some(data_dir), _) => data_dir,
        (None, Some(config)) => match Config::read(&config) {
            Ok(config) => config.data_dir,
            Err(error) => {
                complain(
                    "failed to read the configuration; name the folder with --data-dir",
                    &error,
                );
                return ExitCode::FAILURE;
            }
        },
        (None, None) => {
            eprintln!("mosaic-orchestrator: name the data folder with --config or --data-dir");
            return ExitCode::from(2);
        }
    };
    let data_dir = match data_dir.canonicalize() {
        Ok(data_dir) if data_dir.is_dir() => data_dir,
        Ok(data_dir) => {
            eprintln!("mosaic-orchestrator: {} is no folder", data_dir.display());
            return ExitCode::FAILURE;
        }
        Err(error) => {
            complain("failed to find the data folder", &error);
            return ExitCode::FAILURE;
        }
    };
    let within = std::time::Duration::from_secs(args.within);
    let report = offline::kill_all(&data_dir, args.hold, within);
    // A reader that is gone changes nothing about what was done.
    let mut out = std::io::stdout().lock();
    let _ = if args.json {
        let text = serde_json::to_string(&report).unwrap_or_default();
        std::io::Write::write_fmt(&mut out, format_args!("{text}\n"))
    } else {
        std::io::Write::write_fmt(&mut out, format_args!("{report}"))
    };
    for note in &report.notes {
        eprintln!("mosaic-orchestrator: {note}");
    }
    match (report.is_proven(), report.hold) {
        (false, _) => ExitCode::from(UNPROVEN),
        (true, Some(false)) => ExitCode::FAILURE,
        (true, _) => ExitCode::SUCCESS,
    }
}

fn complain(what: &str, error: &dyn std::error::Error) {
    eprintln!("mosaic-orchestrator: {what}: {}", with_causes(error));
}

async fn serve(path: &Path) -> Result<(), RunError> {
    let config = Config::read(path)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| RunError::Listen {
            address: config.listen,
            source,
        })?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let running = tokio::select! {
        started = app::start(config, listener, shutdown.clone()) => started?,
        // Nothing is served yet; what runs of an earlier start goes on.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tracing::info!(url = running.url(), "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
    running.wait().await.map_err(RunError::Serve)
}
