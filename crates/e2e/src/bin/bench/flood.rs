//! Kills while a peer spawns and asks on 64 connections without pause, beside kills in peace, in the same run.
//!
//! Both one after another, and each so long after the one before that what the nodes do for a kill to come is over: one
//! that nobody expects.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use mosaic_e2e::flood::{CONNECTIONS, Flood, Source, is_spawn};

use crate::{
    Bench,
    kill::{Killed, kill_these},
    report::{Aim, Report, verdict},
    scene::{Sleeper, Stack},
    stats::{median, millis, percentile, spread},
};

const AGENTS: usize = 100;
/// Longer than others go by turns after a kill.
const APART: Duration = Duration::from_millis(200);

/// Kills in one manner, over all rounds.
struct Manner {
    name: &'static str,
    pause: Duration,
    idle: Figures,
    flooded: Figures,
    ratio: Vec<f64>,
}

#[derive(Default)]
struct Figures {
    p50: Vec<f64>,
    p99: Vec<f64>,
    own_p99: Vec<f64>,
}

impl Manner {
    fn new(name: &'static str, pause: Duration) -> Self {
        Self {
            name,
            pause,
            idle: Figures::default(),
            flooded: Figures::default(),
            ratio: Vec::new(),
        }
    }

    /// Both, on different agents. How many requests the flood made.
    async fn round(&mut self, stack: &Stack, sleepers: &[Sleeper]) -> anyhow::Result<u64> {
        let (peace, war) = sleepers.split_at(sleepers.len() / 2);
        let idle = kill_these(stack, peace, self.pause).await?;
        let last = war.last().context("nobody to ask for")?;
        let operator = Arc::new(Operator::new(stack, &last.agent));
        let flood = Flood::start(stack.hub.clone(), CONNECTIONS, operator);
        let flooded = kill_these(stack, war, self.pause).await;
        let asked = flood.stop()?;
        let (idle, flooded) = (self.idle.take(&idle), self.flooded.take(&flooded?));
        self.ratio.push(flooded / idle);
        Ok(asked)
    }

    fn tell(&self, report: &mut Report, agents: usize) {
        for (figures, name) in [(&self.idle, "idle"), (&self.flooded, "flooded")] {
            let beside = (name == "flooded").then(|| {
                let aim = verdict(median(&self.ratio), Aim::Under(3.0), "");
                (spread(&self.ratio, ""), aim)
            });
            let (beside, aim) = beside.unwrap_or_default();
            report.row(&[
                format!("{name}, {agents} {}", self.name),
                spread(&figures.p50, " ms"),
                spread(&figures.p99, " ms"),
                spread(&figures.own_p99, " ms"),
                beside,
                aim,
            ]);
        }
    }
}

impl Figures {
    /// Takes a round in, and gives its p99.
    fn take(&mut self, killed: &Killed) -> f64 {
        let p99 = millis(percentile(&killed.answered, 99));
        self.p50.push(millis(percentile(&killed.answered, 50)));
        self.p99.push(p99);
        self.own_p99.push(millis(percentile(&killed.proven, 99)));
        p99
    }
}

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let stack = Stack::start(bench, 1)?;
    let agents = if bench.quick { AGENTS / 5 } else { AGENTS };
    let mut manners = [
        Manner::new("one after another", Duration::ZERO),
        Manner::new("each by itself", APART),
    ];
    let mut asked = 0;
    for _ in 0..bench.rounds(3) {
        for manner in &mut manners {
            let sleepers = stack.sleepers(0, 2 * agents).await?;
            asked += manner.round(&stack, &sleepers).await?;
            stack.quiet(0).await?;
        }
    }
    ensure!(asked > 0, "there was no flood");
    report.table(
        "Kill of one beside a flood: 64 connections that spawn and ask without pause",
        &[
            "",
            "p50",
            "p99",
            "the orchestrator's own p99",
            "p99 beside idle",
            "aim",
        ],
    );
    for manner in &manners {
        manner.tell(report, agents);
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
