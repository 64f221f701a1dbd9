//! Brings kept kills to their spokes, before anything else goes there, and writes down how they stand.

use std::time::{Duration, Instant};

use mosaic_types::{
    ConnectionId, ErrorCode, KillIntentId, MessageId, Refusal, Timestamp,
    audit::Actor,
    command::{CommandType, KillAllPayload, KillAllReport, KillOutcome, KillPayload, KillReport},
    connection::Connection,
    kill::{KillIntent, KillIntentState, KillTarget},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    ASK_LIMIT, Failure, KILL_LIMIT, Routing,
    due::keep_up,
    intents::{Delivered, Delivery, NewKill, UnderWay},
    kill::usable,
    proof::{insist_on_proof, recount, without_hold},
    require_about,
};

/// How long an order may be under way before it is kept: one that is answered by then costs the disk nothing, and a hub
/// that dies later than that does not forget it.
const KEEP_AFTER: Duration = Duration::from_millis(250);
/// How long an answer waits for the disk, to say whether the kept kill outlives the hub.
const WORD_WITHIN: Duration = Duration::from_millis(500);
/// The pause after the store has failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// A kill that was sent at once, and whether it is kept.
pub(super) struct Tried<T> {
    pub(super) answer: Result<T, Failure>,
    kept: Option<Result<KillIntentId, Refusal>>,
}

impl<T> Tried<T> {
    /// Whether nothing is left of it: it is proven, or refused for good.
    pub(super) fn is_over(&self, delivery: &Delivery) -> bool {
        let refused = self.answer.as_ref().is_err_and(Failure::is_final_of_a_kill);
        refused || matches!(delivery, Delivery::Proven(_))
    }
}

impl Routing {
    /// Delivers until `shutdown`, one delivery to each spoke at a time.
    pub(super) async fn deliver(self, shutdown: CancellationToken) {
        let intents = &self.inner.intents;
        keep_up("a delivery of kills", &intents.wake, shutdown, |now| {
            let (due, next) = intents.due(now);
            let delivery = |connection| {
                let routing = self.clone();
                async move { routing.deliver_to(connection).await }
            };
            (due.into_iter().map(delivery).collect(), next)
        })
        .await;
    }

    /// Writes down how kept kills stand. After `shutdown` what is left is written once more.
    pub(super) async fn write_intents(self, shutdown: CancellationToken) {
        loop {
            let is_last = tokio::select! {
                () = self.inner.intents.dirty.notified() => false,
                () = shutdown.cancelled() => true,
            };
            let all_written = self.write_unsaved().await;
            if is_last {
                return;
            }
            if !all_written {
                tokio::select! {
                    () = tokio::time::sleep(STORE_PAUSE) => {}
                    () = shutdown.cancelled() => {}
                }
                self.inner.intents.dirty.notify_one();
            }
        }
    }

    async fn write_unsaved(&self) -> bool {
        let intents = &self.inner.intents;
        let mut all_written = true;
        for intent in intents.take_unsaved() {
            let id = intent.intent_id;
            let saved = self.node().store().save_kill_intent(intent).await;
            if let Err(error) = &saved {
                tracing::error!(%id, error = %mosaic_node::with_causes(error), "a kept kill is not on disk yet");
                all_written = false;
            }
            intents.written(id, saved.is_ok());
        }
        all_written
    }

    async fn deliver_to(&self, id: ConnectionId) {
        // Whatever happens in between, the spoke's turn ends.
        let _turn = Turn { routing: self, id };
        let intents = &self.inner.intents;
        let way = self
            .connection(id)
            .and_then(|connection| self.way_to(&connection));
        for intent in intents.for_spoke(id) {
            let delivery = match &way {
                Ok(way) => {
                    intents.sent(intent.intent_id, Timestamp::now());
                    self.deliver_one(&usable(way), &intent).await
                }
                Err(refusal) => Delivery::Open {
                    refusal: refusal.clone(),
                    signed: false,
                    silent: false,
                },
            };
            let (id, of) = (intent.intent_id, Delivered::from(&intent));
            intents.answered(id, of, &delivery, Timestamp::now());
            // F21: what keeps this one from being proven need not keep the next one.
            if matches!(delivery, Delivery::Open { silent: true, .. }) {
                return;
            }
        }
    }

    async fn deliver_one(&self, connection: &Connection, intent: &KillIntent) -> Delivery {
        let message_id = MessageId::generate();
        match &intent.target {
            KillTarget::Agent { agent_id } => {
                let payload = KillPayload {
                    agent_id: *agent_id,
                    reason: intent.reason.clone(),
                    wait_for_cleanup: false,
                };
                let kind = CommandType::AgentKill;
                let answer = self.call(connection, message_id, kind, &payload, KILL_LIMIT);
                let answer = answer.await.and_then(|told: KillReport| {
                    require_about(*agent_id, told.agent_id).map(|()| insist_on_proof(told))
                });
                if let Ok(report) = &answer {
                    self.note_deaths(connection, std::slice::from_ref(report));
                }
                of_kill(&answer)
            }
            KillTarget::All { task_id, label } => {
                let payload = KillAllPayload {
                    task_id: task_id.clone(),
                    hold: intent.hold,
                    reason: intent.reason.clone(),
                    label: label.clone(),
                    before: Some(intent.ordered_at),
                };
                let kind = CommandType::AgentKillAll;
                let answer = self.call(connection, message_id, kind, &payload, KILL_LIMIT);
                let answer = answer.await.map(recount);
                if let Ok(report) = &answer {
                    self.note_deaths(connection, &report.agents);
                }
                of_kill_all(&answer, intent.hold)
            }
        }
    }

    /// Lets what is pending for a spoke go first. Whoever comes with another command waits for it, and is turned away if
    /// it does not come to the spoke. A spawn waits for what is under way for the first time, too: a kill-all that was
    /// lost and comes late would take it.
    pub(super) async fn kills_first(
        &self,
        connection: ConnectionId,
        command_type: CommandType,
    ) -> Result<(), Refusal> {
        let intents = &self.inner.intents;
        let under_way = match command_type {
            CommandType::AgentSpawn => UnderWay::Counts,
            _ => UnderWay::Passes,
        };
        let mut changed = intents.changed.subscribe();
        let Some(round) = intents.press(connection, under_way, Instant::now()) else {
            return Ok(());
        };
        let over = changed.wait_for(|_| {
            !intents.is_undelivered(connection, under_way)
                || intents.rounds(connection).is_none_or(|over| over >= round)
        });
        let _ = tokio::time::timeout(ASK_LIMIT, over).await;
        if !intents.is_undelivered(connection, under_way) {
            return Ok(());
        }
        Err(Refusal::new(
            ErrorCode::PeerUnreachable,
            "a kill is pending for this spoke and goes first, and the spoke has not answered it",
        ))
    }

    /// Sends an order at once, and keeps it when the answer does not come at once.
    pub(super) async fn try_kill<T>(
        &self,
        order: &NewKill,
        sending: impl Future<Output = Result<T, Failure>>,
    ) -> Tried<T> {
        tokio::pin!(sending);
        if let Ok(answer) = tokio::time::timeout(KEEP_AFTER, &mut sending).await {
            return Tried { answer, kept: None };
        }
        let kept = self.inner.intents.keep(order, true, Instant::now());
        if let Ok(id) = kept {
            self.inner.intents.sent(id, Timestamp::now());
        }
        Tried {
            answer: sending.await,
            kept: Some(kept),
        }
    }

    /// What an order that was sent comes to: nothing is left of one that is proven or refused for good; anything else is
    /// kept. Answers with the kept kill, or why it could not be kept.
    pub(super) fn conclude<T>(
        &self,
        order: &NewKill,
        tried: &Tried<T>,
        delivery: &Delivery,
    ) -> Option<Result<KillIntentId, Refusal>> {
        let intents = &self.inner.intents;
        let (of, now) = (Delivered::from(order), Timestamp::now());
        let answer = tried.answer.as_ref();
        let heard = answer.is_ok() || answer.is_err_and(|failure| failure.signed);
        if tried.is_over(delivery) {
            if let Some(Ok(id)) = tried.kept {
                intents.answered(id, of, delivery, now);
                if !matches!(delivery, Delivery::Proven(_)) {
                    intents.withdraw(id, now);
                }
                intents.release(id, Instant::now());
            }
            // After that: this one is not to be sent again.
            if heard {
                self.heard(order.connection);
            }
            return None;
        }
        if heard {
            self.heard(order.connection);
        }
        let kept = match &tried.kept {
            Some(kept) => kept.clone(),
            None => {
                let kept = intents.keep(order, true, Instant::now());
                if let Ok(id) = kept {
                    intents.sent(id, now);
                }
                kept
            }
        };
        if let Ok(id) = kept {
            intents.answered(id, of, delivery, now);
            intents.release(id, Instant::now());
        }
        Some(kept)
    }

    /// Takes back what was kept of an order that another spoke has proven.
    pub(super) fn not_needed<T>(&self, tried: &Tried<T>) {
        let intents = &self.inner.intents;
        if let Some(Ok(id)) = tried.kept {
            intents.withdraw(id, Timestamp::now());
            intents.release(id, Instant::now());
        }
    }

    /// What is to be told of a kill that is kept, or could not be.
    pub(super) async fn word_of(&self, kept: &Result<KillIntentId, Refusal>) -> String {
        let id = match kept {
            Ok(id) => *id,
            Err(refusal) => return format!("it is NOT kept for later: {}", refusal.message),
        };
        let intents = &self.inner.intents;
        if let Some(settled) = intents.get(id).filter(|_| !intents.is_pending(id)) {
            let how = match settled.state {
                KillIntentState::Cancelled => "taken back",
                KillIntentState::Pending | KillIntentState::Proven => "proven",
            };
            return format!("the kill was kept as {id} and has been {how} meanwhile");
        }
        let mut changed = intents.changed.subscribe();
        let is_on_disk = |_: &u64| intents.get(id).is_none_or(|intent| intent.durable);
        let on_disk = tokio::time::timeout(WORD_WITHIN, changed.wait_for(is_on_disk)).await;
        let so_far = if on_disk.is_ok() {
            ""
        } else {
            ", for as long as this hub runs: its store does not take it"
        };
        format!("the kill is pending as {id} and goes first when the spoke is heard{so_far}")
    }

    /// The kept kills.
    #[must_use]
    pub fn kills(&self) -> Vec<KillIntent> {
        self.inner.intents.list()
    }

    /// Takes a pending kill back. One that is settled stays as it is.
    ///
    /// # Errors
    /// `not-found`.
    pub fn cancel_kill(&self, by: Actor, id: KillIntentId) -> Result<KillIntent, Refusal> {
        let intents = &self.inner.intents;
        intents
            .cancel(id, by, Timestamp::now())
            .or_else(|| intents.get(id))
            .ok_or_else(|| Refusal::new(ErrorCode::NotFound, "no kill of this id is kept"))
    }

    /// The spoke was heard.
    pub(crate) fn heard(&self, connection: ConnectionId) {
        self.inner.intents.heard(connection, Instant::now());
    }
}

/// A spoke's turn, given back however it ends.
struct Turn<'a> {
    routing: &'a Routing,
    id: ConnectionId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let intents = &self.routing.inner.intents;
        intents.round_over(self.id, Instant::now());
    }
}

/// What an answer to a kill comes to.
pub(super) fn of_kill(answer: &Result<KillReport, Failure>) -> Delivery {
    match answer {
        Ok(report) if report.outcome == KillOutcome::Unverified => Delivery::Open {
            refusal: unproven(report.detail.as_deref()),
            signed: true,
            silent: false,
        },
        Ok(report) => Delivery::Proven(json!({"outcome": report.outcome, "proof": report.proof})),
        // It has no such agent, and lets none start that was asked for before.
        Err(failure) if failure.signed && failure.refusal.code == ErrorCode::UnknownAgent => {
            Delivery::Proven(json!({"outcome": failure.refusal.code}))
        }
        Err(failure) => open(failure),
    }
}

/// What an answer to a kill-all comes to, whose order has a hold if `hold`.
pub(super) fn of_kill_all(answer: &Result<KillAllReport, Failure>, hold: bool) -> Delivery {
    let report = match answer {
        Ok(report) => report,
        Err(failure) => return open(failure),
    };
    let deaths = (report.unverified > 0).then(|| format!("{} deaths", report.unverified));
    let no_hold = without_hold(report, hold).map(str::to_owned);
    let lacking: Vec<String> = deaths.into_iter().chain(no_hold).collect();
    if lacking.is_empty() {
        return Delivery::Proven(json!({"killed": report.killed, "held": report.held}));
    }
    Delivery::Open {
        refusal: unproven(Some(&lacking.join("; "))),
        signed: true,
        silent: false,
    }
}

fn unproven(what: Option<&str>) -> Refusal {
    let what = what.unwrap_or("the death");
    Refusal::new(ErrorCode::OutcomeUnknown, format!("not proven yet: {what}"))
}

fn open(failure: &Failure) -> Delivery {
    Delivery::Open {
        refusal: failure.refusal.clone(),
        signed: failure.signed,
        silent: failure.silent,
    }
}
