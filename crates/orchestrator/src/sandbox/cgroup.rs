//! The cgroup tree of ours: `<parent>/<scope>/<agent id>`, so that one write to a `cgroup.kill` ends an
//! agent, a scope or everything, whatever forks meanwhile (A11).
//!
//! Version 2 is what kills and what proves. Where the controllers still live in version 1
//! hierarchies, those only enforce limits.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Candidate, ResourceLimits, SandboxError, Scope};

/// Controllers we set limits with.
pub(super) const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Where the hierarchies of this host are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Mounts {
    /// The version 2 hierarchy.
    pub(super) unified: Option<PathBuf>,
    /// Version 1 hierarchies, by controller.
    pub(super) legacy: Vec<(&'static str, PathBuf)>,
    /// Every version 1 hierarchy.
    pub(super) version_one: Vec<PathBuf>,
    /// The version 1 hierarchy that freezes.
    pub(super) freezer: Option<PathBuf>,
}

impl Mounts {
    pub(super) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount_point) = head.split(' ').nth(4).map(unescape) else {
                continue;
            };
            let mut tail = tail.split(' ');
            match tail.next() {
                Some("cgroup2") if mounts.unified.is_none() => mounts.unified = Some(mount_point),
                Some("cgroup") => {
                    mounts.version_one.push(mount_point.clone());
                    let options = tail.nth(1).unwrap_or_default();
                    if options.split(',').any(|option| option == "freezer") {
                        mounts.freezer.get_or_insert_with(|| mount_point.clone());
                    }
                    for controller in CONTROLLERS {
                        if options.split(',').any(|option| option == controller) {
                            mounts.legacy.push((controller, mount_point.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        mounts
    }
}

/// Mount points are written with `\040` for a space and the like.
pub(super) fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = (byte == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// The version 2 group this process is in, relative to the mount (`/a/b`).
pub(super) fn own_group(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
}

/// One group: an agent's, a scope's, or the parent of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Group(PathBuf);

impl Group {
    /// The group at this directory, which need not exist.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn scope(&self, scope: Scope) -> Self {
        Self(self.0.join(scope.to_string()))
    }

    /// Makes a group below it.
    pub(super) fn child(&self, name: &str) -> Result<Self, SandboxError> {
        let child = Self(self.0.join(name));
        child.create()?;
        Ok(child)
    }

    /// Whether it can be a single container's: below the agent's own, or named with an engine's id. Where an engine does
    /// not give containers groups of version 2, they are in its service's, which is not ours to kill (A12).
    pub(super) fn is_a_containers(&self, own: Option<&Self>) -> bool {
        const ID_DIGITS: usize = 64;
        let longest = dir_name(&self.0).map(|name| {
            let runs = name.split(|digit: char| !digit.is_ascii_hexdigit());
            runs.map(str::len).max().unwrap_or(0)
        });
        longest == Some(ID_DIGITS) || own.is_some_and(|own| self.0.starts_with(&own.0))
    }

    /// Moves a process into it.
    pub(super) fn admit(&self, pid: u32) -> io::Result<()> {
        write_existing(&self.0.join("cgroup.procs"), &pid.to_string())
    }

    /// Makes it, parents included.
    pub(super) fn create(&self) -> Result<(), SandboxError> {
        fs::create_dir_all(&self.0).map_err(SandboxError::io("make the cgroup", &self.0))
    }

    /// Sends SIGKILL to every process in it and below, including those forked meanwhile, and thaws
    /// it, because older kernels kept frozen processes from dying (A34). A group that is not there
    /// holds nobody.
    ///
    /// # Errors
    /// [`SandboxError::Io`] when the kernel refuses.
    pub fn kill(&self) -> Result<(), SandboxError> {
        let path = self.0.join("cgroup.kill");
        let killed = ignore_missing(write_existing(&path, "1"));
        let thawed = ignore_missing(write_existing(&self.0.join("cgroup.freeze"), "0"));
        killed
            .and(thawed)
            .map_err(SandboxError::io("write to", &path))
    }

    /// Whether a live process is in it or below. A zombie does not count, nor a group that is gone.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn is_populated(&self) -> io::Result<bool> {
        match fs::read_to_string(self.0.join("cgroup.events")) {
            Ok(events) => Ok(!events.lines().any(|line| line == "populated 0")),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The pids in it and below, as far as they can be read.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let mut found = Vec::new();
        let mut pending = vec![self.0.clone()];
        while let Some(dir) = pending.pop() {
            if let Ok(procs) = fs::read_to_string(dir.join("cgroup.procs")) {
                found.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
            }
            pending.extend(child_dirs(&dir).unwrap_or_default());
        }
        found
    }

    /// Waits on this thread until nothing lives in it.
    pub(super) fn wait_empty(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            if !self.is_populated()? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // The kernel tells of this file at most every 10 ms; asking is faster.
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Removes it and all groups below, which an agent may have made. Being gone is success.
    ///
    /// # Errors
    /// `ResourceBusy` while a process is in it.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.0, 0)
    }

    /// Whether the process with this pid is in this group or below.
    pub(super) fn holds(&self, pid: u32) -> io::Result<bool> {
        Ok(Self::of(pid)?.is_some_and(|group| group.0.starts_with(&self.0)))
    }

    /// The version 2 group that the process with this pid is in.
    pub(super) fn of(pid: u32) -> io::Result<Option<Self>> {
        let proc_cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mount = Mounts::read()?.unified;
        Ok(mount
            .zip(own_group(&proc_cgroup))
            .map(|(mount, group)| Self(mount.join(group.trim_start_matches('/')))))
    }

    /// Lets the groups below use these controllers; says which the kernel granted.
    pub(super) fn enable_controllers(&self) -> Vec<&'static str> {
        CONTROLLERS
            .into_iter()
            .filter(|name| {
                write_existing(&self.0.join("cgroup.subtree_control"), &format!("+{name}")).is_ok()
            })
            .collect()
    }

    pub(super) fn limit(&self, limits: &ResourceLimits) -> Result<(), SandboxError> {
        let set = |file: &str, value: String| {
            let path = self.0.join(file);
            write_existing(&path, &value).map_err(SandboxError::io("set the limit", &path))
        };
        if let Some(mb) = limits.memory_mb {
            set("memory.max", mb.saturating_mul(1 << 20).to_string())?;
            // Swap would only make the limit slow.
            let _ = write_existing(&self.0.join("memory.swap.max"), "0");
        }
        if let Some(cpus) = limits.cpus {
            set(
                "cpu.max",
                format!("{} {CPU_PERIOD_MICROS}", cpu_quota_micros(cpus)),
            )?;
        }
        if let Some(pids) = limits.pids {
            set("pids.max", pids.to_string())?;
        }
        Ok(())
    }

    /// Every agent below this parent.
    pub(super) fn candidates(&self) -> Result<Vec<Candidate>, SandboxError> {
        let mut found = Vec::new();
        for scope_dir in children(&self.0)? {
            let Some(scope) = dir_name(&scope_dir).and_then(Scope::from_dir_name) else {
                continue;
            };
            for agent_dir in children(&scope_dir)? {
                let Some(agent_id) = dir_name(&agent_dir).and_then(|name| name.parse().ok()) else {
                    continue;
                };
                let created_unix_ms = fs::metadata(&agent_dir)
                    .ok()
                    .and_then(|meta| u64::try_from(meta.ctime()).ok())
                    .map_or(0, |secs| secs * 1000);
                let populated = Self(agent_dir.clone())
                    .is_populated()
                    .map_err(SandboxError::io("read the state of", &agent_dir))?;
                found.push(Candidate {
                    agent_id,
                    scope,
                    populated,
                    created_unix_ms,
                });
            }
        }
        Ok(found)
    }
}

const CPU_PERIOD_MICROS: u64 = 100_000;

fn cpu_quota_micros(cpus: f64) -> u64 {
    // Below 1 ms the kernel refuses.
    let micros = (cpus * 100_000.0).clamp(1_000.0, 1e12);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to a range that fits"
    )]
    let micros = micros as u64;
    micros
}

/// Sets limits on the version 1 groups that a process is in already.
pub(super) fn limit_members_of(pid: u32, limits: &ResourceLimits) -> io::Result<()> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for (controller, mount) in Mounts::read()?.legacy {
        let group = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            let is_it = controllers.split(',').any(|name| name == controller);
            parts.next().filter(|_| is_it)
        });
        let Some(group) = group.map(|path| mount.join(path.trim_start_matches('/'))) else {
            continue;
        };
        for (file, value) in legacy_settings(controller, limits) {
            write_existing(&group.join(file), &value)?;
        }
        if controller == "memory" {
            limit_swap(&group, limits)?;
        }
    }
    Ok(())
}

/// Swap would only make the limit of memory slow. Where the kernel counts none there is nothing to limit.
fn limit_swap(group: &Path, limits: &ResourceLimits) -> io::Result<()> {
    limits.memory_mb.map_or(Ok(()), |mb| {
        let bytes = mb.saturating_mul(1 << 20).to_string();
        // Of both together, so that it comes after the limit of one.
        ignore_missing(write_existing(
            &group.join("memory.memsw.limit_in_bytes"),
            &bytes,
        ))
    })
}

/// Makes a version 1 group that enforces one of the limits, if it is asked for.
pub(super) fn limit_legacy(
    group: &Path,
    controller: &str,
    limits: &ResourceLimits,
) -> Result<bool, SandboxError> {
    let settings = legacy_settings(controller, limits);
    if settings.is_empty() {
        return Ok(false);
    }
    fs::create_dir_all(group).map_err(SandboxError::io("make the cgroup", group))?;
    for (file, value) in settings {
        let path = group.join(file);
        write_existing(&path, &value).map_err(SandboxError::io("set the limit", &path))?;
    }
    if controller == "memory" {
        limit_swap(group, limits).map_err(SandboxError::io("set the limit", group))?;
    }
    Ok(true)
}

/// The files of a version 1 group by which a controller enforces limits, and what to write.
fn legacy_settings(controller: &str, limits: &ResourceLimits) -> Vec<(&'static str, String)> {
    match controller {
        "memory" => limits
            .memory_mb
            .map(|mb| {
                (
                    "memory.limit_in_bytes",
                    mb.saturating_mul(1 << 20).to_string(),
                )
            })
            .into_iter()
            .collect(),
        "cpu" => limits
            .cpus
            .map(|cpus| {
                [
                    ("cpu.cfs_period_us", CPU_PERIOD_MICROS.to_string()),
                    ("cpu.cfs_quota_us", cpu_quota_micros(cpus).to_string()),
                ]
            })
            .into_iter()
            .flatten()
            .collect(),
        _ => limits
            .pids
            .map(|pids| ("pids.max", pids.to_string()))
            .into_iter()
            .collect(),
    }
}

/// Joins the calling process to the group.
pub(super) fn join(group: &Path) -> io::Result<()> {
    write_existing(&group.join("cgroup.procs"), "0")
}

/// Writes to a control file. Never makes one: a group that is gone must stay gone.
fn write_existing(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

fn dir_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, SandboxError> {
    child_dirs(dir).map_err(SandboxError::io("list the cgroups in", dir))
}

fn child_dirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}

/// Deeper than the kernel's own default would let an agent go without being asked.
const MAX_DEPTH: usize = 64;

fn remove_tree(dir: &Path, depth: usize) -> io::Result<()> {
    if depth < MAX_DEPTH {
        for child in child_dirs(dir)? {
            remove_tree(&child, depth + 1)?;
        }
    }
    ignore_missing(fs::remove_dir(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_pure_hosts_are_told_apart() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let mounts = Mounts::parse(hybrid);
        assert_eq!(mounts.unified, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            mounts.legacy,
            [
                ("cpu", PathBuf::from("/sys/fs/cgroup/cpu")),
                ("memory", PathBuf::from("/sys/fs/cgroup/memory"))
            ]
        );
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let mounts = Mounts::parse(pure);
        assert_eq!(mounts.unified, Some("/sys/fs/cgroup".into()));
        assert!(mounts.legacy.is_empty());
        assert_eq!(own_group("8:pids:/x\n0::/a/b\n"), Some("/a/b"));
    }

    #[test]
    fn a12_an_engines_own_group_is_no_containers() {
        let own = Group::at("/cg/mosaic-i/local/agent".into());
        let id = "0123456789abcdef".repeat(4);
        for (path, is) in [
            (format!("/cg/system.slice/docker-{id}.scope"), true),
            (format!("/cg/docker/{id}"), true),
            ("/cg/mosaic-i/local/agent/container".to_owned(), true),
            ("/cg/mosaic-i/local/agent2/container".to_owned(), false),
            ("/cg/system.slice/docker.service".to_owned(), false),
            ("/cg".to_owned(), false),
        ] {
            let group = Group::at(path.clone().into());
            assert_eq!(group.is_a_containers(Some(&own)), is, "{path}");
        }
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
    }

    #[test]
    fn cpu_quota_stays_in_what_the_kernel_takes() {
        assert_eq!(cpu_quota_micros(1.5), 150_000);
        assert_eq!(cpu_quota_micros(0.0), 1_000);
        assert_eq!(cpu_quota_micros(-3.0), 1_000);
        assert_eq!(cpu_quota_micros(f64::MAX), 1_000_000_000_000);
    }
}
