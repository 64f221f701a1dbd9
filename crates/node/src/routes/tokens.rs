//! Operators' tokens.

use axum::{Json, extract::State};
use http::StatusCode;
use mosaic_types::{
    TaskId,
    api::{Role, TokenCreated, TokenInfo, TokenRequest},
};

use crate::{
    http::{ApiError, Body, Operator, PathId},
    node::Node,
};

pub(super) async fn list(
    State(node): State<Node>,
    operator: Operator,
) -> Result<Json<Vec<TokenInfo>>, ApiError> {
    operator.require(Role::Admin)?;
    Ok(Json(node.operators().list()))
}

pub(super) async fn create(
    State(node): State<Node>,
    operator: Operator,
    Body(request): Body<TokenRequest>,
) -> Result<(StatusCode, Json<TokenCreated>), ApiError> {
    operator.require(Role::Admin)?;
    let created = node.operators().create(request, operator.actor()).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

pub(super) async fn delete(
    State(node): State<Node>,
    operator: Operator,
    PathId(name): PathId<TaskId>,
) -> Result<StatusCode, ApiError> {
    operator.require(Role::Admin)?;
    node.operators()
        .delete(name.as_str(), operator.actor())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
