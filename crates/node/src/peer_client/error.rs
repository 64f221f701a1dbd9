//! Why there is no answer to a command, and what that says of its outcome.

use http::StatusCode;
use mosaic_federation::{
    command::SealError,
    event::EventError,
    response::{PeerRefusal, ResponseError},
};
use mosaic_types::{ErrorCode, Refusal};
use thiserror::Error;

use super::{PeerUrlError, TransportError};

/// Why there is no answer to a command.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The peer refuses, or failed, and signed that.
    #[error("the peer refuses")]
    Refused(#[source] PeerRefusal),
    /// The connection is not active on this side; nothing was sent.
    #[error("the connection is not active")]
    NotActive,
    /// Too many calls to the peer, or streams of it, are under way; nothing was sent. Never of a kill.
    #[error("too many calls to the peer are under way")]
    Busy,
    /// No way to the peer is known: only it reaches us. Nothing was sent.
    #[error("the peer has no URL")]
    NoUrl,
    /// The peer's URL is not one to connect to. Nothing was sent.
    #[error("the peer's URL is not allowed")]
    Url(#[source] PeerUrlError),
    /// The command could not be signed. Nothing was sent.
    #[error("failed to sign the command")]
    Seal(#[source] SealError),
    /// No connection, or it broke off; the command may have been executed.
    #[error("failed to reach the peer")]
    Unreachable(#[source] TransportError),
    /// No answer in time; the command may have been executed.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The peer does not know us, or has taken the connection out of use. It says no more, and it is not signed.
    #[error("the peer does not accept us")]
    NotAccepted,
    /// An answer that nobody signed; the command may have been executed.
    #[error("the peer's answer with status {status} is no signed response")]
    Unsigned {
        /// Its HTTP status.
        status: StatusCode,
    },
    /// An answer whose signature or binding is wrong; the command may have been executed.
    #[error("the peer's answer cannot be verified")]
    Unverifiable(#[source] ResponseError),
    /// A line of a stream that is not the next one of it.
    #[error("the peer's stream cannot be verified")]
    Stream(#[source] EventError),
    /// The peer's identity is not a document that certifies itself, or is another's.
    #[error("the peer's identity cannot be verified")]
    Identity(#[source] mosaic_federation::connect::IdentityDocumentError),
}

impl PeerError {
    pub(super) fn transport(error: TransportError) -> Self {
        match error {
            TransportError::TimedOut => Self::TimedOut,
            error => Self::Unreachable(error),
        }
    }

    /// What it means to the operator who asked. The peer's own refusal is passed on.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::Refused(refusal) => return refusal.clone().into_refusal(),
            Self::NotActive => ErrorCode::ConnectionNotActive,
            Self::Busy => ErrorCode::Overloaded,
            Self::Url(error) => {
                return Refusal::field(ErrorCode::InvalidRequest, "url", error.to_string());
            }
            Self::Seal(SealError::TooLarge { .. }) => ErrorCode::BodyTooLarge,
            Self::Seal(_) => ErrorCode::Internal,
            _ => ErrorCode::PeerUnreachable,
        };
        Refusal::new(code, self.to_string())
    }

    /// Whether the command may have been executed although there is no answer.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Unreachable(TransportError::NotConnected(_) | TransportError::NotAllowed) => {
                false
            }
            Self::Unreachable(_)
            | Self::TimedOut
            | Self::Unsigned { .. }
            | Self::Unverifiable(_) => true,
            _ => false,
        }
    }
}
