//! What an instance says of itself, signed by its own key.
//!
//! A document certifies itself: its instance id is the hash of its one key, and that key signs it. So its key has to
//! be read before anything is verified; nobody can squat another's id, or another's key, all the same.

use std::time::Duration;

use mosaic_types::{
    InstanceId, Timestamp,
    command::CommandType,
    connection::{NodeRole, PeerKey, ProtocolRange},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    CLOCK_SKEW_SECS,
    command::SealError,
    dsse::{self, EnvelopeError, PayloadType, ReceivedEnvelope},
    identity::Identity,
    key::{self, VerifyingKey},
    strict_json,
};

/// Longest validity of an identity document, in seconds: a day.
pub const MAX_IDENTITY_TTL_SECS: u64 = 86_400;
/// Most bytes of an identity document's envelope.
pub const MAX_IDENTITY_BYTES: usize = 64 << 10;
const MAX_COMMANDS: usize = 64;
const MAX_NAME_BYTES: usize = 128;
const MAX_URL_BYTES: usize = 2048;

/// Why an identity document is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdentityDocumentError {
    /// Not an envelope.
    #[error("read the identity's envelope")]
    Envelope(#[from] EnvelopeError),
    /// Not an identity document, or not a well-formed one.
    #[error("identity document is malformed at `{field}`: {reason}")]
    Malformed {
        /// The member.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A key cannot be taken.
    #[error("take the identity's key number {index}")]
    Key {
        /// Its place in the list.
        index: usize,
        /// The cause.
        source: key::KeyError,
    },
    /// The id is not the hash of the first key.
    #[error("instance id is not the hash of the identity's first key")]
    WrongId,
    /// It is of another instance than the one expected.
    #[error("identity is of {got}, not of {expected}")]
    Unexpected {
        /// Who was expected.
        expected: InstanceId,
        /// Who it is.
        got: InstanceId,
    },
    /// Not signed by its own first key.
    #[error("identity is not signed by its own key")]
    NotSigned,
    /// Not valid at this time, or for longer than a day.
    #[error("identity is not valid now, or for longer than a day")]
    NotValid,
}

/// What an instance says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityDocument {
    /// Its id.
    pub instance_id: InstanceId,
    /// What it calls itself.
    pub name: String,
    /// What it is.
    pub role: NodeRole,
    /// Where it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its keys: one, until there is a way to prove that a second is its own, too.
    pub keys: Vec<PeerKey>,
    /// The protocol versions that it speaks.
    pub protocol: ProtocolRange,
    /// Names of the commands that it serves. A newer peer may serve some that are not known here.
    pub commands: Vec<String>,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// What a node tells of itself in its identity document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFacts {
    /// What it calls itself.
    pub name: String,
    /// What it is.
    pub role: NodeRole,
    /// Where it is reached; `None` if it only calls others.
    pub url: Option<String>,
    /// The commands that it serves.
    pub commands: Vec<CommandType>,
}

/// Signs this node's identity document, good for a day.
///
/// # Errors
/// See [`SealError`].
pub fn seal_identity(
    identity: &Identity,
    facts: &IdentityFacts,
    now: Timestamp,
) -> Result<Vec<u8>, SealError> {
    // Peers keep the key with its window, and their clocks may be behind.
    let not_before = now.saturating_sub(Duration::from_secs(CLOCK_SKEW_SECS));
    let body = serde_json::to_vec(&IdentityDocument {
        instance_id: identity.instance_id().clone(),
        name: facts.name.clone(),
        role: facts.role,
        url: facts.url.clone(),
        keys: vec![identity.peer_key(not_before)],
        protocol: ProtocolRange::OURS,
        commands: facts
            .commands
            .iter()
            .map(|command| command.as_str().to_owned())
            .collect(),
        issued_at: now,
        expires_at: now.saturating_add(Duration::from_secs(MAX_IDENTITY_TTL_SECS)),
    })?;
    within(
        dsse::seal(identity, PayloadType::Identity, &body).bytes,
        MAX_IDENTITY_BYTES,
    )
}

pub(super) fn within(bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, SealError> {
    if bytes.len() > limit {
        return Err(SealError::TooLarge {
            bytes: bytes.len(),
            limit,
        });
    }
    Ok(bytes)
}

/// An identity document that its own key signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedIdentity {
    document: IdentityDocument,
}

impl VerifiedIdentity {
    /// Verifies an identity document's envelope.
    ///
    /// # Errors
    /// See [`IdentityDocumentError`].
    pub fn verify(bytes: &[u8], now: Timestamp) -> Result<Self, IdentityDocumentError> {
        let envelope = ReceivedEnvelope::parse_within(bytes, MAX_IDENTITY_BYTES)?;
        let malformed = |field: &str, reason: &str| IdentityDocumentError::Malformed {
            field: field.to_owned(),
            reason: reason.to_owned(),
        };
        if envelope.payload_type() != PayloadType::Identity {
            return Err(malformed("payloadType", "not an identity document"));
        }
        let document: IdentityDocument = strict_json::from_slice(envelope.payload())
            .map_err(|fault| malformed(&fault.field, &fault.reason))?;
        // The one signature proves that one key is the sender's. Any further key would be a claim without a
        // proof, and could be somebody else's.
        let [first] = document.keys.as_slice() else {
            return Err(malformed("keys", "not exactly one"));
        };
        let of_key = |source| IdentityDocumentError::Key { index: 0, source };
        let first_key = VerifyingKey::enrol(first).map_err(of_key)?;
        let first_bytes = key::public_key_bytes(first).map_err(of_key)?;
        if document.instance_id != key::instance_id(&first_bytes) {
            return Err(IdentityDocumentError::WrongId);
        }
        if !envelope.is_signed_by(&first_key) {
            return Err(IdentityDocumentError::NotSigned);
        }
        check_document(&document).map_err(|(field, reason)| malformed(field, reason))?;
        let skew = Duration::from_secs(CLOCK_SKEW_SECS);
        let longest = Duration::from_secs(MAX_IDENTITY_TTL_SECS);
        let valid = key::valid_at(first, now.saturating_add(skew))
            && document.issued_at <= now.saturating_add(skew)
            && document.issued_at < document.expires_at
            && document.expires_at <= document.issued_at.saturating_add(longest)
            && now < document.expires_at;
        if !valid {
            return Err(IdentityDocumentError::NotValid);
        }
        Ok(Self { document })
    }

    /// Verifies an identity document and that it is of `expected`, the instance that a peering token names.
    ///
    /// # Errors
    /// See [`IdentityDocumentError`].
    pub fn verify_of(
        bytes: &[u8],
        expected: &InstanceId,
        now: Timestamp,
    ) -> Result<Self, IdentityDocumentError> {
        let identity = Self::verify(bytes, now)?;
        if identity.instance_id() == expected {
            Ok(identity)
        } else {
            Err(IdentityDocumentError::Unexpected {
                expected: expected.clone(),
                got: identity.document.instance_id,
            })
        }
    }

    /// The instance.
    #[must_use]
    pub fn instance_id(&self) -> &InstanceId {
        &self.document.instance_id
    }

    /// What it says of itself.
    #[must_use]
    pub fn document(&self) -> &IdentityDocument {
        &self.document
    }

    pub(super) fn has_signed(&self, envelope: &ReceivedEnvelope, now: Timestamp) -> bool {
        // A key made just now is good: its owner's clock may be a little ahead.
        let latest = now.saturating_add(Duration::from_secs(CLOCK_SKEW_SECS));
        self.document.keys.iter().any(|key| {
            key.key_id == *envelope.claimed_key()
                && key::valid_at(key, latest)
                && key.not_after.is_none_or(|end| now < end)
                && VerifyingKey::enrol(key).is_ok_and(|key| envelope.is_signed_by(&key))
        })
    }
}

fn check_document(document: &IdentityDocument) -> Result<(), (&'static str, &'static str)> {
    let printable = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    if document.name.len() > MAX_NAME_BYTES || !printable(&document.name) {
        return Err(("name", "empty, too long, or holds a control character"));
    }
    if let Some(url) = &document.url {
        let web = url.starts_with("https://") || url.starts_with("http://");
        if !web || url.len() > MAX_URL_BYTES || !printable(url) {
            return Err(("url", "not a web address"));
        }
    }
    if document.commands.len() > MAX_COMMANDS
        || document
            .commands
            .iter()
            .any(|name| name.len() > MAX_NAME_BYTES || !printable(name))
    {
        return Err(("commands", "too many or too long"));
    }
    if document.protocol.min > document.protocol.max {
        return Err(("protocol", "an empty range"));
    }
    Ok(())
}
