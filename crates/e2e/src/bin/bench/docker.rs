//! Agents in containers beside the `docker` command with the same image, program and network (none), by turns.
//!
//! The other side is what an operator would type: `docker run`, `docker kill`. Nothing of it is limited; ours carry all
//! that a Docker sandbox brings (limits, mounts, a cgroup below ours).

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Bench, leftovers, report::Report};

pub(crate) mod kill;
pub(crate) mod spawn;

mod cli;
mod fleet;
mod frozen;

/// What both sides run in.
fn image() -> String {
    std::env::var("MOSAIC_TEST_IMAGE").unwrap_or_else(|_| "mosaic-test-base:1".to_owned())
}

/// The image, unless this machine has none: then the report says that it was left out.
fn image_or_skip(report: &mut Report, what: &str) -> anyhow::Result<Option<String>> {
    let image = image();
    if cli::has_image(&image) {
        return Ok(Some(image));
    }
    let missing = format!("a Docker engine with the image {image}");
    anyhow::ensure!(
        std::env::var_os("MOSAIC_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "missing: {missing}"
    );
    report.line(format!("\nSKIPPED: {what}: missing: {missing}"));
    Ok(None)
}

/// A duration to sleep that no other process sleeps: tells whose a process is.
fn nap() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("9{number:05}.{:09}", std::process::id())
}

/// A program that sleeps, in a container of either side.
#[derive(Debug)]
struct Sleeper {
    /// The agent's id, or the engine's of the container.
    id: String,
    nap: String,
    pid: u32,
}

impl Sleeper {
    fn new(id: String, nap: String) -> Self {
        Self { id, nap, pid: 0 }
    }

    /// Whether its program is alive, as this machine sees it.
    fn is_alive(&self) -> bool {
        leftovers::command_line(self.pid).contains(&self.nap)
    }
}

/// Finds the sleepers' processes; how many of them were not found.
fn find(sleepers: &mut [Sleeper]) -> usize {
    for pid in leftovers::processes_with("sleep 9") {
        let command = leftovers::command_line(pid);
        let nap = command.strip_prefix("sleep ").unwrap_or_default().trim();
        if let Some(sleeper) = sleepers.iter_mut().find(|sleeper| sleeper.nap == nap) {
            sleeper.pid = pid;
        }
    }
    sleepers.iter().filter(|sleeper| sleeper.pid == 0).count()
}

/// Whose turn is first: by turns too, so that neither side always meets what the other left behind.
fn ours_first(round: usize) -> bool {
    round.is_multiple_of(2)
}

/// How many of something, full or for a look.
fn count(bench: &Bench, full: usize, quick: usize) -> usize {
    if bench.quick { quick } else { full }
}
