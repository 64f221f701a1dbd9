//! The killswitch: one agent, or all in a scope, at once.
//!
//! What it promises: when it has answered `killed`, no process of the agent is alive and none will start. The
//! order is always the same:
//!
//! 1. set the hold, if one is asked for ([`crate::hold`]);
//! 2. shut the gates: nothing of these agents is launched from here on;
//! 3. kill by the kernel: each sandbox's pidfds, one write to the scope's `cgroup.kill`, and each sandbox's groups;
//! 4. prove each death, or say that it is not proven; beside it, leave word on disk ([`crate::kill_journal`]), so
//!    that a daemon that starts next knows of it;
//! 5. answer. Only then do the drivers record, salvage and clean up.
//!
//! It reads memory, the kernel and, for an agent that is not in memory, the store under a time limit. It waits
//! for no queue and no engine, and for the disk a quarter of a second at most.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use mosaic_node::AuditLog;
use mosaic_types::{
    AgentId, ErrorCode, Refusal, Timestamp,
    agent::{AgentStatus, DeathProof, EndReason, ProofMethod},
    audit::{Actor, AuditEvent},
    command::{KillAllReport, KillOutcome, KillReport, MAX_REASON_CHARS},
};
use serde::Serialize;
use tracing::{error, warn};

use crate::{
    crash_points::crash_point,
    hold::HoldScope,
    lifecycle::{Cell, KillOrder, KillTarget},
    sandbox::{Candidate, Death, Scope},
    surroundings::Surroundings,
};

mod heed;
mod past;
mod proof;
mod reach;
mod shut;

pub(crate) use heed::{heed, heed_of, settle, word_on};
pub use past::{PastOrder, PastOrders, Spawn};
pub(crate) use proof::{
    PROOF_ROUND, in_words_of_the_wire, kill_and_prove, method, micros, proof_of, strike_one,
};
pub use reach::{KillScope, Reach};
use shut::{Shut, strike, strike_first, strike_groups_aside};

/// How long a kill waits for the kernel to confirm before it answers `unverified`.
const PROOF_WITHIN: Duration = Duration::from_secs(5);
/// How long a kill waits for the disk to take word of it.
const WORD_WITHIN: Duration = Duration::from_millis(250);
/// How long this process waits for the disk to take it before it ends.
const WORD_AT_LAST: Duration = Duration::from_secs(5);
/// How long a kill waits for the store to tell of an agent that is not in memory.
const STORE_WITHIN: Duration = Duration::from_secs(2);
/// How long a caller who asks for it waits for the clean-up.
const CLEANUP_WITHIN: Duration = Duration::from_secs(60);

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Killswitch(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    around: Arc<Surroundings>,
    audit: AuditLog,
}

/// Makes an order of what a caller said.
#[must_use]
pub fn order(reason: EndReason, actor: Actor, note: Option<&str>) -> KillOrder {
    KillOrder {
        reason,
        actor,
        note: note.map(|note| note.chars().take(MAX_REASON_CHARS).collect()),
        at: Timestamp::now(),
    }
}

impl Killswitch {
    /// A killswitch over these agents.
    #[must_use]
    pub fn new(around: Arc<Surroundings>, audit: AuditLog) -> Self {
        Self(Arc::new(Parts { around, audit }))
    }

    /// Kills one agent. Idempotent: an agent that has ended is reported as such.
    ///
    /// # Errors
    /// `unknown-agent` if there is none within `reach`.
    pub async fn kill(
        &self,
        agent_id: AgentId,
        reach: Reach,
        order: KillOrder,
        wait_for_cleanup: bool,
    ) -> Result<KillReport, Refusal> {
        let Some(cell) = self.0.around.fleet.get(agent_id) else {
            return self.0.report_absent(agent_id, reach, &order).await;
        };
        if !reach.includes(cell.connection_id) {
            return Err(unknown_agent(agent_id));
        }
        let record = cell.publisher.view().record;
        let mut report = if record.state.is_terminal() {
            ended(agent_id, record.status.death.clone())
        } else {
            // A task of its own: a caller who hangs up must not leave a kill half done.
            let (parts, cell) = (Arc::clone(&self.0), Arc::clone(&cell));
            let kill = async move {
                let priority = &parts.around.priority;
                priority.first(parts.kill(&cell, order)).await
            };
            joined(tokio::spawn(kill).await)?
        };
        if wait_for_cleanup {
            report.status = finished(&cell).await.map(Box::new);
        }
        Ok(report)
    }

    /// Kills every agent of a scope that has not ended, with a hold first if one is asked for.
    ///
    /// # Errors
    /// `internal` if the kill itself broke off; nothing that any store, engine or peer does can cause it.
    pub async fn kill_all(
        &self,
        scope: KillScope,
        order: KillOrder,
        hold: bool,
    ) -> Result<KillAllReport, Refusal> {
        let parts = Arc::clone(&self.0);
        let kill = async move {
            let priority = &parts.around.priority;
            priority.first(parts.kill_all(&scope, &order, hold)).await
        };
        joined(tokio::spawn(kill).await)
    }

    /// Waits, before this process ends, for word of kills that were answered before the disk took it; not for ever.
    pub async fn words_left(&self) {
        let words = &self.0.around.words;
        words.close();
        if tokio::time::timeout(WORD_AT_LAST, words.wait())
            .await
            .is_err()
        {
            error!("the disk does not take word of a kill; the next start will not know of it");
        }
    }
}

impl Parts {
    async fn kill(&self, cell: &Arc<Cell>, order: KillOrder) -> KillReport {
        let started = Instant::now();
        let target = cell.try_order(order.clone());
        crash_point("kill.shut");
        if let Some(target) = &target {
            strike_first(target);
            strike_groups_aside(target);
        }
        crash_point("kill.struck");
        let word = self.leave_word(vec![cell.agent_id], &order);
        let prove = async {
            match target {
                Some(target) => self.prove(cell, target, started).await,
                None => self.kill_in_launch(cell, &order, started).await,
            }
        };
        let (report, ()) = tokio::join!(prove, word);
        self.record(
            &order,
            "killswitch.kill",
            Some(cell.agent_id.to_string()),
            &report.outcome,
            &report.proof,
        );
        cell.kill_answered.cancel();
        report
    }

    async fn kill_all(&self, scope: &KillScope, order: &KillOrder, hold: bool) -> KillAllReport {
        let started = Instant::now();
        let (held_by, held) = match scope.reach {
            Reach::Everything => (HoldScope::Everything, Scope::Local),
            Reach::Connection(id) => (HoldScope::Connection(id), Scope::Connection(id)),
        };
        if hold {
            self.around.hold.set(held_by);
            crash_point("hold.set");
        }
        let mut shut = Shut::default();
        self.shut_all(scope, order, &mut shut);
        for (_, target) in &shut.targets {
            strike_first(target);
        }
        if scope.is_whole() {
            self.strike_scope(scope.reach);
        }
        for (_, target) in &shut.targets {
            strike(target);
        }
        // Whoever came between the first look and the strike was struck too: it is ordered and reported.
        let before = shut.targets.len();
        self.shut_all(scope, order, &mut shut);
        for (_, target) in shut.targets.iter().skip(before) {
            strike(target);
        }
        let Shut { targets, in_launch } = shut;

        let struck = targets.iter().map(|(cell, _)| cell);
        let everybody: Vec<Arc<Cell>> = struck.chain(&in_launch).cloned().collect();
        let named = everybody.iter().map(|cell| cell.agent_id).collect();
        let word = self.leave_word(named, order);
        let durable = self.make_durable(hold.then_some(held_by));
        let proofs = join_all(
            targets
                .iter()
                .map(|(cell, target)| self.prove(cell, target.clone(), started)),
        );
        let late = join_all(
            in_launch
                .iter()
                .map(|cell| self.kill_in_launch(cell, order, started)),
        );
        let (mut agents, late, (), hold_durable, held) =
            tokio::join!(proofs, late, word, durable, self.is_held(held));
        agents.extend(late);
        // What had ended by itself before the order was not taken.
        agents.retain(|report| report.outcome != KillOutcome::AlreadyEnded);
        let count = |outcome| {
            agents
                .iter()
                .filter(|report| report.outcome == outcome)
                .count() as u64
        };
        let report = KillAllReport {
            killed: count(KillOutcome::Killed),
            unverified: count(KillOutcome::Unverified),
            held,
            hold_durable,
            elapsed_micros: micros(started.elapsed()),
            completed_at: Timestamp::now(),
            agents,
        };
        let told = serde_json::json!({
            "killed": report.killed,
            "unverified": report.unverified,
            "hold": hold,
            "holdDurable": hold_durable,
            "taskId": scope.task,
            "label": scope.label,
            "before": scope.before,
            "elapsedMicros": report.elapsed_micros,
        });
        let subject = match scope.reach {
            Reach::Everything => None,
            Reach::Connection(id) => Some(id.to_string()),
        };
        let outcome = if report.unverified == 0 {
            KillOutcome::Killed
        } else {
            KillOutcome::Unverified
        };
        self.record(order, "killswitch.kill-all", subject, &outcome, &told);
        // The drivers' clean-up competes for the processor with the proofs: it comes after the last of them.
        for cell in &everybody {
            cell.kill_answered.cancel();
        }
        report
    }

    /// Whether a hold covers this; in doubt it does.
    async fn is_held(&self, scope: Scope) -> bool {
        let around = Arc::clone(&self.around);
        let asking = tokio::task::spawn_blocking(move || around.hold.covers(scope));
        let asked = tokio::time::timeout(WORD_WITHIN, asking).await;
        !matches!(asked, Ok(Ok(false)))
    }

    fn strike_scope(&self, reach: Reach) {
        let struck = match reach {
            Reach::Everything => self.around.sandboxes.kill_everything(),
            Reach::Connection(id) => self.around.sandboxes.kill_scope(Scope::Connection(id)),
        };
        if let Err(error) = struck {
            // Each sandbox is struck by itself as well, and each death is proven.
            warn!(
                error = &error as &dyn std::error::Error,
                "kill of the whole scope failed"
            );
        }
    }

    /// Leaves word of a kill on disk. It is answered whether or not the disk takes it in time.
    async fn leave_word(&self, agents: Vec<AgentId>, order: &KillOrder) {
        if agents.is_empty() {
            return;
        }
        self.around.kills.name(&agents);
        let (around, order) = (Arc::clone(&self.around), order.clone());
        let writing = self.around.words.spawn_blocking(move || {
            crash_point("kill.before-word");
            if let Err(error) = around.kills.append(&agents, &order) {
                error!(
                    error = &error as &dyn std::error::Error,
                    "word of a kill is not on disk"
                );
            }
            crash_point("kill.word-left");
            if around.kills.is_large()
                && let Err(error) = around
                    .kills
                    .retain(|agent| around.fleet.get(agent).is_some())
            {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "word of old kills was not dropped"
                );
            }
        });
        if tokio::time::timeout(WORD_WITHIN, writing).await.is_err() {
            error!("the disk is too slow for word of a kill; it is answered without");
        }
    }

    /// Makes a hold outlive this process; `None` if there is none to make.
    async fn make_durable(&self, hold: Option<HoldScope>) -> Option<bool> {
        let scope = hold?;
        let around = Arc::clone(&self.around);
        let writing = tokio::task::spawn_blocking(move || {
            crash_point("hold.before-durable");
            around
                .hold
                .make_durable(scope)
                .inspect(|()| crash_point("hold.durable"))
        });
        let written = tokio::time::timeout(WORD_WITHIN, writing).await;
        if let Ok(Ok(Err(error))) = &written {
            error!(
                error = error as &dyn std::error::Error,
                "hold is not on disk"
            );
        }
        Some(matches!(written, Ok(Ok(Ok(())))))
    }

    async fn prove(&self, cell: &Cell, target: KillTarget, started: Instant) -> KillReport {
        let (outcome, proof, detail) = match target {
            KillTarget::NeverStarted => (
                KillOutcome::Killed,
                Some(proof_of(ProofMethod::NeverStarted, started)),
                None,
            ),
            KillTarget::Between(proof) => (KillOutcome::Killed, Some(proof), None),
            KillTarget::Ended(proof) => (KillOutcome::AlreadyEnded, Some(proof), None),
            KillTarget::Unknown => self.kill_unseen(cell, started).await,
            KillTarget::Live(handle) => match handle.prove_dead(started + PROOF_WITHIN).await {
                Death::Proven(proof) => (
                    KillOutcome::Killed,
                    Some(proof_of(method(proof.method), started)),
                    None,
                ),
                Death::NotProven { survivors } => {
                    let detail =
                        format!("not confirmed by the kernel yet; processes {survivors:?}");
                    (KillOutcome::Unverified, None, Some(detail))
                }
            },
        };
        crash_point("kill.proven");
        if let (KillOutcome::Killed, Some(proof)) = (outcome, &proof) {
            cell.gate.killed(proof.clone());
        }
        KillReport {
            agent_id: cell.agent_id,
            outcome,
            proof,
            detail,
            status: None,
        }
    }

    /// Kills an agent that a daemon before this one started and that could not be examined, by its cgroup.
    async fn kill_unseen(
        &self,
        cell: &Cell,
        started: Instant,
    ) -> (KillOutcome, Option<DeathProof>, Option<String>) {
        let sandboxes = &self.around.sandboxes;
        let unseen = Candidate {
            agent_id: cell.agent_id,
            scope: cell.scope(),
            populated: true,
            created_unix_ms: 0,
        };
        let killed = sandboxes.kill_candidate(&unseen, started + PROOF_WITHIN);
        let kind = cell.publisher.view().record.options.sandbox;
        let run_dir = self.around.layout.agent(cell.agent_id).run_dir();
        // Struck in any case; a container that is elsewhere ends with its shim, but that is no proof.
        let is_dead = killed.await.is_ok()
            && sandboxes.group_proves(kind, &run_dir, cell.scope(), cell.agent_id);
        if is_dead {
            let proof = proof_of(ProofMethod::Cgroup, started);
            (KillOutcome::Killed, Some(proof), None)
        } else {
            let detail = "its processes have not been found yet; the kill goes on".to_owned();
            (KillOutcome::Unverified, None, Some(detail))
        }
    }

    /// Reports on an agent that is not in memory: it has ended, or there is none.
    async fn report_absent(
        &self,
        agent_id: AgentId,
        reach: Reach,
        order: &KillOrder,
    ) -> Result<KillReport, Refusal> {
        let stored = tokio::time::timeout(STORE_WITHIN, self.around.store.agent(agent_id)).await;
        let detail = match stored {
            Ok(Ok(Some(record))) if reach.includes(record.connection_id) => {
                if record.state.is_terminal() {
                    return Ok(ended(agent_id, record.status.death));
                }
                // Its driver is gone, or has not begun: word of the kill keeps it from starting again.
                self.leave_word(vec![agent_id], order).await;
                "it is on record, but not under way here; it will not start again"
            }
            Ok(Ok(_)) => return Err(unknown_agent(agent_id)),
            Ok(Err(_)) | Err(_) => {
                "nothing of it runs under this spoke, but whether it ended cannot be read now"
            }
        };
        Ok(KillReport {
            agent_id,
            outcome: KillOutcome::Unverified,
            proof: None,
            detail: Some(detail.to_owned()),
            status: None,
        })
    }

    fn record(
        &self,
        order: &KillOrder,
        action: &str,
        subject: Option<String>,
        outcome: &KillOutcome,
        told: &impl Serialize,
    ) {
        let outcome = match outcome {
            KillOutcome::Killed => "ok",
            KillOutcome::AlreadyEnded => "already-ended",
            KillOutcome::Unverified => "unverified",
        };
        self.audit.record_later(AuditEvent {
            at: order.at,
            actor: order.actor.clone(),
            action: action.to_owned(),
            subject,
            outcome: outcome.to_owned(),
            detail: serde_json::json!({"note": order.note, "told": told}),
        });
    }
}

/// The report on an agent that had ended before the order.
fn ended(agent_id: AgentId, death: Option<DeathProof>) -> KillReport {
    KillReport {
        agent_id,
        outcome: KillOutcome::AlreadyEnded,
        proof: Some(death.unwrap_or_else(|| proof_of(ProofMethod::AlreadyEnded, Instant::now()))),
        detail: None,
        status: None,
    }
}

async fn finished(cell: &Cell) -> Option<AgentStatus> {
    let mut views = cell.publisher.subscribe();
    let finished = tokio::time::timeout(CLEANUP_WITHIN, views.wait_for(|view| view.finished)).await;
    finished.ok()?.ok().map(|view| view.status())
}

fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, Refusal> {
    outcome.map_err(|error| {
        error!(error = &error as &dyn std::error::Error, "kill broke off");
        Refusal::new(ErrorCode::Internal, "the kill broke off; ask again")
    })
}

/// The refusal for an agent that is not there, or not the caller's: the same words, so that nobody learns
/// which.
#[must_use]
pub fn unknown_agent(agent_id: AgentId) -> Refusal {
    Refusal::field(
        ErrorCode::UnknownAgent,
        "agentId",
        format!("there is no agent {agent_id}"),
    )
}
