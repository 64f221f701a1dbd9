//! What an agent sees of the host's files: everything read-only, what is masked empty, and of
//! that what was bound. Where several apply, the most specific path wins.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount},
};
use serde::{Deserialize, Serialize};

use super::{LaunchSpec, Network, cgroup::unescape, egress};

/// Control sockets live below the first two (A35); what others leave in the rest is not the agent's.
const ALWAYS_EMPTY: [&str; 2] = ["/run", "/var/run"];
const SCRATCH: [&str; 2] = ["/tmp", "/var/tmp"];
/// What in `/proc` belongs to the host and not to the namespace. Read-only for every agent.
pub(super) const HOST_CONTROLS: [&str; 4] =
    ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"];
const RESOLVER: &str = "/etc/resolv.conf";

/// How one path looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Look {
    /// An empty directory, read-only.
    Empty,
    /// An empty directory of the agent's own.
    Scratch,
    /// A file that reads as `/dev/null`.
    Null,
    /// The host's, read-only.
    ReadOnly,
    /// The host's, writable.
    Writable,
}

/// The whole picture, in the order in which it is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct View(pub(super) Vec<(PathBuf, Look)>);

impl View {
    /// The view of a launch on this host. Paths are made canonical, so that no symbolic link leads
    /// around a mask.
    pub(super) fn of(launch: &LaunchSpec) -> io::Result<Self> {
        let mut looks = Vec::new();
        let mut hide = |path: &Path, directory: Look| -> io::Result<()> {
            match fs::canonicalize(path) {
                Ok(path) if path == Path::new("/") => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the root cannot be masked",
                )),
                Ok(path) => {
                    let look = if path.is_dir() { directory } else { Look::Null };
                    looks.push((path, look));
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        };
        for path in SCRATCH {
            hide(Path::new(path), Look::Scratch)?;
        }
        for path in ALWAYS_EMPTY {
            hide(Path::new(path), Look::Empty)?;
        }
        for path in launch.masked.iter().chain([&launch.agent_dir]) {
            hide(path, Look::Empty)?;
        }
        if let Ok(resolver) = fs::canonicalize(RESOLVER)
            && looks.iter().any(|(hidden, _)| resolver.starts_with(hidden))
        {
            looks.push((resolver, Look::ReadOnly));
        }
        if matches!(launch.network, Network::Allow(_)) {
            let dir = fs::canonicalize(egress::socket_dir(&launch.agent_dir))?;
            looks.push((dir, Look::ReadOnly));
        }
        for bind in &launch.binds {
            let path = fs::canonicalize(&bind.path)?;
            looks.push((
                path,
                if bind.writable {
                    Look::Writable
                } else {
                    Look::ReadOnly
                },
            ));
        }
        Ok(Self::arrange(looks))
    }

    fn arrange(mut looks: Vec<(PathBuf, Look)>) -> Self {
        // A directory before what is in it; for the same path the weaker look first, so that a bind
        // beats a mask and the last one wins.
        looks.sort_by_key(|(path, look)| (path.components().count(), path.clone(), *look));
        let mut kept: Vec<(PathBuf, Look)> = Vec::new();
        for (path, look) in looks {
            if kept.last().is_some_and(|(last, _)| *last == path) {
                kept.pop();
            }
            // In an empty directory there is nothing to hide, and hiding it would show its name.
            let around = kept.iter().rev().find(|(outer, _)| path.starts_with(outer));
            let already_hidden = matches!(around, Some((_, Look::Empty | Look::Scratch)));
            if !(already_hidden && matches!(look, Look::Empty | Look::Null)) {
                kept.push((path, look));
            }
        }
        Self(kept)
    }

    /// Mounts the view in this process's mount namespace, which must be its own, and makes
    /// everything else read-only.
    pub(super) fn mount(&self) -> io::Result<()> {
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        // Held open, because masks go over some of them before they are bound.
        let sources = self
            .0
            .iter()
            .map(|(path, look)| match look {
                Look::ReadOnly | Look::Writable => open_path(path).map(Some),
                _ => Ok(None),
            })
            .collect::<io::Result<Vec<_>>>()?;
        make_everything_read_only()?;
        mount_devices()?;
        for path in HOST_CONTROLS
            .map(Path::new)
            .into_iter()
            .filter(|path| path.exists())
        {
            bind(path, path, MountFlags::RDONLY)?;
        }
        for ((path, look), source) in self.0.iter().zip(&sources) {
            match (look, source) {
                (Look::Scratch, _) => mount_tmpfs(path, c"mode=1777")?,
                (Look::Empty, _) => mount_tmpfs(path, c"mode=0755")?,
                (Look::Null, _) => bind(Path::new("/dev/null"), path, MountFlags::empty())?,
                (_, Some(source)) => {
                    let source = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
                    make_mount_point(&source, path)?;
                    let read_only = if *look == Look::ReadOnly {
                        MountFlags::RDONLY
                    } else {
                        MountFlags::empty()
                    };
                    bind(&source, path, read_only | MountFlags::NODEV)?;
                }
                (_, None) => {}
            }
        }
        for (path, _) in self.0.iter().filter(|(_, look)| *look == Look::Empty) {
            let flags = MountFlags::BIND | MountFlags::RDONLY | HARMLESS;
            mount_remount(path, flags, c"")?;
        }
        Ok(())
    }
}

const HARMLESS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn mount_tmpfs(path: &Path, options: &std::ffi::CStr) -> io::Result<()> {
    Ok(mount(c"tmpfs", path, c"tmpfs", HARMLESS, options)?)
}

fn bind(source: &Path, target: &Path, flags: MountFlags) -> io::Result<()> {
    mount_bind(source, target)?;
    Ok(mount_remount(
        target,
        MountFlags::BIND | MountFlags::NOSUID | flags,
        c"",
    )?)
}

fn make_mount_point(source: &Path, target: &Path) -> io::Result<()> {
    if target.symlink_metadata().is_ok() {
        return Ok(());
    }
    if source.is_dir() {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(target).map(drop)
}

/// Each mount by itself: a remount of the root leaves the others as they were.
fn make_everything_read_only() -> io::Result<()> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ').skip(4);
        let (Some(mount_point), Some(options)) = (fields.next().map(unescape), fields.next())
        else {
            continue;
        };
        if mount_point.starts_with("/proc") {
            continue;
        }
        let mut flags = MountFlags::BIND | MountFlags::RDONLY | HARMLESS;
        for option in options.split(',') {
            // In a user namespace what the owner has set may not be lifted.
            flags |= match option {
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                _ => MountFlags::empty(),
            };
        }
        match mount_remount(&mount_point, flags, c"") {
            // Below another mount, and so out of everybody's reach.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            // Not ours to see, then not ours to change either.
            Err(rustix::io::Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A `/dev` without disks: to a root without capabilities the host's would be an open door.
fn mount_devices() -> io::Result<()> {
    const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
    let held = DEVICES
        .iter()
        .map(|name| open_path(&Path::new("/dev").join(name)))
        .collect::<io::Result<Vec<_>>>()?;
    mount(
        c"tmpfs",
        "/dev",
        c"tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=0755",
    )?;
    for (name, source) in DEVICES.iter().zip(&held) {
        let target = Path::new("/dev").join(name);
        fs::File::create(&target)?;
        let source = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
        // Without nodev, which the host's mount has just been given.
        bind(&source, &target, MountFlags::NOEXEC)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(name))?;
    }
    fs::create_dir("/dev/shm")?;
    mount_tmpfs(Path::new("/dev/shm"), c"mode=1777")?;
    fs::create_dir("/dev/pts")?;
    mount(
        c"devpts",
        "/dev/pts",
        c"devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"newinstance,ptmxmode=0666,mode=620",
    )?;
    mount_remount(
        "/dev",
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC,
        c"",
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrange(looks: &[(&str, Look)]) -> Vec<(String, Look)> {
        View::arrange(
            looks
                .iter()
                .map(|(path, look)| (PathBuf::from(path), *look))
                .collect(),
        )
        .0
        .into_iter()
        .map(|(path, look)| (path.display().to_string(), look))
        .collect()
    }

    #[test]
    fn the_most_specific_path_wins() {
        let looks = arrange(&[
            ("/data/worktrees/a", Look::Writable),
            ("/data", Look::Empty),
            ("/tmp", Look::Scratch),
            ("/tmp/data/secret", Look::Empty),
            ("/work", Look::Writable),
            ("/work/keys", Look::Empty),
            ("/work/keys/file", Look::Null),
        ]);
        assert_eq!(
            looks,
            [
                ("/data".into(), Look::Empty),
                ("/tmp".into(), Look::Scratch),
                ("/work".into(), Look::Writable),
                ("/work/keys".into(), Look::Empty),
                ("/data/worktrees/a".into(), Look::Writable),
            ]
        );
    }

    #[test]
    fn a_bind_beats_a_mask_of_the_same_path() {
        let looks = arrange(&[("/home/a", Look::Writable), ("/home/a", Look::Empty)]);
        assert_eq!(looks, [("/home/a".into(), Look::Writable)]);
    }
}
