//! An agent's spending, and its end when a bound is passed: a kill like anybody's, that its driver orders.

use std::sync::Arc;

use mosaic_store::AgentRecord;
use mosaic_types::{Timestamp, agent::EndReason, audit::Actor};
use tracing::{info, warn};

use super::Driver;
use crate::{
    budget::Meter,
    killswitch::{self, Killswitch, Reach},
    surroundings::Surroundings,
};

/// The meter of an agent, if its runtime tells what it uses.
pub(super) fn meter(around: &Surroundings, record: &AgentRecord) -> Option<Meter> {
    let config = around.runtimes.config(&record.status.runtime).ok()?;
    config.tells_usage().then(|| {
        Meter::new(
            &around.budgets,
            record.agent_id,
            record.connection_id,
            &record.options,
        )
    })
}

impl Driver {
    /// Stops the agent as any kill does: struck, proven, told to the trail. What follows is [`Self::finish_kill`].
    pub(super) async fn stop_for(&self, why: &str) {
        info!(agent = %self.cell.agent_id, why, "stopping an agent");
        let order = killswitch::order(EndReason::BudgetExceeded, Actor::System, Some(why));
        let killswitch = Killswitch::new(Arc::clone(&self.around), self.around.audit.clone());
        let killed = killswitch
            .kill(self.cell.agent_id, Reach::Everything, order.clone(), false)
            .await;
        if let Err(refusal) = killed {
            warn!(agent = %self.cell.agent_id, error = &refusal as &dyn std::error::Error, "the kill of an agent is left to its driver");
            self.cell.gate.order(order);
            self.cell.kill_answered.cancel();
        }
    }

    /// Stops the agent if a bound leaves no room for another attempt.
    pub(super) async fn stop_if_used_up(&self) -> bool {
        let usage = &self.record.status.usage;
        let excess = self
            .meter
            .as_ref()
            .and_then(|meter| meter.used_up(usage, Timestamp::now()));
        match excess {
            Some(excess) => {
                self.stop_for(&excess.to_string()).await;
                true
            }
            None => false,
        }
    }

    /// Counts what the record says, and has it written down: what is on record as ended is in the sums too.
    pub(super) async fn settle_spending(&self) {
        if let Some(meter) = &self.meter {
            // The agent has ended: there is nobody to stop.
            let _excess = meter.count(&self.record.status.usage, Timestamp::now());
            self.around.budgets.write().await;
        }
    }
}
