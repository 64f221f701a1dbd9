//! A kill-all of many at the orchestrator itself, to the proven death of the last.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{
    Bench, bare,
    footprint::Spoke,
    report::{Aim, Report, verdict},
    scene,
    stats::{median, millis, spread},
};

const AGENTS: usize = 500;

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let folder = scene::scratch()?;
    let repository = scene::repository(folder.path())?;
    let agents = if bench.quick { AGENTS / 5 } else { AGENTS };
    let (mut answered, mut own) = (Vec::new(), Vec::new());
    let (mut bare, mut beside) = (Vec::new(), Vec::new());
    let mut instances = Vec::new();
    for round in 0..bench.rounds(3) {
        let data = folder.path().join(format!("data-{round}"));
        let spoke = Spoke::start(bench, folder.path(), &data).await?;
        instances.push(spoke.instance().await?);
        spoke.sleepers(&repository, agents).await?;
        let mut wire = spoke.node.connect().await?;
        let request = spoke
            .node
            .request("POST", "/agents/kill-all", Some(&json!({})));
        let start = Instant::now();
        let report: Value = wire.exchange(&request).await?.json()?;
        answered.push(millis(start.elapsed()));
        ensure!(
            report["killed"] == json!(agents) && report["unverified"] == json!(0),
            "{report}"
        );
        let micros = report["elapsedMicros"].as_u64().context("no time")?;
        let elapsed = micros as f64 / 1000.0;
        own.push(elapsed);
        // What was killed is put away before the other side's turn.
        drop(wire);
        drop(spoke);
        if let Some(alone) = bare::kill_all(agents)? {
            bare.push(millis(alone));
            beside.push(elapsed / millis(alone));
        }
    }
    report.table(
        "Kill-all at the orchestrator, to proven death of all",
        &[
            "",
            "answered",
            "the orchestrator's own",
            "beside bare",
            "aim",
        ],
    );
    report.row(&[
        format!("{agents} process agents"),
        spread(&answered, " ms"),
        spread(&own, " ms"),
        spread(&beside, "×"),
        verdict(median(&own), Aim::Under(100.0), " ms"),
    ]);
    if bare.is_empty() {
        report.line("\nBare sandboxes: there is no cgroup of version 2 to kill them by.");
    } else {
        report.row(&[
            format!("{agents} bare bubblewrap sandboxes, by one write"),
            spread(&bare, " ms"),
            String::new(),
            String::new(),
            String::new(),
        ]);
    }
    let path = folder.path().to_owned();
    folder.close()?;
    scene::ensure_gone(&path, &instances)
}
