//! The one conversion from a failure to an HTTP answer. Clients get a code and a safe text; what is internal is
//! logged here, once.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use mosaic_store::StoreError;
use mosaic_types::{ErrorCode, Refusal, error::Problem};

/// Media type of [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal or failure as the answer to an HTTP request (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError(pub Refusal);

impl ApiError {
    /// A refusal that names no field.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Refusal::new(code, message))
    }

    /// A fault of ours: the details go to the log, the client gets the code.
    #[must_use]
    pub fn internal(details: &dyn std::fmt::Display) -> Self {
        tracing::error!(%details, "internal error");
        Self::new(
            ErrorCode::Internal,
            "a fault of this node; its log has the details",
        )
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self(store_refusal(&error))
    }
}

/// What a failure of the store means to whoever asked. What the caller did not cause is logged here.
#[must_use]
pub fn store_refusal(error: &StoreError) -> Refusal {
    let (code, message) = match error {
        StoreError::Full | StoreError::Busy => (ErrorCode::Overloaded, "a table or queue is full"),
        StoreError::VersionConflict => (
            ErrorCode::VersionConflict,
            "it was changed by somebody else meanwhile",
        ),
        StoreError::InviteSpent => (
            ErrorCode::InvalidToken,
            "the peering token is unknown, expired or used",
        ),
        StoreError::Conflict => (ErrorCode::Conflict, "it conflicts with what is stored"),
        StoreError::NotFound => (ErrorCode::NotFound, "it is not there"),
        StoreError::TooLarge { .. } => (ErrorCode::InvalidRequest, "it is too large to be stored"),
        StoreError::Closed => (ErrorCode::ShuttingDown, "the store is closed"),
        StoreError::DiskFull(_) => (ErrorCode::DiskFull, "the disk is full"),
        StoreError::IllegalMove { .. } | StoreError::IllegalConnectionMove { .. } => {
            (ErrorCode::Conflict, "its state does not allow it")
        }
        _ => (
            ErrorCode::StoreUnavailable,
            "the store cannot be read or written",
        ),
    };
    if matches!(code, ErrorCode::StoreUnavailable | ErrorCode::DiskFull) {
        tracing::error!(error = error as &dyn std::error::Error, "the store failed");
    }
    Refusal::new(code, message)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem::from(self.0);
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if problem.code == ErrorCode::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
