//! What a peer may ask for.

use serde::{Deserialize, Serialize};

use crate::{
    RuntimeName, SecretName,
    command::{CommandType, NetworkPolicy, SandboxKind},
};

/// What a peer may ask of this node. Default deny: what is not named is not granted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grants {
    /// Commands that are executed for it.
    pub commands: Vec<CommandType>,
    /// Globs over repository URLs; `*` stops at `/`, `**` does not.
    pub repositories: Vec<String>,
    /// Runtimes, or `*` for all that the spoke has enabled.
    pub runtimes: Vec<RuntimePattern>,
    /// Sandboxes.
    pub sandboxes: Vec<SandboxKind>,
    /// Upper bounds.
    pub caps: Caps,
    /// Secrets that it may ask for by name. Left out where there are none, for readers that do not know it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// Whether its agents' branches may be pushed to the repositories, where the node's configuration allows that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub push: bool,
}

impl Grants {
    /// Grants nothing: what a spoke's peering gives the spoke at its hub.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Every command on the given repositories, in every runtime that the spoke has enabled, in a process
    /// sandbox or container, under the default caps. No secrets and no pushing.
    #[must_use]
    pub fn full(repositories: Vec<String>) -> Self {
        Self {
            commands: CommandType::ALL.to_vec(),
            repositories,
            runtimes: vec![RuntimePattern::Any],
            sandboxes: vec![SandboxKind::Process, SandboxKind::Docker],
            caps: Caps::default(),
            secrets: Vec::new(),
            push: false,
        }
    }
}

/// A runtime's name, or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RuntimePattern {
    /// Every runtime that the spoke has enabled.
    Any,
    /// This one.
    Named(RuntimeName),
}

impl RuntimePattern {
    /// Whether the pattern includes `name`.
    #[must_use]
    pub fn matches(&self, name: &RuntimeName) -> bool {
        match self {
            Self::Any => true,
            Self::Named(named) => named == name,
        }
    }
}

impl TryFrom<String> for RuntimePattern {
    type Error = crate::IdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "*" {
            Ok(Self::Any)
        } else {
            text.parse().map(Self::Named)
        }
    }
}

impl From<RuntimePattern> for String {
    fn from(pattern: RuntimePattern) -> Self {
        match pattern {
            RuntimePattern::Any => "*".to_owned(),
            RuntimePattern::Named(name) => name.as_str().to_owned(),
        }
    }
}

/// Upper bounds on what a peer's agents may use. An absent bound is the spoke's own limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Caps {
    /// Agents at once: queued, spawning, running or killing.
    pub max_agents: u32,
    /// Spawns in any 60 s.
    pub spawns_per_minute: u32,
    /// Longest `timeoutSecs`.
    pub max_timeout_secs: u64,
    /// Most `maxRetries`.
    pub max_retries: u32,
    /// Most memory for an agent in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_mb: Option<u64>,
    /// Most CPU for an agent in cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpus: Option<f64>,
    /// Most budget for an agent in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_budget_usd: Option<f64>,
    /// The most open network policy.
    pub network: NetworkPolicy,
    /// Most budget for an agent in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_budget_tokens: Option<u64>,
    /// What all its agents together may cost in a day of UTC, in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_usd_per_day: Option<f64>,
    /// The tokens that all its agents together may use in a day of UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_tokens_per_day: Option<u64>,
    /// Longest `leaseSecs`. When set, every agent lives by a lease: one that names none gets this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lease_secs: Option<u64>,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            max_agents: 256,
            spawns_per_minute: 600,
            max_timeout_secs: 86_400,
            max_retries: 5,
            max_memory_mb: None,
            max_cpus: None,
            max_budget_usd: None,
            network: NetworkPolicy::Open,
            max_budget_tokens: None,
            budget_usd_per_day: None,
            budget_tokens_per_day: None,
            max_lease_secs: None,
        }
    }
}
