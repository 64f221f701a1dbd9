//! An agent's events, wherever it runs.

use axum::{extract::State, response::IntoResponse};
use mosaic_node::{ApiError, EventsRequest, Operator, PathId};
use mosaic_types::{AgentId, api::Role};

use crate::routing::Routing;

pub(super) async fn events(
    operator: Operator,
    State(routing): State<Routing>,
    PathId(agent): PathId<AgentId>,
    request: EventsRequest,
) -> Result<impl IntoResponse, ApiError> {
    operator.require(Role::Viewer)?;
    let events = routing.watch(agent, request.after, request.follow).await?;
    Ok(request.answer(events))
}
