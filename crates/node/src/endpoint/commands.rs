//! `POST /federation/v1/commands`: admission, execution, and the answer that is kept.
//!
//! ```text
//! size cap → strict envelope → peer → type, signature → from/to/time → grant ─┬─► quota → claim on disk ───┐
//!                                                                             └─► kill: claim in memory ───┴─► execute → sign → keep
//! ```
//!
//! What is refused before the claim is not claimed, so it may be tried again under the same id. What was claimed
//! is executed at most once; asked for again, it is answered with the bytes that were kept.
//!
//! Kills take no quota, have permits that nothing else can take, and touch no disk before they have answered.
//! After a restart the claims in memory are those that were on disk. What had not come there yet may be executed
//! again: in doubt we kill.
//!
//! Execution is a task of its own: a client that hangs up does not stop it halfway.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::FutureExt;
use mosaic_federation::command::{
    AdmittedCommand, ClaimRequest, ClaimableCommand, Claimed, CommandPayload, GrantedCommand,
    Refused, Usage,
};
use mosaic_store::{Claim, ClaimOutcome, StoreError};
use mosaic_types::{
    ErrorCode, Refusal, Timestamp,
    audit::{Actor, AuditEvent},
    command::CommandType,
    connection::{Connection, ConnectionState},
};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Endpoint, Rejection, answer, envelope_response, in_flight::Entered, standing_of};
use crate::http::{extract::read_body, problem::store_refusal, serve::Standing};

/// Largest answer that is kept of a command that only reads. A larger one can be asked for again under another id;
/// kept, such answers would fill the disk, 4 MiB with each message of a peer.
const MAX_KEPT_READ_BYTES: usize = 4096;

/// How long a peer waits for an answer; the command goes on, and its answer is kept. Longer than a hub waits for a
/// spawn: were it shorter, a slow success would reach the hub as a failure.
const ANSWER_WAIT: Duration = Duration::from_secs(150);

pub(super) async fn serve(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let standing = standing_of(&request);
    match read_body(request).await {
        Ok(bytes) => Box::pin(endpoint.command(&bytes, &standing)).await,
        Err(error) => error.into_response(),
    }
}

impl Endpoint {
    async fn command(self: Arc<Self>, bytes: &[u8], standing: &Standing) -> Response {
        let now = Timestamp::now();
        match self.authorise(bytes, standing, now) {
            Err(Rejection::Unauthenticated) => self.unauthenticated("federation.command", now),
            Err(Rejection::Refused(connection, refused)) => {
                envelope_response(self.refuse(&connection, &refused, now))
            }
            Ok((connection, granted)) => {
                envelope_response(self.answer(connection, granted, now).await)
            }
        }
    }

    /// A signed refusal, audited.
    pub(super) fn refuse(
        &self,
        connection: &Connection,
        refused: &Refused,
        now: Timestamp,
    ) -> Bytes {
        self.node.audit().refused(
            Some((&connection.peer, connection.connection_id)),
            "federation.command",
            refused.refusal.code.as_str(),
            now,
        );
        answer::refusal(&self.node, &connection.peer, refused)
    }

    async fn answer(
        self: Arc<Self>,
        connection: Arc<Connection>,
        granted: GrantedCommand,
        now: Timestamp,
    ) -> Bytes {
        let arrival = Arrival::of(now);
        let request = granted.claim_request();
        let refuse = |refusal| Refused {
            refusal,
            message_id: Some(request.message_id()),
            digest: request.digest(),
        };
        let first = match self.in_flight.enter(&request) {
            Entered::First(first) => first,
            Entered::Conflict => return self.refuse(&connection, &refuse(conflict()), now),
            Entered::Again(mut answered) => {
                let wait = self.node.limits().duplicate_wait;
                let answered = tokio::time::timeout(wait, answered.wait_for(Option::is_some)).await;
                return match answered {
                    Ok(Ok(bytes)) => bytes.clone().unwrap_or_default(),
                    _ => answer::refusal(&self.node, &connection.peer, &refuse(outcome_unknown())),
                };
            }
        };
        let (peer, unanswered) = (connection.peer.clone(), refuse(outcome_unknown()));
        let this = Arc::clone(&self);
        let (answering, answered) = oneshot::channel();
        self.node.tasks().spawn(async move {
            let executed = if request.is_kill() {
                let kill = this.kill(&connection, granted, &request, now);
                Executed::done(this.node.priority().first(kill).await)
            } else {
                this.execute(&connection, granted, &request, arrival).await
            };
            first.answer(&executed.bytes);
            // Whoever asked may have left.
            let _ = answering.send(executed.bytes.clone());
            if let Some(_permit) = executed.keep {
                this.keep(&request, &executed.bytes).await;
            }
            // Until it is kept, whoever asks again has it from here.
            drop(first);
        });
        match tokio::time::timeout(ANSWER_WAIT, answered).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(_)) => {
                tracing::error!("a command's task broke off");
                answer::refusal(&self.node, &peer, &unanswered)
            }
            Err(_) => answer::refusal(&self.node, &peer, &unanswered),
        }
    }

    /// Anything but a kill: quota, durable claim, execution, and the answer: durable before it is given, if the command
    /// changed something. What only reads is answered at once and kept afterwards: if that is lost, so is nothing.
    async fn execute(
        &self,
        connection: &Arc<Connection>,
        granted: GrantedCommand,
        request: &ClaimRequest,
        arrival: Arrival,
    ) -> Executed {
        let command_type = granted.command_type();
        // Agents die that are not renewed in time (A37), and a spawn that waited here could be started by what it waited
        // for: after a kill-all that was to take it (A9).
        let only_asks = !command_type.is_mutation() && command_type != CommandType::AgentRenew;
        let reserve = (!only_asks).then_some(&self.changes);
        let mut pools = std::iter::once(&self.commands).chain(reserve);
        let free = pools.find_map(|pool| Arc::clone(pool).try_acquire_owned().ok());
        let Some(permit) = free else {
            let refused = Refused {
                refusal: Refusal::new(ErrorCode::Overloaded, "too many commands at once"),
                message_id: Some(request.message_id()),
                digest: request.digest(),
            };
            return Executed::done(self.refuse(connection, &refused, arrival.now));
        };
        let admitting = Box::pin(self.admit(connection, granted, request, arrival, permit));
        if only_asks {
            self.node.priority().in_turn(admitting).await
        } else {
            admitting.await
        }
    }

    /// What [`execute`](Self::execute) does once there is room.
    async fn admit(
        &self,
        connection: &Arc<Connection>,
        granted: GrantedCommand,
        request: &ClaimRequest,
        arrival: Arrival,
        permit: OwnedSemaphorePermit,
    ) -> Executed {
        let refuse = |refusal| {
            let refused = Refused {
                refusal,
                message_id: Some(request.message_id()),
                digest: request.digest(),
            };
            Executed::done(self.refuse(connection, &refused, arrival.now))
        };
        let command_type = granted.command_type();
        let spawns = command_type == CommandType::AgentSpawn;
        let changes = command_type.is_mutation();
        let spawning = if spawns && !self.answered_spawns.contains(request) {
            match self.reserve_spawn(connection.connection_id, &granted, arrival.now) {
                Ok(reserved) => Some(reserved),
                Err(_) if self.has_spawned(connection, &granted).await => None,
                Err(refused) => {
                    return Executed::done(self.refuse(connection, &refused, arrival.now));
                }
            }
        } else {
            None
        };
        // Of a repetition, and of what is no spawn, the quota asks nothing.
        let claimable = match granted.within(&Usage::default()) {
            Ok(claimable) => claimable,
            Err(refused) => return Executed::done(self.refuse(connection, &refused, arrival.now)),
        };
        match self.claim(request).await {
            Ok(ClaimOutcome::Fresh) => {}
            Ok(ClaimOutcome::Repeated {
                response: Some(bytes),
            }) => return Executed::done(bytes.into()),
            Ok(ClaimOutcome::Repeated { response: None }) => return refuse(outcome_unknown()),
            Ok(ClaimOutcome::Conflict) => return refuse(conflict()),
            Ok(ClaimOutcome::Forgotten) => return refuse(clock_set_back()),
            Err(error) => return refuse(store_refusal(&error)),
        }
        let bytes = self
            .run(connection, claimable, Claimed::Fresh, arrival)
            .await;
        drop(spawning);
        if spawns {
            self.answered_spawns.insert(request);
        }
        if !changes {
            // What is large and only reads can be asked for again under another id.
            let keep = (bytes.len() <= MAX_KEPT_READ_BYTES).then_some(permit);
            return Executed { bytes, keep };
        }
        self.keep(request, &bytes).await;
        Executed::done(bytes)
    }

    /// Keeps an answer for those who ask again.
    async fn keep(&self, request: &ClaimRequest, bytes: &Bytes) {
        let store = self.node.store();
        let kept = store.keep_response(request.peer(), request.message_id(), bytes.to_vec());
        match kept.await {
            Ok(()) => {}
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "failed to keep a response"
            ),
        }
    }

    async fn has_spawned(&self, connection: &Connection, granted: &GrantedCommand) -> bool {
        match granted.payload() {
            CommandPayload::Spawn(spawn) => {
                let id = connection.connection_id;
                self.handler.knows(id, spawn.agent_id).await
            }
            _ => false,
        }
    }

    pub(super) async fn claim(&self, request: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        self.node.store().claim(claim_of(request)).await
    }

    /// Executes what was claimed, audits what changed something, and signs the answer.
    pub(super) async fn run(
        &self,
        connection: &Connection,
        claimable: ClaimableCommand,
        claimed: Claimed,
        arrival: Arrival,
    ) -> Bytes {
        let request = claimable.claim_request();
        let (command_type, subject) = (claimable.command_type(), subject(claimable.payload()));
        let outcome = match claimable.admit(claimed) {
            Err(refused) => Err(refused.refusal),
            Ok(admitted) => self.call(connection, admitted, arrival.at).await,
        };
        if command_type.is_mutation() {
            let event = AuditEvent {
                at: arrival.now,
                actor: Actor::Peer {
                    instance: request.peer().clone(),
                    connection: Some(connection.connection_id),
                },
                action: command_type.to_string(),
                subject,
                outcome: outcome
                    .as_ref()
                    .map_or_else(|refusal| refusal.code.to_string(), |_| "ok".to_owned()),
                detail: serde_json::json!({ "messageId": request.message_id() }),
            };
            if command_type.is_kill() && outcome.is_err() {
                // As often as its peer likes: no quota bounds kills.
                self.node.audit().refused_order(connection, event);
            } else if command_type.is_kill() {
                self.node.audit().record_later(event);
            } else {
                self.node.audit().record(event).await;
            }
        }
        match outcome {
            Ok(data) => answer::success(&self.node, &request, &data),
            Err(refusal) => {
                let refused = Refused {
                    refusal,
                    message_id: Some(request.message_id()),
                    digest: request.digest(),
                };
                answer::refusal(&self.node, request.peer(), &refused)
            }
        }
    }

    async fn call(
        &self,
        authorised: &Connection,
        admitted: AdmittedCommand,
        received: Instant,
    ) -> Result<Box<RawValue>, Refusal> {
        self.still_granted(authorised, admitted.command_type())?;
        let executing = AssertUnwindSafe(self.handler.execute(admitted, received));
        executing.catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!("the handler of a command panicked");
            Err(Refusal::new(
                ErrorCode::Internal,
                "a fault of this node; its log has the details",
            ))
        })
    }

    /// Whether what an operator decided since the command was authorised still allows it: that holds for what has
    /// not begun (F15).
    pub(super) fn still_granted(
        &self,
        authorised: &Connection,
        command_type: CommandType,
    ) -> Result<(), Refusal> {
        let connection = self.node.connections().get(authorised.connection_id);
        let active = connection.filter(|now| now.state == ConnectionState::Active);
        let Some(connection) = active else {
            return Err(Refusal::new(
                ErrorCode::ConnectionNotActive,
                "the connection was taken out of use meanwhile",
            ));
        };
        let granted = &connection.granted;
        // Of a spawn every member of the grant was checked; of the others, that they are granted at all.
        let changed = command_type == CommandType::AgentSpawn && *granted != authorised.granted;
        if changed || !granted.commands.contains(&command_type) {
            return Err(Refusal::new(
                ErrorCode::NotGranted,
                "the grants were changed meanwhile",
            ));
        }
        Ok(())
    }
}

/// When a command came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// For records.
    now: Timestamp,
    /// For what came before what.
    at: Instant,
}

impl Arrival {
    pub(super) fn of(now: Timestamp) -> Self {
        let at = Instant::now();
        Self { now, at }
    }
}

/// What became of a command that does not kill.
struct Executed {
    bytes: Bytes,
    /// The answer is still to be kept; the command's place is held until it is.
    keep: Option<OwnedSemaphorePermit>,
}

impl Executed {
    /// With nothing left to do.
    fn done(bytes: Bytes) -> Self {
        Self { bytes, keep: None }
    }
}

pub(super) fn claim_of(request: &ClaimRequest) -> Claim {
    Claim {
        peer: request.peer().clone(),
        message_id: request.message_id(),
        digest: request.digest(),
        expires_at: request.expires_at(),
    }
}

pub(super) fn conflict() -> Refusal {
    Refusal::field(
        ErrorCode::Conflict,
        "messageId",
        "the message id was used before with other content",
    )
}

pub(super) fn outcome_unknown() -> Refusal {
    Refusal::new(
        ErrorCode::OutcomeUnknown,
        "the message was claimed before, and its outcome is not on record (yet)",
    )
}

pub(super) fn clock_set_back() -> Refusal {
    tracing::warn!(
        "the clock was set back: a message that may have been executed before was refused"
    );
    Refusal::new(
        ErrorCode::ClockSetBack,
        "the clock of this node was set back, and whether this message was executed before is forgotten; nothing was done",
    )
}

fn subject(payload: &CommandPayload) -> Option<String> {
    match payload {
        CommandPayload::Spawn(spawn) => Some(spawn.agent_id.to_string()),
        CommandPayload::Kill(kill) => Some(kill.agent_id.to_string()),
        CommandPayload::KillAll(kill) => kill.task_id.as_ref().map(ToString::to_string),
        _ => None,
    }
}
