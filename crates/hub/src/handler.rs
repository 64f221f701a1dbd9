//! What peers may ask of a hub: whether it is there. It runs no agents and passes none on.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use mosaic_federation::command::{AdmittedCommand, Usage};
use mosaic_node::{CommandHandler, Node};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, Timestamp,
    command::{CommandType, Pong, SandboxKind},
    connection::NodeRole,
    event::AgentEvent,
};
use serde_json::value::RawValue;

use crate::routing::Routing;

/// The handler behind a hub's federation endpoint.
pub(crate) struct HubHandler {
    pub(crate) node: Node,
    /// Told of every peer that is heard.
    pub(crate) routing: Routing,
}

/// What a hub tells of itself.
pub(crate) fn pong(node: &Node, now: Timestamp) -> Pong {
    Pong {
        name: node.name().to_owned(),
        role: NodeRole::Hub,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: now,
        sandboxes: Vec::new(),
        runtimes: Vec::new(),
        held: false,
        active_agents: 0,
    }
}

fn not_served(command: CommandType) -> Refusal {
    Refusal::new(
        ErrorCode::NotGranted,
        format!("a hub does not execute {command}"),
    )
}

#[async_trait]
impl CommandHandler for HubHandler {
    async fn execute(
        &self,
        command: AdmittedCommand,
        _: std::time::Instant,
    ) -> Result<Box<RawValue>, Refusal> {
        match command.command_type() {
            CommandType::InstancePing => {
                serde_json::value::to_raw_value(&pong(&self.node, Timestamp::now())).map_err(
                    |error| {
                        tracing::error!(%error, "a pong cannot be written as JSON");
                        Refusal::new(
                            ErrorCode::Internal,
                            "a fault of ours; the log has the details",
                        )
                    },
                )
            }
            other => Err(not_served(other)),
        }
    }

    async fn watch(
        &self,
        command: AdmittedCommand,
    ) -> Result<BoxStream<'static, Vec<AgentEvent>>, Refusal> {
        Err(not_served(command.command_type()))
    }

    fn usage(&self, _: ConnectionId, _: Timestamp) -> Usage {
        Usage::default()
    }

    async fn knows(&self, _: ConnectionId, _: AgentId) -> bool {
        false
    }

    fn default_sandbox(&self) -> SandboxKind {
        SandboxKind::Process
    }

    fn heard(&self, connection: ConnectionId) {
        self.routing.heard(connection);
    }
}
