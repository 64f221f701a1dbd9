//! The one task that mutates an agent: takes it from the queue to its end, attempt by attempt.
//!
//! Each move is stored, with its audit entry, before it is seen. A store that fails is asked again until it
//! answers: the agent's processes are not its hostage, because kills do not pass here.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use mosaic_store::{AgentRecord, AttemptStart};
use mosaic_types::{
    Timestamp,
    agent::{AgentState, DeathProof, EndReason, ProofMethod},
    audit::Actor,
};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{error, info, warn};

use super::{
    Cell, KillTarget, examine,
    state::{AttemptOutcome, Failure, Left, Next, after_attempt, backoff, left, left_until},
    supervise::Noticed,
};
use crate::{
    admission::check,
    budget::Meter,
    crash_points::crash_point,
    killswitch,
    layout::AgentLayout,
    sandbox::{ExitStatus, SandboxHandle, spool::next_launch_at},
    spawner::{self, SpawnFailed},
    surroundings::Surroundings,
};

mod budget;
mod ending;
mod outcome;
mod record;
mod watching;

/// How long to wait before an agent that could not be examined is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often an agent that may not start looks whether it may.
const HOLD_LOOK: Duration = Duration::from_millis(500);

/// Where a driver takes up an agent.
#[derive(Debug)]
pub enum Entry {
    /// It waits for an attempt.
    Waiting,
    /// It had a slot, and certainly nothing of the attempt ran: the attempt does not count.
    NeverRan,
    /// Its processes run: a daemon before this one started them.
    Running(Arc<dyn SandboxHandle>),
    /// Its processes ended while no daemon was there.
    Ended(ExitStatus),
    /// A kill was ordered before this daemon began, or while it did. Recorded once it is proven.
    Killed,
    /// What a daemon before this one left of it could not be examined yet.
    Unknown,
    /// It ended; its clean-up is not finished.
    CleaningUp,
}

/// Drives one agent.
#[derive(Debug)]
pub struct Driver {
    around: Arc<Surroundings>,
    cell: Arc<Cell>,
    record: AgentRecord,
    layout: AgentLayout,
    slot: Option<OwnedSemaphorePermit>,
    /// Counts what the agent uses, if its runtime tells it.
    meter: Option<Meter>,
}

/// How an attempt left the agent, all of it proven dead.
struct AttemptEnd {
    outcome: AttemptOutcome,
    exit: Option<ExitStatus>,
    proof: DeathProof,
}

/// How an attempt went.
enum Attempt {
    /// To its end.
    Over(AttemptEnd),
    /// A kill was ordered.
    Ordered,
    /// Nothing of it ran, as when spawns are held: it goes back to the queue, and the attempt does not count.
    NeverRan,
}

/// The driver cannot go on: the record is not what it knows.
#[derive(Debug)]
struct Stuck;

impl Driver {
    /// A driver for an agent that is in the fleet with this record, as stored.
    #[must_use]
    pub fn new(around: Arc<Surroundings>, cell: Arc<Cell>, record: AgentRecord) -> Self {
        let layout = around.layout.agent(record.agent_id);
        let meter = budget::meter(&around, &record);
        Self {
            around,
            cell,
            record,
            layout,
            slot: None,
            meter,
        }
    }

    /// Takes a slot for an agent that runs already; there may be more of these than slots.
    pub fn take_slot(&mut self) {
        self.slot = Arc::clone(&self.around.slots).try_acquire_owned().ok();
    }

    /// Drives the agent to the end of its story.
    pub async fn run(mut self, entry: Entry) {
        let driven = AssertUnwindSafe(self.drive(entry)).catch_unwind().await;
        if let Some(meter) = &self.meter {
            meter.ended();
        }
        if matches!(driven, Ok(Ok(()))) {
            self.cell.publisher.finished();
            self.around.fleet.leave(self.cell.agent_id);
            return;
        }
        // It stays in the fleet, where a kill finds it and a status says that nobody knows: its record is
        // not to be trusted before the next start has looked.
        error!(agent = %self.cell.agent_id, "agent cannot be driven on; it is put down");
        self.cell.publisher.lost(true);
        self.put_down().await;
        self.cell.publisher.finished();
    }

    async fn drive(&mut self, entry: Entry) -> Result<(), Stuck> {
        let mut entry = entry;
        loop {
            let attempt = match entry {
                Entry::CleaningUp => return self.clean_up().await,
                Entry::Killed => Attempt::Ordered,
                Entry::Unknown => {
                    entry = self.find().await;
                    continue;
                }
                Entry::NeverRan => {
                    self.back_to_the_queue().await?;
                    entry = Entry::Waiting;
                    continue;
                }
                Entry::Waiting => self.attempt().await?,
                Entry::Running(handle) => self.supervise_adopted(handle).await,
                Entry::Ended(exit) => {
                    let proof = killswitch::proof_of(ProofMethod::AlreadyEnded, Instant::now());
                    let output = self.output();
                    Attempt::Over(self.evaluate(Noticed::Exited(exit), proof, output).await)
                }
            };
            if matches!(attempt, Attempt::Over(_)) {
                // It may have been killed by somebody who needs no daemon.
                killswitch::heed_of(&self.around, &self.cell);
            }
            let is_ordered = self.cell.gate.ordered().is_some();
            let end = match attempt {
                Attempt::Over(end) if !is_ordered => end,
                Attempt::NeverRan if !is_ordered => {
                    entry = Entry::NeverRan;
                    continue;
                }
                Attempt::Over(_) | Attempt::NeverRan | Attempt::Ordered => {
                    return self.finish_kill().await;
                }
            };
            let max_retries = self.record.options.max_retries.unwrap_or(0);
            match after_attempt(end.outcome.clone(), self.record.status.attempt, max_retries) {
                Next::Retry { failure, after } => {
                    self.cell.attempt_over(end.proof);
                    crash_point("retry.over");
                    let is_killed = self.cell.gate.ordered().is_some();
                    if is_killed || self.stop_if_used_up().await {
                        return self.finish_kill().await;
                    }
                    self.requeue(&failure, after, end.exit).await?;
                    entry = Entry::Waiting;
                }
                Next::Complete { .. } | Next::Fail(_) => return self.finish(end).await,
            }
        }
    }

    /// Watches what a daemon before this one started. What was found alive may be a shim that had not seen yet that
    /// its daemon was gone: then nothing of the agent ran, and the attempt does not count.
    async fn supervise_adopted(&mut self, handle: Arc<dyn SandboxHandle>) -> Attempt {
        match self.supervise(handle).await {
            Attempt::Over(end)
                if left(self.record.state, end.exit == Some(ExitStatus::NotStarted))
                    != Left::Ended =>
            {
                self.cell.attempt_over(end.proof);
                Attempt::NeverRan
            }
            attempt => attempt,
        }
    }

    /// Looks for what a daemon before this one left, until it can be told.
    async fn find(&mut self) -> Entry {
        self.cell.publisher.lost(true);
        let entry = loop {
            // A kill that found it by its cgroup does not wait for the next look.
            let _ = tokio::time::timeout(LOOK_AGAIN, self.cell.kill_answered.cancelled()).await;
            if self.cell.gate.is_over() {
                break Entry::Killed;
            }
            match examine::examine(&self.around, &self.cell, &self.record).await {
                Entry::Unknown => tokio::time::sleep(LOOK_AGAIN).await,
                found => break found,
            }
        };
        self.cell.publisher.lost(false);
        entry
    }

    /// Waits for the agent's turn and makes one attempt.
    async fn attempt(&mut self) -> Result<Attempt, Stuck> {
        if !self.wait_for_turn().await {
            return Ok(Attempt::Ordered);
        }
        if self.stop_if_used_up().await {
            return Ok(Attempt::Ordered);
        }
        let spool_offset = self.spool_offset().await;
        let attempt = self.record.status.attempt + 1;
        self.store_move(AgentState::Spawning, Actor::System, |record| {
            record.status.attempt = attempt;
            record.not_before = None;
            record.attempt_start = Some(AttemptStart {
                at: Timestamp::now(),
                spool_offset,
                usage_before: record.status.usage,
            });
        })
        .await?;
        crash_point("spawn.recorded");
        match self.launch().await? {
            Ok(handle) => Ok(self.supervise(handle).await),
            Err(SpawnFailed::Ordered) => Ok(Attempt::Ordered),
            Err(SpawnFailed::Held) => Ok(Attempt::NeverRan),
            Err(SpawnFailed::Broken {
                detail,
                retryable,
                proof,
            }) => {
                let failure = Failure {
                    reason: EndReason::SpawnFailed,
                    detail,
                    retryable,
                };
                let outcome = AttemptOutcome::Failed(failure);
                Ok(Attempt::Over(AttemptEnd {
                    outcome,
                    exit: None,
                    proof,
                }))
            }
        }
    }

    /// Where the next attempt's output will begin. No shim lives between attempts, so that nobody else writes there.
    async fn spool_offset(&self) -> u64 {
        let spool = self.layout.spool();
        let length = std::fs::metadata(&spool).map_or(0, |meta| meta.len());
        match tokio::task::spawn_blocking(move || next_launch_at(&spool)).await {
            Ok(Ok(offset)) => offset,
            Ok(Err(error)) => {
                // The shim has the same trouble, and says so.
                warn!(agent = %self.cell.agent_id, error = &error as &dyn std::error::Error, "failed to look for the end of the output");
                length
            }
            Err(_) => length,
        }
    }

    /// Launches, puts on record that it runs, and only then lets it run: what is on record as `spawning` has
    /// certainly not run.
    async fn launch(&mut self) -> Result<Result<Arc<dyn SandboxHandle>, SpawnFailed>, Stuck> {
        let launched = spawner::launch(&self.around, &self.cell, &self.record, &self.layout).await;
        let handle = match launched {
            Ok(handle) => handle,
            Err(failed) => return Ok(Err(failed)),
        };
        self.store_move(AgentState::Running, Actor::System, |record| {
            record.status.started_at.get_or_insert_with(Timestamp::now);
        })
        .await?;
        crash_point("spawn.running-stored");
        let let_go = spawner::let_go(&self.around, &self.cell, &self.record, handle.as_ref()).await;
        Ok(let_go.map(|()| handle))
    }

    /// Waits for the pause before a retry, for a slot, for a hold to end and for room on the disk. `false` if a kill was ordered.
    async fn wait_for_turn(&mut self) -> bool {
        let cell = Arc::clone(&self.cell);
        let around = Arc::clone(&self.around);
        let pause = self.record.not_before.map_or(Duration::ZERO, |not_before| {
            let whole = backoff(self.record.status.attempt);
            left_until(not_before, whole, Timestamp::now())
        });
        let turn = async {
            if !pause.is_zero() {
                crash_point("retry.pausing");
            }
            tokio::time::sleep(pause).await;
            loop {
                // Never closed while drivers run.
                let slot = Arc::clone(&around.slots).acquire_owned().await.ok();
                if !around.hold.covers(cell.scope()) && check::disk(&around).is_ok() {
                    break slot;
                }
                drop(slot);
                tokio::time::sleep(HOLD_LOOK).await;
            }
        };
        tokio::select! {
            biased;
            () = cell.kill_answered.cancelled() => false,
            permit = turn => {
                self.slot = permit;
                killswitch::heed(&self.around);
                cell.gate.ordered().is_none()
            }
        }
    }

    async fn requeue(
        &mut self,
        failure: &Failure,
        after: Duration,
        exit: Option<ExitStatus>,
    ) -> Result<(), Stuck> {
        info!(agent = %self.cell.agent_id, reason = ?failure.reason, ?after, "attempt failed, trying again");
        let scope = self.cell.scope();
        if let Err(error) = self
            .around
            .sandboxes
            .cleanup(self.record.options.sandbox, scope, self.cell.agent_id)
            .await
        {
            warn!(agent = %self.cell.agent_id, error = &error as &dyn std::error::Error, "failed to clean up an attempt");
        }
        crash_point("retry.cleaned");
        self.settle_spending().await;
        self.store_move(AgentState::Queued, Actor::System, |record| {
            record.status.reason = Some(failure.reason);
            record.status.detail = Some(failure.detail.clone());
            record.not_before = Some(Timestamp::now().saturating_add(after));
            record::note_exit(record, exit);
        })
        .await?;
        crash_point("retry.requeued");
        self.slot = None;
        Ok(())
    }

    /// Puts an agent whose attempt did not run back where it was before it.
    async fn back_to_the_queue(&mut self) -> Result<(), Stuck> {
        if self.record.state != AgentState::Queued {
            self.store_move(AgentState::Queued, Actor::System, |record| {
                record.status.attempt = record.status.attempt.saturating_sub(1);
                if record.status.attempt == 0 {
                    record.status.started_at = None;
                }
            })
            .await?;
        }
        self.slot = None;
        Ok(())
    }

    /// Makes sure that nothing runs of an agent that cannot be driven on.
    async fn put_down(&self) {
        let order = killswitch::order(
            EndReason::KillRequested,
            Actor::System,
            Some("its record could not be kept"),
        );
        if let KillTarget::Live(handle) = self.cell.gate.order(order) {
            let proof = killswitch::kill_and_prove(handle.as_ref()).await;
            self.cell.gate.killed(proof);
        }
    }
}
