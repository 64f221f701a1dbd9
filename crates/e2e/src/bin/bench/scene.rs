//! What is measured: executables of ours as processes of their own, in a folder that is gone afterwards.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Bench, leftovers, wire::Node};

/// How long a process may take to stop in order; it kills its agents first, and proves it.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long agents may take to run.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A process that is stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it. What it says to standard error goes to `log`.
    pub(crate) fn start(command: &mut Command, name: &str, log: &Path) -> anyhow::Result<Self> {
        let child = command
            .env_remove("RUST_LOG")
            .stderr(File::create(log)?)
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        Ok(Self {
            child,
            name: name.to_owned(),
        })
    }

    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, if that is a pipe; once.
    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Asks it to stop, and waits for it.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let Ok(None) = self.child.try_wait() else {
            return Ok(());
        };
        // One that reads its standard input ends with that.
        if self.child.stdin.take().is_none() {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            kill_process(pid.context("not a process id")?, Signal::TERM)?;
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} ended with {status}", self.name);
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("{} did not stop in time, and was killed", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("bench: {error:?}");
        }
    }
}

#[derive(Debug, Deserialize)]
struct Ready {
    hub: ReadyNode,
    spokes: Vec<ReadyNode>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadyNode {
    url: String,
    token: String,
    instance_id: String,
    #[serde(default)]
    connection_id: String,
}

/// A `mosaic dev` with a small repository beside it.
#[derive(Debug)]
pub(crate) struct Stack {
    // Dropped in this order: the process goes before its folder.
    process: Process,
    pub(crate) hub: Node,
    /// The hub's connections to the spokes.
    pub(crate) spokes: Vec<String>,
    instances: Vec<String>,
    repository: String,
    folder: TempDir,
}

impl Stack {
    /// Starts it, connected.
    pub(crate) fn start(bench: &Bench, spokes: usize) -> anyhow::Result<Self> {
        let folder = scratch()?;
        let repository = repository(folder.path())?;
        let log = folder.path().join("mosaic.log");
        let mut process = Process::start(
            Command::new(bench.executable("mosaic"))
                .args(["dev", "--json", "--spokes", &spokes.to_string(), "--dir"])
                .arg(folder.path().join("data"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
            "mosaic dev",
            &log,
        )?;
        let mut line = String::new();
        let stdout = process.stdout().context("no standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let ready: Ready = serde_json::from_str(&line).with_context(|| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            format!("`mosaic dev` is not ready: {said}")
        })?;
        let nodes = std::iter::once(&ready.hub).chain(&ready.spokes);
        Ok(Self {
            process,
            hub: Node::at(&ready.hub.url, &ready.hub.token)?,
            instances: nodes.map(|node| node.instance_id.clone()).collect(),
            spokes: ready
                .spokes
                .into_iter()
                .map(|spoke| spoke.connection_id)
                .collect(),
            repository,
            folder,
        })
    }

    /// What asks for an agent that runs `script`.
    pub(crate) fn order(&self, spoke: usize, script: &str) -> Value {
        let mut order = payload(&self.repository, script);
        if let Some(order) = order.as_object_mut() {
            let connection = self.spokes.get(spoke).cloned().unwrap_or_default();
            order.insert("connectionId".to_owned(), connection.into());
        }
        order
    }

    /// Spawns `count` agents that sleep at a spoke, and waits until all of them run. Their ids, and the process that
    /// each of them is.
    pub(crate) async fn sleepers(
        &self,
        spoke: usize,
        count: usize,
    ) -> anyhow::Result<Vec<Sleeper>> {
        let mut wire = self.hub.connect().await?;
        let deadline = Instant::now() + START_LIMIT;
        let mut sleepers = Vec::with_capacity(count);
        for number in 0..count {
            // A duration that no other agent's process sleeps tells whose it is.
            let nap = format!(
                "9{:05}.{:09}",
                number,
                std::process::id() as usize * 1000 + self.folder_number()
            );
            let order = self.order(spoke, &format!("exec sleep {nap}"));
            let request = self
                .hub
                .request("POST", "/api/v1/federation/agents/spawn", Some(&order));
            let agent = loop {
                let answer = wire.exchange(&request).await?;
                // A peer's spawns are limited by the minute.
                if answer.status == 429 && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    continue;
                }
                let spawned: Value = answer.json()?;
                break spawned
                    .pointer("/agentId")
                    .and_then(Value::as_str)
                    .context("no agent id")?
                    .to_owned();
            };
            sleepers.push(Sleeper { agent, nap, pid: 0 });
        }
        let path = format!(
            "/api/v1/federation/agents?active=true&limit=500&connectionId={}",
            self.spokes.get(spoke).context("no such spoke")?
        );
        loop {
            let page: Value = self.hub.ask("GET", &path, None).await?;
            let agents = page.pointer("/agents").and_then(Value::as_array);
            let running = agents
                .into_iter()
                .flatten()
                .filter(|agent| agent.pointer("/state") == Some(&json!("running")))
                .count();
            if running >= count {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "{running} of {count} agents run: {page}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The agents' programs, not only their sandboxes.
        loop {
            for pid in leftovers::processes_with("sleep 9") {
                let command = leftovers::command_line(pid);
                let nap = command.strip_prefix("sleep ").unwrap_or_default().trim();
                if let Some(sleeper) = sleepers.iter_mut().find(|sleeper| sleeper.nap == nap) {
                    sleeper.pid = pid;
                }
            }
            if sleepers.iter().all(|sleeper| sleeper.pid != 0) {
                return Ok(sleepers);
            }
            ensure!(Instant::now() < deadline, "not every agent's program runs");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn folder_number(&self) -> usize {
        usize::try_from(self.process.pid()).unwrap_or(0) % 1000
    }

    /// Waits until nothing is left to be cleaned up after the agents at a spoke.
    pub(crate) async fn quiet(&self, spoke: usize) -> anyhow::Result<()> {
        let connection = self.spokes.get(spoke).context("no such spoke")?;
        let path = format!("/api/v1/federation/agents?limit=500&connectionId={connection}");
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let page: Value = self.hub.ask("GET", &path, None).await?;
            let agents = page.pointer("/agents").and_then(Value::as_array);
            let busy = agents
                .into_iter()
                .flatten()
                .filter(|agent| agent.pointer("/work").is_none_or(Value::is_null))
                .count();
            if busy == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{busy} agents are not put away");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops it, and looks whether it left anything.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.process.stop()?;
        let path = self.folder.path().to_owned();
        self.folder.close()?;
        ensure_gone(&path, &self.instances)
    }
}

/// An agent that sleeps.
#[derive(Debug)]
pub(crate) struct Sleeper {
    /// Its id.
    pub(crate) agent: String,
    nap: String,
    pid: u32,
}

impl Sleeper {
    /// Whether its program is alive, as this machine sees it.
    pub(crate) fn is_alive(&self) -> bool {
        leftovers::command_line(self.pid).contains(&self.nap)
    }
}

/// A folder that is gone afterwards.
pub(crate) fn scratch() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("mosaic-bench-").tempdir()?)
}

/// Fails if a process, the folder or a cgroup is left.
pub(crate) fn ensure_gone(folder: &Path, instances: &[String]) -> anyhow::Result<()> {
    let left = leftovers::find(folder, instances);
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    Ok(())
}

/// Makes a small repository, and tells its URL.
pub(crate) fn repository(folder: &Path) -> anyhow::Result<String> {
    let path: PathBuf = folder.join("repository");
    fs::create_dir(&path)?;
    for number in 0..20 {
        fs::write(
            path.join(format!("file-{number}.txt")),
            "a line\n".repeat(50),
        )?;
    }
    for arguments in [
        &["init", "--quiet", "--initial-branch=main"][..],
        &["add", "."],
        &[
            "-c",
            "user.name=bench",
            "-c",
            "user.email=bench@example.org",
            "commit",
            "--quiet",
            "--message=Begin",
        ],
    ] {
        let done = Command::new("git")
            .current_dir(&path)
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .status()
            .context("failed to run git")?;
        ensure!(done.success(), "git {arguments:?} failed");
    }
    Ok(format!("file://{}", path.display()))
}

/// The payload of a spawn that runs `script`.
pub(crate) fn payload(repository: &str, script: &str) -> Value {
    json!({
        "taskId": "BENCH-1",
        "agentType": "worker",
        "runtime": "shell",
        "context": {
            "repository": repository,
            "branch": "main",
            "workItems": ["bench"],
            "instructions": script,
        },
    })
}
