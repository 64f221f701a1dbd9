//! Things to store, each legal by itself.

use std::time::Duration;

use mosaic_types::{
    AgentId, ConnectionId, InstanceId, InviteId, MessageId, TaskId, Timestamp,
    agent::{AgentState, AgentStatus, Progress, Usage},
    api::{CommandRecord, CommandState, Role, WitnessedHead},
    audit::{Actor, AuditEvent, AuditHead},
    command::{AgentType, CommandType, SandboxKind, SpawnContext, SpawnOptions, SpawnPayload},
    connection::{Connection, ConnectionState, NodeRole},
    grant::Grants,
};

use crate::{
    AgentRecord, Claim, InviteRecord, OperatorToken, RemoteAgent, SharedStore, StoreError,
};

/// A fixed moment, and `secs` seconds after it.
#[must_use]
pub fn at(secs: u64) -> Timestamp {
    Timestamp::from_unix_millis(1_795_000_000_000).saturating_add(Duration::from_secs(secs))
}

/// A peer; another number is another peer.
///
/// # Errors
/// None; the `Result` spares the cases an unwrap.
pub fn peer(number: u8) -> Result<InstanceId, StoreError> {
    let digit = char::from(b'a' + number % 26);
    let text = format!("mi1{}", digit.to_string().repeat(32));
    text.parse()
        .map_err(|_| StoreError::Malformed { what: "sample" })
}

/// A task.
///
/// # Errors
/// If `name` is not a task's.
pub fn task(name: &str) -> Result<TaskId, StoreError> {
    name.parse()
        .map_err(|_| StoreError::Malformed { what: "sample" })
}

/// An event of this node.
#[must_use]
pub fn event(action: &str) -> AuditEvent {
    AuditEvent {
        at: at(0),
        actor: Actor::System,
        action: action.to_owned(),
        subject: None,
        outcome: "ok".to_owned(),
        detail: serde_json::Value::Null,
    }
}

/// A claim that expires at `at(expires_secs)`.
#[must_use]
pub fn claim(peer: &InstanceId, digest: u8, expires_secs: u64) -> Claim {
    Claim {
        peer: peer.clone(),
        message_id: MessageId::generate(),
        digest: [digest; 32],
        expires_at: at(expires_secs),
    }
}

/// A connection at version 1.
///
/// # Errors
/// None.
pub fn connection(state: ConnectionState) -> Result<Connection, StoreError> {
    Ok(Connection {
        connection_id: ConnectionId::generate(),
        peer: peer(1)?,
        name: "spoke".to_owned(),
        role: NodeRole::Orchestrator,
        url: None,
        keys: Vec::new(),
        protocol: 1,
        state,
        granted: Grants::full(vec!["**".to_owned()]),
        received: Grants::none(),
        invite_id: None,
        outgoing: false,
        created_at: at(0),
        updated_at: at(0),
        version: 1,
    })
}

/// An active connection that is on record: agents can come by it.
///
/// # Errors
/// Those of the store.
pub async fn connected(store: &SharedStore) -> Result<Connection, StoreError> {
    let active = connection(ConnectionState::Active)?;
    store.save_connection(active.clone(), event("x")).await?;
    Ok(active)
}

/// `connection` in another state, one version on.
#[must_use]
pub fn connection_moved(connection: &Connection, state: ConnectionState) -> Connection {
    Connection {
        state,
        version: connection.version + 1,
        ..connection.clone()
    }
}

/// An invitation that expires at `at(100)`.
#[must_use]
pub fn invite(secret: u8) -> InviteRecord {
    InviteRecord {
        invite_id: InviteId::generate(),
        secret_hash: [secret; 32],
        grants: Grants::full(vec!["file://**".to_owned()]),
        created_at: at(0),
        expires_at: at(100),
        used_by: None,
    }
}

/// An agent at version 1, in a state.
///
/// # Errors
/// None.
pub fn agent(state: AgentState) -> Result<AgentRecord, StoreError> {
    let agent_id = AgentId::generate();
    let task_id = task("MOS-1")?;
    Ok(AgentRecord {
        agent_id,
        connection_id: None,
        version: 1,
        state,
        options: SpawnOptions::default(),
        attempt_start: None,
        request: SpawnPayload {
            agent_id,
            task_id: task_id.clone(),
            agent_type: AgentType::Worker,
            runtime: None,
            context: SpawnContext {
                repository: "file:///repository".to_owned(),
                branch: "main".to_owned(),
                work_items: vec!["work".to_owned()],
                skills: None,
                instructions: None,
            },
            options: None,
            labels: std::collections::BTreeMap::new(),
        },
        status: AgentStatus {
            agent_id,
            task_id,
            agent_type: AgentType::Worker,
            runtime: "shell"
                .parse()
                .map_err(|_| StoreError::Malformed { what: "sample" })?,
            sandbox: SandboxKind::Process,
            connection_id: None,
            state: state.into(),
            reason: None,
            detail: None,
            attempt: 0,
            repository: "file:///repository".to_owned(),
            branch: "main".to_owned(),
            agent_branch: format!("mosaic/{agent_id}"),
            queued_at: at(0),
            started_at: None,
            ended_at: state.is_terminal().then(|| at(1)),
            exit_code: None,
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
        },
        not_before: None,
        cleanup_pending: false,
        issued_at: None,
    })
}

/// `agent` in another state, one version on.
#[must_use]
pub fn moved(agent: &AgentRecord, state: AgentState) -> AgentRecord {
    let mut next = agent.clone();
    next.version += 1;
    next.state = state;
    next.status.state = state.into();
    next.status.ended_at = state.is_terminal().then(|| at(1));
    next
}

/// An agent at a spoke, with no status seen.
///
/// # Errors
/// None.
pub fn remote_agent(connection_id: ConnectionId) -> Result<RemoteAgent, StoreError> {
    Ok(RemoteAgent {
        agent_id: AgentId::generate(),
        connection_id,
        task_id: task("MOS-1")?,
        operator: "admin".to_owned(),
        request_digest: "ab".repeat(32),
        created_at: at(0),
        last_status_json: None,
        terminal: false,
        last_seen_at: None,
    })
}

/// A command that was sent.
#[must_use]
pub fn command() -> CommandRecord {
    CommandRecord {
        message_id: MessageId::generate(),
        command_type: CommandType::AgentStatus,
        connection_id: ConnectionId::generate(),
        agent_id: None,
        operator: "admin".to_owned(),
        state: CommandState::Sent,
        issued_at: at(0),
        answered_at: None,
        error: None,
    }
}

/// A token; the hash is made of `hash`.
#[must_use]
pub fn token(name: &str, hash: u8) -> OperatorToken {
    OperatorToken {
        name: name.to_owned(),
        role: Role::Operator,
        hash: [hash; 32],
        created_at: at(0),
    }
}

/// A head that a peer showed at `at(seen_secs)`; the hash is made of `hash`, a hex digit.
#[must_use]
pub fn shown_head(peer: &InstanceId, seq: u64, hash: char, seen_secs: u64) -> WitnessedHead {
    WitnessedHead {
        instance: peer.clone(),
        head: AuditHead {
            seq,
            hash: hash.to_string().repeat(64),
        },
        seen_at: at(seen_secs),
    }
}
