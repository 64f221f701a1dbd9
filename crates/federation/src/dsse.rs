//! The envelope: DSSE 1.0.2 in a profile stricter than the standard's.
//!
//! What is signed are the bytes that were received, with their type bound in (F3): nothing is canonicalised or
//! written anew (F9). There is exactly one signature (F5), no unknown or duplicate member, and base64 has one
//! spelling. A signature's bytes identify nothing (F2): a request is known by its [`ReceivedEnvelope::digest`].

use std::{borrow::Cow, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mosaic_types::KeyId;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{
    identity::Identity,
    key::{SIGNATURE_BYTES, VerifyingKey},
    strict_json,
};

/// Most bytes of a request's envelope.
pub const MAX_ENVELOPE_BYTES: usize = 1 << 20;
/// Most bytes of the envelope of a response, or of one line of an event stream.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;

const PAE_PREFIX: &[u8] = b"DSSEv1 ";

/// What a payload is. Nothing else is ever signed or verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PayloadType {
    /// A command.
    Command,
    /// The answer to a command or connect request.
    Response,
    /// A line of an event stream.
    Event,
    /// What an instance says of itself.
    Identity,
    /// A request to be connected.
    Connect,
}

impl PayloadType {
    /// Every type.
    pub const ALL: [Self; 5] = [
        Self::Command,
        Self::Response,
        Self::Event,
        Self::Identity,
        Self::Connect,
    ];

    /// The type as it is written and signed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Command => "application/vnd.mosaic.command.v1+json",
            Self::Response => "application/vnd.mosaic.response.v1+json",
            Self::Event => "application/vnd.mosaic.event.v1+json",
            Self::Identity => "application/vnd.mosaic.identity.v1+json",
            Self::Connect => "application/vnd.mosaic.connect.v1+json",
        }
    }
}

/// Why bytes are not an envelope. For the log: a stranger is told nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// Larger than the limit in bytes.
    #[error("envelope is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Not the JSON of an envelope, or with unknown, duplicate or missing members.
    #[error("envelope is not the JSON of an envelope")]
    Malformed,
    /// None, or more than one.
    #[error("envelope has not exactly one signature")]
    SignatureCount,
    /// A payload type that is not one of [`PayloadType`].
    #[error("envelope has an unknown payload type")]
    UnknownType,
    /// The key id is not one.
    #[error("envelope has no well-formed key id")]
    KeyId,
    /// Not padded standard base64 in its one spelling.
    #[error("envelope holds base64 that is not canonical")]
    Base64,
    /// The signature is not 64 bytes.
    #[error("envelope has a signature of a wrong length")]
    SignatureLength,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireEnvelope<'a> {
    #[serde(borrow)]
    payload: Cow<'a, str>,
    #[serde(borrow)]
    payload_type: Cow<'a, str>,
    #[serde(borrow)]
    signatures: Vec<WireSignature<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSignature<'a> {
    #[serde(borrow)]
    keyid: Cow<'a, str>,
    #[serde(borrow)]
    sig: Cow<'a, str>,
}

fn pae_header(payload_type: &str, payload_bytes: usize, room: usize) -> Vec<u8> {
    let lengths = (payload_type.len().to_string(), payload_bytes.to_string());
    let mut pae = Vec::with_capacity(
        PAE_PREFIX.len() + lengths.0.len() + payload_type.len() + lengths.1.len() + 3 + room,
    );
    pae.extend_from_slice(PAE_PREFIX);
    pae.extend_from_slice(lengths.0.as_bytes());
    pae.push(b' ');
    pae.extend_from_slice(payload_type.as_bytes());
    pae.push(b' ');
    pae.extend_from_slice(lengths.1.as_bytes());
    pae.push(b' ');
    pae
}

/// DSSE's pre-authentication encoding: the bytes that are signed.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut pae = pae_header(payload_type, payload.len(), payload.len());
    pae.extend_from_slice(payload);
    pae
}

/// An envelope that was just signed.
#[derive(Clone)]
pub(crate) struct Sealed {
    /// The envelope's JSON.
    pub(crate) bytes: Vec<u8>,
    /// SHA-256 of the PAE.
    pub(crate) digest: [u8; 32],
}

/// Signs a payload that was built in this crate. Private to it (F7).
pub(crate) fn seal(identity: &Identity, payload_type: PayloadType, payload: &[u8]) -> Sealed {
    let pae = pae(payload_type.as_str(), payload);
    let signature = identity.sign(&pae);
    let mut json = String::with_capacity(payload.len() / 3 * 4 + 320);
    json.push_str(r#"{"payload":""#);
    STANDARD.encode_string(payload, &mut json);
    json.push_str(r#"","payloadType":""#);
    json.push_str(payload_type.as_str());
    json.push_str(r#"","signatures":[{"keyid":""#);
    json.push_str(identity.key_id().as_str());
    json.push_str(r#"","sig":""#);
    STANDARD.encode_string(signature, &mut json);
    json.push_str(r#""}]}"#);
    Sealed {
        bytes: json.into_bytes(),
        digest: Sha256::digest(&pae).into(),
    }
}

/// An envelope of the right form. Nothing in it is verified, and its payload cannot be read from here.
#[derive(Clone)]
pub struct ReceivedEnvelope {
    payload_type: PayloadType,
    key_id: KeyId,
    signature: [u8; SIGNATURE_BYTES],
    pae: Vec<u8>,
    payload_at: usize,
}

impl fmt::Debug for ReceivedEnvelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedEnvelope")
            .field("payload_type", &self.payload_type)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl ReceivedEnvelope {
    /// Reads a request's envelope of at most [`MAX_ENVELOPE_BYTES`].
    ///
    /// # Errors
    /// See [`EnvelopeError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        Self::parse_within(bytes, MAX_ENVELOPE_BYTES)
    }

    /// Reads an envelope of at most `limit` bytes.
    ///
    /// # Errors
    /// See [`EnvelopeError`].
    pub fn parse_within(bytes: &[u8], limit: usize) -> Result<Self, EnvelopeError> {
        if bytes.len() > limit {
            return Err(EnvelopeError::TooLarge { limit });
        }
        let wire: WireEnvelope<'_> =
            strict_json::from_slice(bytes).map_err(|_| EnvelopeError::Malformed)?;
        let [wire_signature] = wire.signatures.as_slice() else {
            return Err(EnvelopeError::SignatureCount);
        };
        let payload_type = PayloadType::ALL
            .into_iter()
            .find(|known| known.as_str() == wire.payload_type)
            .ok_or(EnvelopeError::UnknownType)?;
        let key_id = wire_signature
            .keyid
            .parse()
            .map_err(|_| EnvelopeError::KeyId)?;
        let signature = decode_signature(&wire_signature.sig)?;

        // The payload is decoded straight into the bytes that will be verified and, later, parsed.
        let payload_bytes = decoded_len(&wire.payload).ok_or(EnvelopeError::Base64)?;
        let mut pae = pae_header(payload_type.as_str(), payload_bytes, payload_bytes);
        let payload_at = pae.len();
        pae.resize(payload_at + payload_bytes, 0);
        let decoded = STANDARD
            .decode_slice(wire.payload.as_bytes(), &mut pae[payload_at..])
            .map_err(|_| EnvelopeError::Base64)?;
        if decoded != payload_bytes {
            return Err(EnvelopeError::Base64);
        }
        Ok(Self {
            payload_type,
            key_id,
            signature,
            pae,
            payload_at,
        })
    }

    /// The key that the sender says it signed with: a hint by which the connection is looked up, no more.
    #[must_use]
    pub fn claimed_key(&self) -> &KeyId {
        &self.key_id
    }

    /// What the payload is said to be; true once the signature is verified.
    #[must_use]
    pub fn payload_type(&self) -> PayloadType {
        self.payload_type
    }

    /// SHA-256 of the signed bytes: what a response is bound to, and what tells a repetition from a conflict.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.pae).into()
    }

    pub(crate) fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        *key.id() == self.key_id && key.verifies(&self.pae, &self.signature)
    }

    /// The payload. Only for callers who have verified it, or who must find the key inside it.
    pub(crate) fn payload(&self) -> &[u8] {
        self.pae.get(self.payload_at..).unwrap_or_default()
    }
}

/// Length of what padded base64 decodes to; `None` if the text cannot be such.
fn decoded_len(text: &str) -> Option<usize> {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len().is_multiple_of(4) && padding <= 2)
        .then(|| (text.len() / 4 * 3).saturating_sub(padding))
}

fn decode_signature(text: &str) -> Result<[u8; SIGNATURE_BYTES], EnvelopeError> {
    if decoded_len(text).ok_or(EnvelopeError::Base64)? != SIGNATURE_BYTES {
        return Err(EnvelopeError::SignatureLength);
    }
    let mut signature = [0; SIGNATURE_BYTES];
    match STANDARD.decode_slice(text, &mut signature) {
        Ok(SIGNATURE_BYTES) => Ok(signature),
        Ok(_) | Err(_) => Err(EnvelopeError::Base64),
    }
}

#[cfg(test)]
mod tests;
