//! Many containers at once, and their kills, beside `docker run -d` and `docker kill`.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use mosaic_types::{
    api::FederationKillAll,
    command::{KillOutcome, KillReport},
};
use serde_json::json;

use super::{
    Sleeper, cli,
    cli::Plain,
    count, find,
    fleet::{Fleet, spawn_by},
    frozen::Frozen,
    image_or_skip, nap, ours_first,
};
use crate::{
    Bench,
    bare::Group,
    report::{Aim, Report, verdict},
    stats::{median, millis, percentile, spread},
};

const ALL: usize = 100;
const SINGLE: usize = 50;
/// How many are asked for at a time.
const AT_ONCE: usize = 8;
const FIND_LIMIT: Duration = Duration::from_secs(60);

/// Both sides of a figure, in milliseconds.
#[derive(Debug, Default)]
struct Pair {
    ours: Vec<f64>,
    plain: Vec<f64>,
}

impl Pair {
    fn note(&mut self, ours: Duration, plain: Duration) {
        self.ours.push(millis(ours));
        self.plain.push(millis(plain));
    }

    /// Cells: ours, the other side, the ratio, the aims.
    fn cells(&self, name: String, aims: &[f64]) -> [String; 5] {
        let ratio: Vec<f64> = self
            .ours
            .iter()
            .zip(&self.plain)
            .map(|(ours, plain)| ours / plain)
            .collect();
        let aims = aims
            .iter()
            .map(|aim| verdict(median(&ratio), Aim::AtMost(*aim), "×"))
            .collect::<Vec<_>>()
            .join("; ");
        // A small ratio is told in thousandths.
        let (ratio, unit) = if median(&ratio) < 0.1 {
            (ratio.iter().map(|ratio| ratio * 1e3).collect(), "‰")
        } else {
            (ratio, "×")
        };
        [
            name,
            spread(&self.ours, " ms"),
            spread(&self.plain, " ms"),
            spread(&ratio, unit),
            aims,
        ]
    }
}

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some(image) = image_or_skip(report, "kill of containers")? else {
        return Ok(());
    };
    let fleet = Fleet::start(bench, &image, &[0]).await?;
    let docker = Plain::new(&image, fleet.run());
    let (all, single) = (count(bench, ALL, 10), count(bench, SINGLE, 5));
    let (mut up, mut down, mut frozen) = <(Pair, Pair, Pair)>::default();
    let (mut p50, mut p99) = <(Pair, Pair)>::default();
    let (mut own, mut frozen_own) = <(Vec<_>, Vec<_>)>::default();
    let mut bare = Pair::default();
    for round in 0..bench.rounds(3) {
        let (ours, plain) = if ours_first(round) {
            let ours = all_of_ours(&fleet, all, false).await?;
            (ours, all_of_theirs(&docker, all).await?)
        } else {
            let plain = all_of_theirs(&docker, all).await?;
            (all_of_ours(&fleet, all, false).await?, plain)
        };
        up.note(ours.up, plain.up);
        down.note(ours.down, plain.down);
        own.push(millis(ours.own));
        let ours = all_of_ours(&fleet, all, true).await?;
        frozen.note(ours.down, plain.down);
        frozen_own.push(millis(ours.own));
        if let Some(by_one_write) = all_bare(&image, fleet.run(), all).await? {
            bare.note(by_one_write, plain.down);
        }
        let (ours, plain) = single_kills(&fleet, &docker, single).await?;
        p50.note(percentile(&ours, 50), percentile(&plain, 50));
        p99.note(percentile(&ours, 99), percentile(&plain, 99));
    }
    report.table(
        &format!("Containers: until all run, {AT_ONCE} asked for at a time"),
        &["", "Mosaic", "`docker run -d`", "ratio", "aim"],
    );
    report.row(&up.cells(format!("{all}"), &[1.1]));
    report.table(
        "Containers: from the request to proven death",
        &["", "Mosaic", "`docker kill`", "ratio", "aim"],
    );
    report.row(&p50.cells(format!("one, {single} times: p50"), &[0.2]));
    report.row(&p99.cells("p99".to_owned(), &[]));
    report.row(&down.cells(format!("all {all}"), &[0.05, 0.025]));
    report.row(&frozen.cells(
        format!("all {all}, our engine stopped by SIGSTOP"),
        &[0.025],
    ));
    if !bare.ours.is_empty() {
        let name = format!("{all} of `docker run`, by one write, with nothing of ours");
        report.row(&bare.cells(name, &[]));
    }
    report.line(format!(
        "\nOf the kill-all the orchestrator's own: {}; with its engine stopped: {}.",
        spread(&own, " ms"),
        spread(&frozen_own, " ms")
    ));
    drop(docker);
    fleet.finish().await
}

/// How long all took to run, and to be dead.
#[derive(Debug, Default)]
struct Times {
    up: Duration,
    down: Duration,
    /// What the orchestrator says of the kill.
    own: Duration,
}

async fn all_of_ours(fleet: &Fleet, count: usize, freeze: bool) -> anyhow::Result<Times> {
    let (mut sleepers, up) = agents(fleet, count).await?;
    find_all(&mut sleepers).await?;
    let frozen = if freeze {
        Some(Frozen::engine().await?)
    } else {
        None
    };
    let mut wire = fleet.hub.connect().await?;
    let path = "/api/v1/federation/agents/kill-all";
    let request = fleet.hub.request("POST", path, Some(&json!({})));
    let answer = wire.exchange(&request).await?;
    let alive = sleepers.iter().filter(|sleeper| sleeper.is_alive()).count();
    ensure!(alive == 0, "{alive} agents are alive after the kill-all");
    let down = answer.took;
    let report: FederationKillAll = answer.json()?;
    ensure!(
        report.complete && report.killed == u64::try_from(count)?,
        "{report:?}"
    );
    let reports = report
        .spokes
        .iter()
        .filter_map(|spoke| spoke.report.as_ref());
    let own = reports.map(|report| report.elapsed_micros).max();
    drop(frozen);
    fleet.quiet(0).await?;
    Ok(Times {
        up,
        down,
        own: Duration::from_micros(own.unwrap_or_default()),
    })
}

async fn all_of_theirs(docker: &Plain, count: usize) -> anyhow::Result<Times> {
    let (mut sleepers, up) = docker.sleepers(count, AT_ONCE)?;
    find_all(&mut sleepers).await?;
    let down = cli::kill(&sleepers)?;
    docker.clear()?;
    Ok(Times {
        up,
        down,
        own: Duration::ZERO,
    })
}

/// Containers that the command made, one process each, which die by one write to the group that they are below: what
/// this machine and its engine take at the least. `None` where there is no such group.
async fn all_bare(image: &str, run: &str, count: usize) -> anyhow::Result<Option<Duration>> {
    let Some(group) = Group::make()? else {
        return Ok(None);
    };
    let docker = Plain::new(image, &format!("{run}-bare")).below(&group);
    let (mut sleepers, _) = docker.sleepers(count, AT_ONCE)?;
    find_all(&mut sleepers).await?;
    let down = group.empty()?;
    docker.clear()?;
    Ok(Some(down))
}

/// Kills of one, by turns: ours, theirs.
async fn single_kills(
    fleet: &Fleet,
    docker: &Plain,
    count: usize,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut agents, _) = agents(fleet, count).await?;
    let (mut plain, _) = docker.sleepers(count, AT_ONCE)?;
    find_all(&mut agents).await?;
    find_all(&mut plain).await?;
    let mut wire = fleet.hub.connect().await?;
    let (mut ours, mut theirs) = <(Vec<_>, Vec<_>)>::default();
    for (agent, container) in agents.iter().zip(&plain) {
        ours.push(kill_agent(fleet, &mut wire, agent).await?);
        // What is left of it does not compete with the other side.
        fleet.put_away(&agent.id).await?;
        theirs.push(cli::kill(std::slice::from_ref(container))?);
    }
    docker.clear()?;
    fleet.quiet(0).await?;
    Ok((ours, theirs))
}

async fn kill_agent(
    fleet: &Fleet,
    wire: &mut crate::wire::Wire,
    agent: &Sleeper,
) -> anyhow::Result<Duration> {
    ensure!(agent.is_alive(), "an agent ended by itself");
    let path = format!("/api/v1/federation/agents/{}/kill", agent.id);
    let answer = wire
        .exchange(&fleet.hub.request("POST", &path, None))
        .await?;
    ensure!(!agent.is_alive(), "an agent is alive after its kill");
    let took = answer.took;
    let report: KillReport = answer.json()?;
    ensure!(report.outcome == KillOutcome::Killed, "{report:?}");
    report.proof.context("no proof of death")?;
    Ok(took)
}

/// Spawns agents that sleep, so many at a time; from the first request until the hub knows that the last runs.
async fn agents(fleet: &Fleet, count: usize) -> anyhow::Result<(Vec<Sleeper>, Duration)> {
    let next = Cell::new(0);
    let made = RefCell::new(Vec::with_capacity(count));
    let one = async || -> anyhow::Result<()> {
        let mut wire = fleet.hub.connect().await?;
        while next.get() < count {
            next.set(next.get() + 1);
            let nap = nap();
            let order = fleet.order(0, &format!("exec sleep {nap}"))?;
            let agent = spawn_by(&mut wire, &order).await?;
            // A stream does not end by itself: a connection for each.
            let mut events = fleet.hub.connect().await?;
            fleet
                .until(&mut events, &agent, b"\"state\":\"running\"")
                .await?;
            made.borrow_mut().push(Sleeper::new(agent, nap));
        }
        Ok(())
    };
    let start = Instant::now();
    try_join_all((0..AT_ONCE).map(|_| one())).await?;
    Ok((made.into_inner(), start.elapsed()))
}

/// Waits until every sleeper's program is there to be seen.
async fn find_all(sleepers: &mut [Sleeper]) -> anyhow::Result<()> {
    let deadline = Instant::now() + FIND_LIMIT;
    loop {
        let missing = find(sleepers);
        if missing == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{missing} programs do not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
