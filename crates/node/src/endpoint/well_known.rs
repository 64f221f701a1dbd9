//! `GET /.well-known/mosaic`: what this node says of itself, signed by its key.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use mosaic_federation::{
    command::SealError,
    connect::{IdentityFacts, seal_identity},
};
use mosaic_types::{Timestamp, command::CommandType};

use super::{Endpoint, envelope_response, lock};
use crate::{http::ApiError, node::Node};

/// A document is good for a day; it is signed again after an hour.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The node's identity envelope, signed now and then.
#[derive(Debug, Default)]
pub(crate) struct OwnIdentity(Mutex<Option<(Timestamp, Bytes)>>);

impl OwnIdentity {
    /// Signs anew when asked next: what the node says of itself has changed.
    pub(crate) fn forget(&self) {
        *lock(&self.0) = None;
    }
}

impl Node {
    /// What this node says of itself, signed within the last hour.
    pub(crate) fn identity_envelope(&self, now: Timestamp) -> Result<Bytes, SealError> {
        let mut cached = lock(&self.own_identity().0);
        if let Some((signed_at, bytes)) = &*cached
            && *signed_at <= now
            && now.since(*signed_at) < MAX_AGE
        {
            return Ok(bytes.clone());
        }
        let facts = IdentityFacts {
            name: self.name().to_owned(),
            role: self.role(),
            url: self.public_url(),
            commands: CommandType::ALL.to_vec(),
        };
        let bytes = Bytes::from(seal_identity(self.identity(), &facts, now)?);
        *cached = Some((now, bytes.clone()));
        Ok(bytes)
    }
}

pub(super) async fn serve(State(endpoint): State<Arc<Endpoint>>) -> Response {
    match endpoint.node.identity_envelope(Timestamp::now()) {
        Ok(bytes) => envelope_response(bytes),
        Err(error) => ApiError::internal(&error).into_response(),
    }
}
