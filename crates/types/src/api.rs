//! Bodies of the operators' APIs that are not commands.

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, ConnectionId, InstanceId, InviteId, KillIntentId, MessageId, TaskId, Timestamp,
    agent::AgentStatus,
    audit::{AuditEntry, AuditHead},
    command::{CommandType, KillAllReport},
    connection::{Connection, ConnectionState},
    error::Refusal,
    event::EventCursor,
    grant::Grants,
    label::Label,
};

/// What an operator's token allows. Each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Spawns and kills agents.
    Operator,
    /// Manages connections and tokens.
    Admin,
}

/// Asks for a token (`POST /tokens`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// A name for the audit trail, of the form of a [`TaskId`].
    pub name: String,
    /// What it allows.
    pub role: Role,
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A fresh token. It is stored hashed and shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenCreated {
    /// What it is.
    #[serde(flatten)]
    pub info: TokenInfo,
    /// The bearer token.
    pub token: String,
}

/// Asks for a peering token (`POST /federation/invites`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InviteRequest {
    /// What the peer that uses it may ask of this node.
    pub grants: Grants,
    /// How long it can be used, in seconds, at most a week; an hour if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_secs: Option<u64>,
}

/// A fresh peering token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InviteCreated {
    /// Its id, for the audit trail.
    pub invite_id: InviteId,
    /// What to hand to the other side's operator. Shown this once.
    pub token: String,
    /// When it can no longer be used.
    pub expires_at: Timestamp,
}

/// Asks a node to connect to a peer (`POST /federation/connections`): with a token, or with a URL and then the
/// peer's operator must accept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectRequest {
    /// The peering token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The peer's URL, where there is no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What to ask for, where there is no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_grants: Option<Grants>,
}

/// Accepts a pending connection (`POST /federation/connections/{id}/accept`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcceptRequest {
    /// What the peer may ask of this node.
    pub grants: Grants,
}

/// A list of connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionList {
    /// Oldest first.
    pub connections: Vec<Connection>,
}

/// Kills agents (`POST /federation/agents/kill-all` on a hub, `POST /agents/kill-all` on a spoke).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KillAllRequest {
    /// Only agents of this connection: on a hub those at that spoke, on a spoke those that came by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<ConnectionId>,
    /// Only agents of this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Refuse spawns until the spoke's operator releases the hold.
    pub hold: bool,
    /// For the audit trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only agents with this label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
}

/// Kills one agent (`POST …/agents/{agentId}/kill`). The body may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KillRequest {
    /// For the audit trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Answer only after the clean-up, or 60 s.
    pub wait_for_cleanup: bool,
}

/// Releases a hold (`POST /hold/release` on a spoke).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HoldReleaseRequest {
    /// Release only the hold of this connection; all holds if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<ConnectionId>,
}

/// The holds of a spoke (`GET /hold`, and the answer to a release).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HoldStatus {
    /// Whether every spawn is held.
    pub all: bool,
    /// The connections whose spawns are held.
    pub connections: Vec<ConnectionId>,
}

/// What a hub's kill-all did. Success means that every spoke answered and proved every death.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationKillAll {
    /// Whether every spoke proved every death, and holds spawns if a hold was asked for.
    pub complete: bool,
    /// Agents proven dead.
    pub killed: u64,
    /// Agents not proven dead in time.
    pub unverified: u64,
    /// Spokes that gave no verifiable answer.
    pub unreachable: u64,
    /// From the order to the last answer, in microseconds.
    pub elapsed_micros: u64,
    /// Each spoke.
    pub spokes: Vec<SpokeKillAll>,
    /// Spokes for which the order is kept and delivered when they are heard again.
    #[serde(default)]
    pub pending: u64,
}

/// What a kill-all did at one spoke.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpokeKillAll {
    /// The connection to the spoke.
    pub connection_id: ConnectionId,
    /// The spoke's name.
    pub name: String,
    /// Its report; absent if it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<KillAllReport>,
    /// Why there is no report, why the hold that was asked for is not in force, or why nothing is kept of what it leaves
    /// open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
    /// The kept order (`GET /federation/kills`), where the deaths, or the hold, are not proven yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<KillIntentId>,
}

/// Agents of all spokes (`GET /federation/agents`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationAgents {
    /// Newest first. Those of an unreachable spoke are `unknown`, unless they were seen to end.
    pub agents: Vec<FederationAgent>,
    /// Spokes that could not be asked.
    pub unreachable: Vec<ConnectionId>,
    /// Whether there are more; ask with `before` set to the last one here.
    pub more: bool,
}

/// An agent at a spoke.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationAgent {
    /// The hub's connection to the spoke.
    pub connection_id: ConnectionId,
    /// The spoke's name.
    pub spoke: String,
    /// The agent. Its own `connectionId` is the spoke's side and is left out.
    #[serde(flatten)]
    pub status: AgentStatus,
    /// Whether a kill of it was ordered that its spoke has not proven yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kill_pending: bool,
}

/// The answer to a hub's `POST /federation/agents/spawn` (202).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpawnResponse {
    /// The agent.
    pub agent_id: AgentId,
    /// The hub's connection to the spoke; absent on a spoke's own API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<ConnectionId>,
    /// The command that spawned it: `GET /federation/commands/{messageId}`; absent on a spoke's own API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageId>,
    /// Where it is now.
    pub state: crate::agent::AgentState,
    /// Whether it was already there, asked for with the same content.
    pub existing: bool,
}

/// A command that a hub sent (`GET /federation/commands/{messageId}`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandRecord {
    /// Its id.
    pub message_id: MessageId,
    /// What it asked for.
    pub command_type: CommandType,
    /// To whom.
    pub connection_id: ConnectionId,
    /// About which agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// Name of the operator's token.
    pub operator: String,
    /// Where it stands.
    pub state: CommandState,
    /// When it was sent.
    pub issued_at: Timestamp,
    /// When the answer came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<Timestamp>,
    /// The refusal or failure, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
}

/// Where a sent command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandState {
    /// Sent, or about to be; no answer yet.
    Sent,
    /// A signed answer says that it was done.
    Succeeded,
    /// A signed answer refuses it, or says that it failed.
    Refused,
    /// No verifiable answer came. It may have been executed.
    Unanswered,
}

/// Query of `GET …/agents/{agentId}/events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EventsParams {
    /// Only what came after this event; the header `Last-Event-ID` goes before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<EventCursor>,
    /// Whether to wait for what is to come; `true` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
}

/// A page of the audit trail (`GET /audit`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditPage {
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
    /// Where the trail ends now.
    pub head: AuditHead,
    /// Whether there are more; ask with `after` set to the last `seq` here.
    pub more: bool,
}

/// A head of a peer's trail that this node was shown in a signed response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WitnessedHead {
    /// The peer.
    pub instance: InstanceId,
    /// The highest head that it showed.
    pub head: AuditHead,
    /// When.
    pub seen_at: Timestamp,
}

/// What a verification of a trail found (`GET /audit/verify`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditVerdict {
    /// Whether the whole trail is sound.
    pub valid: bool,
    /// How many entries were checked.
    pub entries: u64,
    /// Where the trail ends.
    pub head: AuditHead,
    /// The first entry that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_bad_seq: Option<u64>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// A node as its own operator sees it (`GET /instance`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceInfo {
    /// Its id.
    pub instance_id: InstanceId,
    /// What it can tell of itself.
    #[serde(flatten)]
    pub pong: crate::command::Pong,
    /// Its connections by state.
    pub connections: Vec<(ConnectionId, ConnectionState)>,
}
