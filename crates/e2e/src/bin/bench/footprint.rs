//! Memory and start-up time of the orchestrator: idle, with live agents, with many ended ones on record.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mosaic_store::{AgentMove, AgentRecord, Limits, SharedStore, sqlite::SqliteStore};
use mosaic_types::{
    AgentId, Timestamp,
    agent::{AgentState, AgentStatus, EndReason, Progress, Usage},
    audit::{Actor, AuditEvent},
    command::{AgentType, SandboxKind, SpawnContext, SpawnOptions, SpawnPayload},
};
use serde_json::{Value, json};

use crate::{
    Bench, leftovers,
    report::Report,
    scene::{self, Process},
    stats::{median, millis, spread},
    wire::Node,
};

const LIVE: usize = 200;
pub(crate) const ENDED: usize = 10_000;
const READY_LIMIT: Duration = Duration::from_secs(60);
/// And for each agent.
const EACH_LIMIT: Duration = Duration::from_millis(500);

/// Memory in KiB.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    rss: u64,
    pss: u64,
}

#[derive(Debug, Default)]
struct Rounds {
    rss: Vec<f64>,
    pss: Vec<f64>,
    ready: Vec<f64>,
}

impl Rounds {
    fn note(&mut self, memory: Memory, ready: Option<Duration>) {
        self.rss.push(memory.rss as f64 / 1024.0);
        self.pss.push(memory.pss as f64 / 1024.0);
        self.ready.extend(ready.map(millis));
    }

    fn row(&self, report: &mut Report, name: &str) {
        let ready = if self.ready.is_empty() {
            String::new()
        } else {
            spread(&self.ready, " ms")
        };
        report.row(&[
            name.to_owned(),
            spread(&self.rss, " MiB"),
            spread(&self.pss, " MiB"),
            ready,
        ]);
    }
}

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let folder = scene::scratch()?;
    let repository = scene::repository(folder.path())?;
    let live = if bench.quick { LIVE / 4 } else { LIVE };
    let (mut idle, mut loaded, mut many) = <(Rounds, Rounds, Rounds)>::default();
    let mut agents_pss = BTreeMap::<String, Vec<f64>>::new();
    let mut instances = Vec::new();
    for round in 0..bench.rounds(3) {
        let data = folder.path().join(format!("data-{round}"));
        let spoke = Spoke::start(bench, folder.path(), &data).await?;
        instances.push(spoke.instance().await?);
        drop(spoke);

        let spoke = Spoke::start(bench, folder.path(), &data).await?;
        settle().await;
        idle.note(spoke.memory()?, Some(spoke.ready));
        spoke.sleepers(&repository, live).await?;
        settle().await;
        loaded.note(spoke.memory()?, None);
        for (kind, memory) in spoke.of_agents(folder.path())? {
            let each = memory.pss as f64 / live as f64;
            agents_pss.entry(kind).or_default().push(each);
        }
        spoke.kill_all(live).await?;
        drop(spoke);

        let data = folder.path().join(format!("many-{round}"));
        drop(Spoke::start(bench, folder.path(), &data).await?);
        fill(&data).await?;
        let spoke = Spoke::start(bench, folder.path(), &data).await?;
        instances.push(spoke.instance().await?);
        settle().await;
        let listed: Value = spoke.node.ask("GET", "/agents?limit=1", None).await?;
        ensure!(listed["more"] == json!(true), "the records are not there");
        many.note(spoke.memory()?, Some(spoke.ready));
    }
    report.table(
        "Orchestrator: memory, and start to the first 200 from `/readyz`",
        &["", "RSS", "PSS", "start"],
    );
    idle.row(report, "idle");
    loaded.row(report, &format!("{live} live agents"));
    many.row(report, &format!("{ENDED} ended agents on record"));
    let each: Vec<String> = agents_pss
        .iter()
        .map(|(kind, pss)| format!("{kind} {:.0} KiB", median(pss)))
        .collect();
    report.line(format!(
        "\nEach live agent has besides (PSS): {}.",
        each.join(", ")
    ));
    let path = folder.path().to_owned();
    folder.close()?;
    scene::ensure_gone(&path, &instances)
}

/// Lets what follows a start or a spawn come to an end, so that memory is that of the steady state.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// A `mosaic-orchestrator` of its own.
pub(crate) struct Spoke {
    process: Process,
    pub(crate) node: Node,
    /// From its start to its first sign of being ready.
    pub(crate) ready: Duration,
}

impl Spoke {
    pub(crate) async fn start(bench: &Bench, folder: &Path, data: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let config = folder.join("orchestrator.toml");
        fs::write(
            &config,
            format!(
                "data-dir = {:?}\nlisten = \"{address}\"\nenable-shell = true\n[limits]\nmax-running = 600\n",
                data.display().to_string()
            ),
        )?;
        let log = folder.join("orchestrator.log");
        let start = Instant::now();
        let process = Process::start(
            Command::new(bench.executable("mosaic-orchestrator"))
                .arg("--config")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
            "mosaic-orchestrator",
            &log,
        )?;
        let mut node = Node {
            address,
            token: String::new(),
        };
        while !is_ready(&node).await {
            ensure!(
                start.elapsed() < READY_LIMIT,
                "the orchestrator is not ready: {}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ready = start.elapsed();
        fs::read_to_string(data.join("admin.token"))?
            .trim()
            .clone_into(&mut node.token);
        Ok(Self {
            process,
            node,
            ready,
        })
    }

    pub(crate) async fn instance(&self) -> anyhow::Result<String> {
        let instance: Value = self.node.ask("GET", "/api/v1/instance", None).await?;
        let id = instance["instanceId"].as_str();
        Ok(id.context("no instance id")?.to_owned())
    }

    fn memory(&self) -> anyhow::Result<Memory> {
        memory_of(self.process.pid())
    }

    pub(crate) async fn sleepers(&self, repository: &str, count: usize) -> anyhow::Result<()> {
        let mut wire = self.node.connect().await?;
        for _ in 0..count {
            let mut order = scene::payload(repository, "exec sleep 900");
            order["agentId"] = AgentId::generate().to_string().into();
            let request = self.node.request("POST", "/agents/spawn", Some(&order));
            wire.exchange(&request).await?.json::<Value>()?;
        }
        let deadline = Instant::now() + READY_LIMIT + EACH_LIMIT * u32::try_from(count)?;
        loop {
            let path = "/agents?active=true&limit=500";
            let page: Value = self.node.ask("GET", path, None).await?;
            let agents = page["agents"].as_array();
            let running = agents
                .into_iter()
                .flatten()
                .filter(|agent| agent["state"] == json!("running"))
                .count();
            if running == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{running} of {count} agents run: {page}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn kill_all(&self, count: usize) -> anyhow::Result<()> {
        let report: Value = self
            .node
            .ask("POST", "/agents/kill-all", Some(&json!({})))
            .await?;
        ensure!(report["killed"] == json!(count), "{report}");
        Ok(())
    }

    /// The memory of the agents' processes, by what they are.
    fn of_agents(&self, folder: &Path) -> anyhow::Result<BTreeMap<String, Memory>> {
        let marker = folder.file_name().context("no name")?.to_string_lossy();
        let mut pids = leftovers::processes_with(&marker);
        pids.extend(below(self.process.pid()));
        pids.sort_unstable();
        pids.dedup();
        let mut kinds = BTreeMap::<String, Memory>::new();
        for pid in pids.into_iter().filter(|pid| *pid != self.process.pid()) {
            let Ok(memory) = memory_of(pid) else {
                continue;
            };
            let command = leftovers::command_line(pid);
            let sum = kinds.entry(kind(&command)).or_default();
            sum.rss += memory.rss;
            sum.pss += memory.pss;
        }
        Ok(kinds)
    }
}

fn kind(command: &str) -> String {
    let program = command.split(' ').next().unwrap_or_default();
    let name = PathBuf::from(match program {
        // As the orchestrator names them; the second is its own executable from an open file.
        "mosaic-sandbox" => "shim",
        "/proc/self/fd/0" => "init",
        program => program,
    });
    name.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Every process below `root`.
fn below(root: u32) -> Vec<u32> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything.
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        let of = children.remove(&pid).unwrap_or_default();
        found.extend(&of);
        next.extend(of);
    }
    found
}

fn memory_of(pid: u32) -> anyhow::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let of = |name: &str| -> anyhow::Result<u64> {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(value.context("no such line in smaps_rollup")?.parse()?)
    };
    Ok(Memory {
        rss: of("Rss:")?,
        pss: of("Pss:")?,
    })
}

async fn is_ready(node: &Node) -> bool {
    let request = node.request("GET", "/readyz", None);
    let Ok(mut wire) = node.connect().await else {
        return false;
    };
    wire.exchange(&request)
        .await
        .is_ok_and(|answer| answer.status == 200)
}

/// Puts ended agents on record, by the store's own verbs: each is accepted, runs and ends.
pub(crate) async fn fill(data: &Path) -> anyhow::Result<()> {
    let store: SharedStore = Arc::new(SqliteStore::open(data, Limits::default())?);
    stream::iter(0..ENDED)
        .map(|_| live_and_end(&store))
        .buffer_unordered(256)
        .try_collect::<()>()
        .await?;
    store.close().await;
    Ok(())
}

async fn live_and_end(store: &SharedStore) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let event = |action: &str| AuditEvent {
        at: now,
        actor: Actor::System,
        action: action.to_owned(),
        subject: None,
        outcome: "ok".to_owned(),
        detail: Value::Null,
    };
    let mut record = record(now)?;
    store
        .insert_agent(record.clone(), event("agent.spawn"))
        .await?;
    for state in [
        AgentState::Spawning,
        AgentState::Running,
        AgentState::Completed,
    ] {
        record.version += 1;
        record.state = state;
        record.status.state = state.into();
        if state.is_terminal() {
            record.status.ended_at = Some(now);
            record.status.reason = Some(EndReason::Finished);
        }
        store
            .move_agent(AgentMove {
                record: record.clone(),
                audit: Some(event("agent.move")),
            })
            .await?;
    }
    Ok(())
}

fn record(now: Timestamp) -> anyhow::Result<AgentRecord> {
    let agent_id = AgentId::generate();
    let request = SpawnPayload {
        agent_id,
        task_id: "BENCH-1".parse()?,
        agent_type: AgentType::Worker,
        runtime: Some("shell".parse()?),
        context: SpawnContext {
            repository: "https://example.org/team/repository".to_owned(),
            branch: "main".to_owned(),
            work_items: vec!["A title, and what is to be done about it".to_owned()],
            skills: None,
            instructions: Some("make test".to_owned()),
        },
        options: None,
        labels: std::collections::BTreeMap::new(),
    };
    let status = AgentStatus {
        agent_id,
        task_id: request.task_id.clone(),
        agent_type: request.agent_type,
        runtime: "shell".parse()?,
        sandbox: SandboxKind::Process,
        connection_id: None,
        state: AgentState::Queued.into(),
        reason: None,
        detail: None,
        attempt: 1,
        repository: request.context.repository.clone(),
        branch: request.context.branch.clone(),
        agent_branch: format!("mosaic/{agent_id}"),
        queued_at: now,
        started_at: Some(now),
        ended_at: None,
        exit_code: Some(0),
        signal: None,
        progress: Progress::default(),
        usage: Usage::default(),
        summary: None,
        work: None,
        death: None,
        cleanup: Vec::new(),
        budget: None,
        labels: std::collections::BTreeMap::new(),
        lease_secs: None,
    };
    Ok(AgentRecord {
        agent_id,
        connection_id: None,
        version: 1,
        state: AgentState::Queued,
        request,
        options: SpawnOptions::default(),
        status,
        not_before: None,
        attempt_start: None,
        cleanup_pending: false,
        issued_at: None,
    })
}
