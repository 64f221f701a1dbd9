//! A command, from the bytes of a stranger to something that may be executed.
//!
//! The order of checks is the order of types, and there is no other way through: each type has private fields
//! and is made only by the step before it.
//!
//! ```
//! use mosaic_federation::command::{AdmittedCommand, AddressedCommand, Refused};
//! # use mosaic_federation::{command::{Claimed, SpawnDefaults, Usage}, dsse::ReceivedEnvelope, replay::KillClaims};
//! # use mosaic_types::{InstanceId, Timestamp, connection::Connection};
//! fn admit(bytes: &[u8], peer: &Connection, me: &InstanceId, now: Timestamp) -> Option<AdmittedCommand> {
//!     let received = ReceivedEnvelope::parse(bytes).ok()?;
//!     let verified = received.verify(peer, now).ok()?;
//!     let addressed = verified.parse_command(me, now).ok()?;
//!     let granted = addressed.authorise(&peer.granted, &SpawnDefaults::default()).ok()?;
//!     let claimable = granted.within(&Usage::default()).ok()?;
//!     let claim = claimable.claim_request(); // the store claims it durably, and then:
//!     claimable.admit(Claimed::Fresh).ok()
//! }
//! ```
//!
//! An [`AdmittedCommand`] cannot be made otherwise:
//!
//! ```compile_fail,E0451
//! # use mosaic_federation::command::{AdmittedCommand, GrantedCommand};
//! fn forge(granted: GrantedCommand) -> AdmittedCommand {
//!     AdmittedCommand { command: granted }
//! }
//! ```
//!
//! Nor can a step be left out. Not the signature (F6):
//!
//! ```compile_fail,E0599
//! # use mosaic_federation::dsse::ReceivedEnvelope;
//! # use mosaic_types::{InstanceId, Timestamp};
//! fn skip(received: ReceivedEnvelope, me: &InstanceId, now: Timestamp) {
//!     received.parse_command(me, now);
//! }
//! ```
//!
//! not the grant (F14):
//!
//! ```compile_fail,E0599
//! # use mosaic_federation::command::{AddressedCommand, Usage};
//! fn skip(addressed: AddressedCommand) {
//!     addressed.within(&Usage::default());
//! }
//! ```
//!
//! not the quota, and not the claim (F10, F11):
//!
//! ```compile_fail,E0599
//! # use mosaic_federation::command::{Claimed, GrantedCommand};
//! fn skip(granted: GrantedCommand) {
//!     granted.admit(Claimed::Fresh);
//! }
//! ```
//!
//! and a claim in memory cannot be made up, since only [`crate::replay::KillClaims`] makes one:
//!
//! ```compile_fail,E0451
//! # use mosaic_federation::{command::Claimed, replay::KillClaim};
//! # use mosaic_federation::command::ClaimRequest;
//! fn forge(request: ClaimRequest) -> Claimed {
//!     Claimed::InMemory(KillClaim { request })
//! }
//! ```

mod admit;
mod authorise;
mod body;
mod outgoing;
mod payload;
mod repository;

use mosaic_types::{
    ConnectionId, InstanceId, MessageId, Refusal, Timestamp, connection::Connection,
    connection::ConnectionState,
};

pub(crate) use self::body::check_times;
pub use self::{
    admit::{AdmittedCommand, ClaimRequest, ClaimableCommand, Claimed, Usage},
    authorise::{GrantedCommand, SpawnDefaults, secret_not_granted},
    body::AddressedCommand,
    outgoing::{CommandBuilder, SealError, SealedCommand, seal_command},
    payload::CommandPayload,
    repository::{GlobError, RepositoryGlobs},
};
use crate::{
    Unauthenticated,
    dsse::{PayloadType, ReceivedEnvelope},
    key::Keyring,
    signed_by_peer,
};

/// Longest time from a command's `issuedAt` to its `expiresAt`, in seconds.
pub const MAX_TTL_SECS: u64 = 300;
/// Most hops that a command may have left.
pub const MAX_HOPS: u8 = 8;

/// A refusal of an authenticated request, with what a signed response to it needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}")]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The request's id; `None` if its body could not be read.
    pub message_id: Option<MessageId>,
    /// The request's digest.
    pub digest: [u8; 32],
}

/// An envelope that an active peer signed as a command, with a key of its own. What it says has not been looked at.
#[derive(Debug, Clone)]
pub struct VerifiedEnvelope {
    envelope: ReceivedEnvelope,
    peer: InstanceId,
    connection_id: ConnectionId,
}

impl ReceivedEnvelope {
    /// Verifies that the connection's peer signed this as a command, with one of its keys that is good at `now`, and
    /// that the connection is active.
    ///
    /// What a peer signs as something else is public, or in the hands of others: its identity document, its responses.
    /// It says nothing of who sent it here (F3).
    ///
    /// # Errors
    /// [`Unauthenticated`], whatever the cause.
    pub fn verify(
        self,
        connection: &Connection,
        now: Timestamp,
    ) -> Result<VerifiedEnvelope, Unauthenticated> {
        self.verify_with(connection, &Keyring::default(), now)
    }

    /// As [`Self::verify`], sparing the work that was done for the keys in `keyring`.
    ///
    /// # Errors
    /// [`Unauthenticated`], whatever the cause.
    pub fn verify_with(
        self,
        connection: &Connection,
        keyring: &Keyring,
        now: Timestamp,
    ) -> Result<VerifiedEnvelope, Unauthenticated> {
        let active = connection.state == ConnectionState::Active;
        let is_command = self.payload_type() == PayloadType::Command;
        if !active || !is_command || !signed_by_peer(&self, connection, keyring, now) {
            return Err(Unauthenticated);
        }
        Ok(VerifiedEnvelope {
            peer: connection.peer.clone(),
            connection_id: connection.connection_id,
            envelope: self,
        })
    }
}

impl VerifiedEnvelope {
    /// The peer that signed it.
    #[must_use]
    pub fn peer(&self) -> &InstanceId {
        &self.peer
    }

    /// The request's digest.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.envelope.digest()
    }

    /// Reads the verified bytes as a command addressed to `me` and valid at `now`.
    ///
    /// # Errors
    /// A refusal that may be signed and sent, since the sender is authenticated.
    pub fn parse_command(
        self,
        me: &InstanceId,
        now: Timestamp,
    ) -> Result<AddressedCommand, Refused> {
        let digest = self.envelope.digest();
        let parsed = body::parse(self.envelope.payload(), &self.peer, me, now);
        parsed
            .map(|body| AddressedCommand {
                peer: self.peer.clone(),
                connection_id: self.connection_id,
                digest,
                body,
            })
            .map_err(|(refusal, message_id)| Refused {
                refusal,
                message_id,
                digest,
            })
    }
}

#[cfg(test)]
mod tests;
