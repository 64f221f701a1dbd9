//! The operators' routes that hub and orchestrator share.
//!
//! | role | may |
//! |---|---|
//! | viewer | read connections and the audit trail |
//! | admin | all of it |

use axum::{
    Router,
    routing::{delete, get, post},
};

use crate::node::Node;

mod audit;
mod connections;
pub(crate) mod health;
mod tokens;

/// To be nested at `/api/v1`.
#[rustfmt::skip]
pub fn operator_routes(node: Node) -> Router {
    Router::new()
        .route("/federation/connections",                 get(connections::list).post(connections::connect))
        .route("/federation/connections/{id}",            get(connections::get))
        .route("/federation/connections/{id}/accept",     post(connections::accept))
        .route("/federation/connections/{id}/reject",     post(connections::reject))
        .route("/federation/connections/{id}/suspend",    post(connections::suspend))
        .route("/federation/connections/{id}/resume",     post(connections::resume))
        .route("/federation/connections/{id}/disconnect", post(connections::disconnect))
        .route("/federation/invites",                     post(connections::invite))
        .route("/tokens",                                 get(tokens::list).post(tokens::create))
        .route("/tokens/{name}",                          delete(tokens::delete))
        .route("/audit",                                  get(audit::page))
        .route("/audit/verify",                           get(audit::verify))
        .route("/audit/witnessed",                        get(audit::witnessed))
        .with_state(node)
}
