//! Signed responses, bound to the digest of the request that they answer.
//!
//! Whoever is authenticated gets one, refusals included. A response fits one request only: its digest, its id,
//! and the pair of instances must all be those of the request that was sent.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use mosaic_types::{
    ErrorCode, InstanceId, MessageId, Refusal, Timestamp, audit::AuditHead, connection::Connection,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::{
    command::{SealError, SealedCommand},
    dsse::{self, EnvelopeError, MAX_RESPONSE_BYTES, PayloadType, ReceivedEnvelope},
    identity::Identity,
    key::Keyring,
    signed_by_peer, strict_json,
};

const MAX_CODE_CHARS: usize = 64;
const MAX_MESSAGE_CHARS: usize = 2000;

/// Why bytes are not the response to our request. They prove nothing about the request: it may have been
/// executed.
#[derive(Debug, Error)]
pub enum ResponseError {
    /// Not an envelope.
    #[error("read the response's envelope")]
    Envelope(#[from] EnvelopeError),
    /// Not signed by the peer.
    #[error("response is not signed by the peer")]
    Unauthenticated,
    /// An envelope of another type.
    #[error("envelope is not a response")]
    NotAResponse,
    /// The body is not that of a response.
    #[error("response is malformed at `{field}`: {reason}")]
    Malformed {
        /// The member.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// It answers another request, or is between other instances.
    #[error("response does not match the request in `{field}`")]
    Mismatch {
        /// The member.
        field: &'static str,
    },
}

/// A refusal or failure as a peer tells it. A newer peer may use codes that this software does not know.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message} ({raw_code})")]
pub struct PeerRefusal {
    /// The code, if it is known here.
    pub code: Option<ErrorCode>,
    /// The code as the peer wrote it, at most 64 characters.
    pub raw_code: String,
    /// The peer's text, at most 2000 characters.
    pub message: String,
    /// Whether the peer says that the same request may succeed later.
    pub retryable: bool,
    /// The member of the request at fault.
    pub field: Option<String>,
}

impl PeerRefusal {
    /// As a refusal of our own, to pass on. A code that is not known here becomes `internal` with the peer's code
    /// in the text.
    #[must_use]
    pub fn into_refusal(self) -> Refusal {
        match self.code {
            Some(code) => Refusal {
                code,
                message: self.message,
                retryable: self.retryable,
                field: self.field,
            },
            None => Refusal {
                code: ErrorCode::Internal,
                message: self.to_string(),
                retryable: self.retryable,
                field: self.field,
            },
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutgoingBody<'a, T: ?Sized> {
    message_id: MessageId,
    correlation_id: Option<MessageId>,
    request_digest: String,
    from: &'a InstanceId,
    to: &'a InstanceId,
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Refusal>,
    timestamp: Timestamp,
    audit_head: &'a AuditHead,
}

/// What a response answers, and to whom.
#[derive(Debug, Clone, Copy)]
pub struct InReplyTo<'a> {
    /// Who sent the request, by the verified key.
    pub to: &'a InstanceId,
    /// The request's digest.
    pub request_digest: [u8; 32],
    /// The request's id; `None` if it could not be read.
    pub correlation_id: Option<MessageId>,
}

/// Signs a response.
///
/// # Errors
/// See [`SealError`]; in particular a response larger than [`MAX_RESPONSE_BYTES`].
pub fn seal_response<T: Serialize + ?Sized>(
    identity: &Identity,
    reply: InReplyTo<'_>,
    result: Result<&T, &Refusal>,
    audit_head: &AuditHead,
    now: Timestamp,
) -> Result<Vec<u8>, SealError> {
    let body = serde_json::to_vec(&OutgoingBody {
        message_id: MessageId::generate(),
        correlation_id: reply.correlation_id,
        request_digest: HEXLOWER.encode(&reply.request_digest),
        from: identity.instance_id(),
        to: reply.to,
        success: result.is_ok(),
        data: result.ok(),
        error: result.err(),
        timestamp: now,
        audit_head,
    })?;
    let bytes = dsse::seal(identity, PayloadType::Response, &body).bytes;
    if bytes.len() > MAX_RESPONSE_BYTES {
        return Err(SealError::TooLarge {
            bytes: bytes.len(),
            limit: MAX_RESPONSE_BYTES,
        });
    }
    Ok(bytes)
}

/// Signs a refusal.
///
/// # Errors
/// See [`SealError`].
pub fn seal_refusal(
    identity: &Identity,
    reply: InReplyTo<'_>,
    refusal: &Refusal,
    audit_head: &AuditHead,
    now: Timestamp,
) -> Result<Vec<u8>, SealError> {
    seal_response::<()>(identity, reply, Err(refusal), audit_head, now)
}

/// Members that are not known are skipped: a newer peer may answer with more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IncomingBody<'a> {
    message_id: MessageId,
    correlation_id: Option<MessageId>,
    #[serde(borrow)]
    request_digest: Cow<'a, str>,
    from: InstanceId,
    to: InstanceId,
    success: bool,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<IncomingError<'a>>,
    timestamp: Timestamp,
    audit_head: AuditHead,
}

/// A `null` that is there is an answer, unlike one that is absent.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IncomingError<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
    message: String,
    retryable: bool,
    #[serde(default)]
    field: Option<String>,
}

/// A response that the peer signed, to the very request that was sent.
#[derive(Debug, Clone)]
pub struct VerifiedResponse {
    /// Its id.
    pub message_id: MessageId,
    /// The answer's data as the peer wrote it, or the refusal.
    pub result: Result<Box<RawValue>, PeerRefusal>,
    /// Where the peer's audit trail ended.
    pub audit_head: AuditHead,
    /// When it was signed, by the peer's clock.
    pub timestamp: Timestamp,
}

impl VerifiedResponse {
    /// The answer's data as a `T`.
    ///
    /// # Errors
    /// [`ResponseError::Malformed`] if it is not one. The inner result is the peer's.
    pub fn read<T: serde::de::DeserializeOwned>(
        &self,
    ) -> Result<Result<T, PeerRefusal>, ResponseError> {
        match &self.result {
            Ok(data) => {
                serde_json::from_str(data.get())
                    .map(Ok)
                    .map_err(|error| ResponseError::Malformed {
                        field: "data".to_owned(),
                        reason: error.to_string(),
                    })
            }
            Err(refusal) => Ok(Err(refusal.clone())),
        }
    }
}

/// Verifies that `bytes` are the peer's response to our `request`.
///
/// The connection need not be active: what a peer says to a request made before it was suspended is still true.
///
/// # Errors
/// See [`ResponseError`].
pub fn verify_response(
    bytes: &[u8],
    connection: &Connection,
    me: &InstanceId,
    request: &SealedCommand,
    now: Timestamp,
) -> Result<VerifiedResponse, ResponseError> {
    verify_response_with(bytes, connection, &Keyring::default(), me, request, now)
}

/// As [`verify_response`], sparing the work that was done for the keys in `keyring`.
///
/// # Errors
/// See [`ResponseError`].
pub fn verify_response_with(
    bytes: &[u8],
    connection: &Connection,
    keyring: &Keyring,
    me: &InstanceId,
    request: &SealedCommand,
    now: Timestamp,
) -> Result<VerifiedResponse, ResponseError> {
    let envelope = ReceivedEnvelope::parse_within(bytes, MAX_RESPONSE_BYTES)?;
    if !signed_by_peer(&envelope, connection, keyring, now) {
        return Err(ResponseError::Unauthenticated);
    }
    read_response(
        &envelope,
        &connection.peer,
        me,
        request.message_id,
        &request.digest,
    )
}

/// Reads a response whose signature was verified as `peer`'s.
pub(crate) fn read_response(
    envelope: &ReceivedEnvelope,
    peer: &InstanceId,
    me: &InstanceId,
    message_id: MessageId,
    digest: &[u8; 32],
) -> Result<VerifiedResponse, ResponseError> {
    if envelope.payload_type() != PayloadType::Response {
        return Err(ResponseError::NotAResponse);
    }
    if !strict_json::nests_within(envelope.payload(), 2 * strict_json::MAX_DEPTH) {
        return Err(malformed("", "nests too deeply"));
    }
    let body: IncomingBody<'_> = strict_json::from_slice(envelope.payload())
        .map_err(|fault| malformed(fault.field, fault.reason))?;
    let mismatch = |field| Err(ResponseError::Mismatch { field });
    if body.from != *peer {
        return mismatch("from");
    }
    if body.to != *me {
        return mismatch("to");
    }
    if body.request_digest != HEXLOWER.encode(digest) {
        return mismatch("requestDigest");
    }
    // Only a refusal of what could not be read may leave the id open; the digest binds it all the same.
    let correlates = match body.correlation_id {
        Some(correlation_id) => correlation_id == message_id,
        None => !body.success,
    };
    if !correlates {
        return mismatch("correlationId");
    }
    if !is_head(&body.audit_head) {
        return Err(malformed("auditHead", "not the head of a trail"));
    }
    let result = match (body.success, body.data, body.error) {
        (true, Some(data), None) => Ok(data.to_owned()),
        (false, None, Some(error)) => Err(error.into_refusal()),
        _ => {
            return Err(malformed(
                "success",
                "neither data alone nor an error alone",
            ));
        }
    };
    Ok(VerifiedResponse {
        message_id: body.message_id,
        result,
        audit_head: body.audit_head,
        timestamp: body.timestamp,
    })
}

/// Whether it has the form of one: it is kept, and many of a peer (F22).
fn is_head(head: &AuditHead) -> bool {
    let is_digest = |hash: &str| {
        let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        hash.len() == 64 && hash.bytes().all(digit)
    };
    i64::try_from(head.seq).is_ok() && is_digest(&head.hash)
}

fn malformed(field: impl Into<String>, reason: impl Into<String>) -> ResponseError {
    ResponseError::Malformed {
        field: field.into(),
        reason: reason.into(),
    }
}

impl IncomingError<'_> {
    fn into_refusal(self) -> PeerRefusal {
        let bounded = |text: &str, max| text.chars().take(max).collect::<String>();
        PeerRefusal {
            code: ErrorCode::ALL
                .iter()
                .copied()
                .find(|known| known.as_str() == self.code),
            raw_code: bounded(&self.code, MAX_CODE_CHARS),
            message: bounded(&self.message, MAX_MESSAGE_CHARS),
            retryable: self.retryable,
            field: self.field.as_deref().map(|field| bounded(field, 256)),
        }
    }
}

#[cfg(test)]
mod tests;
