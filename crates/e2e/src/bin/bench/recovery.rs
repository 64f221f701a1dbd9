//! How long a spoke takes to know its agents again: live ones adopted, ended ones on record.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::{
    Bench,
    footprint::{ENDED, Spoke, fill},
    report::{Aim, Report, verdict},
    scene,
    stats::{median, millis, spread},
};

const LIVE: usize = 100;

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let folder = scene::scratch()?;
    let repository = scene::repository(folder.path())?;
    let live = if bench.quick { LIVE / 4 } else { LIVE };
    let mut taken = Vec::new();
    let mut instances = Vec::new();
    for round in 0..bench.rounds(3) {
        let data = folder.path().join(format!("data-{round}"));
        let spoke = Spoke::start(bench, folder.path(), &data).await?;
        instances.push(spoke.instance().await?);
        spoke.sleepers(&repository, live).await?;
        // Stopping a daemon does not stop its agents.
        drop(spoke);
        fill(&data).await?;
        let spoke = Spoke::start(bench, folder.path(), &data).await?;
        taken.push(millis(spoke.ready));
        let page: Value = spoke
            .node
            .ask("GET", "/agents?active=true&limit=500", None)
            .await?;
        let agents = page["agents"].as_array();
        let running = agents
            .into_iter()
            .flatten()
            .filter(|agent| agent["state"] == json!("running"))
            .count();
        ensure!(running == live, "{running} of {live} agents are adopted");
        spoke.kill_all(live).await?;
    }
    report.table(
        "Recovery: from the start of the orchestrator until all agents are adopted and it serves",
        &["", "time", "aim"],
    );
    report.row(&[
        format!("{live} live and {ENDED} ended agents"),
        spread(&taken, " ms"),
        verdict(median(&taken), Aim::Under(2000.0), " ms"),
    ]);
    let path = folder.path().to_owned();
    folder.close()?;
    scene::ensure_gone(&path, &instances)
}
