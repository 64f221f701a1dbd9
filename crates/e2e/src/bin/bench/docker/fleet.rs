//! A `mosaic-hub` and `mosaic-orchestrator`s whose agents live in containers; and that nothing is left of them.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use mosaic_types::grant::Grants;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cli;
use crate::{
    Bench, leftovers,
    scene::{self, Process},
    wire::{Node, Wire},
};

/// How long a node may take to be ready, agents to be put away, and what is dead to be gone.
const LIMIT: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(10);
/// What an orchestrator says when one more container waits. The API does not tell.
const WAITS: &str = "a container waits";
/// By how many files an orchestrator may differ from when it was idle: connections kept for the next request.
const FILES: usize = 8;
const LABEL_INSTANCE: &str = "dev.mosaic.instance";

/// An orchestrator of the fleet.
#[derive(Debug)]
pub(super) struct Spoke {
    process: Process,
    node: Node,
    data: PathBuf,
    log: PathBuf,
    connection: String,
    /// How many containers its pool holds.
    pool: usize,
    idle_files: usize,
}

/// See the module documentation. Dropped in this order: processes, what they left in the engine, their folder.
#[derive(Debug)]
pub(super) struct Fleet {
    hub_process: Process,
    pub(super) spokes: Vec<Spoke>,
    pub(super) hub: Node,
    repository: String,
    guard: Guard,
    folder: TempDir,
}

impl Fleet {
    /// A hub with an orchestrator for each of `pools`, which says how many containers it keeps ready; the
    /// repository is fetched, and the pools are filled.
    pub(super) async fn start(bench: &Bench, image: &str, pools: &[usize]) -> anyhow::Result<Self> {
        let folder = scene::scratch()?;
        let repository = scene::repository(folder.path())?;
        let mut guard = Guard::new(folder.path())?;
        let address = free_address()?;
        let log = folder.path().join("hub.log");
        let data = folder.path().join("hub");
        let hub_process = Process::start(
            Command::new(bench.executable("mosaic-hub"))
                .args(["--listen", &address, "--allow-private-peers", "--data-dir"])
                .arg(&data)
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
            "mosaic-hub",
            &log,
        )?;
        let hub = ready(&address, &data, &log).await?;
        guard.instances.push(instance(&hub).await?);
        let mut spokes = Vec::new();
        for (number, pool) in pools.iter().enumerate() {
            let name = format!("spoke-{number}");
            let spoke = Spoke::start(bench, folder.path(), &name, image, *pool, &hub).await?;
            guard.instances.push(instance(&spoke.node).await?);
            spokes.push(spoke);
        }
        let mut fleet = Self {
            hub_process,
            spokes,
            hub,
            repository,
            guard,
            folder,
        };
        for at in 0..fleet.spokes.len() {
            let agent = fleet.spawn(at, "true").await?;
            fleet.put_away(&agent).await?;
            fleet.filled(at).await?;
        }
        // What follows a start comes to an end.
        tokio::time::sleep(Duration::from_secs(1)).await;
        for spoke in &mut fleet.spokes {
            spoke.idle_files = spoke.files()?;
        }
        Ok(fleet)
    }

    /// Tells this run from others.
    pub(super) fn run(&self) -> &str {
        &self.guard.marker
    }

    pub(super) fn spoke(&self, at: usize) -> anyhow::Result<&Spoke> {
        self.spokes.get(at).context("no such spoke")
    }

    /// The request for an agent that runs `script`, without a network.
    pub(super) fn order(&self, at: usize, script: &str) -> anyhow::Result<Vec<u8>> {
        let mut order = scene::payload(&self.repository, script);
        order["connectionId"] = self.spoke(at)?.connection.clone().into();
        order["options"] = json!({ "network": "none", "sandbox": "docker" });
        let path = "/api/v1/federation/agents/spawn";
        Ok(self.hub.request("POST", path, Some(&order)))
    }

    /// Asks for an agent; its id.
    async fn spawn(&self, at: usize, script: &str) -> anyhow::Result<String> {
        let order = self.order(at, script)?;
        let mut wire = self.hub.connect().await?;
        spawn_by(&mut wire, &order).await
    }

    /// From the request to the first line that the agent writes, at the hub's client. The agent's id with it.
    pub(super) async fn first_line(
        &self,
        at: usize,
        script: &str,
    ) -> anyhow::Result<(String, Duration)> {
        let order = self.order(at, script)?;
        let mut wire = self.hub.connect().await?;
        let mut events = self.hub.connect().await?;
        let start = Instant::now();
        let agent = spawn_by(&mut wire, &order).await?;
        self.until(&mut events, &agent, b"event: output").await?;
        Ok((agent, start.elapsed()))
    }

    /// Reads an agent's events until one has this in it.
    pub(super) async fn until(
        &self,
        events: &mut Wire,
        agent: &str,
        needle: &[u8],
    ) -> anyhow::Result<()> {
        let path = format!("/api/v1/federation/agents/{agent}/events");
        let watch = self.hub.request("GET", &path, None);
        events
            .until(&watch, needle)
            .await
            .with_context(|| format!("the agent {agent}"))
    }

    /// Waits until nothing of an agent is left to be cleaned up.
    pub(super) async fn put_away(&self, agent: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/federation/agents/{agent}/status");
        let deadline = Instant::now() + LIMIT;
        loop {
            let status: Value = self.hub.ask("GET", &path, None).await?;
            if is_put_away(&status) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not put away: {status}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until nothing is left to be cleaned up at a spoke.
    pub(super) async fn quiet(&self, at: usize) -> anyhow::Result<()> {
        let node = &self.spoke(at)?.node;
        let deadline = Instant::now() + LIMIT;
        loop {
            let page: Value = node.ask("GET", "/agents?limit=500", None).await?;
            let agents = page["agents"].as_array().into_iter().flatten();
            let busy = agents.filter(|agent| !is_put_away(agent)).count();
            if busy == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{busy} agents are not put away");
            tokio::time::sleep(LOOK * 10).await;
        }
    }

    /// Waits until a spoke's pool is full.
    pub(super) async fn filled(&self, at: usize) -> anyhow::Result<()> {
        let spoke = self.spoke(at)?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let made = fs::read_to_string(&spoke.log)?.matches(WAITS).count();
            if spoke.pool == 0 || made >= spoke.pool + spoke.taken() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the pool is not filled");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends all agents and stops everything; fails if anything is left anywhere.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        self.hub
            .ask::<Value>(
                "POST",
                "/api/v1/federation/agents/kill-all",
                Some(&json!({})),
            )
            .await?;
        for at in 0..self.spokes.len() {
            self.quiet(at).await?;
            let spoke = self.spoke(at)?;
            spoke.ensure_idle().await?;
            ensure!(spoke.trees().is_empty(), "left: {:?}", spoke.trees());
        }
        for spoke in &mut self.spokes {
            spoke.process.stop()?;
        }
        self.hub_process.stop()?;
        self.guard.ensure_nothing()?;
        let path = self.folder.path().to_owned();
        self.folder.close()?;
        scene::ensure_gone(&path, &self.guard.instances)
    }
}

impl Spoke {
    async fn start(
        bench: &Bench,
        folder: &Path,
        name: &str,
        image: &str,
        pool: usize,
        hub: &Node,
    ) -> anyhow::Result<Self> {
        let address = free_address()?;
        let data = folder.join(name);
        let log = folder.join(format!("{name}.log"));
        let config = folder.join(format!("{name}.toml"));
        let warm = match pool {
            0 => String::new(),
            size => format!(
                "[[sandbox.docker.warm]]\nruntime = \"shell\"\nsize = {size}\nnetwork = \"none\"\n"
            ),
        };
        fs::write(
            &config,
            format!(
                "data-dir = {:?}\nname = {name:?}\nlisten = {address:?}\nallow-private-peers = true\nenable-shell = true\n\
                 [limits]\nmax-running = 256\n[sandbox]\ndefault = \"docker\"\n[sandbox.docker]\nimage = {image:?}\n{warm}",
                data.display().to_string()
            ),
        )?;
        let process = Process::start(
            Command::new(bench.executable("mosaic-orchestrator"))
                .arg("--config")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
            "mosaic-orchestrator",
            &log,
        )?;
        let node = ready(&address, &data, &log).await?;
        let mut grants = Grants::full(vec!["**".to_owned()]);
        grants.caps.max_agents = 512;
        grants.caps.spawns_per_minute = 100_000;
        let grants = json!({ "grants": grants });
        let invite: Value = node
            .ask("POST", "/api/v1/federation/invites", Some(&grants))
            .await?;
        let connection: Value = hub
            .ask(
                "POST",
                "/api/v1/federation/connections",
                Some(&json!({ "token": invite["token"] })),
            )
            .await?;
        let connection = connection["connectionId"]
            .as_str()
            .context("no connection")?;
        Ok(Self {
            process,
            node,
            data,
            log,
            connection: connection.to_owned(),
            pool,
            idle_files: 0,
        })
    }

    /// How many of its agents had a container of the pool.
    fn taken(&self) -> usize {
        let entries = fs::read_dir(self.data.join("agents"));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .filter(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .is_some_and(|agent| self.was_warm(agent))
            })
            .count()
    }

    /// Whether an agent's container was there before it.
    pub(super) fn was_warm(&self, agent: &str) -> bool {
        let path = self
            .data
            .join("agents")
            .join(agent)
            .join("run/container.json");
        let record = fs::read(path).ok();
        let record = record.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        record.is_some_and(|record| record["slot"].is_string())
    }

    /// How many files it has open.
    fn files(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.process.pid()))?.count())
    }

    /// Waits until it has no more files open than when it was idle.
    async fn ensure_idle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let open = self.files()?;
            if open <= self.idle_files + FILES {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "an orchestrator has {open} files open; idle it had {}",
                self.idle_files
            );
            tokio::time::sleep(LOOK * 10).await;
        }
    }

    /// Working trees that are left.
    fn trees(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.data.join("agents"));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().join("work"))
            .filter(|tree| tree.exists())
            .collect()
    }
}

/// Knows what a run may leave in the engine and in the kernel. Dropping it removes that.
#[derive(Debug)]
struct Guard {
    marker: String,
    folder: PathBuf,
    instances: Vec<String>,
    networks: BTreeSet<String>,
    volumes: BTreeSet<String>,
    armed: bool,
}

impl Guard {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let marker = folder.file_name().context("no name")?.to_string_lossy();
        Ok(Self {
            marker: marker.into_owned(),
            folder: folder.to_owned(),
            instances: Vec::new(),
            networks: networks()?,
            volumes: volumes()?,
            armed: true,
        })
    }

    /// Fails if anything is left. Others may use the engine too: theirs are given time to go.
    fn ensure_nothing(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.left()?;
            if left.is_empty() {
                self.armed = false;
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "left behind: {}",
                left.join(", ")
            );
            std::thread::sleep(LOOK * 10);
        }
    }

    fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        for id in &self.instances {
            let found = cli::labelled(&format!("{LABEL_INSTANCE}={id}"))?;
            left.extend(found.iter().map(|id| format!("container {id}")));
        }
        let new = |now: BTreeSet<String>, before: &BTreeSet<String>, kind: &str| -> Vec<String> {
            now.difference(before)
                .map(|id| format!("{kind} {id}"))
                .collect()
        };
        left.extend(new(networks()?, &self.networks, "network"));
        left.extend(new(volumes()?, &self.volumes, "volume"));
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let ours = mounts.lines().filter(|line| line.contains(&self.marker));
        left.extend(ours.map(|line| format!("mount {line}")));
        let processes = leftovers::processes_with(&self.marker);
        left.extend(processes.iter().map(|pid| format!("process {pid}")));
        Ok(left)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for id in &self.instances {
            if let Err(error) = cli::remove_labelled(&format!("{LABEL_INSTANCE}={id}")) {
                eprintln!("bench: {error:?}");
            }
        }
        // Their command lines have the name of our folder.
        for pid in leftovers::processes_with(&self.marker) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
        for left in leftovers::find(&self.folder, &self.instances) {
            eprintln!("bench: left behind: {left}");
        }
    }
}

fn networks() -> anyhow::Result<BTreeSet<String>> {
    cli::listed(&["network", "ls", "--quiet", "--no-trunc"])
}

fn volumes() -> anyhow::Result<BTreeSet<String>> {
    cli::listed(&["volume", "ls", "--quiet"])
}

/// A step that failed is tried again: it is not over.
fn is_put_away(status: &Value) -> bool {
    let steps = status["cleanup"].as_array().into_iter().flatten();
    let done = |step: &Value| step["ok"] == true;
    steps.clone().all(done) && steps.filter(|step| step["step"] == "worktree").count() > 0
}

/// Sends an order; the agent's id.
pub(super) async fn spawn_by(wire: &mut Wire, order: &[u8]) -> anyhow::Result<String> {
    let spawned: Value = wire.exchange(order).await?.json()?;
    let agent = spawned["agentId"].as_str().context("no agent id")?;
    Ok(agent.to_owned())
}

fn free_address() -> anyhow::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.to_string())
}

async fn instance(node: &Node) -> anyhow::Result<String> {
    let told: Value = node.ask("GET", "/api/v1/instance", None).await?;
    Ok(told["instanceId"]
        .as_str()
        .context("no instance id")?
        .to_owned())
}

/// The node at an address, with its admin's token, once it is ready.
async fn ready(address: &str, data: &Path, log: &Path) -> anyhow::Result<Node> {
    let url = format!("http://{address}");
    let deadline = Instant::now() + LIMIT;
    let asking = Node::at(&url, "")?;
    loop {
        if let Ok(mut wire) = asking.connect().await
            && let Ok(answer) = wire.exchange(&asking.request("GET", "/readyz", None)).await
            && answer.status == 200
        {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "a node is not ready: {}",
            fs::read_to_string(log).unwrap_or_default()
        );
        tokio::time::sleep(LOOK).await;
    }
    Node::at(&url, &fs::read_to_string(data.join("admin.token"))?)
}
