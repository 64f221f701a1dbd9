//! A node: what hub and orchestrator have in common.
//!
//! An async shell round the sans-IO `federation` and the `store`: the federation endpoint with its order of checks,
//! the client for peers, operators and their tokens, the routes that both kinds of node serve, and the HTTP server
//! itself.
//!
//! What it promises:
//! - Nothing is executed that was not verified, authorised and claimed, and nothing twice.
//! - A kill is verified, executed and answered with the store gone or slow, and with everything else full.
//! - Suspending a connection takes effect at once, on open streams too.
//! - Whoever is not authenticated learns nothing: one constant answer, whatever the cause.
//! - Everything that a client can make this node hold or wait for has a bound.

pub mod audit_log;
mod causes;
pub mod connections;
pub mod endpoint;
pub mod http;
pub mod limits;
pub mod node;
pub mod operators;
pub mod peer_client;
mod peering;
mod priority;
mod routes;
mod runtime;

pub use audit_log::AuditLog;
pub use causes::with_causes;
pub use connections::Connections;
pub use endpoint::{CommandHandler, federation_routes};
pub use http::{
    ApiError, Body, Draining, EventsRequest, Operator, OptionalBody, PathId, Query, fallback,
    in_turn, problem::store_refusal, serve,
};
pub use limits::HttpLimits;
pub use node::{Node, NodeConfig, OpenError};
pub use operators::Operators;
pub use peer_client::{CommandCall, PeerAnswer, PeerClient, PeerError};
pub use priority::KillPriority;
pub use routes::{health::health_routes, operator_routes};
pub use runtime::runtime;
