//! Kills that are kept until they are proven.

use axum::{Json, extract::State};
use mosaic_node::{ApiError, Operator, PathId};
use mosaic_types::{
    KillIntentId,
    api::Role,
    kill::{KillIntent, KillIntents},
};

use crate::routing::Routing;

pub(super) async fn list(
    operator: Operator,
    State(routing): State<Routing>,
) -> Result<Json<KillIntents>, ApiError> {
    operator.require(Role::Viewer)?;
    Ok(Json(KillIntents {
        kills: routing.kills(),
    }))
}

pub(super) async fn cancel(
    operator: Operator,
    State(routing): State<Routing>,
    PathId(intent): PathId<KillIntentId>,
) -> Result<Json<KillIntent>, ApiError> {
    operator.require(Role::Operator)?;
    Ok(Json(routing.cancel_kill(operator.actor(), intent)?))
}
