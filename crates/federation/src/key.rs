//! Public keys: their ids, and which of them are taken at all.
//!
//! A key that exists as a [`VerifyingKey`] is canonical, of large order, and the one its id names. Under a
//! small-order key one signature fits any message (F1), so such a key never gets past here.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::Signature;
use mosaic_types::{
    InstanceId, KeyId, Timestamp,
    connection::{Connection, PeerKey},
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Bytes of an ed25519 public key.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// Bytes of an ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// Why a public key is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not 32 bytes in padded standard base64.
    #[error("public key is not 32 bytes in canonical base64")]
    NotBase64,
    /// Not the canonical encoding of a point of the curve.
    #[error("public key is not the canonical encoding of a point")]
    NotCanonical,
    /// A point of small order.
    #[error("public key is weak")]
    Weak,
    /// The id is not the hash of the key.
    #[error("key id is not the hash of the key")]
    WrongId,
    /// The validity window is empty.
    #[error("key is never valid")]
    EmptyWindow,
}

fn key_hash(prefix: &str, public_key: &[u8; PUBLIC_KEY_BYTES]) -> String {
    let hash = Sha256::digest(public_key);
    let mut text = data_encoding::BASE32_NOPAD.encode(&hash[..20]);
    text.make_ascii_lowercase();
    format!("{prefix}{text}")
}

/// The id of a public key.
#[must_use]
pub fn key_id(public_key: &[u8; PUBLIC_KEY_BYTES]) -> KeyId {
    parse_hash(&key_hash(KeyId::PREFIX, public_key))
}

/// The id of the instance whose *first* public key this is.
#[must_use]
pub fn instance_id(first_public_key: &[u8; PUBLIC_KEY_BYTES]) -> InstanceId {
    parse_hash(&key_hash(InstanceId::PREFIX, first_public_key))
}

#[expect(
    clippy::expect_used,
    reason = "20 bytes in lower-case base32 after the prefix is what the id's parser takes; a test shows it"
)]
fn parse_hash<T: std::str::FromStr<Err = mosaic_types::IdError>>(text: &str) -> T {
    text.parse().expect("a key hash parses as its id")
}

/// Whether `key` may be used at `now`.
#[must_use]
pub fn valid_at(key: &PeerKey, now: Timestamp) -> bool {
    key.not_before <= now && key.not_after.is_none_or(|end| now < end)
}

/// The raw bytes of a key as a peer or a store wrote it.
///
/// # Errors
/// [`KeyError::NotBase64`].
pub fn public_key_bytes(key: &PeerKey) -> Result<[u8; PUBLIC_KEY_BYTES], KeyError> {
    // One byte of slack, so that a longer text is seen to be longer.
    let mut bytes = [0; PUBLIC_KEY_BYTES + 1];
    match STANDARD.decode_slice(&key.public_key, &mut bytes) {
        Ok(PUBLIC_KEY_BYTES) => bytes.first_chunk().copied().ok_or(KeyError::NotBase64),
        Ok(_) | Err(_) => Err(KeyError::NotBase64),
    }
}

/// A public key that signatures are verified with.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    key: ed25519_dalek::VerifyingKey,
    id: KeyId,
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("VerifyingKey").field(&self.id).finish()
    }
}

impl VerifyingKey {
    /// Takes a peer's key.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn enrol(key: &PeerKey) -> Result<Self, KeyError> {
        if key.not_after.is_some_and(|end| end <= key.not_before) {
            return Err(KeyError::EmptyWindow);
        }
        let enrolled = Self::from_bytes(&public_key_bytes(key)?)?;
        if enrolled.id == key.key_id {
            Ok(enrolled)
        } else {
            Err(KeyError::WrongId)
        }
    }

    /// Takes the bytes of a key.
    ///
    /// # Errors
    /// [`KeyError::NotCanonical`] or [`KeyError::Weak`].
    pub fn from_bytes(bytes: &[u8; PUBLIC_KEY_BYTES]) -> Result<Self, KeyError> {
        if !is_canonical_y(bytes) {
            return Err(KeyError::NotCanonical);
        }
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotCanonical)?;
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(Self {
            key,
            id: key_id(bytes),
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Whether the key made `signature` over `message`, by the strict rules: no small-order point, no
    /// scalar outside its range.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        self.key
            .verify_strict(message, &Signature::from_bytes(signature))
            .is_ok()
    }
}

/// Keys that were enrolled before, so that a command need not pay for it again. It decides nothing: which keys a
/// peer has, and when they are good, is the connection's to say, and a key that is not in here is enrolled anew.
#[derive(Debug, Clone, Default)]
pub struct Keyring(HashMap<String, (PeerKey, VerifyingKey)>);

impl Keyring {
    /// Most keys that are kept. Further ones work as well, only slower.
    pub const CAPACITY: usize = 4096;

    /// Enrols the connection's keys; those that cannot be are left out.
    pub fn add(&mut self, connection: &Connection) {
        for key in &connection.keys {
            if self.0.len() < Self::CAPACITY
                && let Ok(enrolled) = VerifyingKey::enrol(key)
            {
                self.0
                    .insert(key.public_key.clone(), (key.clone(), enrolled));
            }
        }
    }

    /// The enrolled key, if this very key is in here: its text, its id and its window.
    pub(crate) fn get(&self, key: &PeerKey) -> Option<&VerifyingKey> {
        self.0
            .get(&key.public_key)
            .filter(|(kept, _)| kept == key)
            .map(|(_, enrolled)| enrolled)
    }
}

/// Whether the encoded y is below the field's prime 2^255 − 19 (little-endian; the top bit is the sign of x).
/// The other non-canonical encodings, with x = 0 and a sign, are of small order and refused as such.
fn is_canonical_y(bytes: &[u8; PUBLIC_KEY_BYTES]) -> bool {
    let [low, middle @ .., high] = bytes;
    !(*low >= 0xed && middle.iter().all(|byte| *byte == 0xff) && high & 0x7f == 0x7f)
}

#[cfg(test)]
mod tests;
