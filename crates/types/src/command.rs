//! Commands of protocol v1: their names, payloads and answers.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, RuntimeName, SecretName, TaskId, Timestamp,
    agent::{AgentState, AgentStatus, DeathProof},
    event::EventCursor,
    label::Label,
    work::{ResultForm, Salvaged},
};

/// How much of the words that come with a kill is kept, in characters. A kill is never refused for having more.
pub const MAX_REASON_CHARS: usize = 500;

macro_rules! command_types {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What a command asks for. A name outside this list is refused, never passed on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum CommandType {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl CommandType {
            /// Every command type.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl FromStr for CommandType {
            type Err = UnknownCommandType;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($text => Ok(Self::$name),)* _ => Err(UnknownCommandType) }
            }
        }
    };
}

/// The text names no command of protocol v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such command")]
pub struct UnknownCommandType;

command_types! {
    /// Run an agent.
    AgentSpawn = "agent.spawn";
    /// Tell of one agent.
    AgentStatus = "agent.status";
    /// Tell of the caller's agents.
    AgentList = "agent.list";
    /// Kill one agent.
    AgentKill = "agent.kill";
    /// Kill all of the caller's agents in a scope.
    AgentKillAll = "agent.killAll";
    /// Stream an agent's events.
    AgentWatch = "agent.watch";
    /// Hand over an ended agent's work.
    AgentResult = "agent.result";
    /// Renew the lease that an agent lives by.
    AgentRenew = "agent.renew";
    /// Tell of the instance itself.
    InstancePing = "instance.ping";
}

impl fmt::Display for CommandType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl CommandType {
    /// Whether it kills. Kills have a reserved share of every queue, pool and quota, are claimed in memory
    /// first and on disk afterwards, and are executed in doubt.
    #[must_use]
    pub fn is_kill(self) -> bool {
        matches!(self, Self::AgentKill | Self::AgentKillAll)
    }

    /// Whether executing it changes anything, so that it belongs in the audit trail. A renewal is not among them:
    /// it comes every few seconds for as long as an agent lives, and what is of note, that none came, is audited.
    #[must_use]
    pub fn is_mutation(self) -> bool {
        matches!(
            self,
            Self::AgentSpawn | Self::AgentKill | Self::AgentKillAll
        )
    }
}

/// What an agent is for; shapes its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentType {
    /// Does the work.
    Worker,
    /// Reviews work.
    Reviewer,
    /// Tests work.
    Tester,
}

impl fmt::Display for AgentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Reviewer => "reviewer",
            Self::Tester => "tester",
        })
    }
}

/// What keeps an agent from the rest of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxKind {
    /// Processes in a PID namespace and cgroup of their own.
    Process,
    /// A container.
    Docker,
}

impl fmt::Display for SandboxKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Docker => "docker",
        })
    }
}

/// What an agent may reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPolicy {
    /// Nothing, not even the host's loopback.
    None,
    /// Whatever the host reaches.
    Open,
    /// The hosts that one of these [rules](crate::egress) allows, through a proxy, and nothing else.
    Allow(Vec<String>),
}

/// Payload of `agent.spawn`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpawnPayload {
    /// The agent's id, chosen by the caller: spawning it twice is one agent.
    pub agent_id: AgentId,
    /// The caller's task.
    pub task_id: TaskId,
    /// What it is for.
    pub agent_type: AgentType,
    /// A runtime of the spoke's configuration; `claude` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeName>,
    /// What to work on.
    pub context: SpawnContext,
    /// How to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<SpawnOptions>,
    /// What the caller finds it by again; see [`crate::label`] for the bounds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What an agent works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpawnContext {
    /// `file://`, `https://`, `ssh://` or `user@host:path`.
    pub repository: String,
    /// The branch to start from.
    pub branch: String,
    /// What to do, one item each.
    pub work_items: Vec<String>,
    /// Names of skills to use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skills: Option<Vec<String>>,
    /// Anything else to tell the agent. For the runtime `shell`, the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
}

/// How to run an agent. What is absent takes the spoke's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SpawnOptions {
    /// The sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxKind>,
    /// Longest time that an attempt may run, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Attempts after the first, if an attempt fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// The agent is stopped unless its lease is renewed within so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_secs: Option<u64>,
    /// Memory limit in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// CPU limit in cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// What it may reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
    /// Budget in US dollars, of all attempts together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_usd: Option<f64>,
    /// Secrets of the spoke's configuration to give to it, beside those of its runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<SecretName>>,
    /// Push the agent's branch to the repository, once it has completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<bool>,
    /// Budget in tokens: input, output, and those that a cache served or took, of all attempts together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u64>,
}

/// Payload of a command about one agent: `agent.status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentRef {
    /// The agent.
    pub agent_id: AgentId,
}

/// Payload of `agent.list`. Agents come newest first, by the time that their ids tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListPayload {
    /// Only agents that have not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// Only agents of this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Only agents with a lesser id: the last of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<AgentId>,
    /// Page size, 1 to 500; 100 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only agents with this label, as `key=value`.
    #[serde(skip_serializing_if = "Option::is_none", with = "crate::label::text")]
    pub label: Option<Label>,
}

/// Answer to `agent.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPage {
    /// The agents.
    pub agents: Vec<AgentStatus>,
    /// Whether there are more; ask with `before` set to the last one here.
    pub more: bool,
}

/// Payload of `agent.kill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KillPayload {
    /// The agent.
    pub agent_id: AgentId,
    /// For the audit trail; at most 500 characters are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Answer only after the clean-up, or 60 s.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wait_for_cleanup: bool,
}

/// Payload of `agent.killAll`. What is absent does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KillAllPayload {
    /// Only agents of this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Refuse spawns from now on, until an operator of the spoke releases the hold.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// For the audit trail; at most 500 characters are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only agents with this label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// Only agents whose spawn was signed at this time or earlier, by the clock of the peer that signed both: an order
    /// that arrives late takes nobody who was asked for after it. A spawn that was signed earlier and arrives later
    /// still is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Timestamp>,
}

/// Payload of `agent.watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WatchPayload {
    /// The agent.
    pub agent_id: AgentId,
    /// Only what came after this event; everything if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<EventCursor>,
    /// End the stream when what is there was sent, instead of waiting for more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_follow: bool,
}

/// Payload of `agent.result`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResultPayload {
    /// The agent.
    pub agent_id: AgentId,
    /// Send the patch, or the bundle, from this byte on; 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_offset: Option<u64>,
    /// What to send; the patch if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<ResultForm>,
    /// Tell what the mirror holds of the agent besides its branch; a bundle has all of that then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub salvaged: bool,
}

/// Payload of `agent.renew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenewPayload {
    /// The agents, 1 to 256.
    pub agent_ids: Vec<AgentId>,
    /// The new lease in seconds from now. It never makes a lease shorter than what is left of it.
    pub lease_secs: u64,
}

/// Answer to `agent.renew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewReport {
    /// Each agent that was named.
    pub agents: Vec<RenewedLease>,
}

/// What a renewal did to one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewedLease {
    /// The agent.
    pub agent_id: AgentId,
    /// How it came out.
    pub outcome: RenewOutcome,
}

/// How the renewal of a lease came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RenewOutcome {
    /// It lives on.
    Renewed,
    /// It lives without a lease.
    NoLease,
    /// It has ended, or its end was ordered. Nothing to renew any more.
    Ended,
    /// The caller has no such agent.
    UnknownAgent,
}

/// Payload of `instance.ping`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PingPayload {}

/// Answer to `agent.spawn`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpawnAccepted {
    /// The agent.
    pub agent_id: AgentId,
    /// Where it is now.
    pub state: AgentState,
    /// Whether it was already there, asked for with the same content.
    pub existing: bool,
    /// The lease that it lives by, if it does: the one asked for, or the one that the grant imposes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_secs: Option<u64>,
}

/// What a kill did to one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillReport {
    /// The agent.
    pub agent_id: AgentId,
    /// How it came out.
    pub outcome: KillOutcome,
    /// The proof, unless the outcome is `unverified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<DeathProof>,
    /// What is known of survivors, if the outcome is `unverified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The agent after the clean-up, if the caller waited for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<AgentStatus>>,
}

/// How a kill came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillOutcome {
    /// Proven dead by this kill, or by one under way.
    Killed,
    /// It had ended before.
    AlreadyEnded,
    /// The kernel has not confirmed it in time. The kill goes on; ask again.
    Unverified,
}

/// What a kill-all did at one spoke.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillAllReport {
    /// Agents proven dead.
    pub killed: u64,
    /// Agents not proven dead in time.
    pub unverified: u64,
    /// Whether spawns are held now.
    pub held: bool,
    /// Whether the hold that was asked for is on disk and so outlives a restart; absent if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_durable: Option<bool>,
    /// From the order to the last proof, in microseconds.
    pub elapsed_micros: u64,
    /// When the last proof came.
    pub completed_at: Timestamp,
    /// Each agent that was active. Ended ones are not taken.
    pub agents: Vec<KillReport>,
}

/// Answer to `agent.result`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentResult {
    /// The agent with its summary, work, usage, death and clean-up.
    pub status: AgentStatus,
    /// The patch, or a part of it, if the agent left work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<PatchPart>,
    /// The bundle, or a part of it, if one was asked for; there is no patch then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<PatchPart>,
    /// What was salvaged, if that was asked for; only with the first part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salvaged: Option<Salvaged>,
}

/// A part of a patch in the format of `git format-patch --stdout`, which `git am` takes, or of a git bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PatchPart {
    /// The part, in `encoding`.
    pub content: String,
    /// How `content` is written.
    pub encoding: PatchEncoding,
    /// Where in the whole this part starts, in bytes.
    pub offset: u64,
    /// Length of the whole in bytes.
    pub total_bytes: u64,
    /// Where the next part starts; absent in the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<u64>,
}

/// How a part is written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchEncoding {
    /// As it is; the part is valid UTF-8.
    #[serde(rename = "utf-8")]
    Utf8,
    /// Padded standard base64.
    Base64,
}

/// Answer to `instance.ping`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pong {
    /// Name of the instance.
    pub name: String,
    /// `hub` or `orchestrator`.
    pub role: crate::connection::NodeRole,
    /// Version of the software.
    pub version: String,
    /// The instance's clock.
    pub time: Timestamp,
    /// The sandboxes on offer and what contains their agents; empty on a hub.
    pub sandboxes: Vec<SandboxInfo>,
    /// The runtimes on offer; empty on a hub.
    pub runtimes: Vec<RuntimeInfo>,
    /// Whether spawns of the caller are held.
    pub held: bool,
    /// The caller's agents that have not ended.
    pub active_agents: u64,
}

/// A sandbox that a spoke offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxInfo {
    /// Which one.
    pub kind: SandboxKind,
    /// What contains an agent, as found at start, such as `bubblewrap 0.8.0, cgroup v2`.
    pub containment: String,
    /// The limits that it can enforce: `memory`, `cpu`, `pids`.
    pub limits: Vec<String>,
}

/// A runtime that a spoke offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeInfo {
    /// Its name.
    pub name: RuntimeName,
    /// Whether its program is installed.
    pub available: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_names_agree() {
        for command in CommandType::ALL {
            assert_eq!(serde_json::to_value(command).unwrap(), command.as_str());
            assert_eq!(command.as_str().parse::<CommandType>(), Ok(*command));
        }
        assert!("agent.Spawn".parse::<CommandType>().is_err());
    }

    #[test]
    fn unknown_members_are_refused() {
        let text = r#"{"agentId":"019a0000-0000-7000-8000-000000000000","agentID":"x"}"#;
        assert!(serde_json::from_str::<AgentRef>(text).is_err());
    }
}
