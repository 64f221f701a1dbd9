//! The files of one agent's directory, and what is said between daemon, shim and init.
//!
//! | file | written by | says |
//! |---|---|---|
//! | `sandbox.json` | daemon, before anything starts | where the sandbox is, and in which boot |
//! | `shim.json` | shim, once it is in its cgroup | who the shim is |
//! | `init.json` | shim, before the agent may run | who the namespace's init is |
//! | `init-group.json` | shim, before the agent may run | where an engine put that init |
//! | `container.json` | daemon, before the agent may run | which container it is |
//! | `exit.json` | shim, once the namespace is dead | how the agent ended |
//! | `killed.json` | a kill without a daemon, on a full disk | who ordered it; in the exit record's room |
//! | `spool` | shim | the output |
//! | `egress/proxy.sock` | shim | the way out of an agent with an allow-list; all of this that it sees |
//!
//! Only `exit.json` is forced to disk: what the others say is true for one boot only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use mosaic_types::AgentId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Bind, ExitRecord, LaunchSpec, SandboxError, Scope, cgroup::Group, containment::Engine,
};

pub(super) const SANDBOX: &str = "sandbox.json";
pub(super) const SHIM: &str = "shim.json";
pub(super) const INIT: &str = "init.json";
pub(super) const INIT_GROUP: &str = "init-group.json";
pub(super) const EXIT: &str = "exit.json";
pub(super) const SPOOL: &str = "spool";
pub(super) const CONTAINER: &str = "container.json";
/// Where the exit record will be written: its room on the disk.
pub(super) const RESERVE: &str = "exit.json.reserved";
/// Word of a kill for which there was no other room.
pub(super) const WORD: &str = "killed.json";
pub(super) const SHIM_LOG: &str = "shim.log";

/// What the daemon tells the shim, on one line of its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Plan {
    pub(super) launch: LaunchSpec,
    pub(super) starter: Starter,
    /// What kills all of it.
    pub(super) cgroup: Option<Group>,
    /// Where the shim itself belongs: there, or below.
    pub(super) shim_cgroup: Option<Group>,
    pub(super) limit_groups: Vec<PathBuf>,
    /// What a container that was there before is yet to be given.
    #[serde(default)]
    pub(super) attach: Vec<Bind>,
}

/// Who starts the init of the namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Starter {
    /// The shim, by this program.
    Engine(Engine),
    /// An engine of containers, at the daemon's word; the init then connects to this socket.
    Container {
        /// Tells this launch from others of its agent.
        launch: String,
        /// Where the shim listens, as the host sees it. Of this launch alone.
        socket: PathBuf,
    },
}

/// What stays on disk of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerRecord {
    /// The engine's id of it.
    pub(super) id: String,
    /// Where it waited for the agent, if it did.
    #[serde(default)]
    pub(super) slot: Option<String>,
}

/// What stays on disk of a plan: no environment, no arguments.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SandboxRecord {
    pub(super) version: u32,
    pub(super) agent_id: AgentId,
    pub(super) scope: Scope,
    pub(super) boot_id: String,
    pub(super) cgroup: Option<Group>,
    pub(super) limit_groups: Vec<PathBuf>,
}

/// What the shim tells the init, on one line of their socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InitPlan {
    pub(super) argv: Vec<String>,
    pub(super) env: std::collections::BTreeMap<String, String>,
    pub(super) cwd: PathBuf,
    /// What the init must arrange itself, where the engine does not.
    pub(super) filesystem: Option<super::filesystem::View>,
    /// The proxy's socket, as it is seen inside, if the agent's network is an allow-list.
    pub(super) proxy_socket: Option<PathBuf>,
}

/// What the init tells the shim.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum InitSays {
    Ready,
    Failed(String),
    Code(i32),
    Signal(i32),
}

/// The word that lets the agent run.
pub(super) const GO: &[u8] = b"go\n";

/// Reads a file of ours; `None` if it is not there.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SandboxError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SandboxError::io("read", path)(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| SandboxError::Corrupt {
            path: path.to_owned(),
            source,
        })
}

/// Writes a file of ours so that a reader sees all of it or nothing.
pub(super) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_and(path, value, |_| Ok(()))
}

/// As [`write()`], and a reader after a loss of power sees all of it or nothing as well.
pub(super) fn write_durable(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_and(path, value, File::sync_data)
}

fn write_and(
    path: &Path,
    value: &impl Serialize,
    settle: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    settle(&file)?;
    drop(file);
    fs::rename(&temporary, path)
}

pub(super) fn remove(path: &Path) -> Result<(), SandboxError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SandboxError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// The exit record to be. Its room on the disk is taken at the start, so that an agent which fills
/// the disk cannot keep its own end from being recorded.
#[derive(Debug)]
pub(super) struct ExitFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl ExitFile {
    const ROOM_BYTES: u64 = 4096;

    pub(super) fn reserve(agent_dir: &Path) -> io::Result<Self> {
        let path = agent_dir.join(EXIT);
        let temporary = agent_dir.join(RESERVE);
        let file = create(&temporary)?;
        match rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            Self::ROOM_BYTES,
        ) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self {
            file,
            temporary,
            path,
        })
    }

    pub(super) fn commit(mut self, record: &ExitRecord) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        self.file.write_all(&text)?;
        self.file.set_len(text.len() as u64)?;
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }
}
