//! How two instances come to know each other: identity documents and connect requests.
//!
//! Nothing is fetched for a stranger (F25): who it is, its own document says.

use std::{fmt, time::Duration};

use mosaic_types::{
    ErrorCode, InstanceId, MessageId, Refusal, Timestamp, audit::AuditHead,
    connection::ConnectionState, grant::Grants,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::{
    Unauthenticated,
    command::{Refused, SealError, SealedCommand, check_times},
    dsse::{self, MAX_ENVELOPE_BYTES, MAX_RESPONSE_BYTES, PayloadType, ReceivedEnvelope},
    identity::Identity,
    response::{self, InReplyTo, PeerRefusal, ResponseError, VerifiedResponse},
    strict_json,
    token::TokenSecret,
};

mod document;

pub use document::{
    IdentityDocument, IdentityDocumentError, IdentityFacts, MAX_IDENTITY_BYTES,
    MAX_IDENTITY_TTL_SECS, VerifiedIdentity, seal_identity,
};

use document::within;

const CONNECT_TTL_SECS: u64 = 60;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutgoingConnect<'a> {
    message_id: MessageId,
    from: &'a InstanceId,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a InstanceId>,
    identity: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a TokenSecret>,
    requested_grants: &'a Grants,
    issued_at: Timestamp,
    expires_at: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IncomingConnect<'a> {
    message_id: MessageId,
    from: InstanceId,
    #[serde(default)]
    to: Option<InstanceId>,
    #[serde(borrow)]
    identity: &'a RawValue,
    #[serde(default)]
    token: Option<TokenSecret>,
    requested_grants: Grants,
    issued_at: Timestamp,
    expires_at: Timestamp,
}

/// Signs a request to be connected, good for a minute. `identity_envelope` is what [`seal_identity`] made.
///
/// # Errors
/// See [`SealError`].
pub fn seal_connect(
    identity: &Identity,
    identity_envelope: &[u8],
    to: Option<&InstanceId>,
    token: Option<&TokenSecret>,
    requested_grants: &Grants,
    now: Timestamp,
) -> Result<SealedCommand, SealError> {
    let message_id = MessageId::generate();
    let expires_at = now.saturating_add(Duration::from_secs(CONNECT_TTL_SECS));
    let body = zeroize::Zeroizing::new(serde_json::to_vec(&OutgoingConnect {
        message_id,
        from: identity.instance_id(),
        to,
        identity: serde_json::from_slice(identity_envelope)?,
        token,
        requested_grants,
        issued_at: now,
        expires_at,
    })?);
    let sealed = dsse::seal(identity, PayloadType::Connect, &body);
    Ok(SealedCommand {
        bytes: within(sealed.bytes, MAX_ENVELOPE_BYTES)?,
        message_id,
        digest: sealed.digest,
        expires_at,
    })
}

/// A request to be connected, signed by a key of the instance that makes it.
#[derive(Clone)]
pub struct VerifiedConnect {
    /// Who asks.
    pub identity: VerifiedIdentity,
    /// The secret of a peering token, to be looked up by its hash.
    pub token_secret: Option<TokenSecret>,
    /// What is asked for. For the operator's information where there is a token: that decides.
    pub requested_grants: Grants,
    /// The request's id.
    pub message_id: MessageId,
    /// The request's digest.
    pub digest: [u8; 32],
    /// When the request expires.
    pub expires_at: Timestamp,
}

impl fmt::Debug for VerifiedConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedConnect")
            .field("peer", self.identity.instance_id())
            .field("message_id", &self.message_id)
            .finish_non_exhaustive()
    }
}

/// Why a connect request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The sender is not who it says. The one constant answer, without a hint.
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// The sender is known, and gets a signed refusal.
    #[error("{}", .0.refusal)]
    Refused(Box<Refused>, InstanceId),
}

/// Verifies a connect request to `me`.
///
/// # Errors
/// See [`ConnectError`].
pub fn verify_connect(
    bytes: &[u8],
    me: &InstanceId,
    now: Timestamp,
) -> Result<VerifiedConnect, ConnectError> {
    let envelope = ReceivedEnvelope::parse(bytes).map_err(|_| Unauthenticated)?;
    if envelope.payload_type() != PayloadType::Connect {
        return Err(Unauthenticated.into());
    }
    if !strict_json::nests_within(envelope.payload(), strict_json::MAX_DEPTH) {
        return Err(Unauthenticated.into());
    }
    let body: IncomingConnect<'_> =
        strict_json::from_slice(envelope.payload()).map_err(|_| Unauthenticated)?;
    let identity = VerifiedIdentity::verify(body.identity.get().as_bytes(), now)
        .map_err(|_| Unauthenticated)?;
    if !identity.has_signed(&envelope, now) {
        return Err(Unauthenticated.into());
    }
    // From here on the sender is the owner of the key that its instance id is the hash of.
    let digest = envelope.digest();
    let refuse = |refusal| {
        let refused = Refused {
            refusal,
            message_id: Some(body.message_id),
            digest,
        };
        ConnectError::Refused(Box::new(refused), identity.instance_id().clone())
    };
    if body.from != *identity.instance_id() {
        let refusal = Refusal::field(
            ErrorCode::WrongSender,
            "from",
            "the signing key belongs to another instance",
        );
        return Err(refuse(refusal));
    }
    if body.to.as_ref().is_some_and(|to| to != me) {
        let refusal = Refusal::field(ErrorCode::WrongRecipient, "to", "this is another instance");
        return Err(refuse(refusal));
    }
    check_times(body.issued_at, body.expires_at, now, Duration::ZERO).map_err(refuse)?;
    Ok(VerifiedConnect {
        token_secret: body.token,
        requested_grants: body.requested_grants,
        message_id: body.message_id,
        digest,
        expires_at: body.expires_at,
        identity,
    })
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConnectData {
    identity: Box<RawValue>,
    state: ConnectionState,
    granted: Grants,
}

/// Signs the answer to a connect request: this node's identity, where the connection stands, what is granted.
///
/// # Errors
/// See [`SealError`].
pub fn seal_connect_response(
    identity: &Identity,
    identity_envelope: &[u8],
    request: &VerifiedConnect,
    state: ConnectionState,
    granted: &Grants,
    audit_head: &AuditHead,
    now: Timestamp,
) -> Result<Vec<u8>, SealError> {
    let data = ConnectData {
        identity: serde_json::from_slice(identity_envelope)?,
        state,
        granted: granted.clone(),
    };
    let reply = InReplyTo {
        to: request.identity.instance_id(),
        request_digest: request.digest,
        correlation_id: Some(request.message_id),
    };
    response::seal_response(identity, reply, Ok(&data), audit_head, now)
}

/// What a peer answered to a connect request.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectAnswer {
    /// The peer, as of its answer.
    pub identity: VerifiedIdentity,
    /// `active`, or `pending` until the peer's operator accepts.
    pub state: ConnectionState,
    /// What the peer grants.
    pub granted: Grants,
    /// Where the peer's audit trail ended.
    pub audit_head: AuditHead,
}

/// Verifies the answer to our connect request. `peer` is the identity that was fetched from the peer before, and
/// that was verified to be of the instance that the token names.
///
/// # Errors
/// See [`ResponseError`]; the inner result is the peer's.
pub fn verify_connect_response(
    bytes: &[u8],
    peer: &VerifiedIdentity,
    me: &InstanceId,
    request: &SealedCommand,
    now: Timestamp,
) -> Result<Result<ConnectAnswer, PeerRefusal>, ResponseError> {
    let envelope = ReceivedEnvelope::parse_within(bytes, MAX_RESPONSE_BYTES)?;
    if !peer.has_signed(&envelope, now) {
        return Err(ResponseError::Unauthenticated);
    }
    let response: VerifiedResponse = response::read_response(
        &envelope,
        peer.instance_id(),
        me,
        request.message_id,
        &request.digest,
    )?;
    let data: ConnectData = match response.read()? {
        Ok(data) => data,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let malformed = |field: &str, reason: String| ResponseError::Malformed {
        field: field.to_owned(),
        reason,
    };
    let identity =
        VerifiedIdentity::verify_of(data.identity.get().as_bytes(), peer.instance_id(), now)
            .map_err(|error| malformed("data.identity", error.to_string()))?;
    if !matches!(
        data.state,
        ConnectionState::Active | ConnectionState::Pending
    ) {
        return Err(malformed(
            "data.state",
            "neither active nor pending".to_owned(),
        ));
    }
    Ok(Ok(ConnectAnswer {
        identity,
        state: data.state,
        granted: data.granted,
        audit_head: response.audit_head,
    }))
}

#[cfg(test)]
mod tests;
