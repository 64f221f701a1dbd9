//! Forgets ended agents that are past retention: record, spool and patch. Their branches stay. A tree that was kept
//! because it holds work stays too, and its record with it, but it is not in the way of others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mosaic_store::RetirementCursor;
use mosaic_types::{AgentId, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{surroundings::Surroundings, worktree::Removal};

/// How often ended agents are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// After how long an agent that could not be forgotten is looked at again: its tree may have been emptied.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// How many agents are read at once.
const PAGE: u32 = 100;

/// See the module documentation.
#[derive(Debug)]
pub struct Retention {
    around: Arc<Surroundings>,
    /// Those that could not be forgotten, and when they were looked at.
    kept: HashMap<AgentId, Timestamp>,
}

impl Retention {
    /// Keeps the record of these surroundings within its limits.
    #[must_use]
    pub fn new(around: Arc<Surroundings>) -> Self {
        Self {
            around,
            kept: HashMap::new(),
        }
    }

    /// Sweeps once in a while until shutdown, which waits for one agent's files at most.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut sweeps = tokio::time::interval(SWEEP_EVERY);
        sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = sweeps.tick() => self.sweep(Timestamp::now(), &shutdown).await,
            }
        }
    }

    async fn sweep(&mut self, now: Timestamp, shutdown: &CancellationToken) {
        self.kept
            .retain(|_, looked_at| now.since(*looked_at) < LOOK_AGAIN);
        let limits = &self.around.limits;
        let before = now.saturating_sub(Duration::from_secs(limits.retention_secs));
        let keep_newest = limits.retention_agents;
        let mut after: Option<RetirementCursor> = None;
        loop {
            let page = self
                .around
                .store
                .retirable_agents(before, keep_newest, after, PAGE)
                .await;
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "failed to read ended agents"
                    );
                    return;
                }
            };
            let Some(last) = page.last() else {
                return;
            };
            after = Some(last.cursor);
            for agent in page {
                if self.kept.contains_key(&agent.agent_id) {
                    continue;
                }
                // Harvests and clean-ups get their turn in between.
                let turn = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    turn = self.around.chores.acquire() => turn,
                };
                if turn.is_err() {
                    return;
                }
                if !self.forget(agent.agent_id).await {
                    self.kept.insert(agent.agent_id, now);
                }
            }
        }
    }

    /// Whether nothing of it is left.
    async fn forget(&self, agent_id: AgentId) -> bool {
        match self.around.worktrees.forget(&agent_id).await {
            Ok(Removal::Removed) => {}
            Ok(Removal::Kept { why }) => {
                info!(agent = %agent_id, ?why, "kept past retention");
                return false;
            }
            Err(error) => {
                warn!(agent = %agent_id, error = &error as &dyn std::error::Error, "failed to remove an agent's files");
                return false;
            }
        }
        match self.around.store.forget_agent(agent_id).await {
            Ok(()) => true,
            Err(error) => {
                warn!(agent = %agent_id, error = &error as &dyn std::error::Error, "failed to forget an agent");
                false
            }
        }
    }
}
