//! A spoke: a real node, its agents on paper.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use mosaic_federation::command::{AdmittedCommand, CommandPayload, Usage};
use mosaic_node::{CommandHandler, HttpLimits, Node, NodeConfig};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, InstanceId, Refusal, Timestamp,
    agent::{
        AgentState, AgentStatus, CleanupKind, CleanupStep, DeathProof, ObservedState, Progress,
        ProofMethod, Usage as AgentUsage,
    },
    api::InviteRequest,
    audit::Actor,
    command::{
        AgentPage, AgentResult, KillAllReport, KillOutcome, KillReport, PatchEncoding, PatchPart,
        Pong, RenewOutcome, RenewReport, RenewedLease, SandboxKind, SpawnAccepted, SpawnPayload,
    },
    connection::NodeRole,
    event::{AgentEvent, EventCursor, EventKind, OutputStream},
    grant::Grants,
    work::{ResultForm, Salvaged, SalvagedRef},
};
use serde_json::value::RawValue;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::link::Link;

/// An agent on paper.
#[derive(Clone)]
pub(crate) struct Paper {
    request: SpawnPayload,
    pub(crate) status: AgentStatus,
    events: Vec<AgentEvent>,
    pub(crate) patch: Option<Vec<u8>>,
    /// When its spawn was signed.
    pub(crate) issued_at: Timestamp,
}

#[derive(Default)]
pub(crate) struct Agents {
    pub(crate) known: BTreeMap<AgentId, Paper>,
    /// Commands that were executed, in order.
    pub(crate) executed: Vec<&'static str>,
    /// Where watches resumed.
    pub(crate) watched_after: Vec<Option<EventCursor>>,
    /// Parts of results that are given before they are refused.
    pub(crate) parts_left: Option<usize>,
    /// Length of the parts of a patch.
    pub(crate) part_bytes: usize,
    /// What every kill comes to.
    pub(crate) kills_unverified: bool,
    /// Whether every agent that is asked to be killed is said to have ended.
    pub(crate) claims_ended: bool,
    /// Whether deaths are claimed without a proof.
    pub(crate) no_proofs: bool,
    /// How every spawn is refused, whatever becomes of it.
    pub(crate) refuses_spawns: Option<ErrorCode>,
    /// Whose kill is answered about somebody else, so that nothing can be taken from the answer.
    pub(crate) confuses: Option<AgentId>,
    /// Whether holds that are asked for are not taken.
    pub(crate) takes_no_hold: bool,
    /// Whether holds are said to be on disk.
    pub(crate) hold_durable: Option<bool>,
    /// How every kill is refused.
    pub(crate) refuses_kills: Option<ErrorCode>,
    /// The lease of every agent that asks for none.
    pub(crate) imposes_lease: Option<u64>,
    /// Until when what was signed is overtaken, by a kill of that agent or by a kill-all.
    past: Vec<(Option<AgentId>, Timestamp)>,
    /// How many kills are lost on their way.
    pub(crate) loses_kills: usize,
    /// Agents whose lease was renewed, each time.
    pub(crate) renewed: Vec<AgentId>,
    /// Most agents on a page, however many are asked for.
    pub(crate) page_agents: Option<usize>,
    /// Whether every page is the newest.
    pub(crate) repeats_pages: bool,
    /// For how many milliseconds each question for a result was good.
    pub(crate) results_good_for: Vec<i64>,
    /// Agents whose clean-up is not done when they have ended.
    pub(crate) cleaning: BTreeSet<AgentId>,
    /// Whether streams that do not follow hang before their end.
    pub(crate) stalls_streams: bool,
}

/// The handler: paper in, paper out.
#[derive(Clone)]
pub(crate) struct Handler {
    pub(crate) agents: Arc<Mutex<Agents>>,
    changed: Arc<watch::Sender<u64>>,
    /// While shut, kills are executed and not answered.
    pub(crate) gate_open: Arc<watch::Sender<bool>>,
    /// When kills that were lost are given up, and answered as overloaded.
    pub(crate) gives_up: Arc<watch::Sender<bool>>,
}

impl Handler {
    fn new() -> Self {
        let agents = Agents {
            part_bytes: usize::MAX,
            ..Agents::default()
        };
        Self {
            agents: Arc::new(Mutex::new(agents)),
            changed: Arc::new(watch::Sender::new(0)),
            gate_open: Arc::new(watch::Sender::new(true)),
            gives_up: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Lets an agent write a line.
    pub(crate) fn write(&self, agent: AgentId, line: &str) {
        self.change(agent, |paper| {
            let output = paper.events.last().map_or(0, |event| event.id.output);
            let moves = paper.events.last().map_or(1, |event| event.id.moves);
            paper.events.push(AgentEvent {
                agent_id: agent,
                id: EventCursor {
                    moves,
                    output: output + line.len() as u64 + 1,
                },
                at: Timestamp::now(),
                kind: EventKind::Output {
                    stream: OutputStream::Stdout,
                    line: line.to_owned(),
                    unfinished: false,
                },
            });
        });
    }

    /// Moves an agent to a state.
    pub(crate) fn enter(&self, agent: AgentId, state: AgentState) {
        self.change(agent, |paper| {
            paper.status.state = state.into();
            paper.tell();
        });
    }

    /// Cleans up after an agent that was left `cleaning`.
    pub(crate) fn clean_up(&self, agent: AgentId) {
        self.agents.lock().unwrap().cleaning.remove(&agent);
        self.change(agent, |paper| {
            paper.status.cleanup.push(CleanupStep {
                step: CleanupKind::Worktree,
                ok: true,
                detail: None,
            });
            paper.tell();
        });
    }

    /// Whether the kill at hand is lost.
    fn loses(&self) -> bool {
        let mut agents = self.agents.lock().unwrap();
        let is_lost = agents.loses_kills > 0;
        agents.loses_kills = agents.loses_kills.saturating_sub(1);
        is_lost
    }

    fn change(&self, agent: AgentId, f: impl FnOnce(&mut Paper)) {
        f(self.agents.lock().unwrap().known.get_mut(&agent).unwrap());
        self.changed.send_modify(|version| *version += 1);
    }

    fn answer(&self, command: AdmittedCommand) -> Result<serde_json::Value, Refusal> {
        let (connection, issued_at) = (command.connection_id(), command.issued_at());
        let good_for = command.deadline().unix_millis() - issued_at.unix_millis();
        let payload = command.into_payload();
        let mut agents = self.agents.lock().unwrap();
        agents.executed.push(payload.command_type().as_str());
        match &payload {
            CommandPayload::Kill(wanted) => agents.past.push((Some(wanted.agent_id), issued_at)),
            CommandPayload::KillAll(scope) => {
                let before = scope.before.unwrap_or(issued_at);
                agents.past.push((None, before));
            }
            _ => {}
        }
        if payload.command_type().is_kill()
            && let Some(code) = agents.refuses_kills
        {
            return Err(Refusal::new(code, "as it was told to"));
        }
        let unknown = || Refusal::field(ErrorCode::UnknownAgent, "agentId", "no such agent");
        let value = match payload {
            CommandPayload::Spawn(request) => {
                if let Some(code) = agents.refuses_spawns {
                    return Err(Refusal::new(code, "as it was told to"));
                }
                let overtakes = |(agent, before): &(Option<AgentId>, Timestamp)| {
                    issued_at <= *before && agent.is_none_or(|agent| agent == request.agent_id)
                };
                if agents.past.iter().any(overtakes) {
                    let why = "a kill has overtaken this spawn";
                    return Err(Refusal::new(ErrorCode::Expired, why));
                }
                serde_json::to_value(spawn(&mut agents, connection, *request, issued_at)?)
            }
            CommandPayload::Status(wanted) => serde_json::to_value(
                &agents
                    .known
                    .get(&wanted.agent_id)
                    .ok_or_else(unknown)?
                    .status,
            ),
            CommandPayload::List(wanted) => {
                let limit = wanted.limit.unwrap() as usize;
                let limit = agents.page_agents.map_or(limit, |most| limit.min(most));
                let before = wanted.before.filter(|_| !agents.repeats_pages);
                let matching: Vec<_> = agents
                    .known
                    .values()
                    .rev()
                    .map(|paper| paper.status.clone())
                    .filter(|status| before.is_none_or(|before| status.agent_id < before))
                    .filter(|status| {
                        let label = wanted.label.as_ref();
                        label.is_none_or(|label| label.is_among(&status.labels))
                    })
                    .filter(|status| {
                        wanted.active != Some(true) || !status.state.known().unwrap().is_terminal()
                    })
                    .collect();
                let more = matching.len() > limit;
                let agents = matching.into_iter().take(limit).collect();
                serde_json::to_value(AgentPage { agents, more })
            }
            CommandPayload::Kill(wanted) => {
                let (unverified, no_proofs) = (agents.kills_unverified, agents.no_proofs);
                if agents.confuses == Some(wanted.agent_id) {
                    serde_json::to_value(KillReport {
                        agent_id: AgentId::generate(),
                        outcome: KillOutcome::AlreadyEnded,
                        proof: None,
                        detail: None,
                        status: None,
                    })
                } else if agents.claims_ended {
                    serde_json::to_value(KillReport {
                        agent_id: wanted.agent_id,
                        outcome: KillOutcome::AlreadyEnded,
                        proof: None,
                        detail: None,
                        status: None,
                    })
                } else {
                    let paper = agents.known.get_mut(&wanted.agent_id).ok_or_else(unknown)?;
                    let mut report = paper.kill(unverified);
                    report.proof = report.proof.filter(|_| !no_proofs);
                    serde_json::to_value(report)
                }
            }
            CommandPayload::KillAll(scope) => {
                let (unverified, no_proofs) = (agents.kills_unverified, agents.no_proofs);
                let (takes_no_hold, hold_durable) = (agents.takes_no_hold, agents.hold_durable);
                let reports: Vec<_> = agents
                    .known
                    .values_mut()
                    .filter(|paper| {
                        scope
                            .task_id
                            .as_ref()
                            .is_none_or(|t| paper.status.task_id == *t)
                    })
                    .filter(|paper| {
                        let label = scope.label.as_ref();
                        label.is_none_or(|label| label.is_among(&paper.status.labels))
                    })
                    .filter(|paper| scope.before.is_none_or(|before| paper.issued_at <= before))
                    .filter(|paper| !paper.status.state.known().unwrap().is_terminal())
                    .map(|paper| paper.kill(unverified))
                    .map(|report| KillReport {
                        proof: report.proof.filter(|_| !no_proofs),
                        ..report
                    })
                    .collect();
                let count = reports.len() as u64;
                serde_json::to_value(KillAllReport {
                    hold_durable: hold_durable.filter(|_| scope.hold),
                    killed: if unverified { 0 } else { count },
                    unverified: if unverified { count } else { 0 },
                    held: scope.hold && !takes_no_hold,
                    elapsed_micros: 3,
                    completed_at: Timestamp::now(),
                    agents: reports,
                })
            }
            CommandPayload::Result(wanted) => {
                let part_bytes = agents.part_bytes;
                agents.results_good_for.push(good_for);
                if let Some(left) = &mut agents.parts_left {
                    if *left == 0 {
                        return Err(Refusal::new(ErrorCode::Internal, "as it was told to"));
                    }
                    *left -= 1;
                }
                let paper = agents.known.get(&wanted.agent_id).ok_or_else(unknown)?;
                let work = paper.patch.as_ref().map(|patch| {
                    part(patch, wanted.patch_offset.unwrap_or(0) as usize, part_bytes)
                });
                let as_bundle = wanted.form == Some(ResultForm::Bundle);
                if as_bundle && work.is_none() {
                    let why = "there is no work";
                    return Err(Refusal::field(ErrorCode::NoResult, "form", why));
                }
                serde_json::to_value(AgentResult {
                    status: paper.status.clone(),
                    patch: work.clone().filter(|_| !as_bundle),
                    bundle: work.filter(|_| as_bundle),
                    salvaged: wanted.salvaged.then(|| salvaged(wanted.agent_id)),
                })
            }
            CommandPayload::Ping(_) => serde_json::to_value(Pong {
                name: "paper".to_owned(),
                role: NodeRole::Orchestrator,
                version: "0".to_owned(),
                time: Timestamp::now(),
                sandboxes: Vec::new(),
                runtimes: Vec::new(),
                held: false,
                active_agents: agents.known.len() as u64,
            }),
            CommandPayload::Renew(wanted) => {
                agents.renewed.extend(&wanted.agent_ids);
                let renewed = wanted.agent_ids.into_iter().map(|agent_id| {
                    let outcome = match agents.known.get(&agent_id) {
                        None => RenewOutcome::UnknownAgent,
                        Some(paper) if paper.status.state.known().unwrap().is_terminal() => {
                            RenewOutcome::Ended
                        }
                        Some(_) => RenewOutcome::Renewed,
                    };
                    RenewedLease { agent_id, outcome }
                });
                serde_json::to_value(RenewReport {
                    agents: renewed.collect(),
                })
            }
            CommandPayload::Watch(_) => unreachable!(),
        };
        drop(agents);
        self.changed.send_modify(|version| *version += 1);
        Ok(value.unwrap())
    }
}

/// What every agent on paper had not committed.
fn salvaged(agent: AgentId) -> Salvaged {
    Salvaged {
        refs: vec![SalvagedRef {
            git_ref: format!("refs/mosaic/salvage/{agent}"),
            commit: "a".repeat(40),
            subject: "Uncommitted work".to_owned(),
            commits: 1,
            files_changed: 2,
        }],
        more: false,
    }
}

fn part(patch: &[u8], offset: usize, length: usize) -> PatchPart {
    use base64::Engine;
    let end = patch.len().min(offset.saturating_add(length));
    PatchPart {
        content: base64::engine::general_purpose::STANDARD.encode(&patch[offset..end]),
        encoding: PatchEncoding::Base64,
        offset: offset as u64,
        total_bytes: patch.len() as u64,
        next_offset: (end < patch.len()).then_some(end as u64),
    }
}

fn spawn(
    agents: &mut Agents,
    connection: ConnectionId,
    request: SpawnPayload,
    issued_at: Timestamp,
) -> Result<SpawnAccepted, Refusal> {
    let asked = request
        .options
        .as_ref()
        .and_then(|options| options.lease_secs);
    let lease_secs = asked.or(agents.imposes_lease);
    let agent_id = request.agent_id;
    if request.context.branch == "missing" {
        let why = "there is no such branch";
        return Err(Refusal::field(
            ErrorCode::UnknownBranch,
            "context.branch",
            why,
        ));
    }
    if let Some(paper) = agents.known.get(&agent_id) {
        if paper.request != request {
            return Err(Refusal::field(
                ErrorCode::Conflict,
                "agentId",
                "it is taken",
            ));
        }
        return Ok(SpawnAccepted {
            agent_id,
            state: AgentState::Running,
            lease_secs,
            existing: true,
        });
    }
    let status = AgentStatus {
        agent_id,
        task_id: request.task_id.clone(),
        agent_type: request.agent_type,
        runtime: request
            .runtime
            .clone()
            .unwrap_or_else(|| "claude".parse().unwrap()),
        sandbox: SandboxKind::Process,
        connection_id: Some(connection),
        state: ObservedState::Running,
        reason: None,
        detail: None,
        attempt: 1,
        repository: request.context.repository.clone(),
        branch: request.context.branch.clone(),
        agent_branch: format!("mosaic/{agent_id}"),
        queued_at: Timestamp::now(),
        started_at: Some(Timestamp::now()),
        ended_at: None,
        exit_code: None,
        signal: None,
        progress: Progress::default(),
        usage: AgentUsage::default(),
        summary: None,
        work: None,
        death: None,
        cleanup: Vec::new(),
        budget: None,
        labels: request.labels.clone(),
        lease_secs,
    };
    let mut paper = Paper {
        request,
        status,
        events: Vec::new(),
        patch: None,
        issued_at,
    };
    paper.tell();
    agents.known.insert(agent_id, paper);
    Ok(SpawnAccepted {
        agent_id,
        state: AgentState::Running,
        lease_secs,
        existing: false,
    })
}

impl Paper {
    fn tell(&mut self) {
        let last = self.events.last().map(|event| event.id).unwrap_or_default();
        self.events.push(AgentEvent {
            agent_id: self.status.agent_id,
            id: EventCursor {
                moves: last.moves + 1,
                ..last
            },
            at: Timestamp::now(),
            kind: EventKind::Status {
                status: Box::new(self.status.clone()),
            },
        });
    }

    fn kill(&mut self, unverified: bool) -> KillReport {
        let ended = self.status.state.known().unwrap().is_terminal();
        let outcome = match (ended, unverified) {
            (true, _) => KillOutcome::AlreadyEnded,
            (false, true) => KillOutcome::Unverified,
            (false, false) => KillOutcome::Killed,
        };
        if outcome == KillOutcome::Killed {
            self.status.state = ObservedState::Killed;
            self.tell();
        }
        let proof = DeathProof {
            method: ProofMethod::Pidfd,
            elapsed_micros: 2,
            proven_at: Timestamp::now(),
        };
        KillReport {
            agent_id: self.status.agent_id,
            outcome,
            proof: (outcome != KillOutcome::Unverified).then_some(proof),
            detail: None,
            status: None,
        }
    }
}

#[async_trait]
impl CommandHandler for Handler {
    async fn execute(
        &self,
        command: AdmittedCommand,
        _: std::time::Instant,
    ) -> Result<Box<RawValue>, Refusal> {
        let is_kill = command.command_type().is_kill();
        if is_kill && self.loses() {
            let mut gives_up = self.gives_up.subscribe();
            gives_up.wait_for(|over| *over).await.unwrap();
            return Err(Refusal::new(ErrorCode::Overloaded, "it was lost"));
        }
        let value = self.answer(command)?;
        if is_kill {
            self.gate_open
                .subscribe()
                .wait_for(|open| *open)
                .await
                .unwrap();
        }
        Ok(serde_json::value::to_raw_value(&value).unwrap())
    }

    async fn watch(
        &self,
        command: AdmittedCommand,
    ) -> Result<BoxStream<'static, Vec<AgentEvent>>, Refusal> {
        let CommandPayload::Watch(wanted) = command.into_payload() else {
            unreachable!()
        };
        let mut agents = self.agents.lock().unwrap();
        agents.executed.push("agent.watch");
        agents.watched_after.push(wanted.after);
        if !agents.known.contains_key(&wanted.agent_id) {
            return Err(Refusal::field(
                ErrorCode::UnknownAgent,
                "agentId",
                "no such agent",
            ));
        }
        drop(agents);
        let state = (self.clone(), self.changed.subscribe(), wanted.after, false);
        let batches = futures_util::stream::unfold(
            state,
            move |(handler, mut changed, after, over)| async move {
                if over {
                    return None;
                }
                loop {
                    changed.borrow_and_update();
                    let (batch, ended, stalls) = {
                        let agents = handler.agents.lock().unwrap();
                        let paper = &agents.known[&wanted.agent_id];
                        let fresh: Vec<_> = paper
                            .events
                            .iter()
                            .filter(|event| after.is_none_or(|after| event.id > after))
                            .cloned()
                            .collect();
                        let ended = paper.status.state.known().unwrap().is_terminal()
                            && !agents.cleaning.contains(&wanted.agent_id);
                        (fresh, ended, agents.stalls_streams)
                    };
                    let over = ended || wanted.no_follow && !stalls;
                    if let Some(last) = batch.last() {
                        let after = Some(last.id);
                        return Some((batch, (handler, changed, after, over)));
                    }
                    if over || changed.changed().await.is_err() {
                        return None;
                    }
                }
            },
        );
        Ok(batches.boxed())
    }

    fn usage(&self, _: ConnectionId, _: Timestamp) -> Usage {
        Usage::default()
    }

    async fn knows(&self, _: ConnectionId, _: AgentId) -> bool {
        false
    }

    fn default_sandbox(&self) -> SandboxKind {
        SandboxKind::Process
    }
}

/// A spoke that serves, behind a link.
pub(crate) struct Spoke {
    pub(crate) node: Node,
    pub(crate) handler: Handler,
    pub(crate) link: Link,
    pub(crate) name: String,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    _data: tempfile::TempDir,
}

impl Spoke {
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_as(name, NodeRole::Orchestrator).await
    }

    /// Starts one that says it is something else.
    pub(crate) async fn start_as(name: &str, role: NodeRole) -> Self {
        let data = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = Link::to(listener.local_addr().unwrap()).await;
        let node = Node::open(NodeConfig {
            data_dir: data.path().join("node"),
            name: name.to_owned(),
            role,
            public_url: Some(link.url()),
            allow_private_peers: true,
            limits: HttpLimits::default(),
        })
        .await
        .unwrap();
        let handler = Handler::new();
        let router = mosaic_node::federation_routes(node.clone(), Arc::new(handler.clone()));
        let shutdown = CancellationToken::new();
        let limits = HttpLimits::default();
        let server = tokio::spawn(mosaic_node::serve(
            listener,
            router,
            limits,
            shutdown.clone(),
        ));
        Self {
            node,
            handler,
            link,
            name: name.to_owned(),
            shutdown,
            server,
            _data: data,
        }
    }

    /// A peering token that grants everything.
    pub(crate) async fn invite(&self) -> String {
        let request = InviteRequest {
            grants: Grants::full(vec!["**".to_owned()]),
            ttl_secs: None,
        };
        self.node
            .invite(request, Actor::System)
            .await
            .unwrap()
            .token
    }

    pub(crate) fn instance(&self) -> &InstanceId {
        self.node.instance_id()
    }

    /// How often a command was executed.
    pub(crate) fn executed(&self, command: &str) -> usize {
        let agents = self.handler.agents.lock().unwrap();
        agents
            .executed
            .iter()
            .filter(|executed| **executed == command)
            .count()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.server.await.unwrap().unwrap();
        self.node.close().await;
    }
}
