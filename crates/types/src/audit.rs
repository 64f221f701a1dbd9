//! The audit trail: who asked for what, and what came of it, in a chain of hashes.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Where a trail ends: its last entry's number and hash. Goes out in every signed response, so that peers
/// witness it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuditHead {
    /// Number of the last entry; 0 while there is none.
    pub seq: u64,
    /// Its hash, 64 hex digits; all zeros while there is none.
    pub hash: String,
}

impl AuditHead {
    /// The head of an empty trail.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            seq: 0,
            hash: "0".repeat(64),
        }
    }
}

/// Who asked for something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
pub enum Actor {
    /// An operator of this node.
    Operator {
        /// Name of the token.
        token: String,
    },
    /// A peer, by its verified key.
    Peer {
        /// The instance.
        instance: crate::InstanceId,
        /// The connection.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<crate::ConnectionId>,
    },
    /// This node itself: a timeout, a restart, a sweep.
    System,
}

/// Something to put on record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// When it happened.
    pub at: Timestamp,
    /// Who asked for it.
    pub actor: Actor,
    /// What was done, such as `agent.kill` or `connection.suspend`.
    pub action: String,
    /// What it was done to: an agent, a connection, a token's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// `ok`, or the code of the refusal.
    pub outcome: String,
    /// More, free of secrets.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}

/// An entry of the trail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Its number, from 1, without gaps.
    pub seq: u64,
    /// Hash of the entry before it.
    pub prev_hash: String,
    /// Hash of `seq`, `prevHash` and the event's bytes as stored.
    pub hash: String,
    /// The event as it was stored, byte for byte: these bytes were hashed.
    pub event_json: String,
}
