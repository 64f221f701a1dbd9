//! Kills while a peer spawns and asks on 64 connections without pause, beside kills in peace, in the same run.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use mosaic_e2e::flood::{CONNECTIONS, Flood, Source, is_spawn};

use crate::{
    Bench,
    kill::kill_these,
    report::{Aim, Report, verdict},
    scene::Stack,
    stats::{median, millis, percentile, spread},
};

const AGENTS: usize = 100;

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let stack = Stack::start(bench, 1)?;
    let agents = if bench.quick { AGENTS / 5 } else { AGENTS };
    let mut p99 = [Vec::new(), Vec::new()];
    let mut own_p99 = [Vec::new(), Vec::new()];
    let mut ratio = Vec::new();
    let mut asked = 0;
    for _ in 0..bench.rounds(3) {
        let sleepers = stack.sleepers(0, 2 * agents).await?;
        let (peace, war) = sleepers.split_at(agents);
        let idle = kill_these(&stack, peace).await?;
        let last = war.last().context("nobody to ask for")?;
        let operator = Arc::new(Operator::new(&stack, &last.agent));
        let flood = Flood::start(stack.hub.clone(), CONNECTIONS, operator);
        let flooded = kill_these(&stack, war).await;
        asked += flood.stop()?;
        for (at, killed) in [idle, flooded?].iter().enumerate() {
            p99[at].push(millis(percentile(&killed.answered, 99)));
            own_p99[at].push(millis(percentile(&killed.proven, 99)));
        }
        let last = |values: &[f64]| values.last().copied().unwrap_or(f64::NAN);
        ratio.push(last(&p99[1]) / last(&p99[0]));
    }
    ensure!(asked > 0, "there was no flood");
    report.table(
        "Kill of one, p99, beside a flood: 64 connections that spawn and ask without pause",
        &[
            "",
            "answered",
            "the orchestrator's own",
            "beside idle",
            "aim",
        ],
    );
    for (at, name) in ["idle", "flooded"].into_iter().enumerate() {
        let beside = (at == 1).then(|| {
            (
                spread(&ratio, ""),
                verdict(median(&ratio), Aim::Under(3.0), ""),
            )
        });
        let (beside, aim) = beside.unwrap_or_default();
        report.row(&[
            format!("{name}, {agents} times"),
            spread(&p99[at], " ms"),
            spread(&own_p99[at], " ms"),
            beside,
            aim,
        ]);
    }
    report.line(format!("\nThe flood made {asked} requests."));
    stack.finish()
}

/// What an operator asks of the hub: spawns at the spoke, and the status of one agent.
struct Operator {
    ask: Vec<u8>,
    spawn: Vec<u8>,
}

impl Operator {
    fn new(stack: &Stack, agent: &str) -> Self {
        let path = format!("/api/v1/federation/agents/{agent}/status");
        let spawn = "/api/v1/federation/agents/spawn";
        Self {
            ask: stack.hub.request("GET", &path, None),
            spawn: stack
                .hub
                .request("POST", spawn, Some(&stack.order(0, "true"))),
        }
    }
}

impl Source for Operator {
    fn request(&self, number: usize) -> Vec<u8> {
        if is_spawn(number) {
            self.spawn.clone()
        } else {
            self.ask.clone()
        }
    }
}
