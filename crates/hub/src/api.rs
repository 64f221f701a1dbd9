//! The operators' API of a hub, under `/api/v1`.
//!
//! Handlers extract, call [`routing`](crate::routing) and convert; the rules are there. Roles: a viewer reads, an
//! operator spawns and kills, an admin manages connections and tokens.

mod agents;
mod events;
mod instance;
mod kills;

use axum::{
    Router,
    extract::FromRef,
    routing::{delete, get, post},
};
use mosaic_node::Node;

use crate::routing::Routing;

pub use agents::{AgentsParams, SpawnRequest};

/// What handlers share.
#[derive(Clone)]
pub(crate) struct ApiState {
    node: Node,
    routing: Routing,
}

impl FromRef<ApiState> for Node {
    fn from_ref(state: &ApiState) -> Self {
        state.node.clone()
    }
}

impl FromRef<ApiState> for Routing {
    fn from_ref(state: &ApiState) -> Self {
        state.routing.clone()
    }
}

/// Every route of the API, with those that every node has.
pub fn routes(node: Node, routing: Routing) -> Router {
    let state = ApiState {
        node: node.clone(),
        routing,
    };
    let orders = Router::new()
        .route("/federation/agents/spawn", post(agents::spawn))
        .route("/federation/agents/kill-all", post(agents::kill_all))
        .route("/federation/agents/{agentId}/kill", post(agents::kill))
        .route("/federation/kills/{intentId}", delete(kills::cancel))
        .with_state(state.clone());
    let questions = Router::new()
        .route("/federation/agents", get(agents::list))
        .route("/federation/agents/{agentId}/status", get(agents::status))
        .route("/federation/agents/{agentId}/events", get(events::events))
        .route("/federation/agents/{agentId}/result", get(agents::result))
        .route("/federation/kills", get(kills::list))
        .route("/federation/commands/{messageId}", get(instance::command))
        .route("/federation/connections/{id}/ping", get(instance::ping))
        .route("/instance", get(instance::instance))
        .with_state(state);
    orders
        .merge(mosaic_node::in_turn(node.clone(), questions))
        .merge(mosaic_node::operator_routes(node))
}
