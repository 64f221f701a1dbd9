//! `POST /federation/v1/streams`: an agent's events, as signed lines.
//!
//! Admitted like any command. A stream ends when the handler's does. It breaks off, so that it is not taken for whole, when the node
//! drains, and at once when the connection leaves `active` or is no longer granted to watch (F15). A reader that takes nothing is cut
//! off by the server's write time limit.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream, stream::BoxStream};
use http::{HeaderValue, header};
use mosaic_federation::{
    command::{AdmittedCommand, ClaimRequest, Claimed, GrantedCommand, Refused, SealError, Usage},
    event::seal_events,
};
use mosaic_store::ClaimOutcome;
use mosaic_types::{
    ConnectionId, ErrorCode, InstanceId, Refusal, Timestamp,
    command::CommandType,
    connection::{Connection, ConnectionState},
    event::AgentEvent,
};
use tokio::{sync::watch, time::Interval};
use tokio_util::sync::CancellationToken;

use super::{EVENT_LINES, Endpoint, Rejection, commands, envelope_response, lock, standing_of};
use crate::{
    http::{Draining, extract::read_body, problem::store_refusal, serve::Standing},
    node::Node,
};

pub(super) async fn serve(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let draining = request.extensions().get::<Draining>().cloned();
    let standing = standing_of(&request);
    match read_body(request).await {
        Ok(bytes) => Box::pin(endpoint.stream(&bytes, &standing, draining)).await,
        Err(error) => error.into_response(),
    }
}

impl Endpoint {
    async fn stream(
        self: Arc<Self>,
        bytes: &[u8],
        standing: &Standing,
        draining: Option<Draining>,
    ) -> Response {
        let now = Timestamp::now();
        let (connection, granted) = match self.authorise(bytes, standing, now) {
            Err(Rejection::Unauthenticated) => {
                return self.unauthenticated("federation.stream", now);
            }
            Err(Rejection::Refused(connection, refused)) => {
                return envelope_response(self.refuse(&connection, &refused, now));
            }
            Ok(authorised) => authorised,
        };
        let request = granted.claim_request();
        // From here on, so that what is decided between the checks and the first line is seen.
        let changes = self.node.connections().changes_of(&connection);
        let opening = self.open(&connection, granted, &request);
        match self.node.priority().in_turn(opening).await {
            Ok((place, events)) => {
                let draining = draining.map_or_else(CancellationToken::new, |draining| draining.0);
                let lines = Lines::new(&self.node, &request, place, events, changes, draining);
                let mut response = Response::new(Body::from_stream(lines.into_stream()));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENT_LINES));
                response
            }
            Err(refused) => envelope_response(self.refuse(&connection, &refused, now)),
        }
    }

    async fn open(
        self: &Arc<Self>,
        connection: &Connection,
        granted: GrantedCommand,
        request: &ClaimRequest,
    ) -> Result<(Place, BoxStream<'static, Vec<AgentEvent>>), Refused> {
        let refuse = |refusal| Refused {
            refusal,
            message_id: Some(request.message_id()),
            digest: request.digest(),
        };
        if granted.command_type() != CommandType::AgentWatch {
            return Err(refuse(Refusal::field(
                ErrorCode::InvalidRequest,
                "commandType",
                "only agent.watch opens a stream",
            )));
        }
        let place = Place::take(self, connection.connection_id)
            .ok_or_else(|| refuse(Refusal::new(ErrorCode::Overloaded, "too many open streams")))?;
        let claimable = granted.within(&Usage::default())?;
        match self.node.store().claim(commands::claim_of(request)).await {
            Ok(ClaimOutcome::Fresh) => {}
            // A stream is not kept: to go on with it, ask for what came after the last event, in a new message.
            Ok(ClaimOutcome::Repeated { .. }) => return Err(refuse(commands::outcome_unknown())),
            Ok(ClaimOutcome::Conflict) => return Err(refuse(commands::conflict())),
            Ok(ClaimOutcome::Forgotten) => return Err(refuse(commands::clock_set_back())),
            Err(error) => return Err(refuse(store_refusal(&error))),
        }
        let admitted: AdmittedCommand = claimable.admit(Claimed::Fresh)?;
        self.still_granted(connection, CommandType::AgentWatch)
            .map_err(refuse)?;
        let events = self.handler.watch(admitted).await.map_err(refuse)?;
        Ok((place, events))
    }
}

fn may_watch(connection: &Connection) -> bool {
    connection.state == ConnectionState::Active
        && connection
            .granted
            .commands
            .contains(&CommandType::AgentWatch)
}

/// A place among the open streams; given back when dropped.
struct Place {
    endpoint: Arc<Endpoint>,
    connection: ConnectionId,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Place {
    fn take(endpoint: &Arc<Endpoint>, connection: ConnectionId) -> Option<Self> {
        let permit = Arc::clone(&endpoint.streams).try_acquire_owned().ok()?;
        let mut open = lock(&endpoint.open_streams);
        let of_peer = open.entry(connection).or_insert(0);
        if *of_peer >= endpoint.node.limits().max_streams_per_peer {
            return None;
        }
        *of_peer += 1;
        Some(Self {
            endpoint: Arc::clone(endpoint),
            connection,
            _permit: permit,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.endpoint.open_streams);
        let left = open.get(&self.connection).copied().unwrap_or(0);
        if left > 1 {
            open.insert(self.connection, left - 1);
        } else {
            open.remove(&self.connection);
        }
    }
}

/// Why a stream breaks off before its end. The reader sees that it does: the body of the response does not end.
#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    #[error("the peer may watch no longer")]
    NotGranted,
    #[error("the node drains")]
    Draining,
    #[error("failed to sign events")]
    Seal(#[source] SealError),
}

/// One open stream.
struct Lines {
    node: Node,
    peer: InstanceId,
    digest: [u8; 32],
    seq: u64,
    events: BoxStream<'static, Vec<AgentEvent>>,
    heartbeat: Interval,
    connection: watch::Receiver<Arc<Connection>>,
    draining: CancellationToken,
    _place: Place,
}

impl Lines {
    fn new(
        node: &Node,
        request: &ClaimRequest,
        place: Place,
        events: BoxStream<'static, Vec<AgentEvent>>,
        connection: watch::Receiver<Arc<Connection>>,
        draining: CancellationToken,
    ) -> Self {
        let period = node.limits().stream_heartbeat.max(Duration::from_millis(1));
        let mut heartbeat = tokio::time::interval(period);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first sign of life comes at once: it tells the peer that it was admitted.
        Self {
            node: node.clone(),
            peer: request.peer().clone(),
            digest: request.digest(),
            seq: 0,
            events,
            heartbeat,
            connection,
            draining,
            _place: place,
        }
    }

    fn into_stream(self) -> impl futures_util::Stream<Item = Result<Bytes, BrokenOff>> + Send {
        stream::unfold(Some(self), |open| async move {
            let mut lines = open?;
            match lines.next().await {
                Ok(Some(line)) => Some((Ok(line), Some(lines))),
                Ok(None) => None,
                Err(broken_off) => Some((Err(broken_off), None)),
            }
        })
    }

    /// The next line; `None` when all was told.
    async fn next(&mut self) -> Result<Option<Bytes>, BrokenOff> {
        let events = tokio::select! {
            biased;
            _ = self.connection.wait_for(|now| !may_watch(now)) => return Err(BrokenOff::NotGranted),
            () = self.draining.cancelled() => return Err(BrokenOff::Draining),
            events = self.events.next() => events,
            _ = self.heartbeat.tick() => Some(Vec::new()),
        };
        let Some(events) = events else {
            return Ok(None);
        };
        if !events.is_empty() {
            self.heartbeat.reset();
        }
        let sealed = seal_events(
            self.node.identity(),
            &self.peer,
            &self.digest,
            self.seq,
            &events,
        );
        match sealed {
            Ok(mut line) => {
                self.seq += 1;
                line.push(b'\n');
                Ok(Some(line.into()))
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "failed to sign events; the stream breaks off"
                );
                Err(BrokenOff::Seal(error))
            }
        }
    }
}
