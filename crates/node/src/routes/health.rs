//! Whether the process lives, and whether it can do its work.

use std::future::Future;

use axum::{Json, Router, routing::get};
use mosaic_types::Refusal;
use serde::Serialize;

use crate::{http::ApiError, node::Node};

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

const OK: Json<Health> = Json(Health { status: "ok" });

/// `/healthz`: always 200. `/readyz`: 200 if the store can be written and `ready` says so, else problem+json with
/// what is wrong. Neither asks for a token, neither tells more.
pub fn health_routes<F, R>(node: Node, ready: F) -> Router
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), Refusal>> + Send + 'static,
{
    Router::new().route("/healthz", get(async || OK)).route(
        "/readyz",
        get(move || {
            let (node, ready) = (node.clone(), ready.clone());
            async move {
                node.store().check().await.map_err(ApiError::from)?;
                ready().await.map_err(ApiError)?;
                Ok::<_, ApiError>(OK)
            }
        }),
    )
}
