//! The kills that no signed answer has proven yet: what is kept of them, and when each spoke is to be asked again.
//!
//! ```text
//!            ┌── no answer, or none that proves: back off, ask again ──┐
//! ordered ─► pending ──────────────── delivered ───────────────────────┘──► proven
//!              └──────────────────── an operator takes it back ───────────► cancelled
//! ```
//!
//! Memory is first and the store behind it, so that keeping a kill waits for nothing. One order about the same is one
//! kill, however often it is given. No locks are held over an await.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mosaic_node::AuditLog;
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, KillIntentId, Refusal, TaskId, Timestamp,
    audit::{Actor, AuditEvent},
    command::MAX_REASON_CHARS,
    kill::{KillIntent, KillIntentState, KillTarget},
};
use serde_json::json;
use tokio::sync::{Notify, watch};

use turns::Pace;

mod turns;

/// An order to keep.
#[derive(Debug, Clone)]
pub(super) struct NewKill {
    pub(super) connection: ConnectionId,
    pub(super) target: KillTarget,
    pub(super) hold: bool,
    pub(super) reason: Option<String>,
    pub(super) author: Actor,
    pub(super) ordered_at: Timestamp,
}

/// What a delivery came to.
#[derive(Debug, Clone)]
pub(super) enum Delivery {
    /// A signed answer proves it.
    Proven(serde_json::Value),
    /// It is still to be proven, for this reason. `signed` if the spoke itself says so, `silent` if it was not heard.
    Open {
        refusal: Refusal,
        signed: bool,
        silent: bool,
    },
}

/// An order as it was delivered: one that was given since is not proven by the answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivered {
    ordered_at: Timestamp,
    hold: bool,
}

impl From<&NewKill> for Delivered {
    fn from(order: &NewKill) -> Self {
        Self {
            ordered_at: order.ordered_at,
            hold: order.hold,
        }
    }
}

impl From<&KillIntent> for Delivered {
    fn from(intent: &KillIntent) -> Self {
        Self {
            ordered_at: intent.ordered_at,
            hold: intent.hold,
        }
    }
}

/// As much of an operator's words as a spoke keeps, so that no kill is too large to be sent.
pub(super) fn cut_reason(reason: String) -> String {
    match reason.char_indices().nth(MAX_REASON_CHARS) {
        Some((end, _)) => reason[..end].to_owned(),
        None => reason,
    }
}

/// An agent, as far as orders select by it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) agent: AgentId,
    pub(super) connection: ConnectionId,
    pub(super) task: &'a TaskId,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) asked_at: Timestamp,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Intents {
    state: Mutex<State>,
    audit: AuditLog,
    max_pending: usize,
    max_settled: usize,
    /// Something may be due.
    pub(super) wake: Notify,
    /// Something is to be written.
    pub(super) dirty: Notify,
    /// Counts changes, for those who wait for one.
    pub(super) changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<KillIntentId, Kept>,
    /// Oldest first.
    settled: VecDeque<KillIntent>,
    paces: HashMap<ConnectionId, Pace>,
    unsaved: BTreeSet<KillIntentId>,
}

#[derive(Debug)]
struct Kept {
    intent: KillIntent,
    /// The order itself is still under way; the delivery leaves it alone.
    direct: bool,
}

impl Intents {
    pub(super) fn new(audit: AuditLog, limits: &mosaic_store::Limits) -> Self {
        let bound = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            state: Mutex::default(),
            audit,
            max_pending: bound(limits.max_pending_kills),
            max_settled: bound(limits.max_settled_kills),
            wake: Notify::new(),
            dirty: Notify::new(),
            changed: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        self.changed
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Takes up what is on record.
    pub(super) fn load(&self, kept: Vec<KillIntent>, now: Instant) {
        let mut state = self.lock();
        for mut intent in kept {
            // One that an older version kept may be too long to be sent.
            intent.reason = intent.reason.map(cut_reason);
            if intent.state == KillIntentState::Pending {
                state
                    .paces
                    .entry(intent.connection_id)
                    .or_insert(Pace::due(now));
                let kept = Kept {
                    intent,
                    direct: false,
                };
                state.pending.insert(kept.intent.intent_id, kept);
            } else {
                state.settled.push_back(intent);
            }
        }
    }

    /// Keeps an order. One about the same that is pending takes it in. While it is `direct`, it is not delivered: it is
    /// on its way.
    ///
    /// # Errors
    /// `overloaded` if as many as may be are pending; then it is not kept.
    pub(super) fn keep(
        &self,
        order: &NewKill,
        direct: bool,
        now: Instant,
    ) -> Result<KillIntentId, Refusal> {
        let mut state = self.lock();
        let same = state.pending.values_mut().find(|kept| {
            kept.intent.connection_id == order.connection && kept.intent.target == order.target
        });
        let id = if let Some(kept) = same {
            // The later order takes whom the earlier took, and those since.
            kept.intent.ordered_at = kept.intent.ordered_at.max(order.ordered_at);
            kept.intent.hold |= order.hold;
            // What was delivered was the order before.
            kept.intent.delivered_at = None;
            // What is on disk is the order before, as well.
            kept.intent.durable = false;
            kept.direct |= direct;
            kept.intent.intent_id
        } else {
            if state.pending.len() >= self.max_pending {
                return Err(Refusal::new(
                    ErrorCode::Overloaded,
                    "as many kills as may be are pending already",
                ));
            }
            let intent = KillIntent {
                intent_id: KillIntentId::generate(),
                connection_id: order.connection,
                target: order.target.clone(),
                hold: order.hold,
                reason: order.reason.clone(),
                author: order.author.clone(),
                ordered_at: order.ordered_at,
                state: KillIntentState::Pending,
                attempts: 0,
                last_attempt_at: None,
                delivered_at: None,
                settled_at: None,
                last_error: None,
                durable: false,
            };
            let id = intent.intent_id;
            state.pending.insert(id, Kept { intent, direct });
            id
        };
        state
            .paces
            .entry(order.connection)
            .or_insert(Pace::due(now));
        state.unsaved.insert(id);
        let told = state.pending.get(&id).map(|kept| kept.intent.clone());
        drop(state);
        if let Some(intent) = told {
            self.record(
                &intent,
                "ordered",
                order.author.clone(),
                order.ordered_at,
                json!(null),
            );
        }
        self.dirty.notify_one();
        self.wake.notify_one();
        self.touch();
        Ok(id)
    }

    /// It is sent.
    pub(super) fn sent(&self, id: KillIntentId, at: Timestamp) {
        if let Some(kept) = self.lock().pending.get_mut(&id) {
            kept.intent.attempts += 1;
            kept.intent.last_attempt_at = Some(at);
        }
    }

    /// Takes in what a delivery of `of` came to.
    pub(super) fn answered(
        &self,
        id: KillIntentId,
        of: Delivered,
        delivery: &Delivery,
        at: Timestamp,
    ) {
        let mut state = self.lock();
        let Some(kept) = state.pending.get_mut(&id) else {
            return;
        };
        let superseded = kept.intent.ordered_at > of.ordered_at || kept.intent.hold && !of.hold;
        let is_signed = match delivery {
            Delivery::Proven(_) => true,
            Delivery::Open {
                refusal, signed, ..
            } => {
                kept.intent.last_error = Some(refusal.clone());
                *signed
            }
        };
        let first = is_signed && !superseded && kept.intent.delivered_at.is_none();
        if first {
            kept.intent.delivered_at = Some(at);
        }
        let intent = kept.intent.clone();
        let proven = match delivery {
            Delivery::Proven(proof) if !superseded => Some(proof.clone()),
            _ => None,
        };
        let settled = proven
            .is_some()
            .then(|| self.settle(&mut state, id, KillIntentState::Proven, at));
        state.unsaved.insert(id);
        drop(state);
        if first {
            self.record(&intent, "delivered", Actor::System, at, json!(null));
        }
        if let (Some(Some(intent)), Some(proof)) = (settled, proven) {
            self.record(&intent, "proven", Actor::System, at, proof);
        }
        self.dirty.notify_one();
        self.touch();
    }

    /// The order itself is no longer under way: what is still pending is the delivery's.
    pub(super) fn release(&self, id: KillIntentId, now: Instant) {
        let mut state = self.lock();
        let Some(kept) = state.pending.get_mut(&id) else {
            return;
        };
        kept.direct = false;
        let connection = kept.intent.connection_id;
        if let Some(pace) = state.paces.get_mut(&connection).filter(|pace| !pace.busy) {
            pace.over(now, true);
        }
        drop(state);
        self.wake.notify_one();
        self.touch();
    }

    /// An operator takes it back, or it was refused for good. `None` if it is not pending.
    pub(super) fn cancel(&self, id: KillIntentId, by: Actor, at: Timestamp) -> Option<KillIntent> {
        let mut state = self.lock();
        let intent = self.settle(&mut state, id, KillIntentState::Cancelled, at)?;
        state.unsaved.insert(id);
        drop(state);
        self.record(&intent, "cancelled", by, at, json!(null));
        self.dirty.notify_one();
        self.touch();
        Some(intent)
    }

    fn settle(
        &self,
        state: &mut State,
        id: KillIntentId,
        as_what: KillIntentState,
        at: Timestamp,
    ) -> Option<KillIntent> {
        let mut intent = state.pending.remove(&id)?.intent;
        intent.state = as_what;
        intent.settled_at = Some(at);
        if as_what == KillIntentState::Proven {
            intent.last_error = None;
        }
        state.settled.push_back(intent.clone());
        while state.settled.len() > self.max_settled {
            state.settled.pop_front();
        }
        let connection = intent.connection_id;
        let more = state
            .pending
            .values()
            .any(|kept| kept.intent.connection_id == connection);
        if !more {
            state.paces.remove(&connection);
        }
        Some(intent)
    }

    /// One of them, pending or settled.
    pub(super) fn get(&self, id: KillIntentId) -> Option<KillIntent> {
        let state = self.lock();
        let pending = state.pending.get(&id).map(|kept| &kept.intent);
        pending
            .or_else(|| state.settled.iter().find(|intent| intent.intent_id == id))
            .cloned()
    }

    /// All of them: the pending, oldest first, then the settled, newest first.
    pub(super) fn list(&self) -> Vec<KillIntent> {
        let state = self.lock();
        let pending = state.pending.values().map(|kept| &kept.intent);
        pending.chain(state.settled.iter().rev()).cloned().collect()
    }

    /// Whether a pending kill takes the agent.
    pub(super) fn covers(&self, known: Known<'_>) -> bool {
        self.lock().pending.values().any(|kept| {
            let intent = &kept.intent;
            intent.connection_id == known.connection
                && match &intent.target {
                    KillTarget::Agent { agent_id } => *agent_id == known.agent,
                    KillTarget::All { task_id, label } => {
                        known.asked_at <= intent.ordered_at
                            && task_id.as_ref().is_none_or(|task| task == known.task)
                            && label
                                .as_ref()
                                .is_none_or(|label| label.is_among(known.labels))
                    }
                }
        })
    }

    // ---- on record ----

    /// What is to be written, as it is to be on record.
    pub(super) fn take_unsaved(&self) -> Vec<KillIntent> {
        let mut state = self.lock();
        let ids = std::mem::take(&mut state.unsaved);
        let written = |intent: &KillIntent| KillIntent {
            durable: true,
            ..intent.clone()
        };
        let settled = state
            .settled
            .iter()
            .filter(|intent| ids.contains(&intent.intent_id));
        let pending = state
            .pending
            .range(..)
            .filter(|(id, _)| ids.contains(id))
            .map(|(_, kept)| &kept.intent);
        // What is settled goes first: it makes room for what is pending.
        settled.chain(pending).map(written).collect()
    }

    /// It was written, or has to be written again. What changed since it was taken up is not on disk yet.
    pub(super) fn written(&self, id: KillIntentId, is_written: bool) {
        let mut state = self.lock();
        if !is_written {
            state.unsaved.insert(id);
            return;
        }
        if state.unsaved.contains(&id) {
            return;
        }
        if let Some(kept) = state.pending.get_mut(&id) {
            kept.intent.durable = true;
        } else if let Some(intent) = state.settled.iter_mut().find(|one| one.intent_id == id) {
            intent.durable = true;
        }
        drop(state);
        self.touch();
    }

    fn record(
        &self,
        intent: &KillIntent,
        what: &str,
        actor: Actor,
        at: Timestamp,
        told: serde_json::Value,
    ) {
        let subject = match &intent.target {
            KillTarget::Agent { agent_id } => agent_id.to_string(),
            KillTarget::All { .. } => intent.connection_id.to_string(),
        };
        self.audit.record_later(AuditEvent {
            at,
            actor,
            action: format!("kill-intent.{what}"),
            subject: Some(subject),
            outcome: "ok".to_owned(),
            detail: json!({
                "intentId": intent.intent_id,
                "connectionId": intent.connection_id,
                "target": intent.target,
                "hold": intent.hold,
                "reason": intent.reason,
                "orderedAt": intent.ordered_at,
                "attempts": intent.attempts,
                "told": told,
            }),
        });
    }
}

#[cfg(test)]
mod tests;
