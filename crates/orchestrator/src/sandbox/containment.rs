//! Which containment this host has. Every claim is tried out with a real sandbox before it is made;
//! where nothing works, nothing is run.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{engine, tree::Tree};

/// What makes the namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EngineKind {
    /// `bwrap`.
    Bubblewrap,
    /// `unshare` of util-linux; our init does the mounting.
    Unshare,
}

impl EngineKind {
    /// The program's name.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Bubblewrap => "bwrap",
            Self::Unshare => "unshare",
        }
    }
}

/// An engine that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Engine {
    pub(super) kind: EngineKind,
    pub(super) path: PathBuf,
}

impl Engine {
    pub(super) fn find(kind: EngineKind) -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join(kind.program()))
            .find(|candidate| candidate.is_absolute() && candidate.is_file())
            .map(|path| Self { kind, path })
    }
}

/// Whether a cgroup kills and proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CgroupSupport {
    /// Version 2 with `cgroup.kill`; everything of ours is below this directory.
    V2 {
        /// The parent of all scopes.
        path: PathBuf,
    },
    /// None that we may use. The PID namespace alone kills and proves.
    None,
}

/// Which limits are enforced. A limit that is asked for and cannot be is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// [`super::ResourceLimits::memory_mb`].
    pub memory: bool,
    /// [`super::ResourceLimits::cpus`].
    pub cpu: bool,
    /// [`super::ResourceLimits::pids`].
    pub pids: bool,
}

impl Limits {
    pub(super) fn set(&mut self, controller: &str) {
        match controller {
            "memory" => self.memory = true,
            "cpu" => self.cpu = true,
            _ => self.pids = true,
        }
    }
}

/// What contains agents on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Containment {
    /// What makes the namespaces, by name.
    pub engine: String,
    /// Its version, as it says.
    pub engine_version: String,
    /// Every agent is a PID namespace. Always true: without one nothing is run.
    pub pid_namespace: bool,
    /// The cgroup.
    pub cgroup: CgroupSupport,
    /// The host's files are read-only, and what is masked is out of sight.
    pub private_filesystem: bool,
    /// Which limits are enforced.
    pub limits: Limits,
    /// Whether an agent's network can be an allow-list. One that is asked for and cannot be is refused.
    pub egress: bool,
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cgroup = match self.cgroup {
            CgroupSupport::V2 { .. } => "cgroup v2",
            CgroupSupport::None => "no cgroup",
        };
        write!(
            f,
            "{} ({}), PID namespace, {cgroup}",
            self.engine, self.engine_version
        )
    }
}

pub(super) fn describe(engine: &Engine, tree: &Tree) -> Containment {
    Containment {
        engine: match engine.kind {
            EngineKind::Bubblewrap => "bubblewrap".to_owned(),
            EngineKind::Unshare => "unshare".to_owned(),
        },
        engine_version: engine::version(&engine.path),
        pid_namespace: true,
        cgroup: tree.support(),
        private_filesystem: true,
        limits: tree.limits(),
        // `unshare` leaves loopback down. Whether bubblewrap may bring it up here is what a trial finds out.
        egress: engine.kind == EngineKind::Bubblewrap,
    }
}
