//! From the hub's HTTP request for an agent to the first line that it writes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    Bench,
    report::Report,
    scene::Stack,
    stats::{millis, percentile, spread},
};

const AGENTS: usize = 50;

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let stack = Stack::start(bench, 1)?;
    let agents = if bench.quick { AGENTS / 5 } else { AGENTS };
    // The first has the repository fetched.
    first_line(&stack).await?;
    let mut accepted = [Vec::new(), Vec::new()];
    let mut wrote = [Vec::new(), Vec::new()];
    for _ in 0..bench.rounds(3) {
        let mut times = (Vec::new(), Vec::new());
        for _ in 0..agents {
            let (answer, line) = first_line(&stack).await?;
            times.0.push(answer);
            times.1.push(line);
        }
        for (at, percent) in [50, 99].into_iter().enumerate() {
            accepted[at].push(millis(percentile(&times.0, percent)));
            wrote[at].push(millis(percentile(&times.1, percent)));
        }
    }
    report.table(
        "Spawn: from the hub's HTTP request, small repository",
        &["", "p50", "p99"],
    );
    for (name, values) in [
        ("accepted (202), durable at hub and spoke", &accepted),
        (
            "first line of a `shell` agent is at the hub's client",
            &wrote,
        ),
    ] {
        report.row(&[
            format!("{name}, {agents} times"),
            spread(&values[0], " ms"),
            spread(&values[1], " ms"),
        ]);
    }
    stack.finish()
}

async fn first_line(stack: &Stack) -> anyhow::Result<(Duration, Duration)> {
    let order = stack.order(0, "echo here; exec sleep 900");
    let request = stack
        .hub
        .request("POST", "/api/v1/federation/agents/spawn", Some(&order));
    let mut wire = stack.hub.connect().await?;
    let mut events = stack.hub.connect().await?;
    let start = Instant::now();
    let answer = wire.exchange(&request).await?;
    let accepted = answer.took;
    let spawned: Value = answer.json()?;
    let agent = spawned["agentId"].as_str().unwrap_or_default();
    let base = format!("/api/v1/federation/agents/{agent}");
    let watch = stack.hub.request("GET", &format!("{base}/events"), None);
    events.until(&watch, b"event: output").await?;
    let wrote = start.elapsed();
    // One at a time: what is left of it does not compete with the next.
    let body = json!({ "waitForCleanup": true });
    let kill = stack
        .hub
        .request("POST", &format!("{base}/kill"), Some(&body));
    wire.exchange(&kill).await?.json::<Value>()?;
    Ok((accepted, wrote))
}
