//! Looks whether anything of a run is left on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long the kernel and init may take to put away what was proven dead.
const GRACE: Duration = Duration::from_secs(5);
const CGROUPS: &str = "/sys/fs/cgroup";
/// How deep cgroups are looked for.
const DEPTH: usize = 8;
/// Characters of an instance's id that are in the names of its cgroups.
const INSTANCE_CHARS: usize = 15;

/// What is left, for people; empty if nothing is. Empty cgroups of `instances` are removed on the way: they are kept for
/// agents that outlive their spoke, and here none does.
pub(crate) fn find(folder: &Path, instances: &[String]) -> Vec<String> {
    let marker = folder.file_name().unwrap_or_default().to_string_lossy();
    let names: Vec<&str> = instances
        .iter()
        .filter_map(|id| id.get(..INSTANCE_CHARS))
        .collect();
    let deadline = Instant::now() + GRACE;
    loop {
        let mut left: Vec<String> = processes_with(&marker)
            .into_iter()
            .map(|pid| format!("process {pid}"))
            .collect();
        if folder.exists() {
            left.push(folder.display().to_string());
        }
        let mut cgroups = Vec::new();
        find_cgroups(Path::new(CGROUPS), &names, DEPTH, &mut cgroups);
        left.extend(
            cgroups
                .into_iter()
                .filter(|path| !remove(path))
                .map(|path| path.display().to_string()),
        );
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Processes whose command line has `marker` in it.
pub(crate) fn processes_with(marker: &str) -> Vec<u32> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own && command_line(*pid).contains(marker))
        .collect()
}

/// The command line of a process; empty if it is gone, or a zombie.
pub(crate) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

fn find_cgroups(dir: &Path, names: &[&str], depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if names.iter().any(|ours| name.contains(ours)) {
            found.push(entry.path());
        } else if depth > 0 {
            find_cgroups(&entry.path(), names, depth - 1, found);
        }
    }
}

/// Removes a cgroup and those below it. The kernel refuses while a process is in it.
fn remove(cgroup: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(cgroup) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
    }
    fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}
