//! An agent's life: states, the table of legal moves, and what can be told of an agent.
//!
//! ```text
//! queued ─► spawning ─► running ─► completed | failed
//!    │  ◄───────┴──────────┘ (a retry; the attempt is proven dead)
//!    └─────────┴───────────┴────► killing ─► killed
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::usage::{Budget, Usage};
use crate::{
    AgentId, ConnectionId, RuntimeName, TaskId, Timestamp,
    command::{AgentType, SandboxKind},
    work::Pushed,
};

/// Where an agent is in its life. Terminal states mean *proven dead*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// Accepted and waiting for a slot, or for the next attempt.
    Queued,
    /// Holds a slot; its worktree and sandbox are being made.
    Spawning,
    /// Its processes run.
    Running,
    /// A kill was asked for and is not yet proven and recorded.
    Killing,
    /// Ended by itself with a result.
    Completed,
    /// Ended without one; `reason` says why.
    Failed,
    /// Ended by a kill.
    Killed,
}

impl AgentState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Spawning,
        Self::Running,
        Self::Killing,
        Self::Completed,
        Self::Failed,
        Self::Killed,
    ];

    /// Whether nothing can follow: no process of the agent is alive, none will start.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Killed)
    }

    /// The table of legal moves. Everything that changes a state asks here.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use AgentState::{Completed, Failed, Killed, Killing, Queued, Running, Spawning};
        match (self, next) {
            (Queued, Spawning | Killing) => true,
            // A failed attempt goes back to the queue if retries are left; else it fails.
            (Spawning, Running | Queued | Failed | Killing) => true,
            (Running, Completed | Failed | Queued | Killing) => true,
            // `Failed` from the queue: an agent whose wait can never end, as after a vanished worktree.
            (Queued, Failed) => true,
            (Killing, Killed) => true,
            _ => false,
        }
    }

    /// The state as it is written on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Spawning => "spawning",
            Self::Running => "running",
            Self::Killing => "killing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Killed => "killed",
        }
    }
}

impl std::fmt::Display for AgentState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A state as somebody at a distance knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObservedState {
    /// See [`AgentState::Queued`].
    Queued,
    /// See [`AgentState::Spawning`].
    Spawning,
    /// See [`AgentState::Running`].
    Running,
    /// See [`AgentState::Killing`].
    Killing,
    /// See [`AgentState::Completed`].
    Completed,
    /// See [`AgentState::Failed`].
    Failed,
    /// See [`AgentState::Killed`].
    Killed,
    /// Whoever could know was not reachable. Never a guess.
    Unknown,
}

impl From<AgentState> for ObservedState {
    fn from(state: AgentState) -> Self {
        match state {
            AgentState::Queued => Self::Queued,
            AgentState::Spawning => Self::Spawning,
            AgentState::Running => Self::Running,
            AgentState::Killing => Self::Killing,
            AgentState::Completed => Self::Completed,
            AgentState::Failed => Self::Failed,
            AgentState::Killed => Self::Killed,
        }
    }
}

impl ObservedState {
    /// The state that is known, if one is.
    #[must_use]
    pub fn known(self) -> Option<AgentState> {
        AgentState::ALL
            .into_iter()
            .find(|state| Self::from(*state) == self)
    }
}

impl std::fmt::Display for ObservedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.known().map_or("unknown", AgentState::as_str))
    }
}

/// Why an agent is where it is: of an ended agent, why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// It finished its work.
    Finished,
    /// Its main process exited with a status other than zero.
    ExitStatus,
    /// Its main process was ended by a signal that was not ours.
    Signalled,
    /// The runtime said that it failed.
    RuntimeError,
    /// It exited with status zero, but gave no result.
    NoResult,
    /// It gave a result and did not exit within the grace.
    HungAfterResult,
    /// It was silent for too long.
    Silent,
    /// `timeoutSecs` ran out.
    TimedOut,
    /// Its worktree or sandbox could not be made.
    SpawnFailed,
    /// It was gone when the orchestrator came back, with no exit on record.
    Vanished,
    /// Somebody killed it.
    KillRequested,
    /// A kill-all took it.
    KillAll,
    /// It passed its budget, or its connection or spoke the budget of the day; it was killed.
    BudgetExceeded,
    /// Its lease was not renewed in time.
    LeaseExpired,
}

/// How far an agent is, as read from its output. Never a result (A16).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    /// The model's turns so far.
    pub turns: u64,
    /// Tools called so far.
    pub tool_calls: u64,
    /// The last tool called, with the start of its input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_tool: Option<String>,
    /// The end of what was last said, at most 2 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_text: Option<String>,
    /// The model that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The runtime's own session id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// How it is known that nothing of an agent is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeathProof {
    /// What the kernel said.
    pub method: ProofMethod,
    /// From the order to the proof, in microseconds.
    pub elapsed_micros: u64,
    /// When it was proven.
    pub proven_at: Timestamp,
}

/// The kernel's word that a proof rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProofMethod {
    /// The agent's cgroup says `populated 0` and the pidfds of shim and init are readable.
    Cgroup,
    /// The pidfd of the PID namespace's init is readable, so the kernel has reaped all of it.
    Pidfd,
    /// No process had been started, and the launch gate is shut for good.
    NeverStarted,
    /// It had already ended when the order came, proven then.
    AlreadyEnded,
}

/// One step of the clean-up after a death, and how it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CleanupStep {
    /// What was cleaned up.
    pub step: CleanupKind,
    /// Whether it worked.
    pub ok: bool,
    /// What is left, or where the work was saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a clean-up step is about, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CleanupKind {
    /// Uncommitted work saved to a ref.
    Salvage,
    /// Process, cgroup or container removed.
    Sandbox,
    /// Working tree removed.
    Worktree,
    /// Branch pushed to the repository.
    Push,
}

/// Where to find the work of an ended agent, and how much it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkSummary {
    /// The commit that the agent started from, 40 hex digits.
    pub base_commit: String,
    /// The last commit of its work; equals `base_commit` if there is none.
    pub head_commit: String,
    /// The ref of the spoke's mirror that holds it: the agent's branch, or a salvage ref.
    pub git_ref: String,
    /// The agent's commits since the base, oldest first; at most 100 are named.
    pub commits: Vec<CommitSummary>,
    /// Whether the last commit is ours, of what the agent had not committed.
    pub uncommitted_included: bool,
    /// Files changed since the base.
    pub files_changed: u64,
    /// Lines added since the base.
    pub insertions: u64,
    /// Lines removed since the base.
    pub deletions: u64,
    /// Length of the patch in bytes.
    pub patch_bytes: u64,
    /// Anything of note, such as files that were too large to commit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What came of pushing the branch, if that was asked for and there was something to push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Pushed>,
}

/// One commit of an agent's work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitSummary {
    /// 40 hex digits.
    pub id: String,
    /// Name and address of the author, at most 500 characters.
    pub author: String,
    /// First paragraph of the message on one line, at most 500 characters.
    pub subject: String,
    /// Author's time.
    pub time: Timestamp,
}

/// All that can be told of an agent: the answer to `agent.status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The agent.
    pub agent_id: AgentId,
    /// The caller's task.
    pub task_id: TaskId,
    /// What it was spawned as.
    pub agent_type: AgentType,
    /// The runtime it runs in.
    pub runtime: RuntimeName,
    /// The sandbox it runs in.
    pub sandbox: SandboxKind,
    /// The connection it came by; absent for one spawned by the spoke's own operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<ConnectionId>,
    /// Where it is in its life.
    pub state: ObservedState,
    /// Why, once it ended or when an attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    /// More on the reason, safe to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The attempt that runs or ran last, from 1; 0 before the first.
    pub attempt: u32,
    /// Repository as it was asked for.
    pub repository: String,
    /// Branch it started from.
    pub branch: String,
    /// Branch of its own, `mosaic/<agentId>`.
    pub agent_branch: String,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// When its processes first ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it was recorded as ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Exit status of its main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended its main process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// How far it is.
    pub progress: Progress,
    /// What it has used.
    pub usage: Usage,
    /// The runtime's final words; only of a completed agent (A16).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Its work, once it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<WorkSummary>,
    /// How its death was proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub death: Option<DeathProof>,
    /// What the clean-up did, as far as it has come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cleanup: Vec<CleanupStep>,
    /// What it may use, if that is bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// The labels that it was spawned with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The lease that it lives by: renewed within so many seconds, or stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_secs: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_is_legal_from_every_state_that_is_not_terminal() {
        for state in AgentState::ALL {
            let legal = state.may_become(AgentState::Killing);
            assert_eq!(
                legal,
                !state.is_terminal() && state != AgentState::Killing,
                "{state}"
            );
        }
    }

    #[test]
    fn terminal_is_final() {
        for state in AgentState::ALL
            .into_iter()
            .filter(|state| state.is_terminal())
        {
            assert!(
                AgentState::ALL
                    .into_iter()
                    .all(|next| !state.may_become(next)),
                "{state}"
            );
        }
    }

    #[test]
    fn killed_comes_only_after_killing() {
        for state in AgentState::ALL {
            assert_eq!(
                state.may_become(AgentState::Killed),
                state == AgentState::Killing,
                "{state}"
            );
        }
    }

    #[test]
    fn an_observed_state_is_written_like_the_state() {
        for state in AgentState::ALL {
            let observed = ObservedState::from(state);
            assert_eq!(observed.known(), Some(state));
            assert_eq!(serde_json::to_value(observed).unwrap(), state.as_str());
            assert_eq!(observed.to_string(), state.as_str());
        }
        assert_eq!(ObservedState::Unknown.known(), None);
    }
}
