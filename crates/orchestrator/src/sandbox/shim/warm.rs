//! A container that is there before its agent is: its init waits for a plan like any other, and its shim waits for the
//! agent. Nothing runs in it but that init, and it is one agent's only.
//!
//! ```text
//! order ─► in cgroup ─► listening ─► init there ("warm") ──plan──► moved, limited, mounts attached ─► as any session
//!                            └── daemon gone ──► end (the init ends with us)
//! ```

use std::{
    fs,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{CWD, Mode},
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde::{Deserialize, Serialize};

use super::{LISTENING, control::Control, explain, link::Link};
use crate::sandbox::{
    Bind,
    cgroup::{self, Group},
    files::Plan,
    identity,
};

/// The second hidden argument of a shim that waits for its agent.
pub(in crate::sandbox) const WARM_FLAG: &str = "warm";

/// What the shim says when the init of its container is there.
pub(in crate::sandbox) const WARM: &str = "warm";

/// What a waiting shim is told when its agent is some milliseconds away.
///
/// Whoever moves a process into a group waits for a grace period of RCU, 11 ms and more, unless another was moved just
/// before. The shim moves itself to where it is: that changes nothing, and is over when it has to move in earnest.
pub(in crate::sandbox) const COMING: &[u8] = b"coming\n";

/// What a warm shim is told first, on one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::sandbox) struct WarmOrder {
    /// Where it belongs until it has an agent.
    pub(in crate::sandbox) cgroup: Option<Group>,
    /// Where it listens.
    pub(in crate::sandbox) socket: std::path::PathBuf,
}

/// Waits for the init, then for the plan. `None` if the daemon was gone before it had one.
pub(super) fn wait(control: &mut Control) -> io::Result<Option<(Plan, Link)>> {
    let Some(line) = control.read_line()? else {
        return Ok(None);
    };
    let order: WarmOrder = serde_json::from_slice(&line)?;
    if let Some(group) = &order.cgroup {
        cgroup::join(group.path()).map_err(|error| explain("join the cgroup", &error))?;
    }
    let mut link = Link::listen(&order.socket, None)
        .map_err(|error| explain("listen for the init", &error))?;
    writeln!(io::stdout(), "{LISTENING}")?;
    while !link.is_up() {
        let [knocked, told] = wait_for_either(&link)?;
        // A plan comes only once we have said that there is something to plan for.
        if told && !control.fill()? {
            return Ok(None);
        }
        if knocked {
            link.accept()?;
        }
    }
    writeln!(io::stdout(), "{WARM}")?;
    loop {
        if let Some(line) = control.take_line() {
            if line == COMING {
                if let Some(group) = &order.cgroup {
                    // In vain, the move in earnest takes its time.
                    let _ = cgroup::join(group.path());
                }
                continue;
            }
            return Ok(Some((serde_json::from_slice(&line)?, link)));
        }
        let [gone, told] = wait_for_either(&link)?;
        // An init that waits says nothing: it has ended, and there is nothing to give an agent.
        if gone || told && !control.fill()? {
            return Ok(None);
        }
    }
}

/// Waits until there is something at the link's end, or at the daemon's.
fn wait_for_either(link: &Link) -> io::Result<[bool; 2]> {
    let stdin = io::stdin();
    let mut fds = [
        PollFd::new(link, PollFlags::IN),
        PollFd::new(&stdin, PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) => Ok(fds.map(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; 2]),
        Err(error) => Err(error.into()),
    }
}

/// Makes the waiting container the agent's: its init in the agent's group, under its limits, with its files.
pub(super) fn assign(plan: &Plan, link: &Link) -> io::Result<()> {
    let init = link.init().ok_or(io::ErrorKind::NotConnected)?;
    let group = plan
        .cgroup
        .as_ref()
        .ok_or_else(|| io::Error::other("a warm container needs cgroup v2"))?;
    let inside = group
        .child("container")
        .map_err(|error| io::Error::other(error.to_string()))?;
    // By number from here on: of a dead one it may be a stranger's (A12).
    if identity::is_dead(&init.pidfd)? {
        return Err(io::Error::other("it ended while it waited"));
    }
    inside.admit(init.pid)?;
    cgroup::limit_members_of(init.pid, &plan.launch.limits)?;
    attach(init.pid, &plan.attach)
}

/// Mounts paths of the host at the same places in the namespace of a process that nobody else can reach yet. This
/// process has one thread, which is what the kernel asks of who changes its namespace.
fn attach(pid: u32, binds: &[Bind]) -> io::Result<()> {
    let sources = binds
        .iter()
        .map(|bind| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let source = open_tree(CWD, &bind.path, flags)
                .map_err(|error| explain("take hold of a path to bind", &error.into()))?;
            Ok((bind, source, bind.path.is_dir()))
        })
        .collect::<io::Result<Vec<(&Bind, OwnedFd, bool)>>>()?;
    let ours = fs::File::open("/proc/self/ns/mnt")?;
    let theirs = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
    move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::Mount))?;
    // The agent, who is another user, is to get to its files: ours is the daemon's umask, which may be strict.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o022));
    let mounted = sources.iter().try_for_each(|(bind, source, is_dir)| {
        mount_at(source, &bind.path, *is_dir, bind.writable)
    });
    rustix::process::umask(umask);
    // Whatever became of that: our own files are where the rest of the session looks for them.
    move_into_link_name_space(ours.as_fd(), Some(LinkNameSpaceType::Mount))?;
    std::env::set_current_dir("/")?;
    mounted.map_err(|error| explain("attach the agent's files", &error))
}

fn mount_at(source: &OwnedFd, target: &Path, is_dir: bool, writable: bool) -> io::Result<()> {
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create(target)?;
    }
    move_mount(
        source,
        c"",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    let read_only = if writable {
        MountFlags::empty()
    } else {
        MountFlags::RDONLY
    };
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | read_only;
    Ok(mount_remount(target, flags, c"")?)
}
