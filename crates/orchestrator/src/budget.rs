//! Budgets: what an agent may use, and what all agents of a connection or of the spoke may use in a day.
//!
//! - What is spent is counted from what runtimes tell of their messages, each once (A17), all attempts of an agent
//!   together. A runtime that tells nothing is neither counted nor stopped.
//! - Counting is in memory; the store has it a second later, and before an agent's end is on record. A store that
//!   fails stops no agent, and is told once it answers (`Ledger`).
//! - Whether a bound is passed is pure policy (`policy`). An agent past its bound is stopped by the killswitch, as
//!   by anybody's kill: by its own driver, which looks after each read and at least once a second, so that a day's
//!   bound that one agent passes stops them all.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mosaic_node::Node;
use mosaic_store::{SharedStore, Spent, StoreError};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, Timestamp, UtcDay, agent::Usage,
    command::SpawnOptions,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::Limits;

mod ledger;
mod policy;

use ledger::Ledger;
pub use policy::{Bound, Excess, Measure, Scope};

/// How often what was counted is written down.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// How many totals are written at once.
const WRITE_AT_ONCE: usize = 256;
/// For how many days the sums of days are kept.
const KEEP_DAYS: u32 = 90;
/// How often old days are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// See the module documentation.
pub struct Budgets {
    ledger: Mutex<Ledger>,
    /// One writer at a time: a total that is written later is the later one.
    writing: tokio::sync::Mutex<()>,
    store: SharedStore,
    /// Whose grants say what a connection may spend.
    node: Node,
    spoke: Bound,
}

impl fmt::Debug for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgets")
            .field("spoke", &self.spoke)
            .finish_non_exhaustive()
    }
}

/// What a total of usage comes to.
#[must_use]
pub fn spent(usage: &Usage) -> Spent {
    Spent {
        micro_usd: policy::micro_usd(usage.cost_usd.unwrap_or(0.0)),
        tokens: usage.tokens(),
    }
}

impl Budgets {
    /// Takes up what was spent today, and what was counted of agents that have not ended.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn load(node: Node, limits: &Limits, now: Timestamp) -> Result<Self, StoreError> {
        let store = Arc::clone(node.store());
        let day = UtcDay::of(now);
        let ledger = Ledger::new(
            day,
            &store.spending(day).await?,
            store.active_spending().await?,
        );
        Ok(Self {
            ledger: Mutex::new(ledger),
            writing: tokio::sync::Mutex::new(()),
            store,
            node,
            spoke: Bound::new(limits.budget_usd_per_day, limits.budget_tokens_per_day),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic under the lock leaves sums that are still true.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a connection may spend in a day, by the grant as it is now.
    fn bound_of(&self, connection_id: Option<ConnectionId>) -> Bound {
        connection_id
            .and_then(|id| self.node.connections().get(id))
            .map_or_else(Bound::default, |connection| {
                let caps = &connection.granted.caps;
                Bound::new(caps.budget_usd_per_day, caps.budget_tokens_per_day)
            })
    }

    /// Whether an agent of this connection may be accepted today.
    ///
    /// # Errors
    /// `budget-exhausted`, which passes at midnight UTC.
    pub fn admit(
        &self,
        connection_id: Option<ConnectionId>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let day = UtcDay::of(now);
        let bound = self.bound_of(connection_id);
        let (of_connection, of_spoke) = self.ledger().of_day(connection_id, day);
        match policy::day_used_up((of_connection, bound), (of_spoke, self.spoke)) {
            None => Ok(()),
            Some(excess) => Err(Refusal::new(
                ErrorCode::BudgetExhausted,
                format!("{excess}; it begins anew at {}", day.end()),
            )),
        }
    }

    /// Counts an agent's total, and says which bound is passed by now.
    fn count(&self, of: &Meter, total: Spent, now: Timestamp) -> Option<Excess> {
        let day = UtcDay::of(now);
        let bound = self.bound_of(of.connection_id);
        let mut ledger = self.ledger();
        ledger.count(of.agent_id, of.connection_id, total, day);
        let (of_connection, of_spoke) = ledger.of_day(of.connection_id, day);
        drop(ledger);
        policy::agent_passed(total, of.bound)
            .or_else(|| policy::day_passed((of_connection, bound), (of_spoke, self.spoke)))
    }

    /// Whether anything that this agent uses is bounded.
    fn is_bounded(&self, of: &Meter) -> bool {
        [of.bound, self.bound_of(of.connection_id), self.spoke]
            .iter()
            .any(|bound| *bound != Bound::default())
    }

    /// Says which bound leaves no room for another attempt of an agent that has used so much.
    fn used_up(&self, of: &Meter, total: Spent, now: Timestamp) -> Option<Excess> {
        let bound = self.bound_of(of.connection_id);
        let (of_connection, of_spoke) = self.ledger().of_day(of.connection_id, UtcDay::of(now));
        policy::agent_used_up(total, of.bound)
            .or_else(|| policy::day_used_up((of_connection, bound), (of_spoke, self.spoke)))
    }

    /// Writes down what was counted until now and is not in the store yet. What the store does not take stays to be
    /// written.
    pub async fn write(&self) {
        let _turn = self.writing.lock().await;
        // What is counted meanwhile is the next one's: who waits for this would wait for as long as others spend.
        let unwritten = self.ledger().unwritten();
        for batch in unwritten.chunks(WRITE_AT_ONCE) {
            if let Err(error) = self.store.note_spending(batch.to_vec()).await {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "what agents spent is not stored yet"
                );
                return;
            }
            self.ledger().written(batch);
        }
    }

    /// Writes down what is counted once a second, and forgets old days, until shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut writes = tokio::time::interval(WRITE_EVERY);
        let mut sweeps = tokio::time::interval(SWEEP_EVERY);
        for timer in [&mut writes, &mut sweeps] {
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return self.write().await,
                _ = writes.tick() => self.write().await,
                _ = sweeps.tick() => self.sweep(Timestamp::now()).await,
            }
        }
    }

    async fn sweep(&self, now: Timestamp) {
        let before = UtcDay::of(now).days_before(KEEP_DAYS);
        if let Err(error) = self.store.sweep_spending(before).await {
            warn!(
                error = &error as &dyn std::error::Error,
                "failed to forget what was spent long ago"
            );
        }
    }
}

/// Counts for one agent, and holds what is counted against its bounds.
#[derive(Debug)]
pub struct Meter {
    budgets: Arc<Budgets>,
    agent_id: AgentId,
    connection_id: Option<ConnectionId>,
    bound: Bound,
}

impl Meter {
    /// A meter for an agent whose runtime tells what it uses.
    #[must_use]
    pub fn new(
        budgets: &Arc<Budgets>,
        agent_id: AgentId,
        connection_id: Option<ConnectionId>,
        options: &SpawnOptions,
    ) -> Self {
        Self {
            budgets: Arc::clone(budgets),
            agent_id,
            connection_id,
            bound: Bound::new(options.budget_usd, options.budget_tokens),
        }
    }

    /// Counts what the agent has used in all. Says which bound is passed, if one is.
    #[must_use]
    pub fn count(&self, usage: &Usage, now: Timestamp) -> Option<Excess> {
        self.budgets.count(self, spent(usage), now)
    }

    /// Whether there is a bound to hold anything against.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.budgets.is_bounded(self)
    }

    /// Says which bound leaves no room for another attempt, after so much usage.
    #[must_use]
    pub fn used_up(&self, usage: &Usage, now: Timestamp) -> Option<Excess> {
        self.budgets.used_up(self, spent(usage), now)
    }

    /// Nothing more will be counted.
    pub fn ended(&self) {
        self.budgets.ledger().ended(self.agent_id);
    }
}

#[cfg(test)]
mod tests;
