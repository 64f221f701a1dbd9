//! Looks whether anything of the tour is left on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How long the kernel and init may take to put away what was proven dead.
const GRACE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
const CGROUPS: &str = "/sys/fs/cgroup";
/// How deep cgroups are looked for.
const DEPTH: usize = 8;
/// Characters of an instance's id that are in the names of its cgroups.
const INSTANCE_CHARS: usize = 15;

/// What is left, for people; empty if nothing is.
pub(super) async fn find(folder: &Path, marker: &str, instances: &[String]) -> Vec<String> {
    let (folder, marker) = (folder.to_owned(), marker.to_owned());
    let names: Vec<String> = instances
        .iter()
        .filter_map(|id| id.get(..INSTANCE_CHARS))
        .map(str::to_owned)
        .collect();
    let deadline = tokio::time::Instant::now() + GRACE;
    loop {
        let left = look(&folder, &marker, &names);
        if left.is_empty() || tokio::time::Instant::now() >= deadline {
            return left;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn look(folder: &Path, marker: &str, instances: &[String]) -> Vec<String> {
    let mut left = processes(marker);
    if folder.exists() {
        left.push(folder.display().to_string());
    }
    let mut cgroups = Vec::new();
    find_cgroups(Path::new(CGROUPS), instances, DEPTH, &mut cgroups);
    // They are kept for agents that outlive a spoke; here none does. One with a process in it stays.
    left.extend(
        cgroups
            .into_iter()
            .filter(|path| !remove(path))
            .map(|path| path.display().to_string()),
    );
    left
}

/// The containers of these spokes, as the engine's own command line tells of them; or that it does not tell.
pub(super) fn containers(instances: &[String]) -> Vec<String> {
    instances
        .iter()
        .flat_map(|instance| {
            let label = format!("label=dev.mosaic.instance={instance}");
            let args = ["ps", "-a", "--filter", &label, "--format", "{{.Names}}"];
            match Command::new("docker").args(args).output() {
                Ok(told) if told.status.success() => String::from_utf8_lossy(&told.stdout)
                    .lines()
                    .map(|name| format!("container {name}"))
                    .collect(),
                Ok(_) | Err(_) => vec!["containers, perhaps: `docker ps` does not tell".to_owned()],
            }
        })
        .collect()
}

/// Processes whose command line or working folder bears the marker.
fn processes(marker: &str) -> Vec<String> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let base = PathBuf::from(format!("/proc/{pid}"));
            let command = fs::read(base.join("cmdline")).unwrap_or_default();
            let folder = fs::read_link(base.join("cwd")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(marker)
                || folder.to_string_lossy().contains(marker)
        })
        .map(|pid| format!("process {pid}"))
        .collect()
}

fn find_cgroups(dir: &Path, instances: &[String], depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        if instances
            .iter()
            .any(|instance| name.to_string_lossy().contains(instance.as_str()))
        {
            found.push(entry.path());
        } else if depth > 0 {
            find_cgroups(&entry.path(), instances, depth - 1, found);
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

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[tokio::test]
    async fn a_survivor_is_found_and_then_gone() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut survivor = Command::new("sh")
            .args(["-c", &format!("read line; : {marker}")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // A process that has not yet become `sh` has this test's command line.
        while processes(&marker).is_empty() {
            tokio::task::yield_now().await;
        }
        survivor.kill().unwrap();
        survivor.wait().unwrap();
        assert_eq!(processes(&marker), Vec::<String>::new());
        let path = dir.path().to_owned();
        dir.close().unwrap();
        assert_eq!(find(&path, &marker, &[]).await, Vec::<String>::new());
    }
}
