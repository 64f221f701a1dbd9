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
    extract::{FromRequestParts as _, Request, State},
    middleware::{self, Next},
};
use mosaic_types::{ErrorCode, Refusal};

use crate::node::Node;

pub use events::EventsRequest;
pub use extract::{Body, OptionalBody, PathId, Query};
pub use operator::Operator;
pub use problem::ApiError;
pub use serve::{Draining, serve};

/// These routes, on which operators only ask, and stand aside for kills. Whoever is no operator takes nobody's turn.
pub fn in_turn(node: Node, router: Router) -> Router {
    let turn = async |State(node): State<Node>, request: Request, next: Next| {
        let (mut parts, body) = request.into_parts();
        let operator = Operator::from_request_parts(&mut parts, &node).await;
        let answering = next.run(Request::from_parts(parts, body));
        match operator {
            Ok(_) => node.priority().in_turn(answering).await,
            Err(_) => answering.await,
        }
    };
    router.route_layer(middleware::from_fn_with_state(node, turn))
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
