//! Moves of an agent: stored with their audit entries, and only then seen.

use std::{sync::Arc, time::Duration};

use mosaic_store::{AgentMove, AgentRecord, StoreError};
use mosaic_types::{
    Timestamp,
    agent::{AgentState, ObservedState},
    audit::{Actor, AuditEvent},
};
use tracing::{error, warn};

use super::{Driver, Stuck};
use crate::sandbox::ExitStatus;

/// The first and the longest pause between two tries of a store that fails.
const STORE_BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Driver {
    /// Stores a move, with its audit entry, and then lets it be seen. Asks a failing store until it answers.
    pub(super) async fn store_move(
        &mut self,
        next: AgentState,
        actor: Actor,
        change: impl FnOnce(&mut AgentRecord),
    ) -> Result<(), Stuck> {
        let mut record = self.record.clone();
        let moved = record.state != next;
        record.state = next;
        record.status.state = ObservedState::from(next);
        record.version += 1;
        change(&mut record);
        let audit = moved.then(|| audit_of(&record, actor));
        let mut pause = STORE_BACKOFF.0;
        loop {
            let change = AgentMove {
                record: record.clone(),
                audit: audit.clone(),
            };
            match self.around.store.move_agent(change).await {
                Ok(()) => break,
                // An answer was lost on the way: what is stored is what was to be stored.
                Err(StoreError::VersionConflict) if self.is_stored(&record).await => break,
                Err(
                    error @ (StoreError::IllegalMove { .. }
                    | StoreError::VersionConflict
                    | StoreError::NotFound
                    | StoreError::Closed),
                ) => {
                    error!(agent = %self.cell.agent_id, error = &error as &dyn std::error::Error, "move was refused");
                    return Err(Stuck);
                }
                Err(error) => {
                    warn!(agent = %self.cell.agent_id, error = &error as &dyn std::error::Error, "move is not stored yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(STORE_BACKOFF.1);
                }
            }
        }
        self.record = record;
        self.cell.publisher.stored(Arc::new(self.record.clone()));
        Ok(())
    }

    async fn is_stored(&self, record: &AgentRecord) -> bool {
        let stored = self.around.store.agent(record.agent_id).await;
        stored.is_ok_and(|stored| stored.as_ref() == Some(record))
    }
}

pub(super) fn note_exit(record: &mut AgentRecord, exit: Option<ExitStatus>) {
    match exit {
        Some(ExitStatus::Code(code)) => record.status.exit_code = Some(code),
        Some(ExitStatus::Signal(signal)) => record.status.signal = Some(signal),
        Some(ExitStatus::NotStarted | ExitStatus::Lost) | None => {}
    }
}

fn audit_of(record: &AgentRecord, actor: Actor) -> AuditEvent {
    AuditEvent {
        at: Timestamp::now(),
        actor,
        action: format!("agent.{}", record.state),
        subject: Some(record.agent_id.to_string()),
        outcome: "ok".to_owned(),
        detail: serde_json::json!({
            "attempt": record.status.attempt,
            "reason": record.status.reason,
            "death": record.status.death,
        }),
    }
}
