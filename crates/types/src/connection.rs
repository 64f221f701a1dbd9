//! Connections between instances, as an operator sees them.

use serde::{Deserialize, Serialize};

use crate::{ConnectionId, InstanceId, InviteId, KeyId, Timestamp, grant::Grants};

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeRole {
    /// Decides and routes.
    Hub,
    /// Executes.
    Orchestrator,
}

impl std::fmt::Display for NodeRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hub => "hub",
            Self::Orchestrator => "orchestrator",
        })
    }
}

/// State of a connection.
///
/// ```text
/// pending ─► active ⇄ suspended
///    └─────────┴─────────┴────► disconnected
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionState {
    /// Asked for, and waiting for an operator to accept it.
    Pending,
    /// In use.
    Active,
    /// Stopped for now by an operator; nothing is accepted from the peer, open streams end.
    Suspended,
    /// Ended for good, or rejected. The peer needs a new connection.
    Disconnected,
}

impl ConnectionState {
    /// Every state.
    pub const ALL: [Self; 4] = [
        Self::Pending,
        Self::Active,
        Self::Suspended,
        Self::Disconnected,
    ];

    /// The table of legal moves.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use ConnectionState::{Active, Disconnected, Pending, Suspended};
        matches!(
            (self, next),
            (Pending, Active | Disconnected)
                | (Active, Suspended | Disconnected)
                | (Suspended, Active | Disconnected)
        )
    }

    /// The state as it is written on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Disconnected => "disconnected",
        }
    }
}

impl std::fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A public key of a peer, and when it may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerKey {
    /// Hash of the key.
    pub key_id: KeyId,
    /// The 32 bytes of the ed25519 public key in padded standard base64.
    pub public_key: String,
    /// First moment at which the key is good.
    pub not_before: Timestamp,
    /// First moment at which it is not; absent while there is no end in sight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
}

/// Protocol versions that a node speaks, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtocolRange {
    /// Lowest.
    pub min: u32,
    /// Highest.
    pub max: u32,
}

impl ProtocolRange {
    /// What this software speaks.
    pub const OURS: Self = Self { min: 1, max: 1 };

    /// The highest version that both speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u32> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

/// A connection: one peer, its keys, its state, and what each side grants the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connection {
    /// This side's id of it.
    pub connection_id: ConnectionId,
    /// The peer.
    pub peer: InstanceId,
    /// The peer's name as it calls itself.
    pub name: String,
    /// What the peer is.
    pub role: NodeRole,
    /// Where the peer is reached; absent if only it reaches us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The peer's keys.
    pub keys: Vec<PeerKey>,
    /// The protocol version agreed on.
    pub protocol: u32,
    /// Where it stands.
    pub state: ConnectionState,
    /// What the peer may ask of this node.
    pub granted: Grants,
    /// What this node was told that it may ask of the peer; the peer decides, each time.
    pub received: Grants,
    /// The peering token that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite_id: Option<InviteId>,
    /// Who asked for it: `true` if this node did.
    pub outgoing: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Counts its changes, from 1; a change names the version that it was made to.
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disconnected_is_final_and_reached_from_everywhere() {
        for state in ConnectionState::ALL {
            assert!(!ConnectionState::Disconnected.may_become(state));
            let ends = state.may_become(ConnectionState::Disconnected);
            assert_eq!(ends, state != ConnectionState::Disconnected);
        }
    }

    #[test]
    fn protocol_ranges_meet_at_the_highest_common_version() {
        let range = |min, max| ProtocolRange { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(1, 1).common(range(2, 5)), None);
    }
}
