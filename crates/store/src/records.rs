//! What is stored.

use mosaic_types::{
    AgentId, ConnectionId, InstanceId, InviteId, MessageId, TaskId, Timestamp, UtcDay,
    agent::{AgentState, AgentStatus, Usage},
    api::Role,
    audit::AuditEvent,
    command::{SpawnOptions, SpawnPayload},
    grant::Grants,
};
use serde::{Deserialize, Serialize};

/// Bounds of what is stored. What a peer can make grow refuses when it is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Claims that were not swept.
    pub max_claims: u64,
    /// Claims of one peer that were not swept: a share, so that no peer can take those of the others.
    pub max_claims_per_peer: u64,
    /// Length of one kept response in bytes.
    pub max_response_bytes: usize,
    /// Connections. The oldest disconnected one that no agent and no kept kill needs makes room for a new one.
    pub max_connections: u64,
    /// Invitations. Those that are used or expired make room for a new one.
    pub max_invites: u64,
    /// Agents, ended ones included.
    pub max_agents: u64,
    /// Remote agents. The oldest one that was seen to end makes room for a new one.
    pub max_remote_agents: u64,
    /// Sent commands. The oldest makes room for a new one.
    pub max_commands: u64,
    /// Length of one audit event in bytes of JSON, at least 1000. A longer one is stored without its detail.
    pub max_event_bytes: usize,
    /// Peers whose heads are witnessed.
    pub max_witnessed_peers: u64,
    /// Kept kills that are not settled.
    pub max_pending_kills: u64,
    /// Kept kills that are settled. The oldest makes room for a new one.
    pub max_settled_kills: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_claims: 200_000,
            max_claims_per_peer: 50_000,
            max_response_bytes: 4 << 20,
            max_connections: 10_000,
            max_invites: 10_000,
            max_agents: 100_000,
            max_remote_agents: 100_000,
            max_commands: 100_000,
            max_event_bytes: 256 << 10,
            max_witnessed_peers: 10_000,
            max_pending_kills: 10_000,
            max_settled_kills: 1_000,
        }
    }
}

/// A message to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Who signed it.
    pub peer: InstanceId,
    /// Its signed id.
    pub message_id: MessageId,
    /// SHA-256 of its PAE: the same id with another digest is a conflict.
    pub digest: [u8; 32],
    /// Until when the claim must be kept: the message's own expiry and the clock skew allowed.
    pub expires_at: Timestamp,
}

/// What a claim came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// It is the caller's: execute it.
    Fresh,
    /// It was claimed before with the same digest. Do not execute it; here is the response, if one was kept.
    Repeated {
        /// The signed response, byte for byte.
        response: Option<Vec<u8>>,
    },
    /// It was claimed before with another digest.
    Conflict,
    /// It is on no record, but expires when claims did that were swept, because the clock was set back: whether it was
    /// claimed before cannot be told. Do not execute it. It is not claimed.
    Forgotten,
}

/// An invitation that was given out as a peering token.
#[derive(Debug, Clone, PartialEq)]
pub struct InviteRecord {
    /// Its id.
    pub invite_id: InviteId,
    /// SHA-256 of the token's secret.
    pub secret_hash: [u8; 32],
    /// What whoever uses it may ask.
    pub grants: Grants,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it can no longer be used.
    pub expires_at: Timestamp,
    /// The connection that used it.
    pub used_by: Option<ConnectionId>,
}

/// An operator's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorToken {
    /// Its name, unique.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
}

/// An agent on record at the orchestrator that runs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentRecord {
    /// The agent.
    pub agent_id: AgentId,
    /// The connection it came by; `None` for the spoke's own operator.
    pub connection_id: Option<ConnectionId>,
    /// Counts the moves, from 1.
    pub version: u64,
    /// Where it is in its life. `status.state` says the same.
    pub state: AgentState,
    /// What the caller asked for: the same id with other content is a conflict.
    pub request: SpawnPayload,
    /// The options that it runs with: those asked for, the spoke's defaults, and nothing above a cap.
    pub options: SpawnOptions,
    /// What is told of it.
    pub status: AgentStatus,
    /// When the next attempt may start, if one waits.
    pub not_before: Option<Timestamp>,
    /// When and where the current or last attempt began.
    pub attempt_start: Option<AttemptStart>,
    /// Whether the clean-up after its end is still to be done.
    pub cleanup_pending: bool,
    /// When the peer signed the spawn, by the peer's clock; absent for one of the spoke's own operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Timestamp>,
}

/// How far an agent's lease reaches, as last written: never later than the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The agent.
    pub agent_id: AgentId,
    /// The boot in which it was written.
    pub boot_id: String,
    /// Where it ends, in milliseconds of that boot, sleep included: no clock that can be set.
    pub boot_deadline_ms: u64,
    /// Where it ends by the wall clock, for another boot.
    pub deadline: Timestamp,
}

/// The beginning of an attempt: where a restarted daemon takes up its limits and its output.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptStart {
    /// When.
    pub at: Timestamp,
    /// Where its output begins in the spool, in bytes.
    pub spool_offset: u64,
    /// What the attempts before it have used.
    #[serde(default)]
    pub usage_before: Usage,
}

/// Cost and tokens of every kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Millionths of a US dollar.
    pub micro_usd: u64,
    /// Tokens.
    pub tokens: u64,
}

/// What an agent has used in all, all its attempts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentSpending {
    /// The agent.
    pub agent_id: AgentId,
    /// The day on which what is new of it was used.
    pub day: UtcDay,
    /// The total.
    pub total: Spent,
}

/// What a connection's agents spent on a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionSpending {
    /// The connection; `None` for the spoke's own operator.
    pub connection_id: Option<ConnectionId>,
    /// How much.
    pub spent: Spent,
}

/// A move of an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentMove {
    /// The record as it shall be; its version is the stored one and 1. The state may stay as it is, when only
    /// the progress, clean-up or the like is noted.
    pub record: AgentRecord,
    /// What goes into the trail with it.
    pub audit: Option<AuditEvent>,
}

/// What became of an insertion.
#[derive(Debug, Clone, PartialEq)]
pub enum InsertAgent {
    /// It is there now.
    Inserted,
    /// The id was taken by this one; nothing has changed.
    Taken(Box<AgentRecord>),
}

/// An ended agent past retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetirableAgent {
    /// The agent.
    pub agent_id: AgentId,
    /// Its place, to go on after it.
    pub cursor: RetirementCursor,
}

/// A place among the ended agents, by their end; it outlives the agent that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetirementCursor {
    /// In milliseconds since the Unix epoch.
    pub(crate) ended_at: i64,
    /// The order of acceptance, among those that ended at once.
    pub(crate) accepted: i64,
}

/// Which agents to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentFilter {
    /// Only those of this connection (`Some(None)`: of the spoke's own operator).
    pub connection: Option<Option<ConnectionId>>,
    /// Only those of this task.
    pub task: Option<TaskId>,
    /// Only those that have not ended.
    pub active: bool,
    /// Only those with a lesser id. The agent of that id need not be known here: pages of several stores can be
    /// merged.
    pub before: Option<AgentId>,
    /// How many at most.
    pub limit: u32,
}

/// An agent at a spoke, as its hub remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteAgent {
    /// The agent.
    pub agent_id: AgentId,
    /// The hub's connection to the spoke.
    pub connection_id: ConnectionId,
    /// The caller's task.
    pub task_id: TaskId,
    /// Name of the operator's token that spawned it.
    pub operator: String,
    /// SHA-256 of the spawn payload, hex.
    pub request_digest: String,
    /// When the hub accepted it.
    pub created_at: Timestamp,
    /// The last [`AgentStatus`] seen, as JSON.
    pub last_status_json: Option<String>,
    /// Whether that status is terminal.
    pub terminal: bool,
    /// When it was seen.
    pub last_seen_at: Option<Timestamp>,
}
