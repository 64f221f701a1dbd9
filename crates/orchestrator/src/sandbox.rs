//! Sandboxes: where agents run, and how they are made to stop.
//!
//! An agent is a PID namespace, in a cgroup of its own where the host has cgroup v2, held by a
//! *shim*: a small process of ours which outlives the daemon, keeps the agent's output in a bounded
//! [`spool`] and its exit status on disk. What this module promises:
//!
//! - **A kill is by the kernel and is proven.** [`SandboxHandle::kill`] needs no store, no network
//!   and no lock that anything slow holds; [`SandboxHandle::prove_dead`] answers from pidfds and
//!   from `cgroup.events`, never from a status somebody wrote.
//! - **A launch cannot outrun a kill.** A sandbox can be killed from the moment
//!   [`Sandbox::spawn`] returns, and nothing of the agent's runs before [`SandboxHandle::go`].
//! - **Nothing outlives the agent.** When its main process ends, its whole namespace does.
//! - **A restart loses nothing.** [`Sandbox::adopt`] finds agents by identity (pid, start time, boot
//!   id, cgroup), never by a bare pid.
//!
//! ```text
//! daemon ──spawn──► shim ──► bwrap │ unshare ──► init (pid 1) ──► agent ──► ...
//!    └──create, start──► container engine ─────────────▲
//!    │  plan, "go" ──►│ ◄── ready, exit ─────────────┘ (socket; the kernel names the sender)
//!    │ ◄── "ready" ───┘
//!    └── pidfd(shim), pidfd(init), cgroup.kill
//! ```
//!
//! An agent whose network is an allow-list reaches it through a proxy in its shim: see [`egress`].

mod adoption;
pub mod cgroup;
pub mod containment;
mod death;
pub mod docker;
pub mod egress;
mod engine;
mod error;
mod files;
mod filesystem;
mod freezer;
mod handle;
mod held_group;
pub mod identity;
mod init;
mod launch;
mod launcher;
pub mod mask;
mod offline;
pub mod process;
mod program;
mod sandboxes;
mod shim;
pub mod spool;
mod tree;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mosaic_types::{AgentId, command::SandboxKind};

pub use containment::{CgroupSupport, Containment, EngineKind, Limits as LimitSupport};
pub use death::{Death, DeathProof, ExitRecord, ExitStatus, ProofMethod};
pub use docker::{DockerSandbox, DockerSettings, EngineError, PoolSettings, WarmSettings};
pub use egress::EgressRules;
pub use error::SandboxError;
pub use launch::{
    Bind, DEFAULT_SPOOL_MAX_BYTES, LaunchSpec, Network, Prepared, ResourceLimits, Scope,
};
pub use offline::{
    Found, Look, ended_at, kill_parent_offline, leave_word_in_reserve, look, word_in_reserve,
};
pub use process::{ProcessSandbox, ProcessSandboxConfig};
pub use program::Program;
pub use sandboxes::Sandboxes;
pub use tree::Tree;

/// Runs the shim, or the init of a namespace, if this process was started as one.
///
/// Every binary that may become a node calls this first: where there is no smaller one, the shim is the daemon's own
/// executable ([`Program`]).
/// `None` means that this process is neither.
#[must_use]
pub fn dispatch() -> Option<std::process::ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next()?;
    if verb == shim::SHIM_VERB {
        Some(shim::main(args))
    } else if verb == init::INIT_VERB {
        Some(init::main(args))
    } else if verb == program::BUILD_VERB {
        Some(program::main())
    } else {
        None
    }
}

/// Where the output of an agent with this directory lies, whether or not it still runs.
#[must_use]
pub fn spool_path(agent_dir: &Path) -> PathBuf {
    agent_dir.join(files::SPOOL)
}

/// What became of a sandbox while the daemon was away.
#[derive(Debug)]
pub enum Adopted {
    /// It lives, and can be watched and killed as if this daemon had started it.
    Live(Arc<dyn SandboxHandle>),
    /// It ended; its namespace is dead.
    Ended(ExitRecord),
    /// It is dead and left no record: the host restarted, or its shim was killed.
    Vanished,
}

/// Something under our parent cgroup. An agent's id in the name is all that makes it ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Whose.
    pub agent_id: AgentId,
    /// Its scope.
    pub scope: Scope,
    /// Whether a process is in it.
    pub populated: bool,
    /// When the group was made, in milliseconds since the Unix epoch; 0 if not known.
    pub created_unix_ms: u64,
}

/// A kind of place where agents run: processes of this host ([`ProcessSandbox`]), containers ([`DockerSandbox`]).
///
/// A launch has phases, so that intent is on disk before anything is started, and so that a kill
/// which arrives at any moment finds something to kill:
/// `hand_over` → `prepare` → `spawn` → [`SandboxHandle::init_started`] → [`SandboxHandle::go`].
///
/// What lives is found, killed and proven dead in one way for all kinds: by the [`Tree`] and by the files of the shim.
#[async_trait]
pub trait Sandbox: Send + Sync + fmt::Debug {
    /// Which kind.
    fn kind(&self) -> SandboxKind;

    /// What contains agents here.
    fn containment(&self) -> &Containment;

    /// Where their groups are.
    fn tree(&self) -> &Tree;

    /// Says that a launch for this pool ([`LaunchSpec::warm`]) is some milliseconds away, so that what it would wait for
    /// in the kernel may begin. Changes nothing, starts nothing, and may be said in vain.
    fn announce(&self, _warm: &str) {}

    /// Gives the agent what it is to own and to read. May take as long as its tree is large.
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    async fn hand_over(&self, _spec: &LaunchSpec) -> Result<(), SandboxError> {
        Ok(())
    }

    /// Checks the launch and makes what it needs on disk and in the cgroup tree. Starts nothing.
    ///
    /// # Errors
    /// [`SandboxError::AlreadyRunning`] if the agent lives, [`SandboxError::InvalidLaunch`],
    /// [`SandboxError::Io`].
    fn prepare(&self, spec: LaunchSpec) -> Result<Prepared, SandboxError>;

    /// Starts the shim, and nothing of the agent. Takes about a millisecond; to be called under the
    /// same lock that kill-all takes to close the door. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`SandboxError::Io`]; then nothing runs.
    fn spawn(&self, prepared: Prepared) -> Result<Arc<dyn SandboxHandle>, SandboxError>;

    /// Removes what a dead agent left, its container and its groups. Idempotent; leaves `agent_dir` alone.
    ///
    /// # Errors
    /// [`SandboxError::StillPopulated`] if it is not dead, [`SandboxError::Engine`], [`SandboxError::Io`].
    async fn cleanup(&self, scope: Scope, agent_id: AgentId) -> Result<(), SandboxError>;

    /// Finds out what became of the sandbox that was launched with this directory.
    ///
    /// A sandbox whose shim is dead is nobody's: its remains are killed before the answer.
    ///
    /// # Errors
    /// [`SandboxError::StillPopulated`] if remains would not die, [`SandboxError::Io`],
    /// [`SandboxError::Corrupt`]. After an error nothing is known.
    async fn adopt(&self, agent_dir: &Path) -> Result<Adopted, SandboxError> {
        adoption::adopt(agent_dir).await
    }

    /// Every agent's group under our parent. Empty where there is no cgroup v2.
    ///
    /// To sweep without killing the newborn: list first, then read what is on record, and take only
    /// what is in the first and not in the second.
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    fn list(&self) -> Result<Vec<Candidate>, SandboxError> {
        self.tree().list()
    }

    /// Kills what [`Sandbox::list`] found, by its group, and proves it.
    ///
    /// # Errors
    /// [`SandboxError::Io`]; [`SandboxError::StillPopulated`] if it would not die in time.
    async fn kill_candidate(
        &self,
        candidate: &Candidate,
        deadline: Instant,
    ) -> Result<(), SandboxError> {
        self.tree().kill_candidate(candidate, deadline).await
    }

    /// Kills everything of a scope by one write. The proof is each handle's. Where there is no
    /// cgroup this does nothing, and [`SandboxHandle::kill`] of each is needed; call both anyway.
    ///
    /// # Errors
    /// [`SandboxError::Io`]; a scope that never had an agent is no error.
    fn kill_scope(&self, scope: Scope) -> Result<(), SandboxError> {
        self.tree().kill_scope(scope)
    }

    /// Kills everything of ours by one write. As [`Sandbox::kill_scope`].
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    fn kill_everything(&self) -> Result<(), SandboxError> {
        self.tree().kill_everything()
    }

    /// Gives back to the host what this instance holds without an agent: for an orderly stop. What lives keeps
    /// what it lives in, and the next start takes it up.
    ///
    /// # Errors
    /// [`SandboxError::Io`], as when something still lives there.
    fn release(&self) -> Result<(), SandboxError> {
        self.tree().release()
    }
}

/// One sandbox, from the start of its shim on. Dropping it neither kills nor forgets anything.
#[async_trait]
pub trait SandboxHandle: Send + Sync + fmt::Debug {
    /// Whose it is.
    fn agent_id(&self) -> AgentId;

    /// With whom it is killed.
    fn scope(&self) -> Scope;

    /// The output, for a [`spool::SpoolReader`].
    fn spool_path(&self) -> PathBuf;

    /// Waits until the namespace exists and its init is held by a pidfd. Call once after `spawn`.
    ///
    /// # Errors
    /// [`SandboxError::StartFailed`], [`SandboxError::StartTimedOut`], [`SandboxError::Killed`].
    /// After an error the caller kills and proves.
    async fn init_started(&self, time_limit: Duration) -> Result<(), SandboxError>;

    /// Lets the agent run. Only after [`SandboxHandle::init_started`].
    ///
    /// # Errors
    /// [`SandboxError::Killed`] after a kill, [`SandboxError::Io`] if the shim is gone.
    fn go(&self) -> Result<(), SandboxError>;

    /// Kills by the kernel what is held by pidfds: the namespace's init, with it all that is in the namespace, and the
    /// shim. At once: idempotent, takes no lock, waits for nothing.
    ///
    /// # Errors
    /// As [`SandboxHandle::kill`].
    fn end(&self) -> Result<(), SandboxError>;

    /// Kills by the kernel whatever is in its groups. Idempotent; the kernel takes a lock for it which is held, for some
    /// milliseconds at a time, for everybody who comes into a group of this machine or goes.
    ///
    /// # Errors
    /// As [`SandboxHandle::kill`].
    fn end_groups(&self) -> Result<(), SandboxError>;

    /// Both.
    ///
    /// # Errors
    /// The first thing that failed, after everything was tried. Whether it worked is what
    /// [`SandboxHandle::prove_dead`] says, not this.
    fn kill(&self) -> Result<(), SandboxError> {
        let ended = self.end();
        let groups = self.end_groups();
        ended.and(groups)
    }

    /// Waits for death, until the deadline. Does not kill.
    async fn prove_dead(&self, deadline: Instant) -> Death;

    /// Waits until the sandbox has ended by itself or was killed, and says how the agent ended.
    ///
    /// # Errors
    /// [`SandboxError::Io`], [`SandboxError::Corrupt`] if the record cannot be read.
    async fn wait_exit(&self) -> Result<ExitRecord, SandboxError>;
}
