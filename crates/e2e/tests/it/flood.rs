//! Kills while a peer floods the spoke, and while all that can be full is full.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mosaic_e2e::{
    api::{Node, eventually},
    flood::{CONNECTIONS, Flood, Source, is_spawn},
    storm::kernel::Sight,
    system::{FOREVER, World, processes_with},
    wire,
};
use mosaic_federation::{command::CommandBuilder, identity::Identity};
use mosaic_types::{AgentId, InstanceId, Timestamp, command::CommandType};
use serde_json::{Value, json};

/// What a peer asks for, without pause: by its own key, each time in a new message.
struct Peer {
    identity: Identity,
    spoke: InstanceId,
    wire: wire::Node,
    /// Whose status it asks for.
    agent: AgentId,
    /// The spawn that it sends, each time of another agent; `None` if it asks for statuses alone.
    spawn: Option<Value>,
    /// What it was told: `ok`, or a code; how often.
    told: Mutex<BTreeMap<(CommandType, String), u64>>,
}

impl Peer {
    /// The peer that this hub is, at the spoke.
    async fn at(hub: &Node, spoke: &Node, agent: AgentId, spawn: Option<Value>) -> Arc<Self> {
        let info = spoke.call("GET", "/api/v1/instance", None).await.ok();
        Arc::new(Self {
            identity: Identity::load_or_create(&hub.data_dir).unwrap(),
            spoke: info["instanceId"].as_str().unwrap().parse().unwrap(),
            wire: wire::Node::at(&spoke.url, &spoke.token).unwrap(),
            agent,
            spawn,
            told: Mutex::default(),
        })
    }

    fn flood(self: &Arc<Self>, connections: usize) -> Flood {
        Flood::start(self.wire.clone(), connections, Arc::clone(self))
    }

    fn kind(&self, number: usize) -> CommandType {
        if self.spawn.is_some() && is_spawn(number) {
            CommandType::AgentSpawn
        } else {
            CommandType::AgentStatus
        }
    }

    fn count(&self, kind: CommandType, told: &str) -> u64 {
        let counts = self.told.lock().unwrap();
        counts.get(&(kind, told.to_owned())).copied().unwrap_or(0)
    }

    /// Waits until the flood was told this so many times more.
    async fn told_again(&self, kind: CommandType, told: &str, times: u64) {
        let wanted = self.count(kind, told) + times;
        eventually(&format!("{times} times {told}, to {kind}"), async || {
            (self.count(kind, told) >= wanted).then_some(())
        })
        .await;
    }
}

impl Source for Peer {
    fn request(&self, number: usize) -> Vec<u8> {
        let kind = self.kind(number);
        let payload = match &self.spawn {
            Some(spawn) if kind == CommandType::AgentSpawn => {
                let mut spawn = spawn.clone();
                spawn["agentId"] = json!(AgentId::generate());
                spawn
            }
            _ => json!({"agentId": self.agent}),
        };
        let command = CommandBuilder::new(&self.spoke, kind)
            .seal(&self.identity, &payload, Timestamp::now())
            .unwrap();
        self.wire.command(&command.bytes)
    }

    fn answered(&self, number: usize, answer: &wire::Answer<'_>) {
        let told = match answer.status {
            200 => {
                let envelope: Value = serde_json::from_slice(answer.body).unwrap();
                let signed = STANDARD.decode(envelope["payload"].as_str().unwrap());
                let body: Value = serde_json::from_slice(&signed.unwrap()).unwrap();
                let code = body["error"]["code"].as_str();
                code.unwrap_or("ok").to_owned()
            }
            status => status.to_string(),
        };
        let mut counts = self.told.lock().unwrap();
        *counts.entry((self.kind(number), told)).or_default() += 1;
    }
}

/// The spoke's agents of which any process is there, whatever the spoke believes.
fn alive(spoke: &Node) -> Vec<AgentId> {
    let sight = Sight::take(std::slice::from_ref(spoke));
    let here = |agent: &AgentId| spoke.data_dir.join(format!("agents/{agent}")).exists();
    sight.alive().filter(here).collect()
}

fn processes_of(spoke: &Node, agent: AgentId) -> Vec<u32> {
    processes_with(&format!("{}/agents/{agent}", spoke.data_dir.display()))
}

/// Agents that do nothing and have begun to.
async fn idle(world: &World, hub: &Node, connection: &str, count: usize) -> Vec<AgentId> {
    let mut agents = Vec::new();
    for _ in 0..count {
        let agent = world.spawn(hub, connection, FOREVER).await;
        hub.wrote(agent, "at-work").await;
        agents.push(agent);
    }
    agents
}

/// Kills one by this node, and looks for the very processes that it had.
async fn kill_one(by: &Node, spoke: &Node, agent: AgentId) {
    let before = processes_of(spoke, agent);
    assert!(!before.is_empty(), "it does not run");
    let report = by.kill(agent).await.ok();
    let left = processes_of(spoke, agent);
    assert_eq!(report["outcome"], "killed", "{report:#}");
    assert!(report["proof"]["method"].is_string(), "{report:#}");
    assert!(before.iter().all(|pid| !left.contains(pid)), "{left:?}");
    assert!(!alive(spoke).contains(&agent));
}

/// Promise 1: whatever one peer asks for, and however often, kills are answered, and a hold holds.
#[tokio::test]
async fn a30_kills_come_through_a_peers_flood() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let flooding = world.hub("flooding").await;
    let limits = "[limits]\nmax-running = 8\nmax-queued = 16\nmin-free-disk-mb = 0";
    let spoke = world.spoke("spoke", limits).await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let many = ["--max-agents", "100000", "--spawns-per-minute", "1000000"];
    let grants = [&["--repository", "**"], &many[..]].concat();
    let of_flood = world.peer(&flooding, &spoke, &grants).await;
    let agents = idle(&world, &hub, &connection, 3).await;
    let asked_about = idle(&world, &flooding, &of_flood, 1).await[0];

    let body = world.spawn_body(None, asked_about, "true");
    let peer = Peer::at(&flooding, &spoke, asked_about, Some(body)).await;
    let flood = peer.flood(CONNECTIONS);
    let (ask, spawn) = (CommandType::AgentStatus, CommandType::AgentSpawn);
    // It is answered, agents come and go by it, and its queue is full.
    peer.told_again(ask, "ok", CONNECTIONS as u64).await;
    peer.told_again(spawn, "ok", 16).await;
    peer.told_again(spawn, "overloaded", 16).await;

    kill_one(&hub, &spoke, agents[0]).await;
    kill_one(&spoke, &spoke, agents[1]).await;
    // It was no lull in which they came through.
    peer.told_again(spawn, "overloaded", 16).await;

    let report = spoke.kill_all(json!({"hold": true})).await;
    assert_eq!(alive(&spoke), []);
    assert_eq!(
        (
            &report["unverified"],
            &report["held"],
            &report["holdDurable"]
        ),
        (&json!(0), &json!(true), &json!(true)),
        "{report:#}"
    );
    let taken = report["agents"].as_array().unwrap();
    for agent in [agents[2], asked_about] {
        let told = taken.iter().find(|told| told["agentId"] == json!(agent));
        assert_eq!(told.unwrap()["outcome"], "killed", "{report:#}");
    }
    // The flood goes on, and nothing comes of it.
    for _ in 0..20 {
        peer.told_again(spawn, "held", 16).await;
        assert_eq!(alive(&spoke), []);
    }
    let accepted = peer.count(spawn, "ok");
    peer.told_again(spawn, "held", 16).await;
    assert_eq!(peer.count(spawn, "ok"), accepted, "a hold let some through");
    let body = world.spawn_body(Some(&connection), AgentId::generate(), "true");
    hub.spawn(&body).await.problem(409, "held");

    spoke.call("POST", "/hold/release", None).await.ok();
    peer.told_again(spawn, "ok", 16).await;
    assert!(flood.stop().unwrap() > 0);
    for agent in &agents {
        assert_eq!(hub.finished(*agent).await["state"], "killed");
    }
    spoke.kill_all(json!({})).await;
    // The dead have their places until they are cleaned up after.
    let after = AgentId::generate();
    let body = world.spawn_body(Some(&connection), after, "true");
    eventually("room for another", async || {
        let answer = hub.spawn(&body).await;
        if answer.status != 202 {
            answer.problem(503, "overloaded");
            return None;
        }
        Some(())
    })
    .await;
    assert_eq!(hub.finished(after).await["state"], "completed");
    world.stop().await;
}

/// Promise 1: with no place free among agents that wait, event streams and commands, a kill has its own.
#[tokio::test]
async fn a30_kills_come_through_with_every_queue_full() {
    let mut world = World::new();
    for expected in [
        "store failed",
        "SQLITE",
        "is not recorded",
        "failed to",
        "the store is too slow",
    ] {
        world.expect_log(expected);
    }
    let hub = world.hub("hub").await;
    let flooding = world.hub("flooding").await;
    let limits = "[limits]\nmax-running = 3\nmax-queued = 2";
    let spoke = world.spoke("spoke", limits).await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    world.peer(&flooding, &spoke, &["--repository", "**"]).await;
    let agents = idle(&world, &hub, &connection, 3).await;

    // Agents that wait.
    for _ in 0..2 {
        world.spawn(&hub, &connection, FOREVER).await;
    }
    let body = world.spawn_body(Some(&connection), AgentId::generate(), FOREVER);
    hub.spawn(&body).await.problem(503, "overloaded");

    // Event streams, of the hub to the spoke.
    let path = format!("{}/{}/events", hub.agents_path(), agents[0]);
    let mut watching = Vec::new();
    let refused = loop {
        let answer = hub.request("GET", &path).send().await.unwrap();
        if answer.status() != 200 {
            break answer.status();
        }
        watching.push(answer);
        assert!(watching.len() <= 1000, "there is no end of streams");
    };
    assert_eq!(refused, 503);

    // Commands: each waits for a store that somebody holds.
    let lock = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    lock.busy_timeout(mosaic_e2e::api::PATIENCE).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let peer = Peer::at(&flooding, &spoke, agents[0], None).await;
    let flood = peer.flood(5 * CONNECTIONS);
    let ask = CommandType::AgentStatus;
    peer.told_again(ask, "overloaded", 1).await;

    kill_one(&hub, &spoke, agents[0]).await;
    kill_one(&spoke, &spoke, agents[1]).await;
    peer.told_again(ask, "overloaded", 1).await;
    let report = hub.kill_all(json!({})).await;
    assert_eq!(
        (
            &report["complete"],
            &report["unverified"],
            &report["killed"]
        ),
        (&json!(true), &json!(0), &json!(3)),
        "{report:#}"
    );
    assert_eq!(alive(&spoke), []);
    peer.told_again(ask, "overloaded", 1).await;

    assert!(flood.stop().unwrap() > 0);
    drop((watching, lock));
    for agent in agents {
        assert_eq!(spoke.finished(agent).await["state"], "killed");
    }
    world.stop().await;
}
