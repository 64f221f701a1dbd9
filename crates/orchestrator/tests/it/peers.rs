//! A whole spoke as its peers see it: real peers over loopback, each reaches its own agents and nothing else.

use std::{collections::HashSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt, future::join_all};
use mosaic_node::{CommandCall, HttpLimits, Node, NodeConfig, PeerError};
use mosaic_orchestrator::runtime::{PromptChannel, RuntimeConfig};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal,
    agent::{AgentStatus, EndReason, ObservedState},
    api::{ConnectRequest, ConnectionList},
    audit::{Actor, AuditEvent},
    command::{
        AgentPage, AgentResult, CommandType, PatchEncoding, Pong, SandboxKind, WatchPayload,
    },
    connection::{Connection, ConnectionState, NodeRole},
    event::{AgentEvent, EventCursor, EventKind},
    grant::Grants,
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::{PATIENCE, Spoke, git};

mod caps;
mod clocks;
mod hostile;
mod left_behind;
mod secrets;

const FOREVER: &str = "echo at-work; exec sleep 1000";

/// A hub's node, connected to the spoke.
pub(super) struct Peer {
    node: Node,
    connection: Arc<Connection>,
    /// The connection's id at the spoke.
    at_spoke: ConnectionId,
    _folder: TempDir,
}

pub(super) fn grants(spoke: &Spoke) -> Grants {
    Grants::full(vec![format!("file://{}", spoke.repository().display())])
}

/// Invites the node; its connection, and that connection's id at the spoke.
async fn let_in(spoke: &Spoke, node: &Node, grants: Grants) -> (Arc<Connection>, ConnectionId) {
    let request = json!({ "grants": grants });
    let path = "/api/v1/federation/invites";
    let (status, invite) = spoke.call(Method::POST, path, Some(request)).await;
    assert_eq!(status, 201, "{invite}");
    let request = ConnectRequest {
        token: invite["token"].as_str().map(ToOwned::to_owned),
        ..ConnectRequest::default()
    };
    let connection = node.connect(request, Actor::System).await.unwrap();
    let path = "/api/v1/federation/connections";
    let (_, known) = spoke.call(Method::GET, path, None).await;
    let known: ConnectionList = serde_json::from_value(known).unwrap();
    let is_theirs = |known: &Connection| {
        known.peer == *node.instance_id() && known.state == ConnectionState::Active
    };
    let at_spoke = known.connections.into_iter().find(is_theirs).unwrap();
    (connection, at_spoke.connection_id)
}

impl Peer {
    pub(super) async fn of(spoke: &Spoke) -> Self {
        Self::with(spoke, grants(spoke)).await
    }

    pub(super) async fn with(spoke: &Spoke, grants: Grants) -> Self {
        let folder = TempDir::new().unwrap();
        let node = Node::open(NodeConfig {
            data_dir: folder.path().join("hub"),
            name: "hub-under-test".to_owned(),
            role: NodeRole::Hub,
            public_url: None,
            allow_private_peers: true,
            limits: HttpLimits::default(),
        })
        .await
        .unwrap();
        let (connection, at_spoke) = let_in(spoke, &node, grants).await;
        Self {
            node,
            connection,
            at_spoke,
            _folder: folder,
        }
    }

    /// The spoke's operator ends the connection.
    async fn turned_out(&self, spoke: &Spoke) {
        let path = format!(
            "/api/v1/federation/connections/{}/disconnect",
            self.at_spoke
        );
        let (status, answer) = spoke.call(Method::POST, &path, None).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// The spoke's operator lets the same peer in again, whom it has turned out.
    async fn let_in_again(&mut self, spoke: &Spoke) {
        let before = self.at_spoke;
        (self.connection, self.at_spoke) = let_in(spoke, &self.node, grants(spoke)).await;
        assert_ne!(self.at_spoke, before);
    }

    pub(super) async fn ask(
        &self,
        command_type: CommandType,
        payload: &Value,
    ) -> Result<Value, Refusal> {
        let call = CommandCall {
            message_id: None,
            command_type,
            payload,
            timeout: PATIENCE,
            issued_at: None,
        };
        let answer = self.node.peers().command(&self.connection, call).await;
        match answer {
            Ok(answer) => Ok(answer.data),
            Err(error) => Err(error.refusal()),
        }
    }

    pub(super) async fn spawn(&self, spoke: &Spoke, script: &str) -> AgentId {
        let agent = AgentId::generate();
        self.ask(CommandType::AgentSpawn, &spoke.spawn_body(agent, script))
            .await
            .unwrap();
        agent
    }

    /// An agent that does nothing and has begun to.
    pub(super) async fn idle(&self, spoke: &Spoke) -> AgentId {
        let agent = self.spawn(spoke, FOREVER).await;
        spoke.wrote(agent, "at-work").await;
        agent
    }

    async fn status(&self, agent: AgentId) -> Result<AgentStatus, Refusal> {
        let answer = self
            .ask(CommandType::AgentStatus, &json!({"agentId": agent}))
            .await?;
        Ok(serde_json::from_value(answer).unwrap())
    }

    async fn page(&self, payload: Value) -> AgentPage {
        let answer = self.ask(CommandType::AgentList, &payload).await.unwrap();
        serde_json::from_value(answer).unwrap()
    }

    async fn listed(&self) -> HashSet<AgentId> {
        let page = self.page(json!({})).await;
        page.agents.iter().map(|agent| agent.agent_id).collect()
    }

    /// All batches of an agent's story after a place in it. Every line is signed and verified.
    async fn batches(&self, agent: AgentId, after: Option<EventCursor>) -> Vec<Vec<AgentEvent>> {
        let wanted = WatchPayload {
            agent_id: agent,
            after,
            no_follow: false,
        };
        let events = self.node.peers().watch(&self.connection, &wanted);
        let batches = events.await.unwrap().map(Result::unwrap);
        let whole = batches.filter(|batch| std::future::ready(!batch.is_empty()));
        tokio::time::timeout(PATIENCE, whole.collect())
            .await
            .unwrap()
    }

    async fn refused_to_watch(&self, agent: AgentId, after: Option<EventCursor>) -> Refusal {
        let wanted = WatchPayload {
            agent_id: agent,
            after,
            no_follow: false,
        };
        let opened = self.node.peers().watch(&self.connection, &wanted).await;
        opened.map(|_| ()).unwrap_err().refusal()
    }

    /// The patch, put together from its parts.
    async fn patch(&self, agent: AgentId) -> Vec<u8> {
        let mut patch = Vec::new();
        loop {
            let wanted = json!({"agentId": agent, "patchOffset": patch.len()});
            let answer = self.ask(CommandType::AgentResult, &wanted).await.unwrap();
            let result: AgentResult = serde_json::from_value(answer).unwrap();
            let part = result.patch.unwrap();
            match part.encoding {
                PatchEncoding::Utf8 => patch.extend(part.content.as_bytes()),
                PatchEncoding::Base64 => patch.extend(STANDARD.decode(&part.content).unwrap()),
            }
            assert_eq!(
                part.next_offset.unwrap_or(part.total_bytes),
                patch.len() as u64
            );
            if part.next_offset.is_none() {
                return patch;
            }
        }
    }

    pub(super) async fn stop(self) {
        self.node.close().await;
    }
}

fn output(batches: &[Vec<AgentEvent>]) -> Vec<(&str, bool)> {
    let lines = batches
        .iter()
        .flatten()
        .filter_map(|event| match &event.kind {
            EventKind::Output {
                line, unfinished, ..
            } => Some((line.as_str(), *unfinished)),
            _ => None,
        });
    lines.collect()
}

#[tokio::test]
async fn a_cursor_that_no_event_had_is_refused() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let ended = peer.spawn(&spoke, "echo one").await;
    spoke.finished(ended).await;
    let live = peer.idle(&spoke).await;
    for agent in [ended, live] {
        for output in [1, 1 << 40] {
            let after = EventCursor { moves: 1, output };
            let refusal = peer.refused_to_watch(agent, Some(after)).await;
            assert_eq!(
                (refusal.code, refusal.field.as_deref()),
                (ErrorCode::InvalidRequest, Some("after"))
            );
        }
    }
    peer.stop().await;
    spoke.stop().await;
}

pub(super) fn refusal_of(answer: Result<Value, Refusal>) -> (ErrorCode, Option<String>) {
    let refusal = answer.unwrap_err();
    (refusal.code, refusal.field)
}

#[tokio::test]
async fn a_peer_reaches_its_own_agents_and_nothing_else() {
    let spoke = Spoke::start().await;
    let (one, two) = (Peer::of(&spoke).await, Peer::of(&spoke).await);
    let of_one = one.idle(&spoke).await;
    let of_two = two.idle(&spoke).await;
    let local = spoke.spawn(FOREVER).await;
    spoke.wrote(local, "at-work").await;
    let ended = two.spawn(&spoke, "echo work > work").await;
    spoke.finished(ended).await;

    assert_eq!(one.listed().await, HashSet::from([of_one]));
    assert_eq!(two.listed().await, HashSet::from([of_two, ended]));
    for foreign in [of_two, local, ended, AgentId::generate()] {
        for command in [
            CommandType::AgentStatus,
            CommandType::AgentKill,
            CommandType::AgentResult,
        ] {
            let answer = one.ask(command, &json!({"agentId": foreign})).await;
            assert_eq!(
                refusal_of(answer).0,
                ErrorCode::UnknownAgent,
                "{command} {foreign}"
            );
        }
        let refusal = one.refused_to_watch(foreign, None).await;
        assert_eq!(refusal.code, ErrorCode::UnknownAgent);
    }
    // A before of somebody else's agent shows nothing of it.
    let page = one.page(json!({"before": of_two})).await;
    assert!(page.agents.iter().all(|agent| agent.agent_id == of_one));
    // Nor can its id be taken, or be told from one that is taken.
    let body = spoke.spawn_body(of_two, FOREVER);
    let answer = one.ask(CommandType::AgentSpawn, &body).await;
    assert_eq!(
        refusal_of(answer),
        (ErrorCode::Conflict, Some("agentId".to_owned()))
    );

    assert_eq!(
        two.status(of_two).await.unwrap().state,
        ObservedState::Running
    );
    assert!(!two.patch(ended).await.is_empty());
    let report = one
        .ask(CommandType::AgentKill, &json!({"agentId": of_one}))
        .await
        .unwrap();
    assert_eq!(report["outcome"], "killed");
    let batches = one.batches(of_one, None).await;
    let last = batches.last().unwrap().last().unwrap();
    assert!(
        matches!(&last.kind, EventKind::Status { status } if status.state == ObservedState::Killed)
    );
    for untouched in [of_two, local] {
        assert_eq!(spoke.status(untouched).await.state, ObservedState::Running);
    }
    one.stop().await;
    two.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn a_kill_all_and_a_hold_of_one_peer_leave_the_others_alone() {
    let spoke = Spoke::start().await;
    let (one, two) = (Peer::of(&spoke).await, Peer::of(&spoke).await);
    let mut own = HashSet::new();
    for _ in 0..3 {
        own.insert(one.idle(&spoke).await);
    }
    let of_two = two.idle(&spoke).await;
    let local = spoke.spawn(FOREVER).await;
    spoke.wrote(local, "at-work").await;

    let report = one
        .ask(CommandType::AgentKillAll, &json!({"hold": true}))
        .await
        .unwrap();
    assert_eq!(
        (&report["killed"], &report["unverified"], &report["held"]),
        (&json!(3), &json!(0), &json!(true))
    );
    let killed: HashSet<AgentId> = report["agents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|agent| serde_json::from_value(agent["agentId"].clone()).unwrap())
        .collect();
    assert_eq!(killed, own);
    for untouched in [of_two, local] {
        assert_eq!(spoke.status(untouched).await.state, ObservedState::Running);
    }

    let body = spoke.spawn_body(AgentId::generate(), "true");
    let answer = one.ask(CommandType::AgentSpawn, &body).await;
    assert_eq!(refusal_of(answer).0, ErrorCode::Held);
    for (peer, held, active) in [(&one, true, 0), (&two, false, 1)] {
        let pong = peer.ask(CommandType::InstancePing, &json!({})).await;
        let pong = pong.unwrap();
        assert_eq!(
            (&pong["held"], &pong["activeAgents"]),
            (&json!(held), &json!(active))
        );
    }
    let unhindered = two.spawn(&spoke, "true").await;
    assert_eq!(
        spoke.finished(unhindered).await.state,
        ObservedState::Completed
    );
    assert_eq!(
        spoke.finished(spoke.spawn("true").await).await.state,
        ObservedState::Completed
    );
    let body = json!({"connectionId": one.at_spoke});
    let (code, left) = spoke
        .call(reqwest::Method::POST, "/hold/release", Some(body))
        .await;
    assert!(code.is_success(), "{left}");
    let released = one.spawn(&spoke, "true").await;
    assert_eq!(
        spoke.finished(released).await.state,
        ObservedState::Completed
    );
    one.stop().await;
    two.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn a_ping_tells_what_contains_agents_and_what_they_run() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let pong = peer.ask(CommandType::InstancePing, &json!({})).await;
    let pong: Pong = serde_json::from_value(pong.unwrap()).unwrap();
    assert_eq!(pong.role, NodeRole::Orchestrator);
    assert_eq!(pong.name, "spoke-under-test");
    let [sandbox] = pong.sandboxes.as_slice() else {
        panic!("{:?}", pong.sandboxes)
    };
    assert_eq!(sandbox.kind, SandboxKind::Process);
    assert!(!sandbox.containment.is_empty());
    let shell = pong
        .runtimes
        .iter()
        .find(|runtime| runtime.name.as_str() == "shell");
    assert!(shell.unwrap().available);
    assert!(
        pong.runtimes
            .iter()
            .any(|runtime| runtime.name.as_str() == "claude")
    );
    peer.stop().await;
    spoke.stop().await;
}

/// F15: its agents go on until somebody says otherwise; it is heard no more, and its open streams end.
#[tokio::test]
async fn f15_a_suspended_peer_is_cut_off_and_its_agents_stay_the_operators() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let agent = peer.idle(&spoke).await;
    let wanted = WatchPayload {
        agent_id: agent,
        after: None,
        no_follow: false,
    };
    let open = peer.node.peers().watch(&peer.connection, &wanted);
    let open = open.await.unwrap();
    let suspended = spoke.node().suspend(peer.at_spoke, Actor::System);
    suspended.await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, open.collect::<Vec<_>>()).await;
    assert!(ended.is_ok(), "the stream goes on");
    let call = CommandCall {
        message_id: None,
        command_type: CommandType::AgentKill,
        payload: &json!({"agentId": agent}),
        timeout: PATIENCE,
        issued_at: None,
    };
    let answer = peer
        .node
        .peers()
        .command::<Value, _>(&peer.connection, call)
        .await;
    assert!(matches!(answer, Err(PeerError::NotAccepted)), "{answer:?}");
    assert_eq!(spoke.status(agent).await.state, ObservedState::Running);
    assert_eq!(spoke.kill(agent).await["outcome"], "killed");
    spoke
        .node()
        .resume(peer.at_spoke, Actor::System)
        .await
        .unwrap();
    spoke.finished(agent).await;
    assert_eq!(
        peer.status(agent).await.unwrap().state,
        ObservedState::Killed
    );
    peer.stop().await;
    spoke.stop().await;
}
