//! Signed responses.

use bytes::Bytes;
use mosaic_federation::{
    command::{ClaimRequest, Refused, SealError},
    response::{InReplyTo, seal_refusal, seal_response},
};
use mosaic_types::{ErrorCode, InstanceId, Refusal, Timestamp};
use serde_json::value::RawValue;

use crate::node::Node;

/// The answer to a command that was executed.
pub(super) fn success(node: &Node, request: &ClaimRequest, data: &RawValue) -> Bytes {
    let reply = InReplyTo {
        to: request.peer(),
        request_digest: request.digest(),
        correlation_id: Some(request.message_id()),
    };
    let head = node.audit().head();
    match seal_response(node.identity(), reply, Ok(data), &head, Timestamp::now()) {
        Ok(bytes) => bytes.into(),
        Err(error) => {
            let refused = Refused {
                refusal: fault(&error),
                message_id: Some(request.message_id()),
                digest: request.digest(),
            };
            refusal(node, request.peer(), &refused)
        }
    }
}

/// A refusal to a peer who is authenticated.
pub(super) fn refusal(node: &Node, peer: &InstanceId, refused: &Refused) -> Bytes {
    let reply = InReplyTo {
        to: peer,
        request_digest: refused.digest,
        correlation_id: refused.message_id,
    };
    let head = node.audit().head();
    let sealed = seal_refusal(
        node.identity(),
        reply,
        &refused.refusal,
        &head,
        Timestamp::now(),
    );
    sealed.map_or_else(
        |error| {
            // An answer that cannot be verified, which is how the peer will see it.
            fault(&error);
            Bytes::new()
        },
        Bytes::from,
    )
}

/// A response could not be signed.
pub(crate) fn fault(error: &SealError) -> Refusal {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "failed to sign a response"
    );
    Refusal::new(
        ErrorCode::Internal,
        "a fault of this node; its log has the details",
    )
}
