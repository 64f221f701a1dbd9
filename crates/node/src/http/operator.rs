//! Who asks, on the operators' API.

use axum::extract::{FromRef, FromRequestParts};
use http::{header, request::Parts};
use mosaic_types::{ErrorCode, api::Role, audit::Actor};

use super::{
    problem::ApiError,
    serve::{Killer, Standing},
};
use crate::node::Node;

/// The operator whose bearer token came with the request. As an extractor it answers 401 to a request without a
/// token that is known; handlers then ask for the role that they need.
///
/// Tokens are checked in memory: it works with the store gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Name of the token.
    pub name: String,
    /// What it allows.
    pub role: Role,
}

impl Operator {
    /// Refuses with 403 unless the token's role is `role` or includes it.
    pub fn require(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            Ok(())
        } else {
            Err(ApiError::new(
                ErrorCode::Forbidden,
                "the role of this token does not allow it",
            ))
        }
    }

    /// The operator as the audit trail names it.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor::Operator {
            token: self.name.clone(),
        }
    }
}

impl<S> FromRequestParts<S> for Operator
where
    Node: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let operator = bearer(parts)
            .and_then(|token| Node::from_ref(state).operators().authenticate(token))
            .ok_or_else(unauthorized)?;
        if let Some(standing) = parts.extensions.get::<Standing>() {
            match operator.role {
                Role::Viewer => standing.raise_to_viewer(),
                Role::Operator | Role::Admin => {
                    standing.raise_to_killer(&Killer::Operator(operator.name.clone()));
                }
            }
        }
        Ok(operator)
    }
}

/// The one bearer token of a request.
pub(super) fn bearer(parts: &Parts) -> Option<&str> {
    let mut values = parts.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

pub(super) fn unauthorized() -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, "a bearer token is required")
}
