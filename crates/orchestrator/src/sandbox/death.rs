//! An end, in words: how an agent ended, and by what its death was proven.

use serde::{Deserialize, Serialize};

/// How an agent's main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It never ran: the sandbox could not be set up, or the daemon was gone before `go`.
    NotStarted,
    /// Nobody was there to see: the shim was killed, or the host went down.
    Lost,
}

/// What the shim leaves on disk when an agent has ended. By then its namespace is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// How it ended.
    pub status: ExitStatus,
    /// When, in milliseconds since the Unix epoch; 0 if not known.
    pub at_unix_ms: u64,
    /// Output that did not go into the spool because it was full, in bytes.
    #[serde(default)]
    pub dropped_bytes: u64,
    /// What went wrong, if something did; never text from the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl ExitRecord {
    pub(super) fn lost(detail: &str) -> Self {
        Self {
            status: ExitStatus::Lost,
            at_unix_ms: 0,
            dropped_bytes: 0,
            detail: Some(detail.into()),
        }
    }
}

/// By what a death was proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProofMethod {
    /// The cgroup is empty, and the shim and the namespace's init are gone.
    Cgroup,
    /// There is no cgroup; the shim and the namespace's init are gone. The kernel lets an init go
    /// only after everything in its namespace was reaped.
    Pidfd,
}

/// An agent is dead, and this is how we know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeathProof {
    /// By what it was proven.
    pub method: ProofMethod,
    /// The shim, by its pid at the time.
    pub shim_pid: u32,
    /// The namespace's init; `None` if none was ever let go.
    pub init_pid: Option<u32>,
    /// From the kill (or, when it died by itself, from the question) to the proof.
    pub elapsed_micros: u64,
}

/// The answer to "is it dead?".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Death {
    /// It is.
    Proven(DeathProof),
    /// It could not be proven within the time limit.
    NotProven {
        /// Which pids were still there; empty when the kernel did not tell.
        survivors: Vec<u32>,
    },
}

impl Death {
    /// Whether death was proven.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        matches!(self, Self::Proven(_))
    }
}
