//! Federation: who a peer is, what it signed, and what it may ask for.
//!
//! Nothing here does I/O except [`identity`], which keeps one key file. The time and stored facts are
//! arguments. What a stranger sent becomes something that may be acted on in one way only, step by step, and
//! each step is a type which the one before it makes:
//!
//! ```text
//! bytes ─► ReceivedEnvelope ─► VerifiedEnvelope ─► AddressedCommand ─► GrantedCommand ─► ClaimableCommand ─► AdmittedCommand
//!    size, strict      peer, key,          those bytes,        grant, typed     quota            claimed
//!    profile           signature           from/to/time        payload
//! ```

pub mod command;
pub mod connect;
pub mod connection;
pub mod dsse;
pub mod event;
pub mod identity;
pub mod key;
pub mod operator_token;
pub mod replay;
pub mod response;
mod strict_json;
pub mod token;

use mosaic_types::{Timestamp, connection::Connection};

/// The sender could not be authenticated. It says no more on purpose: whoever is not known gets no hint of
/// which check it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not authenticated")]
pub struct Unauthenticated;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("get random bytes from the operating system")]
pub struct RandomError(#[from] getrandom::Error);

/// How far a peer's clock may run ahead of ours, in seconds.
pub const CLOCK_SKEW_SECS: u64 = 30;

/// Finds the key among the peer's own (F5: the key id is a hint inside one peer) and verifies with it.
fn signed_by_peer(
    envelope: &dsse::ReceivedEnvelope,
    connection: &Connection,
    keyring: &key::Keyring,
    now: Timestamp,
) -> bool {
    connection.keys.iter().any(|key| {
        key.key_id == *envelope.claimed_key()
            && key::valid_at(key, now)
            && match keyring.get(key) {
                Some(enrolled) => envelope.is_signed_by(enrolled),
                None => key::VerifyingKey::enrol(key).is_ok_and(|key| envelope.is_signed_by(&key)),
            }
    })
}

#[cfg(test)]
mod test_support;
