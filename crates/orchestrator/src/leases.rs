//! Stops agents whose lease has run out, as a kill does.
//!
//! It reads memory and a clock: no store, no engine and no driver holds it up. Each kill is a task of its own, so that
//! one that takes long delays no other. How far leases reach is written down beside it, one write at a time.

use std::{sync::Arc, time::Duration};

use mosaic_types::{agent::EndReason, audit::Actor};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    killswitch::{self, Killswitch, Reach},
    lifecycle::Cell,
    surroundings::Surroundings,
};

/// The longest pause between two looks while there are leases: timers stand still while the machine sleeps.
const LOOK: Duration = Duration::from_secs(1);

/// See the module documentation.
#[derive(Debug)]
pub struct LeaseWatch {
    around: Arc<Surroundings>,
    killswitch: Killswitch,
}

impl LeaseWatch {
    /// Watches over the leases of these agents.
    #[must_use]
    pub fn new(around: Arc<Surroundings>, killswitch: Killswitch) -> Self {
        Self { around, killswitch }
    }

    /// Watches until shutdown. The agents go on then, and so do their leases: see the next start.
    pub async fn run(self, shutdown: CancellationToken) {
        let saving = Arc::new(tokio::sync::Semaphore::new(1));
        loop {
            let leased = self.leased();
            let now_ms = self.around.clock.boot_ms();
            let mut next = None;
            for cell in &leased {
                let Some(lease) = &cell.lease else { continue };
                if lease.fire(now_ms) {
                    self.stop(Arc::clone(cell), lease.secs());
                }
                let left = lease.left(now_ms);
                if !left.is_zero() {
                    next = Some(next.map_or(left, |next: Duration| next.min(left)));
                }
            }
            if let Ok(permit) = Arc::clone(&saving).try_acquire_owned() {
                self.save(leased, permit);
            }
            let pause = async {
                match next {
                    Some(next) => tokio::time::sleep(next.min(LOOK)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = pause => {}
                () = self.around.fleet.entered.notified() => {}
            }
        }
    }

    fn leased(&self) -> Vec<Arc<Cell>> {
        self.around
            .fleet
            .select(|cell| cell.lease.is_some() && !cell.publisher.has_ended())
    }

    fn stop(&self, cell: Arc<Cell>, secs: u64) {
        let agent = cell.agent_id;
        info!(%agent, secs, "a lease has run out");
        let note = format!("its lease of {secs} s was not renewed");
        let order = killswitch::order(EndReason::LeaseExpired, Actor::System, Some(&note));
        let killswitch = self.killswitch.clone();
        tokio::spawn(async move {
            let killed = killswitch.kill(agent, Reach::Everything, order, false);
            if let Err(error) = killed.await
                && let Some(lease) = &cell.lease
            {
                // It may have ended and left meanwhile. If it has not, the next look tries again.
                warn!(%agent, %error, "an agent without a lease was not stopped");
                lease.unfire();
            }
        });
    }

    /// Writes down what is due, beside the watch: a store that is slow or gone holds up the next write only.
    fn save(&self, leased: Vec<Arc<Cell>>, permit: tokio::sync::OwnedSemaphorePermit) {
        let now = self.around.clock.now();
        let due: Vec<_> = leased
            .into_iter()
            .filter_map(|cell| {
                let record = cell.lease.as_ref()?.to_save(cell.agent_id, &now)?;
                // One that is not on record yet has nowhere to be written to.
                let is_on_record = *cell.on_record.borrow() == Some(true);
                is_on_record.then_some((cell, record))
            })
            .collect();
        if due.is_empty() {
            return;
        }
        let around = Arc::clone(&self.around);
        tokio::spawn(async move {
            let _permit = permit;
            let records = due.iter().map(|(_, record)| record.clone()).collect();
            if let Err(error) = around.store.save_leases(records).await {
                error!(
                    error = &error as &dyn std::error::Error,
                    "leases are not written down; after a restart less is left of them"
                );
                return;
            }
            let now_ms = around.clock.boot_ms();
            for (cell, record) in &due {
                if let Some(lease) = &cell.lease {
                    lease.saved(record, now_ms);
                }
            }
        });
    }
}
