//! The hub itself, its spokes' pings, and what it sent.

use axum::{Json, extract::State};
use mosaic_node::{ApiError, Node, Operator, PathId};
use mosaic_types::{
    ConnectionId, ErrorCode, MessageId, Refusal, Timestamp,
    api::{CommandRecord, InstanceInfo, Role},
    command::Pong,
};

use crate::{handler::pong, routing::Routing};

pub(super) async fn instance(
    operator: Operator,
    State(node): State<Node>,
) -> Result<Json<InstanceInfo>, ApiError> {
    operator.require(Role::Viewer)?;
    let connections = node.connections().list();
    Ok(Json(InstanceInfo {
        instance_id: node.instance_id().clone(),
        pong: pong(&node, Timestamp::now()),
        connections: connections
            .iter()
            .map(|one| (one.connection_id, one.state))
            .collect(),
    }))
}

pub(super) async fn ping(
    operator: Operator,
    State(routing): State<Routing>,
    PathId(connection): PathId<ConnectionId>,
) -> Result<Json<Pong>, ApiError> {
    operator.require(Role::Viewer)?;
    Ok(Json(routing.ping(connection).await?))
}

pub(super) async fn command(
    operator: Operator,
    State(node): State<Node>,
    PathId(message): PathId<MessageId>,
) -> Result<Json<CommandRecord>, ApiError> {
    operator.require(Role::Viewer)?;
    let record = node.store().command(message).await?;
    let unknown = || {
        Refusal::new(
            ErrorCode::UnknownCommand,
            "this hub sent no command of that id",
        )
    };
    Ok(Json(record.ok_or_else(unknown)?))
}
