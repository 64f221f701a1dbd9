//! The HTTP vocabulary of a node: errors, extractors, operators, and the server itself.
//!
//! Whatever goes wrong, the answer is problem+json with a stable code: a body too large, a route that does not
//! exist, a handler that panicked.

pub mod events;
pub mod extract;
pub mod operator;
pub mod problem;
pub mod serve;

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
};
use mosaic_types::{ErrorCode, Refusal};

use crate::priority::KillPriority;

pub use events::EventsRequest;
pub use extract::{Body, OptionalBody, PathId, Query};
pub use operator::Operator;
pub use problem::ApiError;
pub use serve::{Draining, serve};

/// These routes, whose requests stand aside for kills. Those of kills, and those that end what somebody may do, are others.
pub fn in_turn(priority: KillPriority, router: Router) -> Router {
    let turn = async |State(priority): State<KillPriority>, request: Request, next: Next| {
        priority.in_turn(next.run(request)).await
    };
    router.route_layer(middleware::from_fn_with_state(priority, turn))
}

/// Adds the answers to unknown paths (404) and methods (405) as problem+json.
pub fn fallback(router: Router) -> Router {
    router
        .fallback(async || ApiError(Refusal::new(ErrorCode::NotFound, "no such route")))
        .method_not_allowed_fallback(async || {
            ApiError(Refusal::new(
                ErrorCode::MethodNotAllowed,
                "the route does not take this method",
            ))
        })
}
