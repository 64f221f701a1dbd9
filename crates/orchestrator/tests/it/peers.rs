//! A whole spoke as its peers see it: real peers over loopback, each reaches its own agents and nothing else, and
//! whatever an agent writes can be signed, sent and verified.

use std::{collections::HashSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt, future::join_all};
use mosaic_node::{CommandCall, HttpLimits, Node, NodeConfig, PeerError};
use mosaic_orchestrator::runtime::{PromptChannel, RuntimeConfig};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal,
    agent::{AgentStatus, EndReason, ObservedState},
    api::{ConnectRequest, InviteRequest},
    audit::{Actor, AuditEvent},
    command::{
        AgentPage, AgentResult, CommandType, PatchEncoding, Pong, SandboxKind, WatchPayload,
    },
    connection::{Connection, NodeRole},
    event::{AgentEvent, EventCursor, EventKind},
    grant::Grants,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::{PATIENCE, Spoke, git};

mod clocks;
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
        let request = InviteRequest {
            grants,
            ttl_secs: None,
        };
        let invite = spoke.node().invite(request, Actor::System).await.unwrap();
        let request = ConnectRequest {
            token: Some(invite.token),
            ..ConnectRequest::default()
        };
        let connection = node.connect(request, Actor::System).await.unwrap();
        let known = spoke.node().connections().by_peer(node.instance_id());
        Self {
            node,
            connection,
            at_spoke: known.unwrap().connection_id,
            _folder: folder,
        }
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

/// F21: a peer that resumes after what it has seen gets past whatever an agent writes.
#[tokio::test]
async fn f21_hostile_output_can_be_signed_and_resumed() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    for (script, character) in [
        ("head -c 4194304 /dev/zero | tr '\\0' '\\1'; echo", '\u{1}'),
        (
            "head -c 4194304 /dev/zero | tr '\\0' '\\377'; echo",
            '\u{fffd}',
        ),
        ("head -c 4194304 /dev/zero | tr '\\0' '\"'; echo", '"'),
    ] {
        let agent = peer.spawn(&spoke, &format!("{script}; echo end")).await;
        assert_eq!(
            spoke.finished(agent).await.state,
            ObservedState::Completed,
            "{script}"
        );
        let batches = peer.batches(agent, None).await;
        let told = output(&batches);
        assert_eq!(told.last(), Some(&("end", false)), "{script}");
        let line: usize = told.iter().map(|(line, _)| line.chars().count()).sum();
        assert_eq!(line, (4 << 20) + 3, "{script}");
        let parts = &told[..told.len() - 1];
        assert!(
            parts
                .iter()
                .all(|(line, _)| line.chars().all(|found| found == character))
        );
        assert!(parts[..parts.len() - 1].iter().all(|(_, open)| *open));
        assert!(!parts[parts.len() - 1].1, "the line is over");

        let all: Vec<_> = batches.iter().flatten().cloned().collect();
        for (seen, event) in all.iter().enumerate() {
            let rest = peer.batches(agent, Some(event.id)).await;
            let rest: Vec<_> = rest.into_iter().flatten().map(|event| event.id).collect();
            let expected: Vec<_> = all[seen + 1..].iter().map(|event| event.id).collect();
            assert_eq!(rest, expected, "{script}: after {}", event.id);
        }
    }
    peer.stop().await;
    spoke.stop().await;
}

/// A31.
#[tokio::test]
async fn f21_an_ordinary_line_of_one_mebibyte_is_one_event_of_a_peer() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let agent = peer
        .spawn(
            &spoke,
            "head -c 1048576 /dev/zero | tr '\\0' x; echo; echo end",
        )
        .await;
    let batches = peer.batches(agent, None).await;
    let told = output(&batches);
    assert_eq!(told.len(), 2);
    assert_eq!((told[0].0.len(), told[0].1), (1 << 20, false));
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f21_a_hostile_patch_comes_home_through_a_peer() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let script =
        "for i in $(seq 2000); do head -c 3000 /dev/zero | tr '\\0' '\\1'; echo; done > ones";
    let agent = peer.spawn(&spoke, script).await;
    let work = spoke.finished(agent).await.work.unwrap();
    let patch = peer.patch(agent).await;
    assert_eq!(patch.len() as u64, work.patch_bytes);
    let file = spoke.data_dir().join("taken-home.patch");
    std::fs::write(&file, patch).unwrap();
    git(spoke.repository(), &["am", "-q", file.to_str().unwrap()]);
    assert_eq!(
        git(spoke.repository(), &["rev-parse", "HEAD^{tree}"]),
        git(
            &spoke.mirror(),
            &["rev-parse", &format!("{}^{{tree}}", work.git_ref)]
        )
    );
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f21_hostile_commits_can_be_listed_told_and_fetched() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let script = "head -c 1048576 /dev/zero | tr '\\0' '\\1' > /tmp/subject; \
        tree=$(git rev-parse HEAD^{tree}); head=$(git rev-parse HEAD); \
        for i in $(seq 40); do \
            head=$(git commit-tree -p $head -F /tmp/subject $tree); done; \
        git reset -q --hard $head; echo work > work; git add work; git commit -q -F /tmp/subject";
    let agent = peer.spawn(&spoke, script).await;
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    let work = peer.status(agent).await.unwrap().work.unwrap();
    assert_eq!(work.commits.len(), 41);
    for commit in &work.commits {
        assert!(commit.subject.chars().count() <= 500);
        assert!(commit.author.chars().count() <= 500);
    }
    assert_eq!(peer.listed().await, HashSet::from([agent]));
    let patch = peer.patch(agent).await;
    assert_eq!(patch.len() as u64, work.patch_bytes);
    peer.stop().await;
    spoke.stop().await;
}

/// F14: strict settings are usable, or it is said why not.
#[tokio::test]
async fn f14_a_budget_cap_is_kept_by_the_runtime_or_refused_by_name() {
    let spoke = Spoke::start_with(|config| {
        config.runtimes.push(RuntimeConfig {
            name: "thrifty".parse().unwrap(),
            args: vec![
                "-c".to_owned(),
                "echo \"$2\"; exit 0".to_owned(),
                "sh".to_owned(),
            ],
            budget_args: vec!["--budget".to_owned(), "{budget_usd}".to_owned()],
            prompt: PromptChannel::Stdin,
            ..RuntimeConfig::shell()
        });
    })
    .await;
    let mut capped = grants(&spoke);
    capped.caps.max_budget_usd = Some(2.5);
    let capped = Peer::with(&spoke, capped).await;
    let free = Peer::of(&spoke).await;
    let body = |runtime: &str, options: Value| {
        let agent = AgentId::generate();
        let mut body = spoke.spawn_body(agent, "true");
        body["runtime"] = json!(runtime);
        body["options"] = options;
        (agent, body)
    };
    for (options, budget) in [(json!({}), "2.5"), (json!({"budgetUsd": 1.25}), "1.25")] {
        let (agent, body) = body("thrifty", options);
        capped.ask(CommandType::AgentSpawn, &body).await.unwrap();
        let batches = capped.batches(agent, None).await;
        assert_eq!(output(&batches), [(budget, false)]);
    }
    for (peer, runtime, options, field, code) in [
        (
            &capped,
            "shell",
            json!({}),
            "runtime",
            ErrorCode::UnsupportedOption,
        ),
        (
            &capped,
            "shell",
            json!({"budgetUsd": 1}),
            "options.budgetUsd",
            ErrorCode::UnsupportedOption,
        ),
        (
            &free,
            "shell",
            json!({"budgetUsd": 1}),
            "options.budgetUsd",
            ErrorCode::UnsupportedOption,
        ),
        (
            &capped,
            "thrifty",
            json!({"budgetUsd": 3}),
            "options.budgetUsd",
            ErrorCode::GrantExceeded,
        ),
        (
            &free,
            "thrifty",
            json!({"budgetTokens": 3}),
            "options.budgetTokens",
            ErrorCode::UnsupportedOption,
        ),
    ] {
        let (_, body) = body(runtime, options);
        let refusal = peer.ask(CommandType::AgentSpawn, &body).await.unwrap_err();
        assert_eq!(
            (refusal.code, refusal.field.as_deref()),
            (code, Some(field)),
            "{body}: {refusal:?}"
        );
    }
    capped.stop().await;
    free.stop().await;
    spoke.stop().await;
}

/// F14: where nothing can enforce a cap, a spawn that did not ask for it is told that the grant did.
#[tokio::test]
async fn f14_a_cap_that_cannot_be_enforced_is_refused_as_the_grants() {
    let spoke = Spoke::start_with(|config| config.sandbox.without_cgroup = true).await;
    let mut capped = grants(&spoke);
    capped.caps.max_memory_mb = Some(512);
    let peer = Peer::with(&spoke, capped).await;
    for (options, by_grant) in [(json!({}), true), (json!({"memoryMb": 256}), false)] {
        let mut body = spoke.spawn_body(AgentId::generate(), "true");
        body["options"] = options;
        let refusal = peer.ask(CommandType::AgentSpawn, &body).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::UnsupportedOption);
        assert_eq!(refusal.field.as_deref(), Some("options.memoryMb"));
        assert_eq!(refusal.message.contains("the grant caps it"), by_grant);
    }
    peer.stop().await;
    spoke.stop().await;
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

/// A28: however many ask at once.
#[tokio::test]
async fn f14_a_cap_of_agents_is_exact_under_concurrency() {
    let spoke = Spoke::start().await;
    let mut few = grants(&spoke);
    few.caps.max_agents = 7;
    let peer = Peer::with(&spoke, few).await;
    let bodies: Vec<Value> = (0..20)
        .map(|_| spoke.spawn_body(AgentId::generate(), FOREVER))
        .collect();
    let asking = bodies
        .iter()
        .map(|body| peer.ask(CommandType::AgentSpawn, body));
    let answers = join_all(asking).await;
    let mut accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((1..=7).contains(&accepted), "{answers:?}");
    // While one is on its way in, another may be refused that there was a place for; asked for again, it is had.
    for (body, answer) in bodies.iter().zip(answers) {
        if answer.is_ok() {
            continue;
        }
        assert_eq!(refusal_of(answer).0, ErrorCode::QuotaExceeded);
        match peer.ask(CommandType::AgentSpawn, body).await {
            Ok(_) => accepted += 1,
            Err(refusal) => {
                assert_eq!(refusal.code, ErrorCode::QuotaExceeded);
                assert_eq!(accepted, 7, "refused with a place free");
            }
        }
    }
    assert_eq!(accepted, 7);
    assert_eq!(peer.listed().await.len(), 7);
    // A place is free again with a proven death, and only one.
    let victim = *peer.listed().await.iter().next().unwrap();
    peer.ask(CommandType::AgentKill, &json!({"agentId": victim}))
        .await
        .unwrap();
    spoke.finished(victim).await;
    peer.spawn(&spoke, FOREVER).await;
    let body = spoke.spawn_body(AgentId::generate(), FOREVER);
    let answer = peer.ask(CommandType::AgentSpawn, &body).await;
    assert_eq!(refusal_of(answer).0, ErrorCode::QuotaExceeded);
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f14_spawns_per_minute_are_counted_ended_ones_too() {
    let spoke = Spoke::start().await;
    let mut slow = grants(&spoke);
    slow.caps.spawns_per_minute = 3;
    let peer = Peer::with(&spoke, slow).await;
    for _ in 0..3 {
        let agent = peer.spawn(&spoke, "true").await;
        spoke.finished(agent).await;
    }
    let body = spoke.spawn_body(AgentId::generate(), "true");
    let answer = peer.ask(CommandType::AgentSpawn, &body).await;
    assert_eq!(refusal_of(answer).0, ErrorCode::QuotaExceeded);
    // Kills have no part in it.
    let report = peer.ask(CommandType::AgentKillAll, &json!({})).await;
    assert_eq!(report.unwrap()["unverified"], 0);
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f14_what_a_grant_caps_is_capped() {
    let spoke = Spoke::start().await;
    let mut short = grants(&spoke);
    short.caps.max_timeout_secs = 1;
    short.caps.max_retries = 0;
    let peer = Peer::with(&spoke, short).await;
    for (options, field) in [
        (json!({"timeoutSecs": 2}), "options.timeoutSecs"),
        (json!({"maxRetries": 1}), "options.maxRetries"),
    ] {
        let mut body = spoke.spawn_body(AgentId::generate(), "true");
        body["options"] = options;
        let answer = peer.ask(CommandType::AgentSpawn, &body).await;
        assert_eq!(
            refusal_of(answer),
            (ErrorCode::GrantExceeded, Some(field.to_owned()))
        );
    }
    // What was not asked for is bounded as well.
    let agent = peer.spawn(&spoke, FOREVER).await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Failed, Some(EndReason::TimedOut))
    );
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f14_a_repository_beside_the_granted_is_refused() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let granted = format!("file://{}", spoke.repository().display());
    for (repository, code) in [
        (format!("{granted}-other"), ErrorCode::NotGranted),
        (format!("{granted}/.git"), ErrorCode::NotGranted),
        ("https://example.com/x".to_owned(), ErrorCode::NotGranted),
        (format!("{granted}/../other"), ErrorCode::InvalidRequest),
    ] {
        let mut body = spoke.spawn_body(AgentId::generate(), "true");
        body["context"]["repository"] = json!(repository);
        let answer = peer.ask(CommandType::AgentSpawn, &body).await;
        let expected = (code, Some("context.repository".to_owned()));
        assert_eq!(refusal_of(answer), expected, "{repository}");
    }
    assert!(peer.listed().await.is_empty());
    peer.stop().await;
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

/// A page that would be too large to sign ends early, and says so.
#[tokio::test]
async fn f21_pages_of_a_list_are_bounded_by_what_can_be_signed() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let mut sample = {
        let agent = peer.spawn(&spoke, "echo work > work").await;
        spoke.finished(agent).await;
        let store = spoke.node().store();
        store.agent(agent).await.unwrap().unwrap()
    };
    let mut all = HashSet::from([sample.agent_id]);
    let detail = "\u{1}".repeat(100_000);
    for _ in 0..50 {
        let agent = AgentId::generate();
        all.insert(agent);
        sample.agent_id = agent;
        sample.request.agent_id = agent;
        sample.status.agent_id = agent;
        sample.status.detail = Some(detail.clone());
        let audit = AuditEvent {
            at: sample.status.queued_at,
            actor: Actor::System,
            action: "test".to_owned(),
            subject: None,
            outcome: "ok".to_owned(),
            detail: json!({}),
        };
        let inserted = spoke.node().store().insert_agent(sample.clone(), audit);
        inserted.await.unwrap();
    }
    let mut seen = Vec::new();
    let mut wanted = json!({"limit": 500});
    loop {
        let page = peer.page(wanted.clone()).await;
        seen.extend(page.agents.iter().map(|agent| agent.agent_id));
        if !page.more {
            break;
        }
        wanted["before"] = json!(seen.last().unwrap());
    }
    assert!(
        seen.is_sorted_by(|left, right| left > right),
        "no gap, nothing twice"
    );
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), all);
    let three = peer.page(json!({"limit": 3})).await;
    assert_eq!((three.agents.len(), three.more), (3, true));
    peer.stop().await;
    spoke.stop().await;
}
