//! The kills that no signed answer has proven yet: what is kept of them, and when each spoke is to be asked again.
//!
//! ```text
//!            ┌── no answer, or none that proves: back off, ask again ──┐
//! ordered ─► pending ──────────────── delivered ───────────────────────┘──► proven
//!              └──────────────────── an operator takes it back ───────────► cancelled
//! ```
//!
//! Memory is first and the store behind it, so that keeping a kill waits for nothing. One order about the same is one
//! kill, however often it is given. A spoke is whoever is at the other end: what is kept for it stays kept for it when the
//! connection by which it was ordered has ended and another leads there. No locks are held over an await.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mosaic_node::Node;
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, InstanceId, KillIntentId, Refusal, TaskId, Timestamp,
    audit::{Actor, AuditEvent},
    command::MAX_REASON_CHARS,
    kill::{KillIntent, KillIntentState, KillTarget},
};
use serde_json::json;
use tokio::sync::{Notify, watch};

use turns::Pace;
pub(super) use turns::UnderWay;

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

/// Who is at the other end of a connection: the same for every connection to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Spoke {
    Peer(InstanceId),
    /// Of a connection that is not on record.
    Unknown(ConnectionId),
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Intents {
    state: Mutex<State>,
    node: Node,
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
    paces: HashMap<Spoke, Pace>,
    unsaved: BTreeSet<KillIntentId>,
}

#[derive(Debug)]
struct Kept {
    intent: KillIntent,
    spoke: Spoke,
    /// The order itself is still under way, and only that.
    direct: bool,
    /// It is delivered although the order itself is still under way: the spoke was heard meanwhile, or is to be sent
    /// what the order goes before.
    again: bool,
    /// How many orders it is.
    orders: u32,
}

impl Kept {
    fn is_deliverable(&self) -> bool {
        !self.direct || self.again
    }
}

impl Intents {
    pub(super) fn new(node: Node, limits: &mosaic_store::Limits) -> Self {
        let bound = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            state: Mutex::default(),
            node,
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

    fn spoke(&self, connection: ConnectionId) -> Spoke {
        match self.node.connections().get(connection) {
            Some(connection) => Spoke::Peer(connection.peer.clone()),
            None => Spoke::Unknown(connection),
        }
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
                let spoke = self.spoke(intent.connection_id);
                let pace = state.paces.entry(spoke.clone());
                pace.or_insert(Pace::due(now));
                let kept = Kept {
                    intent,
                    spoke,
                    direct: false,
                    again: false,
                    orders: 1,
                };
                state.pending.insert(kept.intent.intent_id, kept);
            } else {
                state.settled.push_back(intent);
            }
        }
    }

    /// Keeps an order. One about the same that is pending takes it in. While it is `direct` it is on its way, and only
    /// delivered when the spoke is heard meanwhile.
    ///
    /// # Errors
    /// `overloaded` if as many as may be are pending; then it is not kept.
    pub(super) fn keep(
        &self,
        order: &NewKill,
        direct: bool,
        now: Instant,
    ) -> Result<KillIntentId, Refusal> {
        let spoke = self.spoke(order.connection);
        let mut state = self.lock();
        let same = state
            .pending
            .values_mut()
            .find(|kept| kept.spoke == spoke && kept.intent.target == order.target);
        let id = if let Some(kept) = same {
            // The later order takes whom the earlier took, and those since.
            kept.intent.ordered_at = kept.intent.ordered_at.max(order.ordered_at);
            kept.intent.hold |= order.hold;
            // What was delivered was the order before.
            kept.intent.delivered_at = None;
            // What is on disk is the order before, as well.
            kept.intent.durable = false;
            // One that is delivered already goes on being delivered, whatever becomes of the order itself.
            kept.orders = kept.orders.saturating_add(1);
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
            let kept = Kept {
                intent,
                spoke: spoke.clone(),
                direct,
                again: false,
                orders: 1,
            };
            state.pending.insert(id, kept);
            id
        };
        state.paces.entry(spoke).or_insert(Pace::due(now));
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
        let spoke = kept.spoke.clone();
        if let Some(pace) = state.paces.get_mut(&spoke).filter(|pace| !pace.busy) {
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

    /// It was refused for good, or another spoke has proven it: taken back, unless it is an order besides that one.
    pub(super) fn withdraw(&self, id: KillIntentId, at: Timestamp) {
        let kept = self.lock().pending.get(&id).map(|kept| kept.orders);
        if kept == Some(1) {
            self.cancel(id, Actor::System, at);
        }
    }

    fn settle(
        &self,
        state: &mut State,
        id: KillIntentId,
        as_what: KillIntentState,
        at: Timestamp,
    ) -> Option<KillIntent> {
        let Kept {
            mut intent, spoke, ..
        } = state.pending.remove(&id)?;
        intent.state = as_what;
        intent.settled_at = Some(at);
        if as_what == KillIntentState::Proven {
            intent.last_error = None;
        }
        state.settled.push_back(intent.clone());
        while state.settled.len() > self.max_settled {
            state.settled.pop_front();
        }
        if !state.pending.values().any(|kept| kept.spoke == spoke) {
            state.paces.remove(&spoke);
        }
        Some(intent)
    }

    /// Whether it is neither proven nor taken back.
    pub(super) fn is_pending(&self, id: KillIntentId) -> bool {
        self.lock().pending.contains_key(&id)
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
        let selects = |intent: &KillIntent| match &intent.target {
            KillTarget::Agent { agent_id } => *agent_id == known.agent,
            KillTarget::All { task_id, label } => {
                known.asked_at <= intent.ordered_at
                    && task_id.as_ref().is_none_or(|task| task == known.task)
                    && label
                        .as_ref()
                        .is_none_or(|label| label.is_among(known.labels))
            }
        };
        let is_there = |kept: &Kept| {
            kept.intent.connection_id == known.connection
                || kept.spoke == self.spoke(known.connection)
        };
        let state = self.lock();
        let mut pending = state.pending.values();
        pending.any(|kept| selects(&kept.intent) && is_there(kept))
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
        self.node.audit().record_later(AuditEvent {
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
