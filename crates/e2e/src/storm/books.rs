//! What is written down, against what happened: the record, the branches, the audit trail, the slots, the engine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use mosaic_types::AgentId;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    SLOTS, Storm,
    lives::{STARTS, work_file},
};
use crate::{
    api::{Node, PATIENCE, eventually},
    engine::Engine,
    system::{FOREVER, World},
};

/// An agent on record.
#[derive(Debug)]
struct Recorded {
    state: String,
    cleanup_pending: bool,
    status: Value,
}

/// Agents whose status is asked of the hub in the end.
const ASKED: usize = 60;

impl Storm {
    /// Checks everything that must be true in the midst of the storm.
    pub(super) async fn check(&self, world: &World) {
        self.ledger.count(|counts| counts.checks += 1);
        self.survivors().await;
        for spoke in &self.spokes {
            for (agent, recorded) in records(spoke) {
                self.ledger.saw(agent, &recorded.state, &spoke.name);
            }
        }
        self.audits(world).await;
        // And whoever is on record as ended has no process.
        self.survivors().await;
    }

    async fn audits(&self, world: &World) {
        for node in self.spokes.iter().chain([&self.hub]) {
            let run = world.cli_at(node, &["audit", "verify"]).await;
            if run.code != 0 {
                self.ledger
                    .violated(format!("the audit trail of {}: {run:?}", node.name));
            }
        }
    }

    /// The storm is over: everything is killed, and what is left is looked at.
    pub(super) async fn end(&self, world: &World) {
        for agent in &self.ids {
            self.note_work(*agent);
        }
        for (number, spoke) in self.spokes.iter().enumerate() {
            spoke.call("POST", "/hold/release", None).await.ok();
            self.ledger.release(number);
            let report = spoke.kill_all(json!({})).await;
            for agent in report["agents"].as_array().into_iter().flatten() {
                self.killed(agent);
            }
            self.survivors().await;
        }
        for spoke in &self.spokes {
            self.settled(spoke).await;
            self.slots(world, spoke).await;
            self.settled(spoke).await;
        }
        self.check(world).await;
        self.kills_are_on_record();
        for spoke in &self.spokes {
            self.work_is_home(spoke);
        }
        self.engine_is_empty().await;
        self.hub_agrees().await;
        for (name, log) in world.whole_logs() {
            for line in log.lines() {
                // Its driver gave up: the record was not what it knew.
                if ["panicked at", "cannot be driven on", "move was refused"]
                    .iter()
                    .any(|text| line.contains(text))
                {
                    self.ledger.violated(format!("{name}: {line}"));
                }
            }
        }
    }

    /// Waits until everybody's story is over at a spoke.
    async fn settled(&self, spoke: &Node) {
        eventually("the end of every agent's story", async || {
            let records = tokio::task::block_in_place(|| records(spoke));
            let over = |recorded: &Recorded| {
                recorded.status["endedAt"].is_string() && !recorded.cleanup_pending
            };
            records.values().all(over).then_some(())
        })
        .await;
    }

    /// No slot was lost: as many as may run, run at once.
    async fn slots(&self, world: &World, spoke: &Node) {
        let mut fresh = Vec::new();
        for _ in 0..SLOTS {
            let agent = AgentId::generate();
            let answer = spoke.spawn(&world.spawn_body(None, agent, FOREVER)).await;
            if answer.status != 202 {
                self.ledger
                    .violated(format!("{} has no room: {}", spoke.name, answer.body));
                return;
            }
            fresh.push(agent);
        }
        let running = eventually("as many agents as there are slots", async || {
            for agent in &fresh {
                if spoke.status(*agent).await["state"] != "running" {
                    return None;
                }
            }
            Some(())
        });
        running.await;
        spoke.kill_all(json!({})).await;
    }

    /// Each kill that was answered is on record, and in the audit trail; whoever was accepted is known.
    fn kills_are_on_record(&self) {
        let mut recorded = BTreeMap::new();
        let mut audited = BTreeSet::new();
        let mut words = String::new();
        for spoke in &self.spokes {
            recorded.extend(records(spoke));
            audited.extend(audited_as_killed(spoke));
            words += &fs::read_to_string(spoke.data_dir.join("kills.jsonl")).unwrap_or_default();
        }
        for (agent, known) in self.ledger.agents() {
            let state = recorded.get(&agent).map(|recorded| recorded.state.as_str());
            if known.accepted && state.is_none() {
                self.ledger
                    .violated(format!("{agent} was accepted and is on no record"));
            }
            if known.killed && !known.accepted && state.is_none() {
                // Killed while its record was being tried, which came to nothing: word of it is all that keeps it from
                // coming back.
                if !words.contains(&agent.to_string()) {
                    self.ledger.violated(format!(
                        "{agent} was answered as killed, and no word is left"
                    ));
                }
                continue;
            }
            if known.killed && state != Some("killed") {
                self.ledger
                    .violated(format!("{agent} was answered as killed and is {state:?}"));
            }
            if known.killed && !audited.contains(&agent) {
                self.ledger
                    .violated(format!("the kill of {agent} is in no audit trail"));
            }
        }
    }

    /// Whatever an agent wrote is in its branch, or in its salvage ref, or its tree is kept.
    fn work_is_home(&self, spoke: &Node) {
        let Some(mirror) = mirror(spoke) else { return };
        let records = records(spoke);
        let agents = self.ledger.agents();
        let wrote = agents
            .iter()
            .filter(|(agent, known)| known.wrote && records.contains_key(*agent));
        for (agent, _) in wrote {
            let names = [
                format!("refs/heads/mosaic/{agent}"),
                format!("refs/mosaic/salvage/{agent}"),
            ];
            let home = names
                .iter()
                .map(|name| contents(&mirror, name, &work_file(*agent)))
                .any(|text| text.as_deref() == Some(&format!("{agent}\n")));
            let kept = spoke.data_dir.join(format!("agents/{agent}/work"));
            if !home && !kept.join(work_file(*agent)).exists() {
                let status = &records[agent].status;
                self.ledger
                    .violated(format!("the work of {agent} is lost: {status}"));
            }
            let starts = names
                .iter()
                .filter_map(|name| contents(&mirror, name, STARTS))
                .map(|text| text.lines().count() as u64)
                .max();
            let attempts = records[agent].status["attempt"]
                .as_u64()
                .unwrap_or_default();
            if starts.is_some_and(|starts| starts > attempts) {
                self.ledger.violated(format!(
                    "{agent} ran {starts:?} times in {attempts} attempts"
                ));
            }
        }
    }

    /// The engine has no container of an agent, all of whom have ended: what it did late a sweep has removed. Those that
    /// wait for agents go with their spokes.
    async fn engine_is_empty(&self) {
        let empty = async {
            while self.containers().iter().any(|name| !self.waits(name)) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(PATIENCE, empty).await.is_err() {
            let left = self.containers();
            self.ledger
                .violated(format!("containers are left: {left:?}"));
        }
    }

    /// Whether a container waits for an agent, at a spoke that knows of it.
    fn waits(&self, name: &str) -> bool {
        let Some(slot) = name.strip_prefix("mosaic-warm-") else {
            return false;
        };
        let slots = self.spokes.iter().map(|spoke| spoke.data_dir.join("warm"));
        slots.into_iter().any(|slots| slots.join(slot).exists())
    }

    /// The names of all containers of these spokes, dead ones too.
    fn containers(&self) -> Vec<String> {
        let named = |engine: &Engine| {
            let of = |instance: &String| engine.containers_of(instance);
            self.instances.iter().flat_map(of).collect()
        };
        self.engine.as_ref().map(named).unwrap_or_default()
    }

    /// A storm that found something leaves no container either.
    pub(super) fn remove_containers(&self) {
        if let Some(engine) = &self.engine {
            engine.remove_containers(&self.containers());
        }
    }

    /// The hub says of the last agents what their spokes say.
    async fn hub_agrees(&self) {
        let agents = self.ledger.agents();
        let by_hub = agents
            .iter()
            .rev()
            .filter(|(_, known)| known.birth.by_hub && known.accepted);
        for (agent, known) in by_hub.take(ASKED) {
            let at_spoke = self.spokes[known.birth.spoke].status(*agent).await;
            let at_hub = self.hub.status(*agent).await;
            if at_spoke["state"] != at_hub["state"] {
                self.ledger.violated(format!(
                    "of {agent} the hub says {}, its spoke {}",
                    at_hub["state"], at_spoke["state"]
                ));
            }
        }
    }
}

/// Every agent on record, read from the store itself.
fn records(spoke: &Node) -> BTreeMap<AgentId, Recorded> {
    let store = open(spoke);
    let mut rows = store
        .prepare("SELECT agent_id, state, cleanup_pending, record FROM agents")
        .unwrap();
    let records = rows.query_map([], |row| {
        let record: Value = serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
        let recorded = Recorded {
            state: row.get(1)?,
            cleanup_pending: row.get(2)?,
            status: record["status"].clone(),
        };
        Ok((row.get::<_, String>(0)?.parse().unwrap(), recorded))
    });
    records.unwrap().map(Result::unwrap).collect()
}

/// The agents that are on record as running.
pub(super) fn running(spoke: &Node) -> BTreeSet<AgentId> {
    let store = open(spoke);
    let mut rows = store
        .prepare("SELECT agent_id FROM agents WHERE active = 1 AND state = 'running'")
        .unwrap();
    let agents = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
    agents
        .map(|agent| agent.unwrap().parse().unwrap())
        .collect()
}

fn open(spoke: &Node) -> Connection {
    let store = spoke.data_dir.join("store.db");
    let store = Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    store.busy_timeout(PATIENCE).unwrap();
    store
}

/// The agents whose kill is in the trail.
fn audited_as_killed(spoke: &Node) -> BTreeSet<AgentId> {
    let store = open(spoke);
    let mut rows = store
        .prepare("SELECT event FROM audit WHERE event LIKE '%\"agent.killed\"%'")
        .unwrap();
    let events = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
    events
        .filter_map(|event| {
            let event: Value = serde_json::from_str(&event.unwrap()).ok()?;
            event["subject"].as_str()?.parse().ok()
        })
        .collect()
}

fn mirror(spoke: &Node) -> Option<PathBuf> {
    let entries = fs::read_dir(spoke.data_dir.join("mirrors")).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "git"))
}

/// A file in a ref, if it is there.
fn contents(mirror: &Path, name: &str, file: &str) -> Option<String> {
    let mut git = Command::new("git")
        .arg("--git-dir")
        .arg(mirror)
        .args(["cat-file", "--batch"])
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let asked = format!("{name}:{file}\n");
    git.stdin
        .take()
        .unwrap()
        .write_all(asked.as_bytes())
        .unwrap();
    let output = git.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (head, rest) = text.split_once('\n')?;
    // `<object> blob <size>`, the contents, and a line's end.
    head.contains(" blob ")
        .then(|| rest.strip_suffix('\n').unwrap_or(rest).to_owned())
}
