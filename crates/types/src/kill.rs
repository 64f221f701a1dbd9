//! Kills that a hub keeps until a spoke's signed answer proves them.

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, ConnectionId, KillIntentId, TaskId, Timestamp, audit::Actor, error::Refusal,
    label::Label,
};

/// What a kept kill is about, at one spoke.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
pub enum KillTarget {
    /// One agent.
    Agent {
        /// Which.
        agent_id: AgentId,
    },
    /// All of the hub's agents there that were asked for before the order, in a scope.
    All {
        /// Only agents of this task.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task_id: Option<TaskId>,
        /// Only agents with this label.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<Label>,
    },
}

/// Where a kept kill stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillIntentState {
    /// Ordered; no signed answer of the spoke has proven it.
    Pending,
    /// A signed answer of the spoke has proven it.
    Proven,
    /// An operator took it back.
    Cancelled,
}

/// A kill that a hub keeps (`GET /federation/kills`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillIntent {
    /// Its id.
    pub intent_id: KillIntentId,
    /// The connection to the spoke.
    pub connection_id: ConnectionId,
    /// What is to be killed.
    pub target: KillTarget,
    /// Whether spawns are to be held there as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// The operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who ordered it.
    pub author: Actor,
    /// When. A kill-all takes agents that were asked for until then, and nobody after.
    pub ordered_at: Timestamp,
    /// Where it stands.
    pub state: KillIntentState,
    /// How often it was sent.
    pub attempts: u64,
    /// When it was sent last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<Timestamp>,
    /// When the spoke first gave a signed answer to it, whatever the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<Timestamp>,
    /// When it was proven, or taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Timestamp>,
    /// Why it is not proven yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Refusal>,
    /// Whether it is on the hub's disk, and so outlives the hub.
    #[serde(default)]
    pub durable: bool,
}

/// The kept kills (`GET /federation/kills`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillIntents {
    /// The pending ones, oldest first; then the settled ones that are still remembered, newest first.
    pub kills: Vec<KillIntent>,
}
