//! Processes that the freezer of cgroup version 1 holds: they take a SIGKILL only once they are thawed (A34). Version 2
//! kills frozen ones by itself; an engine on a host with both pauses a container by version 1.
//!
//! To be used after the kill, so that what is thawed does not run again.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::cgroup::{Group, Mounts};

const STATE: &str = "freezer.state";

/// The freezer's group of one process that is held by its pidfd: a container's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Freezer(PathBuf);

impl Freezer {
    /// The group that this process is in. `None` where nothing freezes by version 1, or where it is a group that we
    /// are in, or are below of: that is not an agent's alone.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let mount = Mounts::read().ok()?.freezer?;
        Self::below(&mount, &pid.to_string())
    }

    fn below(mount: &Path, pid: &str) -> Option<Self> {
        let of = |pid: &str| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            own_group(&groups).map(ToOwned::to_owned)
        };
        let (theirs, ours) = (of(pid)?, of("self")?);
        if Path::new(&ours).starts_with(&theirs) {
            return None;
        }
        Some(Self(mount.join(theirs.trim_start_matches('/'))))
    }

    /// Thaws it. A group that is gone holds nobody.
    pub(super) fn thaw(&self) {
        // What is left frozen is not proven dead: whoever waits for the proof says so.
        let _ = fs::OpenOptions::new()
            .write(true)
            .open(self.0.join(STATE))
            .and_then(|mut state| std::io::Write::write_all(&mut state, b"THAWED"));
    }
}

/// The version 1 group of the freezer in a `/proc/<pid>/cgroup`.
fn own_group(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, group) = line.split_once(':')?;
        controllers
            .split(',')
            .any(|controller| controller == "freezer")
            .then_some(group)
    })
}

/// Thaws whatever a killed group still holds, where nobody else is frozen with it (A12). Looks at each of its processes:
/// for those that do not die at once.
pub(super) fn thaw_members(group: &Group) {
    let Some(mount) = Mounts::read().ok().and_then(|mounts| mounts.freezer) else {
        return;
    };
    let members: BTreeSet<u32> = group.pids().into_iter().collect();
    let freezers: BTreeSet<PathBuf> = members
        .iter()
        .filter_map(|pid| Freezer::below(&mount, &pid.to_string()))
        .map(|freezer| freezer.0)
        .collect();
    for freezer in freezers {
        let held = Group::at(freezer.clone()).pids();
        if held.iter().all(|pid| members.contains(pid)) {
            Freezer(freezer).thaw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_freezers_group_is_found_among_the_others() {
        let hybrid = "9:name=systemd:/x\n6:freezer:/mosaic-i/local/a/c\n0::/mosaic-i/local/a/c\n";
        assert_eq!(own_group(hybrid), Some("/mosaic-i/local/a/c"));
        assert_eq!(own_group("4:cpu,freezer:/a:b\n"), Some("/a:b"));
        assert_eq!(own_group("0::/mosaic-i\n"), None);
    }

    #[test]
    fn a_group_that_we_are_in_ourselves_is_left_alone() {
        assert_eq!(Freezer::of(std::process::id()), None);
    }
}
