//! The figures of `docs/benchmarks.md`, made anew: `cargo run --release -p mosaic-e2e --bin bench`.
//!
//! It starts the real executables, built for release, and measures them from outside. Where a figure is a ratio, both
//! sides run by turns in the same run, so that whatever else the machine does meets both alike. Every figure is
//! the median of at least three rounds (`--quick`: of one, for a look).
//!
//! It leaves nothing: every process that it started is stopped, and the folders and cgroups are looked for afterwards.

mod bare;
mod docker;
mod envelope;
mod flood;
mod footprint;
mod kill;
mod kill500;
mod leftovers;
mod plain;
mod recovery;
mod report;
mod scene;
mod spawn;
mod stats;
mod status;

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use mosaic_e2e::wire;

use report::Report;

/// Measures Mosaic on this machine and prints the figures as Markdown.
#[derive(Debug, Parser)]
struct Args {
    /// Only these figures
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    only: Vec<Figure>,
    /// One short round of each: a look, not a figure
    #[arg(long)]
    quick: bool,
    /// Be the two plain servers to compare with; holds the status to answer with
    #[arg(long, hide = true, value_name = "FILE")]
    plain_servers: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Envelope: sign and verify, beside bare ed25519
    Envelope,
    /// `agent.status`, hub to spoke and back
    Status,
    /// Kill of one, and of all
    Kill,
    /// Kill-all of 500 at the orchestrator
    Kill500,
    /// Kill of one beside a peer's flood
    Flood,
    /// Memory and start-up time of the orchestrator
    Footprint,
    /// Start of an orchestrator that has agents
    Recovery,
    /// Spawn to first line of output
    Spawn,
    /// The same in a container, cold and from a pool, beside `docker run`
    Docker,
    /// Many containers at once, kill of one and of all, beside `docker run -d` and `docker kill`
    DockerKill,
}

/// What every figure needs to know.
#[derive(Debug, Clone)]
struct Bench {
    /// Folder of the executables.
    bin: PathBuf,
    quick: bool,
}

impl Bench {
    fn rounds(&self, full: usize) -> usize {
        if self.quick { 1 } else { full }
    }

    fn executable(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(status) = &args.plain_servers {
        return plain::serve(status);
    }
    let bench = Bench {
        bin: build()?,
        quick: args.quick,
    };
    // One thread: what drives the load should take as little of the machine from what is measured as it can.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let wanted = |figure| args.only.is_empty() || args.only.contains(&figure);
    let mut report = Report::begin(args.quick);
    if wanted(Figure::Envelope) {
        envelope::measure(&bench, &mut report).context("envelope")?;
    }
    if wanted(Figure::Status) {
        runtime
            .block_on(status::measure(&bench, &mut report))
            .context("status")?;
    }
    if wanted(Figure::Kill) {
        runtime
            .block_on(kill::measure(&bench, &mut report))
            .context("kill")?;
    }
    if wanted(Figure::Kill500) {
        runtime
            .block_on(kill500::measure(&bench, &mut report))
            .context("kill-all of 500")?;
    }
    if wanted(Figure::Flood) {
        runtime
            .block_on(flood::measure(&bench, &mut report))
            .context("flood")?;
    }
    if wanted(Figure::Footprint) {
        runtime
            .block_on(footprint::measure(&bench, &mut report))
            .context("footprint")?;
    }
    if wanted(Figure::Recovery) {
        runtime
            .block_on(recovery::measure(&bench, &mut report))
            .context("recovery")?;
    }
    if wanted(Figure::Spawn) {
        runtime
            .block_on(spawn::measure(&bench, &mut report))
            .context("spawn")?;
    }
    if wanted(Figure::Docker) {
        runtime
            .block_on(docker::spawn::measure(&bench, &mut report))
            .context("docker")?;
    }
    if wanted(Figure::DockerKill) {
        runtime
            .block_on(docker::kill::measure(&bench, &mut report))
            .context("docker-kill")?;
    }
    report.print();
    Ok(())
}

/// Builds what is measured, for release, and tells where it is.
fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for packages in [
        &[
            "-p",
            "mosaic-cli",
            "-p",
            "mosaic-hub",
            "-p",
            "mosaic-orchestrator",
            "--bins",
        ][..],
        &["-p", "mosaic-federation", "--example", "envelope_bench"],
    ] {
        let built = Command::new(&cargo)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["build", "--release", "--quiet"])
            .args(packages)
            .status()
            .context("failed to run cargo")?;
        ensure!(built.success(), "cargo could not build {packages:?}");
    }
    let own = std::env::current_exe()?;
    let bin = own.parent().context("the executable is in no folder")?;
    ensure!(
        bin.file_name().is_some_and(|name| name == "release"),
        "this is no release build: cargo run --release -p mosaic-e2e --bin bench"
    );
    Ok(bin.to_owned())
}
