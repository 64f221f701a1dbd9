//! Finds the spoke that has an agent, asks it, and remembers what it said.
//!
//! Promises:
//! - A kill never waits for the store: memory first, the store under a short time limit, then every spoke.
//! - The spoke is the authority. What no spoke said is `unknown`; nothing is guessed and nothing is left out.
//! - Every wait has a limit, and spokes are asked side by side: one that is slow delays no other.

mod bundle;
mod deliver;
mod due;
mod failure;
mod intents;
mod kill;
mod lanes;
mod ledger;
mod observe;
mod parts;
mod proof;
mod renewals;
mod scope;
mod spawn;
mod watch;
mod whereabouts;
mod work;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mosaic_node::{CommandCall, Node, Operator, PeerError};
use mosaic_store::StoreError;
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, MessageId, Refusal, Timestamp,
    agent::{AgentStatus, ObservedState},
    api::{CommandRecord, CommandState},
    audit::AuditEvent,
    command::{CommandType, KillOutcome, KillReport},
    connection::{Connection, ConnectionState, NodeRole},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use bundle::Bundle;
pub use observe::AgentsQuery;
pub use spawn::SpawnOrder;
pub use whereabouts::Whereabouts;
pub use work::{MAX_PATCH_BYTES, Work};

use failure::{Failure, require_about};
use intents::Intents;
use lanes::{Lane, Lanes};
use ledger::{Death, Ledger};
use renewals::Renewals;

/// How long a spoke may take to answer a question.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long a spoke may take to accept a spawn: it may have to fetch the repository first.
const SPAWN_LIMIT: Duration = Duration::from_secs(120);
/// How long a spoke may take to prove a death. By itself it says after 5 s what it could not prove, after 2 s more if it
/// has to ask its store of the agent.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a spoke may take to prove a death and clean up after it.
const KILL_AND_CLEANUP_LIMIT: Duration = Duration::from_secs(70);
/// How long a spoke may take to prove all deaths of a kill-all: longer than the 5 s after which it says by itself which
/// it could not prove, so that one that cannot be hides none of the others.
const KILL_ALL_LIMIT: Duration = Duration::from_secs(7);
/// How long a kill waits for the store to say where the agent is, before it asks every spoke.
const STORE_LIMIT: Duration = Duration::from_millis(200);
/// Agents whose place is loaded at start, besides those that have not ended.
const PRELOAD: u32 = 10_000;
/// Patches put together at once; each may take [`MAX_PATCH_BYTES`] a few times over.
const ASSEMBLIES: usize = 6;
/// How long a whole patch may take, whatever the spoke does.
const FETCH_LIMIT: Duration = Duration::from_secs(60);

/// See the module documentation.
#[derive(Clone)]
pub struct Routing {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    whereabouts: Whereabouts,
    ledger: Ledger,
    intents: Intents,
    renewals: Renewals,
    lanes: Lanes,
    assemblies: Semaphore,
}

impl Routing {
    /// Routing for a node, and the task that records behind it, which ends after `shutdown`. Until `until`, kept kills are
    /// delivered and leases renewed.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(
        node: Node,
        until: CancellationToken,
        shutdown: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send), StoreError> {
        let intents = Intents::new(node.clone(), &mosaic_store::Limits::default());
        intents.load(node.store().kill_intents().await?, Instant::now());
        let renewals = Renewals::default();
        let whereabouts = Whereabouts::default();
        let mut before = None;
        let mut loaded = 0;
        loop {
            let page = node.store().remote_agents(None, None, before, 1000).await?;
            let Some(last) = page.last() else { break };
            before = Some(last.agent_id);
            for agent in &page {
                loaded += 1;
                // Of the older ones only what may have to be kept alive.
                if loaded > PRELOAD && agent.terminal {
                    continue;
                }
                whereabouts.remember(agent.agent_id, agent.connection_id);
                if let Some(status) = observe::last_status(agent) {
                    // Of what is dead by proof alone more is to be told yet.
                    if status.state == ObservedState::Killed && status.ended_at.is_none() {
                        whereabouts.note_death(agent.agent_id, agent.connection_id);
                    } else {
                        let (id, at) = (agent.agent_id, agent.connection_id);
                        whereabouts.note_state(id, at, status.state);
                    }
                    renewals.note(agent.connection_id, &status, Instant::now());
                }
            }
        }
        let (ledger, task) = Ledger::new(node.clone(), shutdown.clone());
        let assemblies = Semaphore::new(ASSEMBLIES);
        let inner = Arc::new(Inner {
            node,
            whereabouts,
            ledger,
            intents,
            renewals,
            lanes: Lanes::default(),
            assemblies,
        });
        let routing = Self { inner };
        let (deliver, renew, write) = (
            routing.clone().deliver(until.clone()),
            routing.clone().renew(until),
            routing.clone().write_intents(shutdown),
        );
        let tasks = async move {
            tokio::join!(task, deliver, renew, write);
        };
        Ok((routing, tasks))
    }

    fn node(&self) -> &Node {
        &self.inner.node
    }

    /// The connection of that id.
    ///
    /// # Errors
    /// `unknown-connection`.
    pub fn connection(&self, id: ConnectionId) -> Result<Arc<Connection>, Refusal> {
        self.node().connections().get(id).ok_or_else(|| {
            Refusal::field(
                ErrorCode::UnknownConnection,
                "connectionId",
                "there is no connection of this id",
            )
        })
    }

    /// The connections to spokes in one of `states`, oldest first.
    fn spokes(&self, states: &[ConnectionState]) -> Vec<Arc<Connection>> {
        let mut spokes = self.node().connections().list();
        spokes.retain(|connection| {
            connection.role == NodeRole::Orchestrator && states.contains(&connection.state)
        });
        spokes
    }

    /// Where the agent is, from memory or the store.
    ///
    /// # Errors
    /// `unknown-agent`; `store-unavailable`.
    async fn locate(&self, agent: AgentId) -> Result<Arc<Connection>, Refusal> {
        if let Some(id) = self.inner.whereabouts.get(agent) {
            return self.connection(id);
        }
        let remote = self
            .node()
            .store()
            .remote_agent(agent)
            .await
            .map_err(store_refusal)?;
        let remote = remote.ok_or_else(unknown_agent)?;
        self.inner.whereabouts.remember(agent, remote.connection_id);
        self.connection(remote.connection_id)
    }

    /// Sends a signed command and waits for the verified answer.
    async fn call<T: DeserializeOwned>(
        &self,
        connection: &Connection,
        message_id: MessageId,
        command_type: CommandType,
        payload: &(impl Serialize + Sync),
        timeout: Duration,
    ) -> Result<T, Failure> {
        let call = CommandCall {
            message_id: Some(message_id),
            command_type,
            payload,
            timeout,
            issued_at: None,
        };
        self.send(connection, call).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        connection: &Connection,
        call: CommandCall<'_, impl Serialize + Sync>,
    ) -> Result<T, Failure> {
        let command_type = call.command_type;
        // A kill takes no share: whatever else is under way, it is sent. A renewal has one already.
        let _place = if command_type.is_kill() {
            None
        } else {
            let id = connection.connection_id;
            let first = self.kills_first(id, command_type).await;
            first.map_err(Failure::unsent)?;
            let lane = Lane::of(command_type);
            let entered = lane.map(|lane| self.inner.lanes.enter(id, lane));
            entered.transpose().map_err(Failure::unsent)?
        };
        let answer = self.node().peers().command(connection, call).await;
        // What a kill's answer settles is settled before the spoke counts as heard.
        let is_heard = matches!(answer, Ok(_) | Err(PeerError::Refused(_)));
        if is_heard && !command_type.is_kill() {
            self.heard(connection.connection_id);
        }
        Ok(answer?.data)
    }

    /// Asks what changes nothing, and so needs no record.
    async fn ask<T: DeserializeOwned>(
        &self,
        connection: &Connection,
        command_type: CommandType,
        payload: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        self.call(
            connection,
            MessageId::generate(),
            command_type,
            payload,
            ASK_LIMIT,
        )
        .await
    }

    /// Audits an order of an operator that was not sent: why it was not, or that there was nobody to send it to.
    fn audit_unsent(
        &self,
        operator: &Operator,
        command_type: CommandType,
        agent: Option<AgentId>,
        connection: Option<ConnectionId>,
        refusal: Option<&Refusal>,
    ) {
        self.node().audit().record_later(AuditEvent {
            at: Timestamp::now(),
            actor: operator.actor(),
            action: command_type.as_str().to_owned(),
            subject: agent.map(|agent| agent.to_string()),
            outcome: refusal.map_or_else(|| "ok".to_owned(), |refusal| refusal.code.to_string()),
            detail: serde_json::json!({ "connectionId": connection, "sent": false }),
        });
    }

    /// Where the agent is remembered, if this connection leads to the spoke that has it.
    fn place_at(&self, connection: &Connection, agent: AgentId) -> Option<ConnectionId> {
        let at = self.inner.whereabouts.get(agent)?;
        let leads_there = at == connection.connection_id
            || self
                .node()
                .connections()
                .get(at)
                .is_some_and(|at| at.peer == connection.peer);
        leads_there.then_some(at)
    }

    /// Takes in the deaths that a spoke has proven, so that they are known when it cannot be asked any more. Only its own
    /// agents' count.
    fn note_deaths(&self, connection: &Connection, reports: &[KillReport]) {
        let proven = |report: &KillReport| {
            let proof = report.proof.clone()?;
            let agent = report.agent_id;
            let at = self.place_at(connection, agent)?;
            let is_news = report.outcome == KillOutcome::Killed
                && self.inner.whereabouts.note_death(agent, at);
            is_news.then_some(Death {
                agent,
                connection: at,
                proof,
            })
        };
        let deaths: Vec<Death> = reports.iter().filter_map(proven).collect();
        if !deaths.is_empty() {
            self.inner.ledger.died(deaths, Timestamp::now());
        }
    }

    /// Takes in a status that a spoke gave of an agent that is known to be there: if it has moved, it is what to show
    /// when the spoke cannot be asked. What a spoke says of an agent of another changes nothing. Leaves out the spoke's own connection id, which means nothing here.
    fn take_in(&self, connection: ConnectionId, mut status: AgentStatus) -> AgentStatus {
        status.connection_id = None;
        if self.inner.whereabouts.get(status.agent_id) == Some(connection) {
            self.inner
                .renewals
                .note(connection, &status, Instant::now());
        }
        if self
            .inner
            .whereabouts
            .note_state(status.agent_id, connection, status.state)
        {
            self.inner.ledger.seen(status.clone(), Timestamp::now());
        }
        status
    }
}

/// Carries `work` through even if whoever asked hangs up meanwhile: a command that was begun is sent, and its
/// outcome recorded. What it calls has time limits, so it ends.
async fn carry_through<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a command was not carried through");
        Err(Refusal::new(
            ErrorCode::Internal,
            "a fault of this node; its log has the details",
        ))
    })
}

/// A command that is about to be sent, on its way into the records.
#[derive(Debug, Clone)]
struct Sending {
    record: CommandRecord,
    detail: serde_json::Value,
}

impl Sending {
    fn new(
        operator: &Operator,
        connection: ConnectionId,
        agent: Option<AgentId>,
        command_type: CommandType,
        detail: serde_json::Value,
    ) -> Self {
        let record = CommandRecord {
            message_id: MessageId::generate(),
            command_type,
            connection_id: connection,
            agent_id: agent,
            operator: operator.name.clone(),
            state: CommandState::Sent,
            issued_at: Timestamp::now(),
            answered_at: None,
            error: None,
        };
        Self { record, detail }
    }

    /// The record with its outcome, and the audit entry that goes with it.
    fn outcome(
        mut self,
        operator: &Operator,
        failure: Option<&Failure>,
        now: Timestamp,
    ) -> (CommandRecord, AuditEvent) {
        self.record.state = match failure {
            None => CommandState::Succeeded,
            Some(failure) if failure.outcome_unknown() => CommandState::Unanswered,
            Some(_) => CommandState::Refused,
        };
        self.record.answered_at = (self.record.state != CommandState::Unanswered).then_some(now);
        self.record.error = failure.map(|failure| failure.refusal.clone());
        let mut detail = serde_json::json!({
            "messageId": self.record.message_id,
            "connectionId": self.record.connection_id,
        });
        if let (Some(detail), serde_json::Value::Object(more)) =
            (detail.as_object_mut(), self.detail)
        {
            detail.extend(more);
        }
        let audit = AuditEvent {
            at: now,
            actor: operator.actor(),
            action: self.record.command_type.as_str().to_owned(),
            subject: self.record.agent_id.map(|agent| agent.to_string()),
            outcome: self
                .record
                .error
                .as_ref()
                .map_or_else(|| "ok".to_owned(), |error| error.code.to_string()),
            detail,
        };
        (self.record, audit)
    }
}

/// Refuses a connection that is not in use.
fn require_active(connection: &Connection) -> Result<(), Refusal> {
    if connection.state == ConnectionState::Active {
        return Ok(());
    }
    Err(Refusal::field(
        ErrorCode::ConnectionNotActive,
        "connectionId",
        format!(
            "the connection to {} is {}",
            connection.name, connection.state
        ),
    ))
}

fn unknown_agent() -> Refusal {
    Refusal::field(
        ErrorCode::UnknownAgent,
        "agentId",
        "there is no agent of this id",
    )
}

fn store_refusal(error: StoreError) -> Refusal {
    mosaic_node::ApiError::from(error).0
}
