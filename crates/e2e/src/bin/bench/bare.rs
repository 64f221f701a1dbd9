//! What a kill is compared with: a bubblewrap sandbox with a program in it and nothing of ours around it, or as many as a
//! kill-all has, in one cgroup, which die by one write. Containers are put below such a group too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

/// As a sandbox of ours, as far as that matters to its end.
const SANDBOX: &str = "--unshare-pid --unshare-ipc --unshare-uts --as-pid-1 --new-session --die-with-parent --cap-drop ALL \
     --ro-bind / / --dev /dev --proc /proc --tmpfs /run --tmpfs /tmp --tmpfs /var/tmp -- sleep 900";
/// Bubblewrap itself, and the program.
const PROCESSES_EACH: usize = 2;
const COME_UP_WITHIN: Duration = Duration::from_secs(120);
const DIE_WITHIN: Duration = Duration::from_secs(60);
/// Agents are left alone for a moment before they are killed. For a fleet that takes longer.
const ONE_SETTLES: Duration = Duration::from_millis(50);
const ALL_SETTLE: Duration = Duration::from_secs(1);

/// From the write to the death of the last; `None` where there is no cgroup of version 2 to write to.
pub(crate) fn kill_all(count: usize) -> anyhow::Result<Option<Duration>> {
    kill(count, ALL_SETTLE)
}

/// One after another, each from the write to its death; none where there is no cgroup of version 2.
pub(crate) fn kill_each(count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        took.extend(kill(1, ONE_SETTLES)?);
    }
    Ok(took)
}

fn kill(count: usize, settle: Duration) -> anyhow::Result<Option<Duration>> {
    let Some(group) = Group::make()? else {
        return Ok(None);
    };
    let mut sandboxes = Sandboxes(Vec::new());
    for _ in 0..count {
        let child = Command::new("sh")
            .args(["-c", "echo 0 > \"$1\" && shift && exec bwrap \"$@\"", "sh"])
            .arg(group.0.join("cgroup.procs"))
            .args(SANDBOX.split_whitespace())
            .stdin(Stdio::null())
            .spawn()?;
        sandboxes.0.push(child);
    }
    let deadline = Instant::now() + COME_UP_WITHIN;
    let all = count * PROCESSES_EACH;
    while fs::read_to_string(group.0.join("cgroup.procs"))?
        .lines()
        .count()
        != all
    {
        ensure!(Instant::now() < deadline, "bare sandboxes do not come up");
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(settle);
    group.empty().map(Some)
}

/// Reaped when dropped, by when they are dead.
struct Sandboxes(Vec<Child>);

impl Drop for Sandboxes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A cgroup, emptied and removed when dropped, with what an engine of containers has made of its name elsewhere.
#[derive(Debug)]
pub(crate) struct Group(PathBuf);

impl Group {
    /// `None` where there is no cgroup of version 2 to make it in.
    pub(crate) fn make() -> anyhow::Result<Option<Self>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
        let unified = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let Some(mount) = unified.and_then(|line| line.split(' ').nth(4)) else {
            return Ok(None);
        };
        let path = Path::new(mount).join(format!("bench-bare-{}", std::process::id()));
        Ok(fs::create_dir(&path).is_ok().then_some(Self(path)))
    }

    /// From the root of its hierarchy.
    pub(crate) fn name(&self) -> String {
        let name = self.0.file_name().unwrap_or_default();
        format!("/{}", name.to_string_lossy())
    }

    /// From the write that kills to the death of the last that is in it or below, as its own `populated` says.
    pub(crate) fn empty(&self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.kill()?;
        let events = self.0.join("cgroup.events");
        while !fs::read_to_string(&events)?.contains("populated 0") {
            ensure!(start.elapsed() < DIE_WITHIN, "bare sandboxes do not die");
            thread::sleep(Duration::from_micros(200));
        }
        Ok(start.elapsed())
    }

    fn kill(&self) -> std::io::Result<()> {
        fs::write(self.0.join("cgroup.kill"), "1")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.kill();
        let hierarchies = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        for hierarchy in hierarchies {
            let _ = fs::remove_dir(hierarchy.path().join(self.name().trim_start_matches('/')));
        }
        if !self.0.exists() {
            return;
        }
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        eprintln!("left behind: {}", self.0.display());
    }
}
