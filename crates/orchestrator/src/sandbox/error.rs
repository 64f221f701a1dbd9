//! Why a sandbox could not do what was asked.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use mosaic_types::AgentId;
use thiserror::Error;

/// Why a sandbox could not do what was asked.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Neither engine works here. Nothing is run uncontained.
    #[error("no containment: {tried}")]
    NoContainment {
        /// What was tried, and what each said.
        tried: String,
    },
    /// A launch that cannot be done as asked.
    #[error("unusable launch: {reason}")]
    InvalidLaunch {
        /// What is wrong with it.
        reason: String,
    },
    /// There is already a live sandbox of this agent.
    #[error("agent {0} is already running")]
    AlreadyRunning(AgentId),
    /// The sandbox was killed before it could go on.
    #[error("the sandbox was killed")]
    Killed,
    /// The sandbox did not come up; nothing of the agent ran.
    #[error("the sandbox did not start: {detail}")]
    StartFailed {
        /// What the shim or the engine said.
        detail: String,
    },
    /// The sandbox did not come up in time.
    #[error("the sandbox did not start within {0:?}")]
    StartTimedOut(Duration),
    /// Processes remain that should be gone.
    #[error("processes remain in {path}: {survivors:?}")]
    StillPopulated {
        /// The cgroup, or the agent's directory where there is none.
        path: PathBuf,
        /// Which, as far as known.
        survivors: Vec<u32>,
    },
    /// The engine of containers did not do what it was asked.
    #[error("the container could not be handled")]
    Engine(#[from] super::docker::EngineError),
    /// An operation on a file or a process failed.
    #[error("could not {operation} {}", path.display())]
    Io {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file of ours does not hold what it should.
    #[error("could not understand {}", path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl SandboxError {
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}
