//! Looks for what a system must not leave.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness fails by failing its test"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Processes with `marker` in their command line, environment or working folder.
#[must_use]
pub fn processes_with(marker: &str) -> Vec<u32> {
    let own = std::process::id();
    let mut found: Vec<u32> = fs::read_dir("/proc")
        .expect("/proc is there")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let base = PathBuf::from(format!("/proc/{pid}"));
            let holds = |file: &str| {
                let text = fs::read(base.join(file)).unwrap_or_default();
                String::from_utf8_lossy(&text).contains(marker)
            };
            holds("cmdline")
                || holds("environ")
                || fs::read_link(base.join("cwd"))
                    .is_ok_and(|path| path.to_string_lossy().contains(marker))
        })
        .collect();
    found.sort_unstable();
    found
}

fn parent(data_dir: &Path) -> Option<PathBuf> {
    let remembered = fs::read_to_string(data_dir.join("cgroup-parent")).ok()?;
    Some(PathBuf::from(remembered.trim()))
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// The cgroups of a spoke's agents. Those that hold them by scope are kept.
#[must_use]
pub fn cgroups_of(data_dir: &Path) -> Vec<PathBuf> {
    let parent = parent(data_dir);
    parent
        .iter()
        .flat_map(|parent| folders(parent))
        .flat_map(|scope| folders(&scope))
        .collect()
}

/// Kills whatever is in a spoke's cgroups.
pub(super) fn kill_cgroups(data_dir: &Path) {
    if let Some(parent) = parent(data_dir) {
        // Without a cgroup the processes are found by the marker.
        let _ = fs::write(parent.join("cgroup.kill"), "1");
    }
}

/// Removes a spoke's cgroups, which it keeps for agents that outlive it. The kernel refuses while a process is in one.
pub(super) fn remove_cgroups(data_dir: &Path) {
    let Some(parent) = parent(data_dir) else {
        return;
    };
    // Containers are in the other hierarchies as well, where there are some.
    let name = parent.file_name().unwrap_or_default().to_owned();
    let hierarchies = folders(Path::new("/sys/fs/cgroup")).into_iter();
    let shadows = hierarchies.map(|hierarchy| hierarchy.join(&name));
    let groups: Vec<PathBuf> = shadows.chain([parent.clone()]).collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    while groups.iter().any(|group| group.exists()) {
        groups.iter().for_each(|group| remove_group(group));
        if Instant::now() > deadline {
            eprintln!("the cgroup {parent:?} is left");
            return;
        }
        std::thread::yield_now();
    }
}

/// Removes a cgroup and those below it, as far as the kernel lets us.
fn remove_group(group: &Path) {
    folders(group).iter().for_each(|below| remove_group(below));
    let _ = fs::remove_dir(group);
}

/// Fails on a working tree, a home or a lock of git that is left.
pub(super) fn working_trees(data_dirs: &[PathBuf]) {
    for data in data_dirs {
        for agent in folders(&data.join("agents")) {
            for part in ["work", "home"] {
                let left = agent.join(part);
                assert!(!left.exists(), "{left:?} is left");
            }
        }
        for mirror in folders(&data.join("mirrors")) {
            let trees = folders(&mirror.join("worktrees"));
            assert!(trees.is_empty(), "working trees on record: {trees:?}");
            let locks: Vec<_> = fs::read_dir(&mirror)
                .unwrap()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|end| end == "lock"))
                .filter(|path| path.file_name().is_some_and(|name| name != "mosaic.lock"))
                .collect();
            assert!(locks.is_empty(), "locks of git: {locks:?}");
        }
    }
}

/// What each daemon wrote to standard error, by name.
pub(super) fn logs(dir: &Path) -> Vec<(String, String)> {
    let mut logs: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "err"))
        .map(|entry| {
            let text = fs::read(entry.path()).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, String::from_utf8_lossy(&text).into_owned())
        })
        .collect();
    logs.sort();
    logs
}

/// Lines of the level WARN or ERROR, or of a panic, that hold none of the expected texts.
pub(super) fn complaints(dir: &Path, expected: &[String]) -> Vec<String> {
    logs(dir)
        .into_iter()
        .flat_map(|(name, log)| {
            log.lines()
                .filter(|line| {
                    [" WARN ", " ERROR ", "panicked at"]
                        .iter()
                        .any(|word| line.contains(word))
                })
                .filter(|line| !expected.iter().any(|text| line.contains(text)))
                .map(|line| format!("{name}: {line}"))
                .collect::<Vec<_>>()
        })
        .collect()
}
