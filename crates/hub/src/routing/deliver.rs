//! Brings kept kills to their spokes, before anything else goes there, and writes down how they stand.

use std::time::{Duration, Instant};

use mosaic_types::{
    ConnectionId, ErrorCode, KillIntentId, MessageId, Refusal, Timestamp,
    audit::Actor,
    command::{CommandType, KillAllPayload, KillAllReport, KillOutcome, KillPayload, KillReport},
    connection::Connection,
    kill::{KillIntent, KillTarget},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    ASK_LIMIT, Failure, KILL_LIMIT, Routing,
    due::keep_up,
    intents::{Delivered, Delivery, NewKill},
    kill::{require_killable, usable},
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

impl Tried<KillReport> {
    /// One that was sent elsewhere, and came to this.
    pub(super) fn in_vain(delivery: &Delivery) -> Self {
        let refusal = match delivery {
            Delivery::Open { refusal, .. } => refusal.clone(),
            Delivery::Proven(_) => unproven(None),
        };
        Self {
            answer: Err(Failure {
                refusal: Refusal {
                    code: ErrorCode::PeerUnreachable,
                    ..refusal
                },
                signed: false,
                silent: false,
            }),
            kept: None,
        }
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
                tracing::error!(%id, error = %crate::app::report(error), "a kept kill is not on disk yet");
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
        let connection = self.connection(id).and_then(|connection| {
            require_killable(&connection)?;
            Ok(usable(&connection))
        });
        for intent in intents.for_spoke(id) {
            let delivery = match &connection {
                Ok(connection) => {
                    intents.sent(intent.intent_id, Timestamp::now());
                    self.deliver_one(connection, &intent).await
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
                of_kill_all(&answer.await.map(recount), intent.hold)
            }
        }
    }

    /// Lets what is pending for a spoke go first. Whoever comes with another command waits for it, and is turned away if
    /// it does not come to the spoke.
    pub(super) async fn kills_first(&self, connection: ConnectionId) -> Result<(), Refusal> {
        let intents = &self.inner.intents;
        let mut changed = intents.changed.subscribe();
        let Some(before) = intents.press(connection, Instant::now()) else {
            return Ok(());
        };
        let over = changed.wait_for(|_| {
            !intents.is_undelivered(connection) || intents.rounds(connection) != Some(before)
        });
        let _ = tokio::time::timeout(ASK_LIMIT, over).await;
        if !intents.is_undelivered(connection) {
            return Ok(());
        }
        Err(Refusal::new(
            ErrorCode::PeerUnreachable,
            "a kill is pending for this spoke and goes first, and the spoke was not heard",
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
        let is_proven = matches!(delivery, Delivery::Proven(_));
        if is_proven
            || tried
                .answer
                .as_ref()
                .is_err_and(Failure::is_final_of_a_kill)
        {
            if let Some(Ok(id)) = tried.kept {
                intents.answered(id, of, delivery, now);
                let refused_first = intents.get(id).is_some_and(|kept| kept.attempts == 1);
                if !is_proven && refused_first {
                    intents.cancel(id, Actor::System, now);
                }
                intents.release(id, Instant::now());
            }
            return None;
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

    /// What is to be told of a kill that is kept, or could not be.
    pub(super) async fn word_of(&self, kept: &Result<KillIntentId, Refusal>) -> String {
        let id = match kept {
            Ok(id) => *id,
            Err(refusal) => return format!("it is NOT kept for later: {}", refusal.message),
        };
        let intents = &self.inner.intents;
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
