//! A long storm: `just storm [SEED] [OPERATIONS]`. What it does and checks is in `mosaic_e2e::storm`; what it came to is in
//! `docs/storm.md`.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::Parser;
use mosaic_e2e::{
    binaries,
    storm::{Containers, Orders, Report, pass},
};

/// Lets a storm of random operations, crashes and outages pass over a hub and two spokes, and checks what must hold.
#[derive(Debug, Parser)]
struct Args {
    /// Which storm; one of the clock's if absent
    seed: Option<u64>,
    /// How many operations
    #[arg(default_value_t = 10_000)]
    operations: usize,
    /// No agents in containers, though there could be
    #[arg(long)]
    without_containers: bool,
    /// Folder of the executables to use as they are, instead of those that are built
    #[arg(long, value_name = "DIR")]
    executables: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("storm: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<bool> {
    if let Some(dir) = args.executables {
        binaries::use_from(dir);
    }
    let seed = match args.seed {
        Some(seed) => seed,
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970")?
            .as_secs(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let report = runtime.block_on(async {
        let containers = if args.without_containers {
            Containers::Nowhere
        } else {
            Containers::best().await
        };
        eprintln!("storm: seed {seed}, containers: {containers:?}");
        pass(Orders {
            seed,
            operations: args.operations,
            containers,
            progress: true,
        })
        .await
    });
    print(seed, &report);
    Ok(report.violations.is_empty())
}

fn print(seed: u64, report: &Report) {
    let counts = &report.counts;
    println!(
        "| seed | operations | crashes | stores locked | engine frozen | engine died | agents | in containers | kills | kill-alls | deaths proven | unanswered | checks | minutes | violations |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    println!(
        "| {seed} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {} |",
        counts.operations,
        counts.crashes,
        counts.locks,
        counts.engine_freezes,
        counts.engine_crashes,
        counts.accepted,
        counts.contained,
        counts.kills,
        counts.kill_alls,
        counts.deaths,
        counts.unanswered,
        counts.checks,
        report.took.as_secs_f64() / 60.0,
        report.violations.len(),
    );
    if report.violations.is_empty() {
        return;
    }
    for line in &report.log {
        eprintln!("{line}");
    }
    for violation in &report.violations {
        eprintln!("violated: {violation}");
    }
}
