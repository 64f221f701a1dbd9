//! Event streams: signed lines that can neither be dropped, reordered nor moved to another stream unseen.
//!
//! Every line names the digest of the `agent.watch` request that opened the stream, and counts from 0.

use data_encoding::HEXLOWER;
use mosaic_types::{InstanceId, Timestamp, connection::Connection, event::AgentEvent};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    command::{SealError, SealedCommand},
    dsse::{self, EnvelopeError, MAX_RESPONSE_BYTES, PayloadType, ReceivedEnvelope},
    identity::Identity,
    key::Keyring,
    signed_by_peer,
};

/// Why a line does not continue the stream. The stream is over: ask again from the last event that was seen.
#[derive(Debug, Error)]
pub enum EventError {
    /// Not an envelope.
    #[error("read the event's envelope")]
    Envelope(#[from] EnvelopeError),
    /// Not signed by the peer.
    #[error("event is not signed by the peer")]
    Unauthenticated,
    /// An envelope of another type.
    #[error("envelope is not an event")]
    NotAnEvent,
    /// The body is not that of an event.
    #[error("read the event's body")]
    Malformed(#[source] serde_json::Error),
    /// It is of another stream, or between other instances.
    #[error("event does not match the stream in `{field}`")]
    Mismatch {
        /// The member.
        field: &'static str,
    },
    /// A line is missing, repeated or out of order.
    #[error("event is number {got} where {expected} is due")]
    Gap {
        /// The number that is due.
        expected: u64,
        /// The number that came.
        got: u64,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutgoingBody<'a> {
    from: &'a InstanceId,
    to: &'a InstanceId,
    request_digest: String,
    seq: u64,
    events: &'a [AgentEvent],
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IncomingBody {
    from: InstanceId,
    to: InstanceId,
    request_digest: String,
    seq: u64,
    events: Vec<AgentEvent>,
}

/// Signs one line of a stream, without a line feed. `seq` counts from 0; no events at all is a sign of life.
///
/// # Errors
/// See [`SealError`]; in particular more events than fit into [`MAX_RESPONSE_BYTES`].
pub fn seal_events(
    identity: &Identity,
    to: &InstanceId,
    request_digest: &[u8; 32],
    seq: u64,
    events: &[AgentEvent],
) -> Result<Vec<u8>, SealError> {
    let body = serde_json::to_vec(&OutgoingBody {
        from: identity.instance_id(),
        to,
        request_digest: HEXLOWER.encode(request_digest),
        seq,
        events,
    })?;
    let bytes = dsse::seal(identity, PayloadType::Event, &body).bytes;
    if bytes.len() > MAX_RESPONSE_BYTES {
        return Err(SealError::TooLarge {
            bytes: bytes.len(),
            limit: MAX_RESPONSE_BYTES,
        });
    }
    Ok(bytes)
}

/// The receiving end of one stream.
#[derive(Debug, Clone)]
pub struct EventStream {
    connection: Connection,
    me: InstanceId,
    request_digest: String,
    due: u64,
}

impl EventStream {
    /// The stream that answers `request`.
    #[must_use]
    pub fn new(connection: Connection, me: InstanceId, request: &SealedCommand) -> Self {
        Self {
            connection,
            me,
            request_digest: HEXLOWER.encode(&request.digest),
            due: 0,
        }
    }

    /// Takes the stream's next line.
    ///
    /// # Errors
    /// See [`EventError`]. The same line is due again after an error.
    pub fn next(&mut self, bytes: &[u8], now: Timestamp) -> Result<Vec<AgentEvent>, EventError> {
        let envelope = ReceivedEnvelope::parse_within(bytes, MAX_RESPONSE_BYTES)?;
        if !signed_by_peer(&envelope, &self.connection, &Keyring::default(), now) {
            return Err(EventError::Unauthenticated);
        }
        if envelope.payload_type() != PayloadType::Event {
            return Err(EventError::NotAnEvent);
        }
        let body: IncomingBody =
            serde_json::from_slice(envelope.payload()).map_err(EventError::Malformed)?;
        for (field, matches) in [
            ("from", body.from == self.connection.peer),
            ("to", body.to == self.me),
            ("requestDigest", body.request_digest == self.request_digest),
        ] {
            if !matches {
                return Err(EventError::Mismatch { field });
            }
        }
        if body.seq != self.due {
            return Err(EventError::Gap {
                expected: self.due,
                got: body.seq,
            });
        }
        self.due += 1;
        Ok(body.events)
    }
}

#[cfg(test)]
mod tests;
