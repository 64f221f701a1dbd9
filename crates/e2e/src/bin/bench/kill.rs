//! Kills, from the hub's HTTP request to the answer that death is proven; that it is true is looked up in `/proc`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mosaic_types::{
    api::FederationKillAll,
    command::{KillOutcome, KillReport},
};
use serde_json::json;

use crate::{
    Bench, bare,
    report::{Aim, Report, verdict},
    scene::{Sleeper, Stack},
    stats::{median, millis, percentile, spread},
};

const AGENTS: usize = 200;

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    // Spawns of a peer are limited by the minute: by turns at two spokes, the rounds need not wait for it.
    let stack = Stack::start(bench, 2)?;
    let agents = if bench.quick { AGENTS / 4 } else { AGENTS };
    let (mut p50, mut p99, mut worst) = (Vec::new(), Vec::new(), Vec::new());
    let (mut own_p50, mut own_p99) = (Vec::new(), Vec::new());
    let (mut bare_p50, mut bare_p99, mut bare_worst) = (Vec::new(), Vec::new(), Vec::new());
    let (mut all, mut own_all) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds(3) {
        let one = kill_each(&stack, round % 2, agents).await?;
        p50.push(millis(percentile(&one.answered, 50)));
        p99.push(millis(percentile(&one.answered, 99)));
        worst.push(millis(percentile(&one.answered, 100)));
        own_p50.push(millis(percentile(&one.proven, 50)));
        own_p99.push(millis(percentile(&one.proven, 99)));
        let bare = bare::kill_each(agents)?;
        if !bare.is_empty() {
            bare_p50.push(millis(percentile(&bare, 50)));
            bare_p99.push(millis(percentile(&bare, 99)));
            bare_worst.push(millis(percentile(&bare, 100)));
        }
        let (answered, proven) = kill_all(&stack, (round + 1) % 2, agents).await?;
        all.push(millis(answered));
        own_all.push(millis(proven));
    }
    report.table(
        "Kill: from the hub's HTTP request to proven death",
        &[
            "",
            "p50",
            "p99",
            "slowest",
            "the orchestrator's own p50 / p99",
            "aim",
        ],
    );
    report.row(&[
        format!("one process agent, {agents} times"),
        spread(&p50, " ms"),
        spread(&p99, " ms"),
        spread(&worst, " ms"),
        format!("{} / {}", spread(&own_p50, " ms"), spread(&own_p99, " ms")),
        format!(
            "{}; its own p99 {}",
            verdict(median(&p99), Aim::Under(10.0), " ms"),
            verdict(median(&own_p99), Aim::Under(5.0), " ms")
        ),
    ]);
    if !bare_p50.is_empty() {
        report.row(&[
            format!("one bare bubblewrap sandbox, by one write, {agents} times"),
            spread(&bare_p50, " ms"),
            spread(&bare_p99, " ms"),
            spread(&bare_worst, " ms"),
            String::new(),
            String::new(),
        ]);
    }
    report.table(
        "Kill-all: from the hub's HTTP request to proven death of all",
        &["", "answered", "the orchestrator's own", "aim"],
    );
    report.row(&[
        format!("{agents} process agents"),
        spread(&all, " ms"),
        spread(&own_all, " ms"),
        verdict(median(&all), Aim::Under(150.0), " ms"),
    ]);
    stack.finish()
}

#[derive(Debug, Default)]
pub(crate) struct Killed {
    /// From the request to the answer.
    pub(crate) answered: Vec<Duration>,
    /// What the orchestrator says that it took.
    pub(crate) proven: Vec<Duration>,
}

/// Kills agents one after another. All of them run at first, and what is left of one is put away while the next is killed.
async fn kill_each(stack: &Stack, spoke: usize, agents: usize) -> anyhow::Result<Killed> {
    let sleepers = stack.sleepers(spoke, agents).await?;
    let killed = kill_these(stack, &sleepers, Duration::ZERO).await?;
    stack.quiet(spoke).await?;
    Ok(killed)
}

/// Kills these one after another, by one connection, each so long after the answer to the one before.
pub(crate) async fn kill_these(
    stack: &Stack,
    sleepers: &[Sleeper],
    pause: Duration,
) -> anyhow::Result<Killed> {
    let mut wire = stack.hub.connect().await?;
    let mut killed = Killed::default();
    for sleeper in sleepers {
        tokio::time::sleep(pause).await;
        ensure!(sleeper.is_alive(), "an agent ended by itself");
        let path = format!("/api/v1/federation/agents/{}/kill", sleeper.agent);
        let answer = wire
            .exchange(&stack.hub.request("POST", &path, None))
            .await?;
        ensure!(!sleeper.is_alive(), "an agent is alive after its kill");
        killed.answered.push(answer.took);
        let report: KillReport = answer.json()?;
        ensure!(report.outcome == KillOutcome::Killed, "{report:?}");
        let proof = report.proof.context("no proof of death")?;
        killed
            .proven
            .push(Duration::from_micros(proof.elapsed_micros));
    }
    Ok(killed)
}

/// Kills all agents at once.
async fn kill_all(
    stack: &Stack,
    spoke: usize,
    agents: usize,
) -> anyhow::Result<(Duration, Duration)> {
    let sleepers = stack.sleepers(spoke, agents).await?;
    let mut wire = stack.hub.connect().await?;
    let request = stack.hub.request(
        "POST",
        "/api/v1/federation/agents/kill-all",
        Some(&json!({})),
    );
    let start = Instant::now();
    let answer = wire.exchange(&request).await?;
    let took = start.elapsed();
    let alive = sleepers.iter().filter(|sleeper| sleeper.is_alive()).count();
    ensure!(alive == 0, "{alive} agents are alive after the kill-all");
    let report: FederationKillAll = answer.json()?;
    ensure!(
        report.complete && report.killed == u64::try_from(agents)?,
        "{report:?}"
    );
    let own = report
        .spokes
        .iter()
        .filter_map(|spoke| spoke.report.as_ref())
        .map(|report| report.elapsed_micros)
        .max()
        .unwrap_or_default();
    stack.quiet(spoke).await?;
    Ok((took, Duration::from_micros(own)))
}
