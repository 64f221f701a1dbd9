//! Which process it is, beyond its number: a pid is given to somebody else as soon as its owner is
//! gone, so a process of ours is its pid, its start time and the boot it ran in (A13).

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};

/// A process, for as long as this boot lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessIdentity {
    /// Its pid in our own PID namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub start_time: u64,
    /// The boot it belongs to.
    pub boot_id: String,
}

/// This boot of the host.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

impl ProcessIdentity {
    /// The identity of whatever has this pid now.
    ///
    /// # Errors
    /// When there is no such process, or `/proc` cannot be read.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            boot_id: boot_id()?,
        })
    }

    /// This process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// A pidfd of exactly this process, or `None` if it is gone. A zombie is gone.
    ///
    /// # Errors
    /// When neither can be known.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        if boot_id()? != self.boot_id {
            return Ok(None);
        }
        let Some(pid) = to_pid(self.pid) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the pidfd was taken: if the number was given away before, the start time tells;
        // if it is given away after, the pidfd still means the process it was opened for.
        let found = match start_time(self.pid) {
            Ok(found) => found,
            Err(_) if is_dead(&pidfd)? => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if found != self.start_time || is_dead(&pidfd)? {
            return Ok(None);
        }
        Ok(Some(pidfd))
    }
}

/// Whether the process of this pidfd has ended (it may still wait to be reaped).
///
/// # Errors
/// When the descriptor cannot be polled.
pub fn is_dead(pidfd: impl AsFd) -> io::Result<bool> {
    wait_readable(
        pidfd,
        Some(Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
}

/// Waits on this thread until the descriptor is readable. `None` waits for ever.
pub(super) fn wait_readable(fd: impl AsFd, timeout: Option<Timespec>) -> io::Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether it is pid 1 of a namespace below ours.
pub(super) fn is_namespace_init(pid: u32) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let pids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .unwrap_or_default();
    let mut pids = pids.split_ascii_whitespace();
    let ours = pids.next();
    Ok(ours.is_some() && pids.next_back() == Some("1"))
}

pub(super) fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn start_time(pid: u32) -> io::Result<u64> {
    parse_start_time(&fs::read(
        Path::new("/proc").join(pid.to_string()).join("stat"),
    )?)
    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in stat"))
}

/// The name in field 2 is the process's to choose and may hold spaces and parentheses, so fields
/// are counted from the last `)`.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(after_name + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn start_time_is_found_behind_a_name_that_imitates_fields() {
        let stat = b"7 (a) R 1 (b) 2) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        assert_eq!(parse_start_time(stat), Some(98765));
        assert_eq!(parse_start_time(b"7 (a"), None);
    }

    #[test]
    fn a13_a_pid_alone_opens_nothing() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        assert!(identity.open().unwrap().is_some());

        let reused = ProcessIdentity {
            start_time: identity.start_time + 1,
            ..identity.clone()
        };
        assert!(
            reused.open().unwrap().is_none(),
            "another start time is another process"
        );
        let rebooted = ProcessIdentity {
            boot_id: "another".into(),
            ..identity.clone()
        };
        assert!(
            rebooted.open().unwrap().is_none(),
            "another boot is another process"
        );

        child.kill().unwrap();
        wait_readable(
            pidfd_open(to_pid(child.id()).unwrap(), PidfdFlags::empty()).unwrap(),
            None,
        )
        .unwrap();
        assert!(identity.open().unwrap().is_none(), "a zombie is gone");
        child.wait().unwrap();
        assert!(identity.open().unwrap().is_none());
    }
}
