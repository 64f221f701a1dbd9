//! The verbs, each handed to the writer or to a reader.

use std::sync::PoisonError;

use async_trait::async_trait;
use mosaic_types::{
    AgentId, ConnectionId, InstanceId, InviteId, MessageId, TaskId, Timestamp, UtcDay,
    api::{CommandRecord, WitnessedHead},
    audit::{AuditEntry, AuditEvent, AuditHead},
    connection::Connection,
    kill::KillIntent,
};

use tokio::runtime::{Handle, RuntimeFlavor};

use super::{
    Share, SqliteStore, agents, audit_trail, claims, commands, connections, kill_intents, leases,
    remote_agents, spending, tokens, witnesses, witnesses::Witnessed,
};
use crate::{
    AgentFilter, AgentMove, AgentRecord, AgentSpending, Claim, ClaimOutcome, ConnectionSpending,
    InsertAgent, InviteRecord, LeaseRecord, OperatorToken, RemoteAgent, RetirableAgent,
    RetirementCursor, Spent, Store, StoreError,
};

#[async_trait]
impl Store for SqliteStore {
    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        self.write(Share::Peers, move |tx| claims::claim(tx, &claim))
            .await
    }

    async fn keep_response(
        &self,
        peer: &InstanceId,
        message_id: MessageId,
        response: Vec<u8>,
    ) -> Result<(), StoreError> {
        let peer = peer.clone();
        self.write(Share::Peers, move |tx| {
            claims::keep_response(tx, &peer, message_id, &response)
        })
        .await
    }

    async fn sweep_claims(&self, now: Timestamp) -> Result<u64, StoreError> {
        let mut total = 0;
        loop {
            let swept = self
                .write(Share::Whole, move |tx| claims::sweep(tx, now))
                .await?;
            total += swept;
            if swept < u64::from(claims::SWEEP_BATCH) {
                return Ok(total);
            }
        }
    }

    async fn unexpired_claims(&self, now: Timestamp, limit: u32) -> Result<Vec<Claim>, StoreError> {
        self.read(move |connection| claims::unexpired(connection, now, limit))
            .await
    }

    async fn save_connection(
        &self,
        connection: Connection,
        audit: AuditEvent,
    ) -> Result<Option<ConnectionId>, StoreError> {
        self.write(Share::Whole, move |tx| {
            connections::save(tx, &connection, &audit)
        })
        .await
    }

    async fn connections(&self) -> Result<Vec<Connection>, StoreError> {
        self.read(connections::all).await
    }

    async fn save_invite(&self, invite: InviteRecord, audit: AuditEvent) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| {
            connections::save_invite(tx, &invite, &audit)
        })
        .await
    }

    async fn invite(&self, secret_hash: [u8; 32]) -> Result<Option<InviteRecord>, StoreError> {
        self.read(move |connection| connections::invite(connection, secret_hash))
            .await
    }

    async fn redeem_invite(
        &self,
        invite_id: InviteId,
        now: Timestamp,
        connection: Connection,
        audit: AuditEvent,
    ) -> Result<Option<ConnectionId>, StoreError> {
        self.write(Share::Whole, move |tx| {
            connections::redeem(tx, invite_id, now, &connection, &audit)
        })
        .await
    }

    async fn insert_agent(
        &self,
        agent: AgentRecord,
        audit: AuditEvent,
    ) -> Result<InsertAgent, StoreError> {
        self.write(Share::Whole, move |tx| agents::insert(tx, &agent, &audit))
            .await
    }

    async fn move_agent(&self, change: AgentMove) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| agents::change(tx, &change))
            .await
    }

    async fn agent(&self, agent_id: AgentId) -> Result<Option<AgentRecord>, StoreError> {
        self.read(move |connection| agents::one(connection, agent_id))
            .await
    }

    async fn agents(&self, filter: AgentFilter) -> Result<Vec<AgentRecord>, StoreError> {
        self.read(move |connection| agents::page(connection, &filter))
            .await
    }

    async fn active_agents(&self) -> Result<Vec<AgentRecord>, StoreError> {
        self.read(agents::active).await
    }

    async fn pending_cleanups(&self) -> Result<Vec<AgentRecord>, StoreError> {
        self.read(agents::to_clean).await
    }

    async fn retirable_agents(
        &self,
        ended_before: Timestamp,
        keep_newest: u64,
        after: Option<RetirementCursor>,
        limit: u32,
    ) -> Result<Vec<RetirableAgent>, StoreError> {
        self.read(move |connection| {
            agents::retirable(connection, ended_before, keep_newest, after, limit)
        })
        .await
    }

    async fn forget_agent(&self, agent_id: AgentId) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| agents::forget(tx, agent_id))
            .await
    }

    async fn note_spending(&self, noted: Vec<AgentSpending>) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| spending::note(tx, &noted))
            .await
    }

    async fn spending(&self, day: UtcDay) -> Result<Vec<ConnectionSpending>, StoreError> {
        self.read(move |connection| spending::of_day(connection, day))
            .await
    }

    async fn active_spending(&self) -> Result<Vec<(AgentId, Spent)>, StoreError> {
        self.read(spending::of_active_agents).await
    }

    async fn sweep_spending(&self, before: UtcDay) -> Result<u64, StoreError> {
        let mut total = 0;
        loop {
            let swept = self
                .write(Share::Whole, move |tx| spending::sweep(tx, before))
                .await?;
            total += swept;
            if swept < u64::from(spending::SWEEP_BATCH) {
                return Ok(total);
            }
        }
    }

    async fn save_leases(&self, leases: Vec<LeaseRecord>) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| leases::save(tx, &leases))
            .await
    }

    async fn leases(&self) -> Result<Vec<LeaseRecord>, StoreError> {
        self.read(leases::active).await
    }

    async fn save_remote_agent(&self, agent: RemoteAgent) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| remote_agents::save(tx, &agent))
            .await
    }

    async fn observe_remote_agent(
        &self,
        agent_id: AgentId,
        status_json: String,
        terminal: bool,
        seen_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| {
            remote_agents::observe(tx, agent_id, &status_json, terminal, seen_at)
        })
        .await
    }

    async fn remote_agent(&self, agent_id: AgentId) -> Result<Option<RemoteAgent>, StoreError> {
        self.read(move |connection| remote_agents::one(connection, agent_id))
            .await
    }

    async fn remote_agents(
        &self,
        connection: Option<ConnectionId>,
        task: Option<TaskId>,
        before: Option<AgentId>,
        limit: u32,
    ) -> Result<Vec<RemoteAgent>, StoreError> {
        self.read(move |database| {
            remote_agents::page(database, connection, task.as_ref(), before, limit)
        })
        .await
    }

    async fn save_command(&self, command: CommandRecord) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| commands::save(tx, &command))
            .await
    }

    async fn command(&self, message_id: MessageId) -> Result<Option<CommandRecord>, StoreError> {
        self.read(move |connection| commands::one(connection, message_id))
            .await
    }

    async fn save_kill_intent(&self, intent: KillIntent) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| kill_intents::save(tx, &intent))
            .await
    }

    async fn kill_intents(&self) -> Result<Vec<KillIntent>, StoreError> {
        self.read(kill_intents::all).await
    }

    async fn save_token(&self, token: OperatorToken, audit: AuditEvent) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| tokens::save(tx, &token, &audit))
            .await
    }

    async fn tokens(&self) -> Result<Vec<OperatorToken>, StoreError> {
        self.read(tokens::all).await
    }

    async fn delete_token(&self, name: &str, audit: AuditEvent) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(Share::Whole, move |tx| tokens::delete(tx, &name, &audit))
            .await
    }

    async fn append_audit(&self, event: AuditEvent) -> Result<AuditHead, StoreError> {
        self.write(Share::Whole, move |tx| audit_trail::append(tx, &event))
            .await
    }

    async fn append_audits(&self, events: Vec<AuditEvent>) -> Result<(), StoreError> {
        self.write(Share::Whole, move |tx| {
            events
                .iter()
                .try_for_each(|event| audit_trail::append(tx, event).map(drop))
        })
        .await
    }

    fn audit_head(&self) -> AuditHead {
        self.published
            .head
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn audit_entries(
        &self,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let limit = limit.min(agents::PAGE_MAX);
        self.read(move |connection| audit_trail::entries(connection, after_seq, limit))
            .await
    }

    async fn witness_head(&self, seen: WitnessedHead) -> Result<(), StoreError> {
        let shown_before = self
            .published
            .highest_heads
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&seen.instance)
            .is_some_and(|highest| *highest == seen.head);
        if shown_before {
            return Ok(());
        }
        let witnessed = self
            .write(Share::Whole, move |tx| witnesses::witness(tx, &seen))
            .await?;
        // An error inside the verb would have undone the evidence.
        match witnessed {
            Witnessed::Consistent => Ok(()),
            Witnessed::Contradiction => Err(StoreError::Conflict),
        }
    }

    async fn witnessed_heads(&self) -> Result<Vec<WitnessedHead>, StoreError> {
        self.read(witnesses::kept).await
    }

    async fn contradicted_heads(&self) -> Result<Vec<WitnessedHead>, StoreError> {
        self.read(witnesses::contradictions).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        let written = self
            .write(Share::Whole, |tx| {
                tx.connection
                    .prepare_cached(
                        "INSERT INTO health (id, checks) VALUES (1, 1)
                         ON CONFLICT (id) DO UPDATE SET checks = checks + 1
                         RETURNING checks",
                    )
                    .and_then(|mut upsert| upsert.query_row([], |row| row.get::<_, i64>(0)))
                    .map_err(StoreError::of(StoreError::Check))
            })
            .await?;
        let read = self
            .read(|connection| {
                connection
                    .prepare_cached("SELECT checks FROM health WHERE id = 1")
                    .and_then(|mut query| query.query_row([], |row| row.get::<_, i64>(0)))
                    .map_err(StoreError::of(StoreError::Check))
            })
            .await?;
        if read < written {
            return Err(StoreError::Malformed { what: "health row" });
        }
        Ok(())
    }

    async fn close(&self) {
        // Joining blocks on the disk; what is queued is little, and nobody else may use this store now.
        let may_block_in_place = Handle::try_current()
            .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
        if may_block_in_place {
            tokio::task::block_in_place(|| self.shut_down());
        } else {
            self.shut_down();
        }
    }
}
