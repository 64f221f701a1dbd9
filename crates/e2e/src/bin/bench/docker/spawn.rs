//! From the request for an agent to its first line of output, with and without a pool, beside `docker run`.

use std::time::Duration;

use anyhow::ensure;

use super::{cli, cli::Plain, count, fleet::Fleet, image_or_skip};
use crate::{
    Bench,
    report::{Aim, Report, verdict},
    stats::{median, millis, percentile, spread},
};

const SPAWNS: usize = 20;
const POOL: usize = 8;
const SCRIPT: &str = "echo ready";
/// The spokes of the fleet.
const COLD: usize = 0;
const WARM: usize = 1;

/// The rounds of one side.
#[derive(Debug, Default)]
struct Side {
    p50: Vec<f64>,
    slowest: Vec<f64>,
    beside: Vec<f64>,
}

impl Side {
    fn note(&mut self, times: &[Duration], plain: &[Duration]) {
        let p50 = millis(percentile(times, 50));
        self.p50.push(p50);
        self.slowest.push(millis(percentile(times, 100)));
        self.beside.push(p50 / millis(percentile(plain, 50)));
    }

    fn row(&self, report: &mut Report, name: String, aim: Option<f64>) {
        let (beside, aim) = aim.map_or_else(Default::default, |aim| {
            let met = verdict(median(&self.beside), Aim::AtMost(aim), "×");
            (spread(&self.beside, "×"), met)
        });
        report.row(&[
            name,
            spread(&self.p50, " ms"),
            spread(&self.slowest, " ms"),
            beside,
            aim,
        ]);
    }
}

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let Some(image) = image_or_skip(report, "spawn in a container")? else {
        return Ok(());
    };
    let fleet = Fleet::start(bench, &image, &[0, POOL]).await?;
    let docker = Plain::new(&image, fleet.run());
    let spawns = count(bench, SPAWNS, 5);
    docker.first_line(SCRIPT)?;
    let (mut plain, mut cold, mut warm) = <(Side, Side, Side)>::default();
    let mut nothing = Vec::new();
    for _ in 0..bench.rounds(3) {
        let mut times = <(Vec<_>, Vec<_>, Vec<_>)>::default();
        for _ in 0..spawns {
            nothing.push(cli::nothing()?);
            times.0.push(docker.first_line(SCRIPT)?);
            times.1.push(first_line(&fleet, COLD).await?);
            times.2.push(first_line(&fleet, WARM).await?);
        }
        plain.note(&times.0, &times.0);
        cold.note(&times.1, &times.0);
        warm.note(&times.2, &times.0);
    }
    report.table(
        "Container: from the request to the first line of output",
        &["", "p50", "slowest", "beside `docker run`", "aim"],
    );
    plain.row(
        report,
        format!("`docker run --rm --network=none`, {spawns} times"),
        None,
    );
    cold.row(report, "Mosaic, made for the agent".to_owned(), Some(1.15));
    warm.row(report, format!("Mosaic, from a pool of {POOL}"), Some(0.2));
    report.line(format!(
        "\n`docker --version`, which asks no engine, takes {:.1} ms.",
        millis(percentile(&nothing, 50))
    ));
    drop(docker);
    fleet.finish().await
}

/// One spawn at a quiet spoke. What is left of it is put away before the next.
async fn first_line(fleet: &Fleet, at: usize) -> anyhow::Result<Duration> {
    fleet.filled(at).await?;
    let (agent, took) = fleet.first_line(at, SCRIPT).await?;
    let is_warm = fleet.spoke(at)?.was_warm(&agent);
    ensure!(is_warm == (at == WARM), "warm: {is_warm}, at spoke {at}");
    fleet.put_away(&agent).await?;
    fleet.filled(at).await?;
    Ok(took)
}
