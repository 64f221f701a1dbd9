//! The kill that needs no daemon: the data folder says where the agents' cgroup is and who their shims and inits are,
//! the kernel does the rest.
//!
//! Whatever is struck is provably ours (A12): a group below a parent of ours, with the agent's id as its name; a process
//! that is the one on record by pid, start time and boot (A13), and is where its record says.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mosaic_types::{AgentId, Timestamp};
use rustix::process::{Signal, pidfd_send_signal};

use super::{
    Candidate, ExitRecord, ProofMethod, SandboxError,
    cgroup::{Group, Mounts},
    files::{self, ContainerRecord, SandboxRecord},
    freezer,
    identity::{self, ProcessIdentity},
    shim::SHIM_VERB,
    tree::remembered_parent,
};

/// What the name of every parent of ours begins with.
const PARENT_PREFIX: &str = "mosaic-";
/// How often the kernel is asked.
const ASK_EVERY: Duration = Duration::from_micros(500);

/// Kills everything under the cgroup that the daemon with this data folder used last, and proves it,
/// without a daemon. `Ok(None)` if it never had one.
///
/// # Errors
/// [`SandboxError::StillPopulated`] if something would not die by the deadline; [`SandboxError::Io`].
pub fn kill_parent_offline(
    data_dir: &Path,
    deadline: Instant,
) -> Result<Option<Vec<Candidate>>, SandboxError> {
    let Some(parent) = own_parent(data_dir)? else {
        return Ok(None);
    };
    let held: Vec<_> = parent
        .candidates()?
        .into_iter()
        .filter(|candidate| candidate.populated)
        .collect();
    parent.kill()?;
    freezer::thaw_members(&parent);
    let empty = parent
        .wait_empty(deadline)
        .map_err(SandboxError::io("read the state of", parent.path()))?;
    if !empty {
        return Err(SandboxError::StillPopulated {
            path: parent.path().to_owned(),
            survivors: parent.pids(),
        });
    }
    Ok(Some(held))
}

/// The parent that the data folder remembers, if it can be one of ours: a file that says something else must not end
/// the machine.
fn own_parent(data_dir: &Path) -> Result<Option<Group>, SandboxError> {
    let parent = remembered_parent(data_dir)?;
    let mount = mount()?;
    Ok(parent
        .filter(|path| {
            let mount = mount.as_deref();
            mount.is_some_and(|mount| is_parent(path, mount))
        })
        .map(Group::at))
}

fn mount() -> Result<Option<PathBuf>, SandboxError> {
    let mounts =
        Mounts::read().map_err(SandboxError::io("read", Path::new("/proc/self/mountinfo")))?;
    Ok(mounts.unified)
}

fn is_parent(path: &Path, mount: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    path.starts_with(mount)
        && path.components().all(|part| part.as_os_str() != "..")
        && name.is_some_and(|name| name.starts_with(PARENT_PREFIX))
}

/// Whether this is the group of this agent below a parent of ours.
fn is_agents(group: &Group, agent_id: AgentId, mount: &Path) -> bool {
    let path = group.path();
    let above = path.parent().and_then(Path::parent);
    path.file_name().and_then(|name| name.to_str()) == Some(agent_id.to_string().as_str())
        && above.is_some_and(|parent| is_parent(parent, mount))
}

/// An agent of which something is alive, or may be.
#[derive(Debug)]
pub struct Found {
    /// Whose it is.
    pub agent_id: AgentId,
    /// Where its files are, if they are.
    pub run_dir: PathBuf,
    /// The engine's id of its container, if it has one.
    pub container: Option<String>,
    /// What cannot be known of it, and why. Its death cannot be proven then.
    pub unknown: Option<String>,
    groups: Vec<Group>,
    processes: Vec<(&'static str, u32, OwnedFd)>,
}

impl Found {
    fn new(agent_id: AgentId, data_dir: &Path) -> Self {
        let run_dir = data_dir.join("agents").join(agent_id.to_string());
        Self {
            agent_id,
            run_dir: run_dir.join("run"),
            container: None,
            unknown: None,
            groups: Vec::new(),
            processes: Vec::new(),
        }
    }

    /// By what its death is proven.
    #[must_use]
    pub fn method(&self) -> ProofMethod {
        if self.groups.is_empty() {
            ProofMethod::Pidfd
        } else {
            ProofMethod::Cgroup
        }
    }

    /// Its shim and its init, as far as they were alive.
    pub fn processes(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.processes.iter().map(|(role, pid, _)| (*role, *pid))
    }

    /// Who of it is alive. Empty groups with processes that have ended: nobody.
    #[must_use]
    pub fn survivors(&self) -> Vec<u32> {
        let processes = self.processes.iter();
        let mut alive: Vec<u32> = processes
            .filter(|(_, _, pidfd)| !matches!(identity::is_dead(pidfd), Ok(true)))
            .map(|(_, pid, _)| *pid)
            .collect();
        for group in &self.groups {
            if !matches!(group.is_populated(), Ok(false)) {
                alive.extend(group.pids());
            }
        }
        alive.sort_unstable();
        alive.dedup();
        alive
    }

    fn is_dead(&self) -> bool {
        let mut processes = self.processes.iter();
        processes.all(|(_, _, pidfd)| matches!(identity::is_dead(pidfd), Ok(true)))
            && self
                .groups
                .iter()
                .all(|group| matches!(group.is_populated(), Ok(false)))
    }

    /// Kills it by everything that is known of it. Whether it worked is what [`Found::survivors`] says.
    pub fn strike(&self) {
        for (_, _, pidfd) in &self.processes {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        for group in &self.groups {
            let _ = group.kill();
        }
    }

    /// Waits on this thread for its death, until the deadline. `false` if it is not proven.
    #[must_use]
    pub fn wait_dead(&self, deadline: Instant) -> bool {
        while !self.is_dead() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(ASK_EVERY);
        }
        true
    }
}

/// What a look at a data folder found.
#[derive(Debug, Default)]
pub struct Look {
    /// The agents of which something is alive, or of which that cannot be known.
    pub found: Vec<Found>,
    /// What could not be looked at, in words: agents may be behind it.
    pub blind: Vec<String>,
    parents: Vec<Group>,
}

impl Look {
    /// Kills everything below the parents by one write each, waiting containers too, and each agent by itself.
    pub fn strike(&self) {
        for parent in &self.parents {
            let _ = parent.kill();
        }
        for found in &self.found {
            found.strike();
        }
    }

    /// Who is still alive below a parent of ours, agent's or not.
    #[must_use]
    pub fn left(&self) -> Vec<u32> {
        let populated = |group: &&Group| !matches!(group.is_populated(), Ok(false));
        let parents = self.parents.iter().filter(populated);
        parents.flat_map(Group::pids).collect()
    }
}

/// Looks for every agent of a data folder of which something is alive. Reads the folder, `/proc` and the cgroup tree;
/// nothing else has to be there.
#[must_use]
pub fn look(data_dir: &Path) -> Look {
    let mut look = Look::default();
    let mut agents = BTreeMap::new();
    let mount = mount().unwrap_or_else(|error| {
        look.blind.push(in_words(&error));
        None
    });
    match own_parent(data_dir) {
        Ok(parent) => look.parents.extend(parent),
        Err(error) => look.blind.push(in_words(&error)),
    }
    let listed = fs::read_dir(data_dir.join("agents"));
    let entries = match listed {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            look.blind.push(format!("agents/: {error}"));
            None
        }
    };
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(agent_id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let mut found = Found::new(agent_id, data_dir);
        let known = by_its_files(&mut found, mount.as_deref());
        found.unknown = known.err().map(|error| in_words(&error));
        // A folder that remembers no parent, or a wrong one: its agents' own records name it.
        for parent in found.groups.iter().filter_map(|group| {
            let parent = group.path().parent()?.parent()?;
            let mount = mount.as_deref()?;
            (is_agents(group, agent_id, mount)).then(|| Group::at(parent.to_owned()))
        }) {
            if !look.parents.contains(&parent) {
                look.parents.push(parent);
            }
        }
        agents.insert(agent_id, found);
    }
    for parent in &look.parents {
        match parent.candidates() {
            Ok(candidates) => {
                for candidate in candidates {
                    let id = candidate.agent_id;
                    let scope = parent.scope(candidate.scope);
                    let group = Group::at(scope.path().join(id.to_string()));
                    let found = agents.entry(id).or_insert_with(|| Found::new(id, data_dir));
                    if !found.groups.contains(&group) {
                        found.groups.push(group);
                    }
                }
            }
            Err(error) => look.blind.push(in_words(&error)),
        }
    }
    for (_, mut found) in agents {
        // Everything of a process agent is in its group: what its files do not say, the group does.
        if found.container.is_none() && !found.groups.is_empty() {
            found.unknown = None;
        }
        if !found.is_dead() || found.unknown.is_some() {
            look.found.push(found);
        }
    }
    look
}

/// Takes hold of what an agent's files tell of, if it is the one on record.
fn by_its_files(found: &mut Found, mount: Option<&Path>) -> Result<(), SandboxError> {
    let dir = found.run_dir.clone();
    let sandbox = files::read::<SandboxRecord>(&dir.join(files::SANDBOX));
    let container = files::read::<ContainerRecord>(&dir.join(files::CONTAINER));
    let init_group = files::read::<Group>(&dir.join(files::INIT_GROUP));
    // That one of its files is there is enough: what they say only helps.
    if !matches!((&container, &init_group), (Ok(None), Ok(None))) {
        let id = container.ok().flatten().map(|container| container.id);
        found.container = Some(id.unwrap_or_else(|| format!("mosaic-{}", found.agent_id)));
    }
    if matches!(
        files::read::<ExitRecord>(&dir.join(files::EXIT)),
        Ok(Some(_))
    ) {
        // It is there once the namespace is dead, and not before.
        return Ok(());
    }
    let boot_id = identity::boot_id().map_err(SandboxError::io("read the boot for", &dir))?;
    let record = sandbox.as_ref().ok().and_then(Option::as_ref);
    if record.is_some_and(|record| record.boot_id != boot_id) {
        // Nothing outlives a boot.
        return Ok(());
    }
    let own_group = record.and_then(|record| record.cgroup.clone());
    let own_group = own_group
        .filter(|group| mount.is_some_and(|mount| is_agents(group, found.agent_id, mount)));
    let elsewhere = init_group.as_ref().ok().and_then(Option::as_ref);

    let shim = opened(&dir, files::SHIM);
    if let Ok(Some((shim, pidfd))) = shim {
        if is_in(own_group.as_ref(), &shim, &dir)? && is_shim(shim.pid) {
            found.processes.push(("shim", shim.pid, pidfd));
        }
    } else if let Err(error) = shim {
        found.groups.extend(own_group);
        return Err(error);
    }
    let init = opened(&dir, files::INIT);
    if let Ok(Some((init, pidfd))) = init {
        let is_ours = identity::is_namespace_init(init.pid).unwrap_or(false)
            && is_in(elsewhere.or(own_group.as_ref()), &init, &dir)?;
        if is_ours {
            found.processes.push(("init", init.pid, pidfd));
            let exactly = Group::of(init.pid).ok().flatten();
            let containers = elsewhere.filter(|group| {
                Some(*group) == exactly.as_ref() && group.is_a_containers(own_group.as_ref())
            });
            found.groups.extend(containers.cloned());
        }
    } else if let Err(error) = init {
        found.groups.extend(own_group);
        return Err(error);
    }
    found.groups.extend(own_group);
    found.groups.dedup();
    sandbox.map(|_| ())?;
    init_group.map(|_| ())
}

fn opened(dir: &Path, name: &str) -> Result<Option<(ProcessIdentity, OwnedFd)>, SandboxError> {
    let Some(identity) = files::read::<ProcessIdentity>(&dir.join(name))? else {
        return Ok(None);
    };
    let pidfd = identity
        .open()
        .map_err(SandboxError::io("look for a process of", dir))?;
    Ok(pidfd.map(|pidfd| (identity, pidfd)))
}

/// Whether it calls itself a shim.
fn is_shim(pid: u32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = command.split(|byte| *byte == 0).skip(1);
    arguments.next() == Some(SHIM_VERB.as_bytes())
}

/// Whether the process is where its record says. Where there is no group, identity has to do.
fn is_in(
    group: Option<&Group>,
    process: &ProcessIdentity,
    dir: &Path,
) -> Result<bool, SandboxError> {
    match group.map(|group| group.holds(process.pid)) {
        None => Ok(true),
        // It ended meanwhile.
        Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Some(Err(error))
            if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            Ok(false)
        }
        Some(answer) => answer.map_err(SandboxError::io("look for a process of", dir)),
    }
}

fn in_words(error: &SandboxError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// When an agent with this directory ended, if its shim saw the end: to tell an end from a kill that came after it.
#[must_use]
pub fn ended_at(run_dir: &Path) -> Option<Timestamp> {
    let ended = files::read::<ExitRecord>(&run_dir.join(files::EXIT)).ok()??;
    Some(Timestamp::from_unix_millis(ended.at_unix_ms.cast_signed()))
}

/// Leaves word for an agent in the room that its shim took on the disk for the exit record: where the disk has no
/// other room.
///
/// # Errors
/// There is no such room, or it cannot be written.
pub fn leave_word_in_reserve(run_dir: &Path, word: &[u8]) -> io::Result<()> {
    let reserve = run_dir.join(files::RESERVE);
    let file = fs::OpenOptions::new().write(true).open(&reserve)?;
    if word.len() as u64 > file.metadata()?.len() {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    file.write_all_at(word, 0)?;
    file.set_len(word.len() as u64)?;
    file.sync_all()?;
    fs::rename(reserve, run_dir.join(files::WORD))
}

/// What [`leave_word_in_reserve`] left.
#[must_use]
pub fn word_in_reserve(run_dir: &Path) -> Option<Vec<u8>> {
    fs::read(run_dir.join(files::WORD)).ok()
}
