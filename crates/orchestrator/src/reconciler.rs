//! Brings record and reality together: after a restart, and once in a while.
//!
//! - What runs is listed *before* the record is read, and only what is in the first and not in the second is an
//!   orphan (A2, A10). Only what carries our name under our own parent cgroup is ever touched (A12).
//! - An agent is adopted by identity, never by pid (A13). One that cannot be examined is left alone and looked
//!   at again: unreachable is not dead (A3).
//! - What was queued stays queued; what was spawning is looked at before it is queued again (A5).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mosaic_node::AuditLog;
use mosaic_store::{AgentRecord, LeaseRecord, StoreError};
use mosaic_types::{AgentId, agent::AgentState};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    crash_points::crash_point,
    kill_journal::{JournalError, Words},
    killswitch::{self, word_on},
    lifecycle::{
        Cell, Drivers,
        driver::{Driver, Entry},
        examine::examine,
        lease::{self, Lease},
    },
    sandbox::{Candidate, SandboxError},
    surroundings::Surroundings,
};

/// How long an orphan may resist.
const ORPHAN_WITHIN: Duration = Duration::from_secs(10);

/// Why a reconciliation could not be made. Nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The sandboxes cannot be listed.
    #[error("failed to list what runs")]
    List(#[source] SandboxError),
    /// The record cannot be read.
    #[error("failed to read the agents on record")]
    Read(#[source] StoreError),
}

/// What a restart found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Agents that went on running.
    pub adopted: usize,
    /// Agents that wait for a slot.
    pub queued: usize,
    /// Agents that had ended meanwhile, rightly or not.
    pub ended: usize,
    /// Clean-ups to finish.
    pub cleanups: usize,
    /// Agents that could not be examined yet.
    pub unknown: usize,
    /// Processes of ours that no record knows, killed.
    pub orphans: usize,
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Reconciler {
    around: Arc<Surroundings>,
    killed: Arc<Words>,
    audit: AuditLog,
    drivers: Drivers,
}

impl Reconciler {
    /// Reconciles these surroundings, with word of the kills that were answered before; the drivers of what it finds run on `drivers`.
    #[must_use]
    pub fn new(
        around: Arc<Surroundings>,
        killed: Words,
        audit: AuditLog,
        drivers: Drivers,
    ) -> Self {
        Self {
            around,
            killed: Arc::new(killed),
            audit,
            drivers,
        }
    }

    /// After a start, before anything is served: takes over every agent on record, and kills what is not.
    ///
    /// # Errors
    /// [`ReconcileError`].
    pub async fn take_over(&self) -> Result<Found, ReconcileError> {
        let running = self.around.sandboxes.list().map_err(ReconcileError::List)?;
        crash_point("take-over.listed");
        let active = self
            .around
            .store
            .active_agents()
            .await
            .map_err(ReconcileError::Read)?;
        let cleanups = self
            .around
            .store
            .pending_cleanups()
            .await
            .map_err(ReconcileError::Read)?;
        let mut leases: HashMap<AgentId, LeaseRecord> = self
            .around
            .store
            .leases()
            .await
            .map_err(ReconcileError::Read)?
            .into_iter()
            .map(|lease| (lease.agent_id, lease))
            .collect();
        let known: std::collections::HashSet<AgentId> = active
            .iter()
            .chain(&cleanups)
            .map(|record| record.agent_id)
            .collect();
        let mut orders = Words::default();
        for record in active.iter().chain(&cleanups) {
            if let Some(word) = word_on(&self.around, &self.killed, record) {
                orders.add(record.agent_id, word);
            }
        }
        crash_point("take-over.read");
        let told = self.tell().await;
        settled(self.around.kills.settle(&orders, told));
        let mut found = Found {
            cleanups: cleanups.len(),
            ..Found::default()
        };
        let mut taken = Vec::with_capacity(active.len());
        for record in active {
            let cell = self.readmit(&record, leases.remove(&record.agent_id).as_ref());
            cell.gate.not_found_yet();
            if let Some(order) = orders.agents.get(&record.agent_id) {
                cell.order_answered(order.clone());
            } else if let Some(order) = orders.spared.get(&record.agent_id) {
                cell.order_answered_after(order.clone());
            }
            let entry = examine(&self.around, &cell, &record).await;
            match &entry {
                Entry::Running(_) => found.adopted += 1,
                Entry::Waiting | Entry::NeverRan => found.queued += 1,
                Entry::Unknown => found.unknown += 1,
                Entry::Ended(_) | Entry::Killed | Entry::CleaningUp => found.ended += 1,
            }
            taken.push((cell, record, entry));
            crash_point("take-over.examined");
        }
        // Slots go to what lives, or may, before anything that waits can take one; what is known to live comes first.
        taken.sort_by_key(|(cell, _, _)| !cell.gate.is_live());
        let taken: Vec<(Driver, Entry)> = taken
            .into_iter()
            .map(|(cell, record, entry)| {
                // Not known is not dead (A3); but what waited has nothing that could live.
                let may_live =
                    matches!(entry, Entry::Unknown) && record.state != AgentState::Queued;
                let takes = may_live || cell.gate.is_live();
                let mut driver = self.driver(cell, record);
                if takes {
                    driver.take_slot();
                }
                (driver, entry)
            })
            .collect();
        for (driver, entry) in taken {
            self.drivers.spawn(driver.run(entry));
        }
        crash_point("take-over.handed-on");
        for record in cleanups {
            let cell = self.readmit(&record, None);
            self.drivers
                .spawn(self.driver(cell, record).run(Entry::CleaningUp));
        }
        for orphan in running
            .into_iter()
            .filter(|candidate| !known.contains(&candidate.agent_id))
        {
            found.orphans += usize::from(orphan.populated);
            self.put_down(&orphan).await;
        }
        Ok(found)
    }

    /// Looks again once in a while, until shutdown: at containers that no record knows, and at clean-ups that were left.
    pub async fn keep_at_it(self, shutdown: CancellationToken) {
        let every = Duration::from_secs(self.around.limits.reconcile_secs);
        loop {
            let round = async {
                self.sweep().await;
                tokio::time::sleep(every).await;
                self.take_up_cleanups().await;
            };
            tokio::select! {
                // A stop waits for no engine.
                () = shutdown.cancelled() => return,
                () = round => {}
            }
            self.heed().await;
        }
    }

    /// Puts what was done without a daemon on the audit trail: how much that was.
    async fn tell(&self) -> usize {
        let told = self.around.kills.told();
        let count = told.len();
        for event in told {
            self.audit.record(event).await;
        }
        count
    }

    /// Takes up what was done past this daemon while it ran, and keeps of the journal what is still to be recorded.
    async fn heed(&self) {
        killswitch::heed(&self.around);
        match self.tell().await {
            0 => {}
            told => settled(killswitch::settle(&self.around, told)),
        }
    }

    async fn sweep(&self) {
        let Some(docker) = self.around.sandboxes.docker() else {
            return;
        };
        let known = || {
            let cells = self.around.fleet.select(|_| true);
            cells.iter().map(|cell| cell.agent_id).collect()
        };
        match docker.sweep(known).await {
            Ok(0) => {}
            Ok(removed) => info!(removed, "removed containers that no record knew"),
            Err(error) => warn!(
                error = &error as &dyn std::error::Error,
                "containers could not be looked at"
            ),
        }
    }

    /// Takes up the clean-ups that nobody is at: their tries came to nothing while an engine was away.
    async fn take_up_cleanups(&self) {
        let pending = match self.around.store.pending_cleanups().await {
            Ok(pending) => pending,
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "clean-ups could not be looked for"
                );
                return;
            }
        };
        for record in pending {
            if self.around.fleet.get(record.agent_id).is_some() {
                continue;
            }
            // Its driver may have come to the end of it since: what it stored before it left is asked again.
            match self.around.store.agent(record.agent_id).await {
                Ok(Some(record)) if record.cleanup_pending => {
                    let cell = self.readmit(&record, None);
                    self.drivers
                        .spawn(self.driver(cell, record).run(Entry::CleaningUp));
                }
                _ => {}
            }
        }
    }

    fn readmit(&self, record: &AgentRecord, kept: Option<&LeaseRecord>) -> Arc<Cell> {
        let lease = record.options.lease_secs.map(|secs| {
            let now = self.around.clock.now();
            let left = lease::left_after_restart(secs, kept, record.status.queued_at, &now);
            Lease::new(secs, left, now.boot_ms)
        });
        let cell = Arc::new(Cell::new(&Arc::new(record.clone()), lease));
        cell.on_record.send_replace(Some(true));
        self.around.fleet.readmit(Arc::clone(&cell));
        cell
    }

    fn driver(&self, cell: Arc<Cell>, record: AgentRecord) -> Driver {
        Driver::new(Arc::clone(&self.around), cell, record)
    }

    async fn put_down(&self, orphan: &Candidate) {
        let agent = orphan.agent_id;
        warn!(%agent, populated = orphan.populated, "removing what no record knows");
        let deadline = Instant::now() + ORPHAN_WITHIN;
        if let Err(error) = self.around.sandboxes.kill_candidate(orphan, deadline).await {
            error!(%agent, error = &error as &dyn std::error::Error, "failed to kill an orphan");
            return;
        }
        if let Err(error) = self
            .around
            .sandboxes
            .cleanup(None, orphan.scope, agent)
            .await
        {
            warn!(%agent, error = &error as &dyn std::error::Error, "failed to clean up an orphan");
        }
    }
}

fn settled(outcome: Result<(), JournalError>) {
    if let Err(error) = outcome {
        warn!(
            error = &error as &dyn std::error::Error,
            "word of old kills was not dropped"
        );
    }
}
