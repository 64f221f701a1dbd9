//! A launch, in words: what is to run, what it may see and use, and with whom it is killed.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use mosaic_types::{AgentId, ConnectionId};
use serde::{Deserialize, Serialize};

use super::{SandboxError, docker::Waiting, egress::EgressRules, files, mask::Mask};

/// Who may kill an agent together with others: everything of one connection, or of the local
/// operator, is one group of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// Spawned by this node's own operator.
    Local,
    /// Spawned by the peer of this connection.
    Connection(ConnectionId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Connection(id) => id.fmt(f),
        }
    }
}

impl Scope {
    pub(super) fn from_dir_name(name: &str) -> Option<Self> {
        if name == "local" {
            return Some(Self::Local);
        }
        name.parse().ok().map(Self::Connection)
    }
}

/// What an agent sees of the network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Network {
    /// The host's network.
    #[default]
    Host,
    /// A namespace with nothing but loopback, which may be down.
    None,
    /// As `None`, and a way to these hosts through a proxy: see [`super::egress`].
    Allow(EgressRules),
}

/// Upper bounds for one agent. `None` is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceLimits {
    /// Memory of all its processes, in MiB.
    pub memory_mb: Option<u64>,
    /// Processor time, in processors (1.5 is one and a half).
    pub cpus: Option<f64>,
    /// Processes and threads at once, those of the shim and the engine (about 4) included.
    pub pids: Option<u64>,
}

impl ResourceLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory_mb.is_none() && self.cpus.is_none() && self.pids.is_none()
    }
}

/// A path of the host that the agent sees at the same place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bind {
    /// Absolute; must exist.
    pub path: PathBuf,
    /// Whether the agent may write to it.
    pub writable: bool,
}

impl Bind {
    /// A path the agent may write to.
    pub fn writable(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            writable: true,
        }
    }

    /// A path the agent may only read.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            writable: false,
        }
    }
}

/// Everything needed to start one agent.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchSpec {
    /// The agent.
    pub agent_id: AgentId,
    /// With whom it is killed.
    pub scope: Scope,
    /// A directory of ours for this agent: spool, identities, exit record. Made if missing (0700),
    /// hidden from every agent. It must not hold the worktree, unless that is in `binds`.
    pub agent_dir: PathBuf,
    /// Program and arguments. No shell sees them. The program is looked up on the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment; nothing of the daemon's is added. Visible to the agent only: it
    /// appears neither in a command line nor in the environment of any process outside.
    pub env: BTreeMap<String, String>,
    /// Working directory, as the agent sees it.
    pub cwd: PathBuf,
    /// A file to read as standard input; `/dev/null` if `None`.
    pub stdin: Option<PathBuf>,
    /// What is visible although it lies below a masked path, and what may be written.
    pub binds: Vec<Bind>,
    /// What the agent must not see: directories become empty, files become `/dev/null`. Those that
    /// do not exist are skipped. `/run`, `/var/run`, `/tmp`, `/var/tmp` are always private.
    pub masked: Vec<PathBuf>,
    /// Its network.
    pub network: Network,
    /// Its limits.
    pub limits: ResourceLimits,
    /// How many bytes of output this launch may add to the spool; what comes after is counted and
    /// dropped, and the agent never blocks on it.
    pub spool_max_bytes: u64,
    /// The pool of waiting containers that it may take one of.
    #[serde(default)]
    pub warm: Option<String>,
    /// Secrets that are masked in its output, before that is written anywhere.
    #[serde(default)]
    pub masks: Vec<Mask>,
}

impl LaunchSpec {
    /// Refuses what no sandbox could do, before anything is made of it.
    pub(super) fn check(&self) -> Result<(), SandboxError> {
        let refuse = |reason: String| Err(SandboxError::InvalidLaunch { reason });
        if self.argv.first().is_none_or(String::is_empty) {
            return refuse("no program".into());
        }
        let nul = |text: &String| text.contains('\0');
        if self.argv.iter().any(nul) || self.env.iter().any(|(key, value)| nul(key) || nul(value)) {
            return refuse("a NUL byte in the arguments or the environment".into());
        }
        if self
            .env
            .keys()
            .any(|key| key.is_empty() || key.contains('='))
        {
            return refuse("a variable without a proper name".into());
        }
        let paths = self.binds.iter().map(|bind| &bind.path).chain(&self.masked);
        for path in paths.chain([&self.agent_dir, &self.cwd]).chain(&self.stdin) {
            if !path.is_absolute() {
                return refuse(format!("{} is not absolute", path.display()));
            }
        }
        for bind in &self.binds {
            let path =
                fs::canonicalize(&bind.path).map_err(SandboxError::io("find", &bind.path))?;
            let whole = ["/", "/proc", "/dev", "/sys", "/run"];
            if whole.iter().any(|reserved| path == Path::new(reserved))
                || ["/proc", "/sys"]
                    .iter()
                    .any(|reserved| path.starts_with(reserved))
            {
                return refuse(format!("{} cannot be bound", bind.path.display()));
            }
        }
        Ok(())
    }
}

/// The default of [`LaunchSpec::spool_max_bytes`]: 256 MiB.
pub const DEFAULT_SPOOL_MAX_BYTES: u64 = 256 << 20;

impl fmt::Debug for LaunchSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment holds secrets, and arguments may.
        f.debug_struct("LaunchSpec")
            .field("agent_id", &self.agent_id)
            .field("scope", &self.scope)
            .field("agent_dir", &self.agent_dir)
            .field("cwd", &self.cwd)
            .finish_non_exhaustive()
    }
}

/// What a running sandbox's files are worth: everything was checked and made, nothing was started.
#[derive(Debug)]
pub struct Prepared {
    pub(super) plan: files::Plan,
    /// A container that was there before.
    pub(super) waiting: Option<Waiting>,
}
