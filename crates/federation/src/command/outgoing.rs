//! Commands that this node sends.

use std::time::Duration;

use mosaic_types::{InstanceId, MessageId, Timestamp, command::CommandType};
use serde::Serialize;
use serde_json::value::RawValue;
use thiserror::Error;

use super::{MAX_HOPS, MAX_TTL_SECS};
use crate::{
    dsse::{self, MAX_ENVELOPE_BYTES, PayloadType},
    identity::Identity,
};

/// Why something was not signed.
#[derive(Debug, Error)]
pub enum SealError {
    /// It cannot be written as JSON.
    #[error("write the body as JSON")]
    Json(#[from] serde_json::Error),
    /// The envelope would be larger than a peer takes.
    #[error("envelope of {bytes} bytes is larger than {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// A signed request that was sent or is about to be, and what its response must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedCommand {
    /// The envelope's JSON, to be sent as it is. Sending it again is the same request.
    pub bytes: Vec<u8>,
    /// Its id.
    pub message_id: MessageId,
    /// Its digest, which the response names.
    pub digest: [u8; 32],
    /// When it expires.
    pub expires_at: Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireBody<'a, P: ?Sized> {
    message_id: MessageId,
    from: &'a InstanceId,
    to: &'a InstanceId,
    command_type: CommandType,
    payload: &'a P,
    issued_at: Timestamp,
    expires_at: Timestamp,
    hops_left: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_behalf_of: Option<&'a RawValue>,
}

/// A command to be signed.
#[derive(Debug, Clone)]
pub struct CommandBuilder<'a> {
    to: &'a InstanceId,
    command_type: CommandType,
    message_id: MessageId,
    ttl_secs: u64,
    hops_left: u8,
    traceparent: Option<&'a str>,
    on_behalf_of: Option<&'a RawValue>,
}

impl<'a> CommandBuilder<'a> {
    /// A command to `to`, good for 60 s, that is not to be forwarded.
    #[must_use]
    pub fn new(to: &'a InstanceId, command_type: CommandType) -> Self {
        Self {
            to,
            command_type,
            message_id: MessageId::generate(),
            ttl_secs: 60,
            hops_left: 0,
            traceparent: None,
            on_behalf_of: None,
        }
    }

    /// With this id instead of a fresh one.
    #[must_use]
    pub fn message_id(mut self, message_id: MessageId) -> Self {
        self.message_id = message_id;
        self
    }

    /// Good for so many seconds, 1 to 300; others are clamped.
    #[must_use]
    pub fn ttl_secs(mut self, ttl_secs: u64) -> Self {
        self.ttl_secs = ttl_secs.clamp(1, MAX_TTL_SECS);
        self
    }

    /// To be forwarded at most so many times, up to 8; more are clamped.
    #[must_use]
    pub fn hops_left(mut self, hops_left: u8) -> Self {
        self.hops_left = hops_left.min(MAX_HOPS);
        self
    }

    /// With a W3C trace context.
    #[must_use]
    pub fn traceparent(mut self, traceparent: Option<&'a str>) -> Self {
        self.traceparent = traceparent;
        self
    }

    /// With the envelope that it forwards, byte for byte.
    #[must_use]
    pub fn on_behalf_of(mut self, original: Option<&'a RawValue>) -> Self {
        self.on_behalf_of = original;
        self
    }

    /// Signs it.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn seal(
        self,
        identity: &Identity,
        payload: &(impl Serialize + ?Sized),
        now: Timestamp,
    ) -> Result<SealedCommand, SealError> {
        let expires_at = now.saturating_add(Duration::from_secs(self.ttl_secs));
        let body = serde_json::to_vec(&WireBody {
            message_id: self.message_id,
            from: identity.instance_id(),
            to: self.to,
            command_type: self.command_type,
            payload,
            issued_at: now,
            expires_at,
            hops_left: self.hops_left,
            traceparent: self.traceparent,
            on_behalf_of: self.on_behalf_of,
        })?;
        let sealed = dsse::seal(identity, PayloadType::Command, &body);
        if sealed.bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(SealError::TooLarge {
                bytes: sealed.bytes.len(),
                limit: MAX_ENVELOPE_BYTES,
            });
        }
        Ok(SealedCommand {
            bytes: sealed.bytes,
            message_id: self.message_id,
            digest: sealed.digest,
            expires_at,
        })
    }
}

/// Signs a command in one go; see [`CommandBuilder`].
///
/// # Errors
/// See [`SealError`].
#[expect(
    clippy::too_many_arguments,
    reason = "the short form of the builder, whose names say what each is"
)]
pub fn seal_command(
    identity: &Identity,
    to: &InstanceId,
    command_type: CommandType,
    payload: &(impl Serialize + ?Sized),
    now: Timestamp,
    ttl_secs: u64,
    hops_left: u8,
    traceparent: Option<&str>,
) -> Result<SealedCommand, SealError> {
    CommandBuilder::new(to, command_type)
        .ttl_secs(ttl_secs)
        .hops_left(hops_left)
        .traceparent(traceparent)
        .seal(identity, payload, now)
}
