//! The `docker` command, as an operator uses it.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::{Sleeper, nap};
use crate::bare::Group;

/// Tells the containers of a run from all others.
const LABEL: &str = "dev.mosaic.bench";
/// How long what was killed may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(60);

/// What the command wrote; a failure with its words if it did not end well.
pub(super) fn docker(args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("docker")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("failed to run docker")?;
    ensure!(
        output.status.success(),
        "docker {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(super) fn has_image(image: &str) -> bool {
    docker(&["image", "inspect", "--format", "{{.Id}}", image]).is_ok()
}

/// Lines of what the command wrote, as a set.
pub(super) fn listed(args: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    Ok(docker(args)?.lines().map(ToOwned::to_owned).collect())
}

/// How long the command takes to do nothing.
pub(super) fn nothing() -> anyhow::Result<Duration> {
    let start = Instant::now();
    docker(&["--version"])?;
    Ok(start.elapsed())
}

/// Containers that the command makes, in one run. Dropping it removes them.
#[derive(Debug)]
pub(super) struct Plain {
    image: String,
    label: String,
    parent: Option<String>,
}

impl Plain {
    pub(super) fn new(image: &str, run: &str) -> Self {
        Self {
            image: image.to_owned(),
            label: format!("{LABEL}={run}"),
            parent: None,
        }
    }

    /// The same below a group.
    pub(super) fn below(mut self, group: &Group) -> Self {
        self.parent = Some(group.name());
        self
    }

    fn run<'a>(&'a self, mode: &'a str, script: &'a str) -> Vec<&'a str> {
        let mut args = vec!["run", mode, "--network=none", "--label", &self.label];
        if let Some(parent) = &self.parent {
            args.extend(["--cgroup-parent", parent]);
        }
        args.extend([&self.image, "sh", "-c", script]);
        args
    }

    /// From the start of `docker run --rm` to the first line that it writes. It has ended when this returns.
    pub(super) fn first_line(&self, script: &str) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut child = Command::new("docker")
            .args(self.run("--rm", script))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to run docker")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no standard output")?;
        let read = BufReader::new(stdout).read_line(&mut line);
        let took = start.elapsed();
        let status = child.wait()?;
        read?;
        ensure!(
            status.success() && !line.is_empty(),
            "docker run ended with {status}"
        );
        Ok(took)
    }

    /// Starts sleepers by `docker run -d`, so many at a time; from the start of the first until the last runs.
    pub(super) fn sleepers(
        &self,
        count: usize,
        at_once: usize,
    ) -> anyhow::Result<(Vec<Sleeper>, Duration)> {
        let next = AtomicUsize::new(0);
        let made = Mutex::new(Vec::with_capacity(count));
        let one = || -> anyhow::Result<()> {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let nap = nap();
                let id = docker(&self.run("-d", &format!("exec sleep {nap}")))?;
                made.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Sleeper::new(id, nap));
            }
            Ok(())
        };
        let start = Instant::now();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(one)).collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread broke off")))
            })
        })?;
        let took = start.elapsed();
        let sleepers = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((sleepers, took))
    }

    /// Removes all that this run has made.
    pub(super) fn clear(&self) -> anyhow::Result<()> {
        remove_labelled(&self.label)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("bench: {error:?}");
        }
    }
}

/// Kills by one `docker kill`; from its start until it has returned and every program is gone.
pub(super) fn kill(sleepers: &[Sleeper]) -> anyhow::Result<Duration> {
    let mut args = vec!["kill"];
    args.extend(sleepers.iter().map(|sleeper| sleeper.id.as_str()));
    let start = Instant::now();
    docker(&args)?;
    while sleepers.iter().any(Sleeper::is_alive) {
        ensure!(start.elapsed() < DEATH_LIMIT, "alive after a `docker kill`");
        thread::yield_now();
    }
    Ok(start.elapsed())
}

/// The containers with a label, dead ones as well.
pub(super) fn labelled(label: &str) -> anyhow::Result<BTreeSet<String>> {
    let filter = format!("label={label}");
    listed(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter])
}

/// Removes the containers with a label, whatever runs in them.
pub(super) fn remove_labelled(label: &str) -> anyhow::Result<()> {
    let found = labelled(label)?;
    if found.is_empty() {
        return Ok(());
    }
    let mut args = vec!["rm", "--force", "--volumes"];
    args.extend(found.iter().map(String::as_str));
    docker(&args).map(drop)
}
