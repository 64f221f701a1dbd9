//! What a node must remember, in the verbs of its domain.
//!
//! [`Store`] is the seam; [`sqlite`] is the embedded backend. Nothing here knows signatures or HTTP: bodies
//! that were signed are bytes.
//!
//! Promises of every backend, held by the `contract` suite:
//! - What a verb answered is durable: claims, agent moves and audit entries survive a power cut.
//! - Verbs that change are atomic: an agent's move and its audit entry are both there, or neither.
//! - Every table that a peer can make grow is bounded; when it is full the verb refuses and evicts nothing
//!   that is still needed.

pub mod audit;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod error;
pub mod records;
pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use mosaic_types::{
    AgentId, ConnectionId, InstanceId, InviteId, MessageId, TaskId, Timestamp, UtcDay,
    api::{CommandRecord, WitnessedHead},
    audit::{AuditEntry, AuditEvent, AuditHead},
    connection::Connection,
    kill::KillIntent,
};

pub use error::StoreError;
pub use records::{
    AgentFilter, AgentMove, AgentRecord, AgentSpending, AttemptStart, Claim, ClaimOutcome,
    ConnectionSpending, InsertAgent, InviteRecord, LeaseRecord, Limits, OperatorToken, RemoteAgent,
    RetirableAgent, RetirementCursor, Spent,
};

/// How long after a peer's highest head a lower one may still arrive: a kept response to a message that is
/// asked for again carries the head of its own time, and messages live for 300 s and the clock skew allowed.
pub const HEAD_REORDER_WINDOW: std::time::Duration = std::time::Duration::from_secs(600);

/// A store that is shared by all tasks of a node.
pub type SharedStore = Arc<dyn Store>;

/// See the module documentation for what every implementation promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    // ---- claims: a message of a peer is executed at most once ----

    /// Claims `(peer, message_id)`. Durable when it answers. Refuses with [`StoreError::Full`] when the table
    /// of unexpired claims is full, or the peer's share of it (F12). What is on no record and would expire when claims
    /// did that were swept is [`ClaimOutcome::Forgotten`], over restarts, too; nothing is that expires later than all of
    /// them (F10).
    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError>;

    /// Keeps the signed response to a claimed message, for those who ask again.
    async fn keep_response(
        &self,
        peer: &InstanceId,
        message_id: MessageId,
        response: Vec<u8>,
    ) -> Result<(), StoreError>;

    /// Forgets claims (and their responses) that expired before `now`, but not when that was. Answers how many.
    async fn sweep_claims(&self, now: Timestamp) -> Result<u64, StoreError>;

    /// Claims that have not expired at `now`, the last to expire first, at most `limit`. For a restart.
    async fn unexpired_claims(&self, now: Timestamp, limit: u32) -> Result<Vec<Claim>, StoreError>;

    // ---- connections and invitations ----

    /// Saves a connection if the stored version is `connection.version - 1` (0: not stored yet), with an audit
    /// entry in the same transaction. Otherwise [`StoreError::VersionConflict`];
    /// [`StoreError::IllegalConnectionMove`] if the table of its states forbids the change.
    ///
    /// When the table is full, a new one takes the place of the oldest that is disconnected, and the answer is which
    /// one was forgotten for it. One that an agent on record came by, or is at, is not forgotten before the agent has
    /// ended, nor one by which a kept kill was ordered before that is settled (A38). If no other is disconnected,
    /// [`StoreError::Full`].
    async fn save_connection(
        &self,
        connection: Connection,
        audit: AuditEvent,
    ) -> Result<Option<ConnectionId>, StoreError>;

    /// Every connection, oldest first.
    async fn connections(&self) -> Result<Vec<Connection>, StoreError>;

    /// Saves a fresh invitation.
    async fn save_invite(&self, invite: InviteRecord, audit: AuditEvent) -> Result<(), StoreError>;

    /// Reads an invitation by the hash of its secret, used or not.
    async fn invite(&self, secret_hash: [u8; 32]) -> Result<Option<InviteRecord>, StoreError>;

    /// Uses an invitation up and saves the connection that it makes, in one transaction, with the answers of
    /// [`save_connection`](Self::save_connection). Single use: the second to come, whoever it is, gets
    /// [`StoreError::InviteSpent`]; so does one who comes after its expiry.
    async fn redeem_invite(
        &self,
        invite_id: InviteId,
        now: Timestamp,
        connection: Connection,
        audit: AuditEvent,
    ) -> Result<Option<ConnectionId>, StoreError>;

    // ---- agents (of an orchestrator) ----

    /// Inserts an agent if its id is free. An id that is taken answers with the record that has it.
    /// [`StoreError::NotFound`] if the connection that it came by is not on record, or not any more.
    async fn insert_agent(
        &self,
        agent: AgentRecord,
        audit: AuditEvent,
    ) -> Result<InsertAgent, StoreError>;

    /// Moves an agent from one version of its record to the next, with an audit entry in the same transaction
    /// if one is given. [`StoreError::IllegalMove`] if the state table forbids it, [`StoreError::VersionConflict`]
    /// if the stored version is another, [`StoreError::NotFound`] if it is not there.
    async fn move_agent(&self, change: AgentMove) -> Result<(), StoreError>;

    /// One agent.
    async fn agent(&self, agent_id: AgentId) -> Result<Option<AgentRecord>, StoreError>;

    /// Agents, greatest id first (ids tell the time of their making), at most `filter.limit` (which is at most 1000).
    async fn agents(&self, filter: AgentFilter) -> Result<Vec<AgentRecord>, StoreError>;

    /// Every agent that has not ended, oldest first. For a restart: load this before sweeping (A2).
    async fn active_agents(&self) -> Result<Vec<AgentRecord>, StoreError>;

    /// Every ended agent whose clean-up is still to be done, oldest first. For a restart, and for trying again.
    async fn pending_cleanups(&self) -> Result<Vec<AgentRecord>, StoreError>;

    /// Ended and cleaned-up agents past `keep_newest` or ended before `ended_before`, oldest first, at most `limit`;
    /// only those after `after`, which need not be there any more.
    async fn retirable_agents(
        &self,
        ended_before: Timestamp,
        keep_newest: u64,
        after: Option<RetirementCursor>,
        limit: u32,
    ) -> Result<Vec<RetirableAgent>, StoreError>;

    /// Forgets an ended agent. Its audit entries stay. Refuses one that has not ended, or whose clean-up is
    /// still to be done ([`StoreError::IllegalMove`]); one that is not there is fine.
    async fn forget_agent(&self, agent_id: AgentId) -> Result<(), StoreError>;

    // ---- what agents spend (of an orchestrator) ----

    /// Counts what agents have used in all, each since its last total that was counted, into the sums of its
    /// connection on the day that is given. Idempotent: a total that was counted moves nothing. One that came
    /// down takes back what it had added, down to nothing. Agents that are not on record are passed over.
    async fn note_spending(&self, noted: Vec<AgentSpending>) -> Result<(), StoreError>;

    /// What each connection's agents spent on a day; those that spent nothing are left out.
    async fn spending(&self, day: UtcDay) -> Result<Vec<ConnectionSpending>, StoreError>;

    /// The last total that was counted of each agent that has not ended. For a restart.
    async fn active_spending(&self) -> Result<Vec<(AgentId, Spent)>, StoreError>;

    /// Forgets the sums of days before `before`. Answers how many.
    async fn sweep_spending(&self, before: UtcDay) -> Result<u64, StoreError>;

    /// Keeps how far these leases reach. Of an agent that is not on record, or has ended, nothing is kept.
    async fn save_leases(&self, leases: Vec<LeaseRecord>) -> Result<(), StoreError>;

    /// The kept leases of the agents that have not ended. For a restart.
    async fn leases(&self) -> Result<Vec<LeaseRecord>, StoreError>;

    // ---- remote agents and sent commands (of a hub) ----

    /// Remembers that an agent is at a spoke, before it is spawned there. If the id is already known for the
    /// same connection nothing changes; for another, [`StoreError::Conflict`]. [`StoreError::NotFound`] if the connection
    /// is not on record, or not any more.
    async fn save_remote_agent(&self, agent: RemoteAgent) -> Result<(), StoreError>;

    /// Keeps the last status seen of a remote agent; never replaces a terminal state by another.
    async fn observe_remote_agent(
        &self,
        agent_id: AgentId,
        status_json: String,
        terminal: bool,
        seen_at: Timestamp,
    ) -> Result<(), StoreError>;

    /// Where a remote agent is.
    async fn remote_agent(&self, agent_id: AgentId) -> Result<Option<RemoteAgent>, StoreError>;

    /// Remote agents, greatest id first.
    async fn remote_agents(
        &self,
        connection: Option<ConnectionId>,
        task: Option<TaskId>,
        before: Option<AgentId>,
        limit: u32,
    ) -> Result<Vec<RemoteAgent>, StoreError>;

    /// Records a sent command, or how it came out. The table keeps the newest 100,000.
    async fn save_command(&self, command: CommandRecord) -> Result<(), StoreError>;

    /// One sent command.
    async fn command(&self, message_id: MessageId) -> Result<Option<CommandRecord>, StoreError>;

    // ---- kept kills (of a hub) ----

    /// Saves a kill that is kept until it is proven, or how it stands. A settled one stays settled. A new one is
    /// refused with [`StoreError::Full`] when as many as may be are pending; of the settled the newest are kept.
    async fn save_kill_intent(&self, intent: KillIntent) -> Result<(), StoreError>;

    /// Every kept kill, oldest first: the pending and the settled that are still remembered. For a restart.
    async fn kill_intents(&self) -> Result<Vec<KillIntent>, StoreError>;

    // ---- operators' tokens ----

    /// Saves a token under its name; a name that is taken is [`StoreError::Conflict`].
    async fn save_token(&self, token: OperatorToken, audit: AuditEvent) -> Result<(), StoreError>;

    /// Every token, oldest first.
    async fn tokens(&self) -> Result<Vec<OperatorToken>, StoreError>;

    /// Deletes a token; [`StoreError::NotFound`] if there is none of that name.
    async fn delete_token(&self, name: &str, audit: AuditEvent) -> Result<(), StoreError>;

    // ---- audit ----

    /// Appends to the trail. An event that is longer than [`Limits::max_event_bytes`] is stored without its detail, here
    /// and by every verb that takes one: none is refused for its audit entry (F21).
    async fn append_audit(&self, event: AuditEvent) -> Result<AuditHead, StoreError>;

    /// Appends these, in order: all of them or none.
    async fn append_audits(&self, events: Vec<AuditEvent>) -> Result<(), StoreError>;

    /// Where the trail ends, from memory: never waits for the disk.
    fn audit_head(&self) -> AuditHead;

    /// Entries after `after_seq`, oldest first, at most `limit` (which is at most 1000).
    async fn audit_entries(
        &self,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, StoreError>;

    /// Keeps a head that a peer has shown. A peer that shows another hash for an entry than it did before, or
    /// that comes back with a lower head after more than [`HEAD_REORDER_WINDOW`] (responses overtake one
    /// another), has rewritten or cut its trail: the head is kept as a contradiction, and the answer is
    /// [`StoreError::Conflict`] each time.
    async fn witness_head(&self, seen: WitnessedHead) -> Result<(), StoreError>;

    /// The heads that peers have shown, by peer, lowest first: the newest of each, and of those before one for each
    /// doubling of the distance.
    async fn witnessed_heads(&self) -> Result<Vec<WitnessedHead>, StoreError>;

    /// The heads that contradict what their peer had shown before; the first 16 of each peer.
    async fn contradicted_heads(&self) -> Result<Vec<WitnessedHead>, StoreError>;

    // ---- health ----

    /// Writes and reads something small: whether the store can be used now.
    async fn check(&self) -> Result<(), StoreError>;

    /// Flushes and closes; later verbs fail with [`StoreError::Closed`].
    async fn close(&self);
}
