//! The federation endpoint: what peers, and strangers, can reach.
//!
//! | path | takes | answers |
//! |---|---|---|
//! | `GET /.well-known/mosaic` | | the identity envelope |
//! | `POST /federation/v1/connect` | a connect envelope | a response envelope |
//! | `POST /federation/v1/commands` | a command envelope | a response envelope |
//! | `POST /federation/v1/streams` | an envelope of `agent.watch` | event envelopes, one a line |
//!
//! Whoever is authenticated gets a signed response with status 200, refusals included: the signature, not the status,
//! is what the peer trusts. Whoever is not gets one constant 401, byte for byte the same whatever the cause. Only what
//! is wrong with the HTTP request itself (too large, too slow, encoded) is told before that.
//!
//! The order of checks is the order of `federation`'s types; see [`commands`] for what is round them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream::BoxStream;
use http::{HeaderValue, header};
use mosaic_federation::{
    command::{AdmittedCommand, GrantedCommand, Refused, SpawnDefaults, Usage},
    dsse::ReceivedEnvelope,
    replay::KillClaims,
};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, Timestamp, command::SandboxKind,
    connection::Connection, event::AgentEvent,
};
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use crate::{
    http::{
        ApiError,
        serve::{Killer, Standing},
    },
    node::Node,
};

mod answer;
pub mod commands;
mod connect;
mod in_flight;
mod kills;
mod spawns;
mod streams;
pub(crate) mod well_known;

/// Media type of an envelope, in requests and answers.
pub const ENVELOPE_JSON: &str = "application/vnd.dsse.envelope.v1+json";

/// Kills whose claim is kept in memory. When there are more, they are executed all the same.
const MAX_KILL_CLAIMS: usize = 65_536;

/// Media type of an event stream: an envelope a line.
pub const EVENT_LINES: &str = "application/x-ndjson";

/// What a node does with commands: a hub forwards them, an orchestrator executes them.
#[async_trait]
pub trait CommandHandler: Send + Sync + 'static {
    /// Executes. The value becomes `data` of the signed response.
    ///
    /// Runs to its end even if the peer hangs up. Never called twice for one message. `received` is when it came here: its
    /// claim may have taken a while since.
    async fn execute(
        &self,
        command: AdmittedCommand,
        received: Instant,
    ) -> Result<Box<RawValue>, Refusal>;

    /// Opens the stream that `agent.watch` asks for, in batches of at most 8 MiB of JSON, so that each fits into a
    /// signed line. Dropped when the peer hangs up or is suspended.
    async fn watch(
        &self,
        command: AdmittedCommand,
    ) -> Result<BoxStream<'static, Vec<AgentEvent>>, Refusal>;

    /// What the peer uses of its quota. The endpoint adds the spawns that are under way.
    fn usage(&self, connection: ConnectionId, now: Timestamp) -> Usage;

    /// Whether the connection has this agent already, ended or not. Spawning it again starts nothing, so that needs no
    /// quota: one whose answer was lost must not be told that it was refused.
    async fn knows(&self, connection: ConnectionId, agent: AgentId) -> bool;

    /// The sandbox of a spawn that names none.
    fn default_sandbox(&self) -> SandboxKind;

    /// The peer was heard: by a command to this node that is good now, whatever becomes of it. Must not wait.
    fn heard(&self, connection: ConnectionId) {
        let _ = connection;
    }
}

/// The endpoint's routes.
pub fn federation_routes(node: Node, handler: Arc<dyn CommandHandler>) -> Router {
    let endpoint = Arc::new(Endpoint::new(node, handler));
    Router::new()
        .route("/.well-known/mosaic", get(well_known::serve))
        .route("/federation/v1/connect", post(connect::serve))
        .route("/federation/v1/commands", post(commands::serve))
        .route("/federation/v1/streams", post(streams::serve))
        .with_state(endpoint)
}

/// What the endpoint's requests share.
pub(crate) struct Endpoint {
    node: Node,
    handler: Arc<dyn CommandHandler>,
    in_flight: in_flight::InFlight,
    kill_claims: Mutex<KillClaims>,
    answered_kills: kills::AnsweredKills,
    commands: Arc<Semaphore>,
    /// For what changes something, when all of `commands` are taken.
    changes: Arc<Semaphore>,
    kills: Arc<Semaphore>,
    kill_shares: kills::KillShares,
    /// Durable claims of kills that are being written.
    kill_records: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    open_streams: Mutex<HashMap<ConnectionId, usize>>,
    spawning: Mutex<HashMap<ConnectionId, u32>>,
    answered_spawns: spawns::AnsweredSpawns,
    connects: connect::Rate,
}

/// Why a request was not authorised.
enum Rejection {
    /// We do not know who it is, or do not want to.
    Unauthenticated,
    /// A peer asks for what it may not.
    Refused(Arc<Connection>, Refused),
}

impl Endpoint {
    fn new(node: Node, handler: Arc<dyn CommandHandler>) -> Self {
        let limits = node.limits();
        let mut kill_claims = KillClaims::new(MAX_KILL_CLAIMS);
        for claim in node.take_earlier_claims() {
            kill_claims.restore(claim.peer, claim.message_id, claim.digest, claim.expires_at);
        }
        Self {
            in_flight: in_flight::InFlight::default(),
            kill_claims: Mutex::new(kill_claims),
            answered_kills: kills::AnsweredKills::default(),
            commands: Arc::new(Semaphore::new(limits.max_commands)),
            changes: Arc::new(Semaphore::new(limits.reserved_changes)),
            kills: Arc::new(Semaphore::new(limits.reserved_kills)),
            kill_shares: kills::KillShares::new(limits),
            kill_records: Arc::new(Semaphore::new(limits.reserved_kills)),
            streams: Arc::new(Semaphore::new(limits.max_streams)),
            open_streams: Mutex::default(),
            spawning: Mutex::default(),
            answered_spawns: spawns::AnsweredSpawns::default(),
            connects: connect::Rate::new(limits.max_connects_per_second),
            node,
            handler,
        }
    }

    /// From bytes to a command that the peer may give. Synchronous: no more requests are in here at once than
    /// there are worker threads, whoever sends them.
    fn authorise(
        &self,
        bytes: &[u8],
        standing: &Standing,
        now: Timestamp,
    ) -> Result<(Arc<Connection>, GrantedCommand), Rejection> {
        let envelope = ReceivedEnvelope::parse(bytes).map_err(|_| Rejection::Unauthenticated)?;
        let (connection, keyring) = self
            .node
            .connections()
            .verifier(envelope.claimed_key())
            .ok_or(Rejection::Unauthenticated)?;
        let verified = envelope
            .verify_with(&connection, &keyring, now)
            .map_err(|_| Rejection::Unauthenticated)?;
        let refused = |refused| Rejection::Refused(Arc::clone(&connection), refused);
        let command = verified
            .parse_command(self.node.instance_id(), now)
            .map_err(refused)?;
        // Not before: an old command, or one to another node, may come from whoever has got hold of it. And not later: a
        // kill needs its place, whatever is still to be looked at.
        standing.raise_to_killer(&Killer::Peer(connection.connection_id));
        self.handler.heard(connection.connection_id);
        let defaults = SpawnDefaults {
            sandbox: Some(self.handler.default_sandbox()),
        };
        let granted = command
            .authorise(&connection.granted, &defaults)
            .map_err(refused)?;
        Ok((connection, granted))
    }

    /// The constant answer to whoever is not authenticated.
    fn unauthenticated(&self, action: &'static str, now: Timestamp) -> Response {
        self.node
            .audit()
            .refused(None, action, ErrorCode::Unauthorized.as_str(), now);
        ApiError::new(ErrorCode::Unauthorized, "not authenticated").into_response()
    }
}

pub(crate) use answer::fault as seal_fault;

/// An envelope as an HTTP answer.
fn envelope_response(bytes: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(bytes.into());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(ENVELOPE_JSON),
    );
    response
}

/// What the requests of a request's connection have shown.
fn standing_of(request: &Request) -> Standing {
    let standing = request.extensions().get::<Standing>();
    standing.cloned().unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
