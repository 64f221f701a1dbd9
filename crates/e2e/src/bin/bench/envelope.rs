//! Envelope: sealing and verifying commands, beside bare signing and strict verification of the same bytes.
//!
//! Measured in the crate that has the keys, by its example `envelope_bench`.

use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::{
    Bench,
    report::{Aim, Report, verdict},
    stats::{median, spread},
};

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    signed_bytes: u64,
    bare_micros: f64,
    envelope_micros: f64,
    ratio: f64,
}

fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let output = Command::new(bench.executable("examples/envelope_bench"))
        .output()
        .context("failed to run envelope_bench")?;
    ensure!(output.status.success(), "envelope_bench failed");
    let lines = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    Ok(lines.collect::<Result<_, _>>()?)
}

/// What signing and verifying a command and its answer, of `answer_bytes`, take of one core by bare ed25519, in seconds.
pub(crate) fn signatures(bench: &Bench, answer_bytes: u64) -> anyhow::Result<f64> {
    let lines = run(bench)?;
    let command = lines.first().context("no figures")?;
    let answer = lines
        .iter()
        .min_by_key(|line| line.signed_bytes.abs_diff(answer_bytes))
        .context("no figures")?;
    Ok((command.bare_micros + answer.bare_micros) * 1e-6)
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds(3) {
        rounds.push(run(bench)?);
    }
    report.table(
        "Envelope: sign + verify",
        &[
            "signed bytes",
            "bare ed25519",
            "envelope",
            "speed beside bare",
            "aim",
        ],
    );
    let sizes = rounds.first().cloned().unwrap_or_default();
    for (at, size) in sizes.iter().enumerate() {
        let of = |value: fn(&Line) -> f64| -> Vec<f64> {
            rounds
                .iter()
                .filter_map(|lines| lines.get(at))
                .map(value)
                .collect()
        };
        let ratios = of(|line| line.ratio);
        report.row(&[
            size.signed_bytes.to_string(),
            spread(&of(|line| line.bare_micros), " µs"),
            spread(&of(|line| line.envelope_micros), " µs"),
            spread(&ratios, ""),
            verdict(median(&ratios), Aim::AtLeast(0.9), ""),
        ]);
    }
    Ok(())
}
