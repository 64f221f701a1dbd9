//! The end of an agent's story: its work home, its death on record, its sandbox and tree gone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mosaic_types::{
    Timestamp,
    agent::{AgentState, CleanupKind, CleanupStep, DeathProof, EndReason, ProofMethod},
    audit::Actor,
};
use tracing::warn;

use super::{AttemptEnd, Driver, Stuck, record::note_exit};
use crate::{
    crash_points::crash_point,
    killswitch::{self, PROOF_ROUND},
    lifecycle::{KillOrder, KillTarget, harvest, state::AttemptOutcome},
    sandbox::{Death, SandboxHandle},
    worktree::Landing,
};

/// How long a driver waits for the killswitch to answer before it records a kill.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How often a clean-up is tried before the next start.
const CLEANUP_TRIES: u32 = 4;
/// The first pause between two tries of a clean-up; it doubles.
const CLEANUP_BACKOFF: Duration = Duration::from_secs(2);

impl Driver {
    /// Brings the work home and records the end.
    pub(super) async fn finish(&mut self, end: AttemptEnd) -> Result<(), Stuck> {
        // It ended by itself, and a kill that comes from here on is told so: a result is not lost to it.
        if let Err(order) = self.cell.gate.end(end.proof.clone()) {
            return self.record_kill(order, end.proof).await;
        }
        crash_point("end.told");
        let work = {
            let _chore = self.around.chores.acquire().await;
            harvest::bring_home(&self.around, &self.record, Landing::Branch).await
        };
        crash_point("end.work-home");
        let (state, reason, detail, summary) = match end.outcome {
            AttemptOutcome::Completed { summary } => (
                AgentState::Completed,
                EndReason::Finished,
                None,
                Some(summary),
            ),
            AttemptOutcome::Failed(failure) => (
                AgentState::Failed,
                failure.reason,
                Some(failure.detail),
                None,
            ),
        };
        self.settle_spending().await;
        self.store_move(state, Actor::System, |record| {
            record.status.reason = Some(reason);
            record.status.detail = detail;
            record.status.summary = summary;
            record.status.ended_at = Some(Timestamp::now());
            record.status.death = Some(end.proof);
            record.status.work = work.summary;
            record.status.cleanup = vec![work.step];
            record.cleanup_pending = true;
            note_exit(record, end.exit);
        })
        .await?;
        crash_point("end.stored");
        self.slot = None;
        self.clean_up().await
    }

    /// A kill was ordered: waits until it was answered, makes sure of the death, and records it.
    pub(super) async fn finish_kill(&mut self) -> Result<(), Stuck> {
        let Some(order) = self.cell.gate.ordered() else {
            return Err(Stuck);
        };
        // The caller's answer comes first: what follows here takes time from nobody's proof.
        let _ = tokio::time::timeout(ANSWER_WITHIN, self.cell.kill_answered.cancelled()).await;
        let proof = match self.cell.gate.order(order.clone()) {
            KillTarget::Live(handle) => self.prove_kill(handle.as_ref(), &order).await?,
            KillTarget::NeverStarted => {
                killswitch::proof_of(ProofMethod::NeverStarted, Instant::now())
            }
            // Examined by now: nothing of it was there.
            KillTarget::Unknown => killswitch::proof_of(ProofMethod::AlreadyEnded, Instant::now()),
            KillTarget::Between(proof) | KillTarget::Ended(proof) => proof,
        };
        self.cell.gate.killed(proof.clone());
        self.record_kill(order, proof).await
    }

    /// Proves an ordered kill, and says `killing` for as long as that takes.
    async fn prove_kill(
        &mut self,
        handle: &dyn SandboxHandle,
        order: &KillOrder,
    ) -> Result<DeathProof, Stuck> {
        killswitch::strike_one(handle);
        if let Death::Proven(proof) = handle.prove_dead(Instant::now() + PROOF_ROUND).await {
            return Ok(killswitch::in_words_of_the_wire(&proof));
        }
        let reason = order.reason;
        if self.record.state != AgentState::Killing {
            self.store_move(AgentState::Killing, order.actor.clone(), |record| {
                record.status.reason = Some(reason);
                record.status.detail =
                    Some("the kernel has not confirmed the death yet".to_owned());
            })
            .await?;
        }
        Ok(killswitch::kill_and_prove(handle).await)
    }

    pub(super) async fn record_kill(
        &mut self,
        order: KillOrder,
        proof: DeathProof,
    ) -> Result<(), Stuck> {
        crash_point("kill.recording");
        self.read_if_nobody_did().await;
        if let Some(live) = self.cell.publisher.view().live {
            self.record.status.progress = live.progress.clone();
            self.record.status.usage = live.usage;
        }
        if self.record.state != AgentState::Killing {
            self.store_move(AgentState::Killing, order.actor.clone(), |record| {
                record.status.reason = Some(order.reason);
            })
            .await?;
        }
        self.settle_spending().await;
        crash_point("kill.killing-stored");
        let actor = order.actor.clone();
        self.store_move(AgentState::Killed, actor, |record| {
            record.status.reason = Some(order.reason);
            record.status.detail = order.note;
            record.status.summary = None;
            record.status.ended_at = Some(Timestamp::now());
            record.status.death = Some(proof);
            record.cleanup_pending = true;
        })
        .await?;
        crash_point("kill.killed-stored");
        self.around.kills.recorded(self.cell.agent_id);
        self.slot = None;
        self.clean_up().await
    }

    /// Cleans up after the end: work saved first, then what can be made again. No step stops the next; what may
    /// go better later is tried again, and then left for the next start.
    pub(super) async fn clean_up(&mut self) -> Result<(), Stuck> {
        let mut pause = CLEANUP_BACKOFF;
        let mut done = self.clean_up_once().await?;
        for _ in 1..CLEANUP_TRIES {
            if done {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            done = self.clean_up_once().await?;
        }
        self.push(done).await
    }

    /// Whether the branch is to be pushed: only of an agent that completed by itself.
    fn is_push_due(&self, has_work: bool) -> bool {
        let steps = &self.record.status.cleanup;
        has_work
            && self.record.state == AgentState::Completed
            && self.record.options.push == Some(true)
            && steps.iter().all(|step| step.step != CleanupKind::Push)
    }

    /// Pushes the branch, if that is due, after everything on this machine is done: a repository that hangs keeps no
    /// clean-up waiting. One try; a crash in the middle repeats it.
    async fn push(&mut self, cleaned_up: bool) -> Result<(), Stuck> {
        if !self.is_push_due(self.record.status.work.is_some()) {
            return Ok(());
        }
        let (pushed, step) = harvest::push(&self.around, &self.record).await;
        if !step.ok {
            warn!(agent = %self.cell.agent_id, detail = ?step.detail, "the branch was not pushed");
        }
        self.store_move(self.record.state, Actor::System, |record| {
            record.cleanup_pending = !cleaned_up;
            if let Some(work) = &mut record.status.work {
                work.pushed = pushed;
            }
            record.status.cleanup.push(step);
        })
        .await
    }

    /// Tries every step once. `true` if none is left to try again.
    async fn clean_up_once(&mut self) -> Result<bool, Stuck> {
        let around = Arc::clone(&self.around);
        let mut steps = Vec::new();
        let mut unsaved = false;
        if self.record.status.work.is_none() {
            let landing = match self.record.state {
                AgentState::Killed => Landing::Salvage,
                _ => Landing::Branch,
            };
            let _chore = around.chores.acquire().await;
            let saved = harvest::bring_home(&around, &self.record, landing).await;
            unsaved = saved.summary.is_none() && !saved.step.ok;
            steps.push(saved.step);
            crash_point("clean-up.salvaged");
            if let Some(work) = saved.summary {
                // On record before the tree goes: whoever comes after a crash has nothing to tell it by.
                self.store_move(self.record.state, Actor::System, |record| {
                    record.status.work = Some(work);
                    record.status.cleanup.clone_from(&steps);
                })
                .await?;
            }
            crash_point("clean-up.salvage-stored");
        }
        // No chore of ours: an engine that hangs holds up no other agent's work.
        let sandbox = around
            .sandboxes
            .cleanup(
                self.record.options.sandbox,
                self.cell.scope(),
                self.cell.agent_id,
            )
            .await;
        steps.push(CleanupStep {
            step: CleanupKind::Sandbox,
            ok: sandbox.is_ok(),
            detail: sandbox.as_ref().err().map(ToString::to_string),
        });
        crash_point("clean-up.sandbox-gone");
        let (tree, tree_again) = self.remove_tree(unsaved).await;
        steps.push(tree);
        crash_point("clean-up.tree-gone");
        for step in steps.iter().filter(|step| !step.ok) {
            warn!(agent = %self.cell.agent_id, step = ?step.step, detail = ?step.detail, "clean-up step failed");
        }
        let done = !unsaved && sandbox.is_ok() && !tree_again;
        let push_due = self.is_push_due(self.record.status.work.is_some());
        let state = self.record.state;
        self.store_move(state, Actor::System, |record| {
            // Without further tries here, the next start tries again what failed.
            record.cleanup_pending = !done || push_due;
            record
                .status
                .cleanup
                .retain(|old| steps.iter().all(|new| new.step != old.step));
            record.status.cleanup.extend(steps);
        })
        .await?;
        crash_point("clean-up.stored");
        Ok(done)
    }

    /// Removes the tree, and says whether to try again. As long as nothing could be told of its work it stays, whatever
    /// refs have of it by now: without a tree nothing would be told, nor pushed, any more.
    async fn remove_tree(&self, unsaved: bool) -> (CleanupStep, bool) {
        if unsaved {
            self.make_room().await;
            let kept = CleanupStep {
                step: CleanupKind::Worktree,
                ok: false,
                detail: Some("kept: its work is not home yet".to_owned()),
            };
            return (kept, true);
        }
        let _chore = self.around.chores.acquire().await;
        harvest::remove_tree(&self.around, &self.record, &self.layout).await
    }

    /// Removes a HOME without work in it before its time: it may have what the disk lacks for the work to come home.
    async fn make_room(&self) {
        let worktrees = &self.around.worktrees;
        let _chore = self.around.chores.acquire().await;
        let removed = match worktrees.may_need_home(&self.cell.agent_id).await {
            Ok(false) => worktrees.remove_scratch(self.layout.home()).await,
            Ok(true) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            warn!(agent = %self.cell.agent_id, error = &error as &dyn std::error::Error, "no room was made");
        }
    }
}
