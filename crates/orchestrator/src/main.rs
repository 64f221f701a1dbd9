//! The spoke's daemon: runs agents on this machine for peers that this machine's operator has let in.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use mosaic_orchestrator::cli::{self, KillAll};
#[cfg(debug_assertions)]
use mosaic_orchestrator::crash_points;

/// Runs coding agents in sandboxes for peers, and stops them.
#[derive(Debug, Parser)]
#[command(name = "mosaic-orchestrator", version, subcommand_negates_reqs = true)]
struct Args {
    /// Configuration file (TOML).
    #[arg(long, env = "MOSAIC_ORCHESTRATOR_CONFIG", required = true)]
    config: Option<PathBuf>,
    /// Die at this point, as in a crash: for tests of what the next start makes of it
    #[cfg(debug_assertions)]
    #[arg(long, hide = true, env = "MOSAIC_CRASH_AT", value_name = "POINT", value_parser = crash_points::parse)]
    crash_at: Option<&'static str>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Stops every agent of a data folder, whatever became of its daemon.
    KillAll(KillAll),
}

fn main() -> ExitCode {
    // The daemon's executable is its agents' shim as well.
    if let Some(code) = mosaic_orchestrator::sandbox::dispatch() {
        return code;
    }
    let args = Args::parse();
    #[cfg(debug_assertions)]
    args.crash_at.into_iter().for_each(crash_points::arm);
    match (args.verb, args.config) {
        (Some(Verb::KillAll(kill_all)), config) => cli::kill_all(kill_all, config),
        (None, Some(config)) => cli::run(&config),
        // Required above.
        (None, None) => ExitCode::from(2),
    }
}
