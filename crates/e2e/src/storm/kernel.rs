//! What the kernel says of agents' processes, whatever any node believes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use mosaic_types::AgentId;

use crate::{api::Node, system::cgroups_of};

const MARK: &[u8] = b"MOSAIC_AGENT_ID=";
const ID_LENGTH: usize = 36;
/// What an engine starts a container by, and our init in it before it has found its shim.
const ENGINES: [&str; 4] = ["runc", "exe", "loader", "mosaic"];

/// Where agents' processes are, at one moment.
#[derive(Debug, Default)]
pub struct Sight {
    /// Processes of the agent's own, by the namespace that they are in: an attempt is a namespace.
    attempts: BTreeMap<AgentId, BTreeSet<PathBuf>>,
    /// All processes, the shim and its init among them.
    processes: BTreeMap<AgentId, BTreeSet<u32>>,
    /// Agents of whose own something runs, or their shim.
    own: BTreeSet<AgentId>,
}

impl Sight {
    /// Looks through `/proc` and through these spokes' cgroups.
    #[must_use]
    pub fn take(spokes: &[Node]) -> Self {
        let mut sight = Self::default();
        let own = fs::read_link("/proc/self/ns/pid").ok();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let base = entry.path();
            let environ = fs::read(base.join("environ")).unwrap_or_default();
            if let Some(agent) = marked(&environ) {
                sight.own.insert(agent);
                sight.processes.entry(agent).or_default().insert(pid);
                if let Ok(space) = fs::read_link(base.join("ns/pid"))
                    && Some(&space) != own.as_ref()
                {
                    sight.attempts.entry(agent).or_default().insert(space);
                }
                continue;
            }
            let command = fs::read(base.join("cmdline")).unwrap_or_default();
            if let Some(agent) = shim_of(&String::from_utf8_lossy(&command)) {
                sight.own.insert(agent);
                sight.processes.entry(agent).or_default().insert(pid);
            }
        }
        for group in spokes.iter().flat_map(|spoke| cgroups_of(&spoke.data_dir)) {
            let name = group.file_name().and_then(|name| name.to_str());
            if let Some(agent) = name.and_then(|name| name.parse().ok()) {
                let mut pids = BTreeSet::new();
                in_group(&group, &mut pids);
                if !pids.is_empty() {
                    sight.processes.entry(agent).or_default().extend(pids);
                }
            }
        }
        sight
    }

    /// The processes of an agent.
    pub(super) fn of(&self, agent: AgentId) -> Option<&BTreeSet<u32>> {
        self.processes.get(&agent)
    }

    /// Whether all of them are a container coming up of which nothing is the agent's: an engine that was asked for it before
    /// the kill cannot be called off, and its init ends when it finds no shim.
    pub(super) fn is_only_an_engine_late(&self, agent: AgentId) -> bool {
        !self.own.contains(&agent)
            && self.of(agent).into_iter().flatten().all(|pid| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                name.is_empty() || ENGINES.iter().any(|engine| name.starts_with(engine))
            })
    }

    /// Agents that have any.
    pub fn alive(&self) -> impl Iterator<Item = AgentId> + '_ {
        self.processes.keys().copied()
    }

    /// What runs of agents' own: each attempt is one.
    pub(super) fn attempts(&self) -> impl Iterator<Item = (AgentId, &BTreeSet<PathBuf>)> {
        self.attempts.iter().map(|(agent, spaces)| (*agent, spaces))
    }
}

/// The agent in whose environment this is.
fn marked(environ: &[u8]) -> Option<AgentId> {
    environ
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(MARK))
        .and_then(|id| std::str::from_utf8(id).ok()?.parse().ok())
}

/// The agent whose shim has this command line: it names the agent's `run` folder.
fn shim_of(command: &str) -> Option<AgentId> {
    let (_, rest) = command.split_once("/agents/")?;
    let id = rest.get(..ID_LENGTH)?;
    rest[ID_LENGTH..]
        .starts_with("/run")
        .then(|| id.parse().ok())?
}

/// Processes of a cgroup and of those below it. A dead one that nobody has waited for yet is none.
fn in_group(group: &PathBuf, pids: &mut BTreeSet<u32>) {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            in_group(&entry.path(), pids);
        }
    }
}
