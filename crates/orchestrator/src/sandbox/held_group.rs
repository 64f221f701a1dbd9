//! A group with its control files held open: killing it and asking whether it is empty takes no file descriptor, so that
//! neither fails when this process has none left.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use super::{
    SandboxError,
    cgroup::{self, Group},
};

/// Larger than the kernel's whole answer.
const EVENTS_BYTES: usize = 256;

/// See the module documentation. Holding it keeps nobody from removing the group.
#[derive(Debug)]
pub(super) struct HeldGroup {
    group: Group,
    // `None` if it could not be opened: then it is tried by name each time.
    kill: Option<File>,
    events: Option<File>,
}

impl HeldGroup {
    pub(super) fn hold(group: Group) -> Self {
        let kill = fs::OpenOptions::new()
            .write(true)
            .open(group.path().join("cgroup.kill"));
        let events = File::open(group.path().join("cgroup.events"));
        Self {
            kill: kill.ok(),
            events: events.ok(),
            group,
        }
    }

    /// The group itself.
    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// As [`Group::kill`].
    pub(super) fn kill(&self) -> Result<(), SandboxError> {
        match self.kill.as_ref().map(|file| file.write_at(b"1", 0)) {
            // Version 2 kills the frozen, too.
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) if cgroup::is_gone(&error) => Ok(()),
            Some(Err(_)) | None => self.group.kill(),
        }
    }

    /// As [`Group::is_populated`].
    pub(super) fn is_populated(&self) -> io::Result<bool> {
        let Some(events) = &self.events else {
            return self.group.is_populated();
        };
        let mut text = [0; EVENTS_BYTES];
        match events.read_at(&mut text, 0) {
            Ok(length) => {
                let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
                Ok(!text.lines().any(|line| line == "populated 0"))
            }
            Err(error) if cgroup::is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`Group::pids`].
    pub(super) fn pids(&self) -> Vec<u32> {
        self.group.pids()
    }
}
