//! An agent's events as server-sent events, on a hub as on a spoke.
//!
//! Each has the cursor as `id`, the kind as `event` and an [`AgentEvent`] as `data`. The stream ends after the last
//! event of the agent, when the node drains, or when the token that it was opened with is deleted. If it cannot go on it ends with an `error` event that holds a
//! problem. So does one that does not follow and is ended early: for it, the end alone says that all is told.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    extract::{FromRef, FromRequestParts},
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, request::Parts};
use mosaic_types::{
    ErrorCode, Refusal,
    api::EventsParams,
    error::Problem,
    event::{AgentEvent, EventCursor, EventCursorError},
};

use tokio_util::sync::CancellationToken;

use super::{
    extract::Query,
    operator::{bearer, unauthorized},
    problem::ApiError,
    serve::Draining,
};
use crate::node::Node;

/// How often a silent stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a client asks of an event stream: the query `?after=…&follow=…` and the header `Last-Event-ID`.
#[derive(Debug, Clone)]
pub struct EventsRequest {
    /// Only what came after this event; from the beginning if absent.
    pub after: Option<EventCursor>,
    /// Whether to wait for what is to come.
    pub follow: bool,
    revoked: CancellationToken,
    draining: Option<Draining>,
}

impl<S> FromRequestParts<S> for EventsRequest
where
    Node: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let revoked = bearer(parts)
            .and_then(|token| Node::from_ref(state).operators().revocation(token))
            .ok_or_else(unauthorized)?;
        let Query(params) = Query::<EventsParams>::from_request_parts(parts, state).await?;
        let draining = Option::<Extension<Draining>>::from_request_parts(parts, state).await;
        Ok(Self {
            after: last_event_id(&parts.headers)?.or(params.after),
            follow: params.follow.unwrap_or(true),
            revoked,
            draining: draining.ok().flatten().map(|Extension(draining)| draining),
        })
    }
}

impl EventsRequest {
    /// Answers with these events.
    pub fn answer(
        self,
        events: impl Stream<Item = Result<AgentEvent, Refusal>> + Send + 'static,
    ) -> impl IntoResponse {
        let Self {
            follow,
            revoked,
            draining,
            ..
        } = self;
        let open = (Box::pin(events), Box::pin(ended_early(revoked, draining)));
        let events = stream::unfold(Some(open), move |open| async move {
            let (mut events, mut ended_early) = open?;
            tokio::select! {
                biased;
                // Whoever follows sees that the agent has not ended, and comes back.
                why = &mut ended_early => (!follow).then(|| (encode(Err(why)), None)),
                event = events.next() => event.map(|event| (encode(event), Some((events, ended_early)))),
            }
        });
        Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
    }
}

/// Waits until a stream has to end before all is told, and says why.
async fn ended_early(revoked: CancellationToken, draining: Option<Draining>) -> Refusal {
    let drained = async move {
        match draining {
            Some(Draining(token)) => token.cancelled_owned().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = drained => Refusal::new(ErrorCode::ShuttingDown, "the node is shutting down"),
        () = revoked.cancelled_owned() => unauthorized().0,
    }
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<EventCursor>, Refusal> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let refusal = |why: String| Refusal::field(ErrorCode::InvalidRequest, "Last-Event-ID", why);
    let text = value.to_str().map_err(|error| refusal(error.to_string()))?;
    // What a browser sends before it has seen an id.
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|error: EventCursorError| refusal(error.to_string()))
}

fn encode(event: Result<AgentEvent, Refusal>) -> Event {
    let encoded = match event {
        Ok(event) => Event::default()
            .id(event.id.to_string())
            .event(event.kind.name())
            .json_data(&event),
        Err(refusal) => Event::default()
            .event("error")
            .json_data(Problem::from(refusal)),
    };
    encoded.unwrap_or_else(|error| {
        tracing::error!(%error, "an event cannot be written as JSON");
        Event::default().comment("an event was lost; the log has the details")
    })
}
