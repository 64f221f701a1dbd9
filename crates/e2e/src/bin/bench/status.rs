//! `agent.status`, hub to spoke and back over loopback, every claim durable, beside [`plain`](crate::plain).

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::future::try_join_all;
use serde_json::Value;

use crate::{
    Bench, envelope,
    report::{Aim, Report, verdict},
    scene::{self, Process, Stack},
    stats::{median, millis, percentile, spread},
    wire::Node,
};

const IN_FLIGHT: usize = 64;

/// Rounds of one side.
#[derive(Debug, Default)]
struct Side {
    p50: Vec<f64>,
    p99: Vec<f64>,
    rate: Vec<f64>,
}

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let stack = Stack::start(bench, 1)?;
    let sleeper = stack
        .sleepers(0, 1)
        .await?
        .pop()
        .context("no agent was spawned")?;
    let path = format!("/api/v1/federation/agents/{}/status", sleeper.agent);
    let answer: Value = stack.hub.ask("GET", &path, None).await?;

    let folder = scene::scratch()?;
    let file = folder.path().join("status.json");
    fs::write(&file, answer.to_string())?;
    let mut plain = Process::start(
        Command::new(std::env::current_exe()?)
            .arg("--plain-servers")
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
        "the plain servers",
        &folder.path().join("plain.log"),
    )?;
    let mut url = String::new();
    BufReader::new(plain.stdout().context("no standard output")?).read_line(&mut url)?;
    let plain_hub = Node::at(url.trim(), "none")?;
    let same: Value = plain_hub.ask("GET", &path, None).await?;
    anyhow::ensure!(same == answer, "the plain servers answer otherwise: {same}");

    let nodes = [&stack.hub, &plain_hub];
    let length = Duration::from_millis(if bench.quick { 1500 } else { 3000 });
    for node in nodes {
        drive(node, &path, IN_FLIGHT, length / 3).await?;
    }
    let mut alone = [Side::default(), Side::default()];
    let mut loaded = [Side::default(), Side::default()];
    for _ in 0..bench.rounds(7) {
        for (sides, in_flight, share) in [(&mut alone, 1, 3), (&mut loaded, IN_FLIGHT, 1)] {
            for (side, node) in sides.iter_mut().zip(nodes) {
                let run = drive(node, &path, in_flight, length / share).await?;
                side.p50.push(millis(percentile(&run.times, 50)));
                side.p99.push(millis(percentile(&run.times, 99)));
                let seconds = run.took.as_secs_f64();
                side.rate
                    .push(f64::from(u32::try_from(run.times.len())?) / seconds);
            }
        }
    }
    report.table(
        "`agent.status`: hub → spoke → hub over loopback, claims durable",
        &[
            "",
            "in flight",
            "p50",
            "p99",
            "commands a second",
            "rate beside plain",
            "aim",
        ],
    );
    for (sides, in_flight) in [(&loaded, IN_FLIGHT), (&alone, 1)] {
        let [ours, plain] = sides;
        let ratios: Vec<f64> = ours
            .rate
            .iter()
            .zip(&plain.rate)
            .map(|(ours, plain)| ours / plain)
            .collect();
        let aim = if in_flight == IN_FLIGHT {
            verdict(median(&ratios), Aim::AtLeast(0.5), "")
        } else {
            String::new()
        };
        for (name, side, ratio, aim) in [
            ("Mosaic", ours, spread(&ratios, ""), aim),
            (
                "plain axum, unsigned, unstored",
                plain,
                String::new(),
                String::new(),
            ),
        ] {
            report.row(&[
                name.to_owned(),
                in_flight.to_string(),
                spread(&side.p50, " ms"),
                spread(&side.p99, " ms"),
                spread(&side.rate, ""),
                ratio,
                aim,
            ]);
        }
    }
    let signatures = envelope::signatures(bench, u64::try_from(answer.to_string().len())?)?;
    let cores = std::thread::available_parallelism()?.get() as f64;
    let plain_seconds = 1.0 / median(&loaded[1].rate);
    report.line(format!(
        "\nA command and its answer are signed and verified once each, which by bare ed25519 alone takes {:.0} µs of a \
         core. With everything else free, the rate beside plain could be at most {:.2} on {cores} cores.",
        signatures * 1e6,
        plain_seconds / (plain_seconds + signatures / cores),
    ));
    plain.stop()?;
    let path = folder.path().to_owned();
    folder.close()?;
    stack.finish()?;
    scene::ensure_gone(&path, &[])
}

struct Run {
    times: Vec<Duration>,
    took: Duration,
}

/// Asks over `in_flight` kept connections, each as soon as it has its answer, for `length`.
async fn drive(node: &Node, path: &str, in_flight: usize, length: Duration) -> anyhow::Result<Run> {
    let request = node.request("GET", path, None);
    let mut wires = Vec::with_capacity(in_flight);
    for _ in 0..in_flight {
        wires.push(node.connect().await?);
    }
    let start = Instant::now();
    let workers = wires.iter_mut().map(async |wire| {
        let mut times = Vec::new();
        while start.elapsed() < length {
            let answer = wire.exchange(&request).await?;
            anyhow::ensure!(
                answer.status == 200,
                "status {}: {}",
                answer.status,
                String::from_utf8_lossy(answer.body)
            );
            times.push(answer.took);
        }
        anyhow::Ok(times)
    });
    let times = try_join_all(workers).await?;
    Ok(Run {
        times: times.concat(),
        took: start.elapsed(),
    })
}
