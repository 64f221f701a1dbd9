//! What may become of a connection. Pure: each function takes a connection and gives the next version of it,
//! which the store saves only if nobody else was faster.

use mosaic_types::{
    ConnectionId, ErrorCode, InviteId, Refusal, Timestamp,
    connection::{Connection, ConnectionState, ProtocolRange},
    grant::Grants,
};
use thiserror::Error;

use crate::{
    command::{GlobError, RepositoryGlobs},
    connect::VerifiedIdentity,
};

/// Why a connection does not become what was asked.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The state table forbids it.
    #[error("a connection that is {from} cannot become {to}")]
    IllegalMove {
        /// The state it is in.
        from: ConnectionState,
        /// The state it was to have.
        to: ConnectionState,
    },
    /// The two sides share no protocol version.
    #[error("peer speaks protocol {} to {}, this node {} to {}", .theirs.min, .theirs.max, ProtocolRange::OURS.min, ProtocolRange::OURS.max)]
    Protocol {
        /// What the peer speaks.
        theirs: ProtocolRange,
    },
    /// The grants cannot be used.
    #[error("use the grants")]
    Grants(#[from] GlobError),
    /// A cap is not a finite number above zero.
    #[error("cap `{field}` is not a finite number above zero")]
    Cap {
        /// The cap.
        field: &'static str,
    },
    /// The cap on the network is no list of rules.
    #[error("cap `network` is not usable: {fault}")]
    NetworkCap {
        /// What is wrong with it.
        fault: String,
    },
}

impl ConnectionError {
    /// As an operator or peer sees it.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::IllegalMove { .. } => {
                Refusal::new(ErrorCode::ConnectionNotActive, self.to_string())
            }
            Self::Protocol { .. } => Refusal::field(
                ErrorCode::ProtocolUnsupported,
                "identity.protocol",
                self.to_string(),
            ),
            Self::Grants(cause) => Refusal::field(
                ErrorCode::InvalidRequest,
                "grants.repositories",
                cause.to_string(),
            ),
            Self::Cap { field } => Refusal::field(
                ErrorCode::InvalidRequest,
                format!("grants.caps.{field}"),
                self.to_string(),
            ),
            Self::NetworkCap { .. } => Refusal::field(
                ErrorCode::InvalidRequest,
                "grants.caps.network",
                self.to_string(),
            ),
        }
    }
}

/// Checks grants before they are given: every glob parses, every cap is a number or a list of rules.
///
/// # Errors
/// [`ConnectionError::Grants`], [`ConnectionError::Cap`] or [`ConnectionError::NetworkCap`].
pub fn check_grants(grants: &Grants) -> Result<(), ConnectionError> {
    RepositoryGlobs::new(&grants.repositories)?;
    for (field, cap) in [
        ("maxCpus", grants.caps.max_cpus),
        ("maxBudgetUsd", grants.caps.max_budget_usd),
        ("budgetUsdPerDay", grants.caps.budget_usd_per_day),
    ] {
        if cap.is_some_and(|cap| !(cap.is_finite() && cap > 0.0)) {
            return Err(ConnectionError::Cap { field });
        }
    }
    for (field, cap) in [
        ("maxBudgetTokens", grants.caps.max_budget_tokens),
        ("budgetTokensPerDay", grants.caps.budget_tokens_per_day),
        ("maxLeaseSecs", grants.caps.max_lease_secs),
    ] {
        if cap == Some(0) {
            return Err(ConnectionError::Cap { field });
        }
    }
    grants
        .caps
        .network
        .check()
        .map_err(|fault| ConnectionError::NetworkCap { fault })
}

fn moved(
    connection: &Connection,
    to: ConnectionState,
    now: Timestamp,
) -> Result<Connection, ConnectionError> {
    let from = connection.state;
    if !from.may_become(to) {
        return Err(ConnectionError::IllegalMove { from, to });
    }
    Ok(Connection {
        state: to,
        updated_at: now,
        version: connection.version + 1,
        ..connection.clone()
    })
}

/// Accepts a pending connection with these grants.
///
/// # Errors
/// If it is not pending, or the grants cannot be used.
pub fn accept(
    connection: &Connection,
    grants: Grants,
    now: Timestamp,
) -> Result<Connection, ConnectionError> {
    check_grants(&grants)?;
    if connection.state != ConnectionState::Pending {
        // A suspended connection is resumed, with the grants it has.
        return Err(ConnectionError::IllegalMove {
            from: connection.state,
            to: ConnectionState::Active,
        });
    }
    let mut next = moved(connection, ConnectionState::Active, now)?;
    next.granted = grants;
    Ok(next)
}

/// Rejects a pending connection: it ends.
///
/// # Errors
/// If it is not pending.
pub fn reject(connection: &Connection, now: Timestamp) -> Result<Connection, ConnectionError> {
    if connection.state != ConnectionState::Pending {
        return Err(ConnectionError::IllegalMove {
            from: connection.state,
            to: ConnectionState::Disconnected,
        });
    }
    moved(connection, ConnectionState::Disconnected, now)
}

/// Suspends an active connection. Takes effect at once; the caller ends open streams (F15).
///
/// # Errors
/// If it is not active.
pub fn suspend(connection: &Connection, now: Timestamp) -> Result<Connection, ConnectionError> {
    moved(connection, ConnectionState::Suspended, now)
}

/// Resumes a suspended connection, with the grants it has.
///
/// # Errors
/// If it is not suspended.
pub fn resume(connection: &Connection, now: Timestamp) -> Result<Connection, ConnectionError> {
    if connection.state != ConnectionState::Suspended {
        // A pending one is accepted, with grants.
        return Err(ConnectionError::IllegalMove {
            from: connection.state,
            to: ConnectionState::Active,
        });
    }
    moved(connection, ConnectionState::Active, now)
}

/// Ends a connection for good.
///
/// # Errors
/// If it has ended.
pub fn disconnect(connection: &Connection, now: Timestamp) -> Result<Connection, ConnectionError> {
    moved(connection, ConnectionState::Disconnected, now)
}

/// How a connection begins.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// The peer asked, with a peering token of ours that grants this: active.
    Invited {
        /// The invitation.
        invite_id: InviteId,
        /// What it grants.
        granted: Grants,
    },
    /// The peer asked, and an operator has yet to accept: pending, and nothing is granted.
    Asked,
    /// This node asked, and the peer answered.
    Outgoing {
        /// What the peer says of it: active, or pending.
        state: ConnectionState,
        /// What the peer grants us.
        received: Box<Grants>,
        /// What we grant the peer; often nothing.
        granted: Grants,
        /// The peer's invitation, if there was one.
        invite_id: Option<InviteId>,
    },
}

/// A fresh connection to a peer whose identity was verified.
///
/// # Errors
/// If no protocol version is shared, or the grants cannot be used.
pub fn from_connect(
    identity: &VerifiedIdentity,
    origin: Origin,
    connection_id: ConnectionId,
    now: Timestamp,
) -> Result<Connection, ConnectionError> {
    let theirs = identity.document().protocol;
    let protocol = ProtocolRange::OURS
        .common(theirs)
        .ok_or(ConnectionError::Protocol { theirs })?;
    let (state, granted, received, invite_id, outgoing) = match origin {
        Origin::Invited { invite_id, granted } => (
            ConnectionState::Active,
            granted,
            Grants::none(),
            Some(invite_id),
            false,
        ),
        Origin::Asked => (
            ConnectionState::Pending,
            Grants::none(),
            Grants::none(),
            None,
            false,
        ),
        Origin::Outgoing {
            state,
            received,
            granted,
            invite_id,
        } => {
            if !matches!(state, ConnectionState::Active | ConnectionState::Pending) {
                return Err(ConnectionError::IllegalMove {
                    from: ConnectionState::Pending,
                    to: state,
                });
            }
            (state, granted, *received, invite_id, true)
        }
    };
    check_grants(&granted)?;
    let document = identity.document();
    Ok(Connection {
        connection_id,
        peer: document.instance_id.clone(),
        name: document.name.clone(),
        role: document.role,
        url: document.url.clone(),
        keys: document.keys.clone(),
        protocol,
        state,
        granted,
        received,
        invite_id,
        outgoing,
        created_at: now,
        updated_at: now,
        version: 1,
    })
}

#[cfg(test)]
mod tests;
