//! Spawning: remember, forward, record.

use std::sync::Arc;

use mosaic_node::{CommandCall, Operator};
use mosaic_store::{RemoteAgent, StoreError};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, RuntimeName, Timestamp,
    agent::{AgentState, AgentStatus, EndReason, ObservedState, Progress, Usage},
    api::SpawnResponse,
    command::{CommandType, SandboxKind, SpawnAccepted, SpawnPayload},
    connection::{Connection, NodeRole},
};
use sha2::{Digest, Sha256};

use super::{
    Failure, Routing, SPAWN_LIMIT, Sending, carry_through, observe::last_status, require_about,
    require_active, store_refusal, unknown_agent,
};

/// The runtime of a spawn that names none.
const DEFAULT_RUNTIME: &str = "claude";

/// Longest repository that a spoke takes, in bytes. What is longer is neither kept nor audited.
const MAX_REPOSITORY_BYTES: usize = 2048;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct SpawnOrder {
    /// Where.
    pub connection: ConnectionId,
    /// What.
    pub payload: SpawnPayload,
}

impl Routing {
    /// Has a spoke run an agent. Asking twice for the same is one agent: the spoke decides by the agent's id.
    ///
    /// # Errors
    /// `unknown-connection`, `connection-not-active`; `conflict` if the id is taken by other content or at another
    /// spoke; the spoke's own refusal; `peer-unreachable` if no verifiable answer came, and then the agent may run:
    /// its status is `unknown` until the spoke is heard again.
    pub async fn spawn(
        &self,
        operator: &Operator,
        order: SpawnOrder,
    ) -> Result<SpawnResponse, Refusal> {
        let (routing, operator) = (self.clone(), operator.clone());
        carry_through(async move { routing.forward_spawn(&operator, order).await }).await
    }

    async fn forward_spawn(
        &self,
        operator: &Operator,
        order: SpawnOrder,
    ) -> Result<SpawnResponse, Refusal> {
        let SpawnOrder {
            connection: id,
            payload,
        } = order;
        let now = Timestamp::now();
        let (connection, kept) = match self.prepare(operator, id, &payload, now).await {
            Ok(prepared) => prepared,
            Err(refusal) => {
                let (kind, agent) = (CommandType::AgentSpawn, payload.agent_id);
                self.audit_unsent(operator, kind, Some(agent), Some(id), Some(&refusal));
                return Err(refusal);
            }
        };
        let sending = Sending::new(
            operator,
            id,
            Some(payload.agent_id),
            CommandType::AgentSpawn,
            serde_json::json!({ "taskId": payload.task_id, "repository": payload.context.repository }),
        );
        let message_id = sending.record.message_id;
        self.node()
            .store()
            .save_command(sending.record.clone())
            .await
            .map_err(store_refusal)?;

        // Issued when it was asked for: a kill that is ordered while this waits here comes after it.
        let call = CommandCall {
            message_id: Some(message_id),
            command_type: CommandType::AgentSpawn,
            payload: &payload,
            timeout: SPAWN_LIMIT,
            issued_at: Some(now),
        };
        let answer: Result<SpawnAccepted, Failure> =
            self.send(&connection, call)
                .await
                .and_then(|accepted: SpawnAccepted| {
                    require_about(payload.agent_id, accepted.agent_id).map(|()| accepted)
                });
        let answered_at = Timestamp::now();
        let (record, audit) = sending.outcome(operator, answer.as_ref().err(), answered_at);
        self.inner.ledger.command(record);
        self.node().audit().record(audit).await;
        match answer {
            Ok(accepted) => {
                let lease = accepted.lease_secs;
                self.follow_lease(&connection, &payload, lease, accepted.state, now);
                Ok(SpawnResponse {
                    agent_id: accepted.agent_id,
                    connection_id: Some(id),
                    message_id: Some(message_id),
                    state: accepted.state,
                    existing: accepted.existing,
                })
            }
            Err(failure) => {
                if !failure.is_final() {
                    // It may run: then it is to live until somebody knows.
                    let lease = intended_lease(&payload, &connection);
                    let state = ObservedState::Unknown;
                    self.follow_lease(&connection, &payload, lease, state, now);
                }
                let none_started = failure.is_final() && may_say_that_none_started(&kept, now);
                let refusal = failure.refusal;
                // A conflict says that an agent of this id is there, so it does not say that none started.
                if none_started && refusal.code != ErrorCode::Conflict {
                    let mut status = intended_status(&payload, &connection, now)?;
                    status.state = AgentState::Failed.into();
                    status.reason = Some(EndReason::SpawnFailed);
                    status.detail = Some(format!("refused by the spoke: {refusal}"));
                    self.note_refused_spawn(id, status, answered_at).await;
                }
                Err(refusal)
            }
        }
    }

    /// Keeps the agent alive from now on, if it lives by a lease; on record too, if it is another than was to be
    /// expected.
    fn follow_lease(
        &self,
        connection: &Connection,
        payload: &SpawnPayload,
        lease_secs: Option<u64>,
        state: impl Into<ObservedState>,
        now: Timestamp,
    ) {
        let Ok(mut status) = intended_status(payload, connection, now) else {
            return;
        };
        let is_news = lease_secs != status.lease_secs;
        status.lease_secs = lease_secs;
        status.state = state.into();
        let id = connection.connection_id;
        self.inner
            .renewals
            .note(id, &status, std::time::Instant::now());
        if is_news {
            self.take_in(id, status);
        }
    }

    /// What has to hold, and to be durable, before anything is sent: so whatever the spoke starts is known here.
    async fn prepare(
        &self,
        operator: &Operator,
        id: ConnectionId,
        payload: &SpawnPayload,
        now: Timestamp,
    ) -> Result<(Arc<Connection>, RemoteAgent), Refusal> {
        let connection = self.connection(id)?;
        require_active(&connection)?;
        // What runs at a peer that is no spoke would be out of every kill-all's reach.
        if connection.role != NodeRole::Orchestrator {
            return Err(Refusal::field(
                ErrorCode::InvalidRequest,
                "connectionId",
                format!(
                    "{} is a {}: it runs no agents",
                    connection.name, connection.role
                ),
            ));
        }
        if payload.context.repository.len() > MAX_REPOSITORY_BYTES {
            return Err(Refusal::field(
                ErrorCode::InvalidRequest,
                "context.repository",
                format!("longer than {MAX_REPOSITORY_BYTES} bytes"),
            ));
        }
        let digest = request_digest(payload)?;
        let kept = self
            .remember(operator, &connection, payload, &digest, now)
            .await?;
        if was_refused(&kept) {
            // It is asked for again, so from now on it may run.
            let status = intended_status(payload, &connection, now)?;
            let json = serde_json::to_string(&status).map_err(internal)?;
            let agent = payload.agent_id;
            let store = self.node().store();
            store
                .observe_remote_agent(agent, json, false, now)
                .await
                .map_err(store_refusal)?;
            self.inner
                .whereabouts
                .note_state(agent, id, ObservedState::Unknown);
        }
        Ok((connection, kept))
    }

    async fn remember(
        &self,
        operator: &Operator,
        connection: &Connection,
        payload: &SpawnPayload,
        digest: &str,
        now: Timestamp,
    ) -> Result<RemoteAgent, Refusal> {
        let agent_id = payload.agent_id;
        let status = intended_status(payload, connection, now)?;
        let status = serde_json::to_string(&status).map_err(internal)?;
        let connection = connection.connection_id;
        let remote = RemoteAgent {
            agent_id,
            connection_id: connection,
            task_id: payload.task_id.clone(),
            operator: operator.name.clone(),
            request_digest: digest.to_owned(),
            created_at: now,
            last_status_json: Some(status),
            terminal: false,
            last_seen_at: None,
        };
        let store = self.node().store();
        store
            .save_remote_agent(remote)
            .await
            .map_err(|error| match error {
                StoreError::Conflict => taken(agent_id),
                other => store_refusal(other),
            })?;
        // Read back: of two that ask at once with other content, one wins.
        let kept = store.remote_agent(agent_id).await.map_err(store_refusal)?;
        let kept = kept.ok_or_else(unknown_agent)?;
        if kept.request_digest != digest || kept.connection_id != connection {
            return Err(taken(agent_id));
        }
        self.inner.whereabouts.remember(agent_id, connection);
        Ok(kept)
    }

    /// Notes a refused spawn as one that never began: the same spawn may be accepted later.
    async fn note_refused_spawn(
        &self,
        connection: ConnectionId,
        status: AgentStatus,
        at: Timestamp,
    ) {
        self.inner
            .whereabouts
            .note_state(status.agent_id, connection, status.state);
        let Ok(json) = serde_json::to_string(&status) else {
            return;
        };
        let store = self.node().store();
        if let Err(error) = store
            .observe_remote_agent(status.agent_id, json, true, at)
            .await
        {
            tracing::warn!(error = %mosaic_node::with_causes(&error), "a refused spawn is not noted");
        }
    }
}

/// Whether a refusal can mean that no agent of this id has started: only that of the first attempt, or after one that
/// was refused. Of an attempt before whose answer was lost nobody knows (A4).
fn may_say_that_none_started(kept: &RemoteAgent, now: Timestamp) -> bool {
    let first = kept.created_at == now && kept.last_seen_at.is_none();
    first || was_refused(kept)
}

/// Whether the attempt before was refused, which is kept as failed before its first attempt. One that its spoke tells of
/// has a time at which it ended.
fn was_refused(kept: &RemoteAgent) -> bool {
    last_status(kept).is_some_and(|status| {
        status.state == ObservedState::Failed && status.attempt == 0 && status.ended_at.is_none()
    })
}

/// The lease that an agent lives by before its spoke has said so: the one asked for, else the one that the spoke's grant
/// imposes.
fn intended_lease(payload: &SpawnPayload, connection: &Connection) -> Option<u64> {
    let asked = payload.options.as_ref().and_then(|asked| asked.lease_secs);
    asked.or(connection.received.caps.max_lease_secs)
}

/// What is known of an agent before its spoke has said anything: what it was asked to be.
fn intended_status(
    payload: &SpawnPayload,
    connection: &Connection,
    now: Timestamp,
) -> Result<AgentStatus, Refusal> {
    let runtime = match &payload.runtime {
        Some(runtime) => runtime.clone(),
        None => DEFAULT_RUNTIME.parse::<RuntimeName>().map_err(internal)?,
    };
    let sandbox = payload.options.as_ref().and_then(|options| options.sandbox);
    Ok(AgentStatus {
        agent_id: payload.agent_id,
        task_id: payload.task_id.clone(),
        agent_type: payload.agent_type,
        runtime,
        sandbox: sandbox.unwrap_or(SandboxKind::Process),
        connection_id: None,
        state: ObservedState::Unknown,
        reason: None,
        detail: None,
        attempt: 0,
        repository: payload.context.repository.clone(),
        branch: payload.context.branch.clone(),
        agent_branch: format!("mosaic/{}", payload.agent_id),
        queued_at: now,
        started_at: None,
        ended_at: None,
        exit_code: None,
        signal: None,
        progress: Progress::default(),
        usage: Usage::default(),
        summary: None,
        work: None,
        death: None,
        cleanup: Vec::new(),
        budget: None,
        labels: payload.labels.clone(),
        lease_secs: intended_lease(payload, connection),
    })
}

/// SHA-256 of the payload as this hub writes it, hex.
fn request_digest(payload: &SpawnPayload) -> Result<String, Refusal> {
    let bytes = serde_json::to_vec(payload).map_err(internal)?;
    Ok(Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn taken(agent: AgentId) -> Refusal {
    Refusal::field(
        ErrorCode::Conflict,
        "agentId",
        format!("the agent id {agent} is taken by another spawn"),
    )
}

fn internal(error: impl std::error::Error) -> Refusal {
    tracing::error!(%error, "a spawn cannot be written down");
    Refusal::new(
        ErrorCode::Internal,
        "a fault of ours; the log has the details",
    )
}
