//! Connections and invitations.

use axum::{Json, extract::State};
use http::StatusCode;
use mosaic_types::{
    ConnectionId, ErrorCode,
    api::{AcceptRequest, ConnectRequest, ConnectionList, InviteCreated, InviteRequest, Role},
    connection::Connection,
};

use crate::{
    http::{ApiError, Body, Operator, PathId},
    node::Node,
};

pub(super) async fn list(
    State(node): State<Node>,
    operator: Operator,
) -> Result<Json<ConnectionList>, ApiError> {
    operator.require(Role::Viewer)?;
    let connections = node.connections().list();
    Ok(Json(ConnectionList {
        connections: connections.iter().map(|each| (**each).clone()).collect(),
    }))
}

pub(super) async fn get(
    State(node): State<Node>,
    operator: Operator,
    PathId(id): PathId<ConnectionId>,
) -> Result<Json<Connection>, ApiError> {
    operator.require(Role::Viewer)?;
    let connection = node
        .connections()
        .get(id)
        .ok_or_else(|| ApiError::new(ErrorCode::UnknownConnection, "no connection of that id"))?;
    Ok(Json((*connection).clone()))
}

pub(super) async fn invite(
    State(node): State<Node>,
    operator: Operator,
    Body(request): Body<InviteRequest>,
) -> Result<(StatusCode, Json<InviteCreated>), ApiError> {
    operator.require(Role::Admin)?;
    let created = node.invite(request, operator.actor()).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

pub(super) async fn connect(
    State(node): State<Node>,
    operator: Operator,
    Body(request): Body<ConnectRequest>,
) -> Result<(StatusCode, Json<Connection>), ApiError> {
    operator.require(Role::Admin)?;
    let connection = node.connect(request, operator.actor()).await?;
    Ok((StatusCode::CREATED, Json((*connection).clone())))
}

pub(super) async fn accept(
    State(node): State<Node>,
    operator: Operator,
    PathId(id): PathId<ConnectionId>,
    Body(request): Body<AcceptRequest>,
) -> Result<Json<Connection>, ApiError> {
    operator.require(Role::Admin)?;
    let connection = node.accept(id, request.grants, operator.actor()).await?;
    Ok(Json((*connection).clone()))
}

macro_rules! moves {
    ($($name:ident)*) => {$(
        pub(super) async fn $name(
            State(node): State<Node>,
            operator: Operator,
            PathId(id): PathId<ConnectionId>,
        ) -> Result<Json<Connection>, ApiError> {
            operator.require(Role::Admin)?;
            let connection = node.$name(id, operator.actor()).await?;
            Ok(Json((*connection).clone()))
        }
    )*};
}

moves! { reject suspend resume disconnect }
