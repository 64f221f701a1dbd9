//! Peering tokens: what one operator hands to another so that their instances connect.
//!
//! A token names the instance by its self-certifying id, so whoever answers at the URL must hold that key. Its
//! secret is used once; the instance that made it keeps only the hash.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mosaic_types::{InstanceId, InviteId, Timestamp, grant::Grants};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{RandomError, strict_json};

/// What every peering token starts with.
pub const PREFIX: &str = "mosaic1.";
/// Longest token in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 << 10;
const VERSION: u32 = 1;
const MAX_URL_BYTES: usize = 2048;

/// Why a text is not a peering token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("peering token is too long")]
    TooLong,
    /// Not `mosaic1.` and base64url.
    #[error("not a peering token: it starts with `{PREFIX}` and goes on in base64url")]
    Form,
    /// What it holds is not what a token holds, at this member.
    #[error("peering token is damaged at `{field}`")]
    Malformed {
        /// The member.
        field: String,
    },
    /// Of a version not known here.
    #[error("peering token is of version {version}, which this software does not know")]
    Version {
        /// The version.
        version: u32,
    },
    /// It has expired.
    #[error("peering token expired at {expires_at}")]
    Expired {
        /// When.
        expires_at: Timestamp,
    },
}

/// The secret of a peering token. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret([u8; 32]);

impl Drop for TokenSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

impl TokenSecret {
    /// Makes a fresh one.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate() -> Result<Self, RandomError> {
        let mut secret = Self([0; 32]);
        getrandom::fill(&mut secret.0)?;
        Ok(secret)
    }

    /// The hash under which an invitation is kept and looked up.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

impl Serialize for TokenSecret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0)))
    }
}

impl<'de> Deserialize<'de> for TokenSecret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = URL_SAFE_NO_PAD.decode(text.as_bytes()).map(Zeroizing::new);
        bytes
            .ok()
            .and_then(|bytes| bytes.as_slice().try_into().ok())
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("not 32 bytes in base64url"))
    }
}

/// A peering token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeeringToken {
    v: u32,
    /// Where the instance is reached.
    pub url: String,
    /// The instance that made it.
    pub instance_id: InstanceId,
    /// The invitation.
    pub invite_id: InviteId,
    /// What is shown to use it.
    pub secret: TokenSecret,
    /// When it can no longer be used.
    pub expires_at: Timestamp,
    /// What it grants, for the user's information; the instance that made it decides.
    pub grants: Grants,
}

impl PeeringToken {
    /// Makes a fresh token.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn mint(
        url: String,
        instance_id: InstanceId,
        invite_id: InviteId,
        expires_at: Timestamp,
        grants: Grants,
    ) -> Result<Self, RandomError> {
        Ok(Self {
            v: VERSION,
            url,
            instance_id,
            invite_id,
            secret: TokenSecret::generate()?,
            expires_at,
            grants,
        })
    }

    /// The token's text, to hand over.
    ///
    /// # Errors
    /// [`TokenError::TooLong`] if the grants or the URL are too many or too long for one.
    pub fn encode(&self) -> Result<Zeroizing<String>, TokenError> {
        let malformed = |_| TokenError::Malformed {
            field: "grants".to_owned(),
        };
        let json = Zeroizing::new(serde_json::to_vec(self).map_err(malformed)?);
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + json.len() * 4 / 3 + 4));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(json.as_slice(), &mut text);
        if text.len() > MAX_TOKEN_BYTES || self.url.len() > MAX_URL_BYTES {
            return Err(TokenError::TooLong);
        }
        Ok(text)
    }

    /// Reads a token, strictly. White space around it is left out, as it comes with pasting.
    ///
    /// # Errors
    /// See [`TokenError`]; none of them holds anything of the token's secret.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let json = text
            .strip_prefix(PREFIX)
            .and_then(|body| URL_SAFE_NO_PAD.decode(body).ok())
            .map(Zeroizing::new)
            .ok_or(TokenError::Form)?;
        let token: Self = strict_json::from_slice(&json)
            .map_err(|fault| TokenError::Malformed { field: fault.field })?;
        if token.v != VERSION {
            return Err(TokenError::Version { version: token.v });
        }
        if token.url.len() > MAX_URL_BYTES {
            return Err(TokenError::TooLong);
        }
        if token.expires_at <= now {
            return Err(TokenError::Expired {
                expires_at: token.expires_at,
            });
        }
        Ok(token)
    }

    /// The hash under which the invitation is kept and looked up.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        self.secret.hash()
    }
}

#[cfg(test)]
mod tests;
