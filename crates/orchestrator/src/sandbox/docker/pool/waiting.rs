//! One container that waits for an agent: what it is made of, and whether it would be made the same way now.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt,
    process::{Child, ChildStdin},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sandbox::{Bind, LaunchSpec, handle::ShimVoice, shim::warm};

/// A container whose init waits for an agent. Dropping it ends its shim, and so its init.
#[derive(Debug)]
pub(in crate::sandbox) struct Waiting {
    pub(super) slot: String,
    pub(super) container: String,
    /// The engine's id of the image that it was made of.
    pub(super) image: String,
    pub(super) binds: Vec<Bind>,
    /// What the binds were when it was made.
    pub(super) bound: Vec<FileId>,
    pub(super) shim: Option<Child>,
    pub(super) voice: Option<ShimVoice>,
}

impl Waiting {
    /// Its slot.
    pub(in crate::sandbox::docker) fn slot(&self) -> &str {
        &self.slot
    }

    /// The engine's id of it.
    pub(in crate::sandbox::docker) fn container(&self) -> &str {
        &self.container
    }

    /// Whether its shim, and with it its init, is still there.
    pub(super) fn is_alive(&mut self) -> bool {
        self.shim
            .as_mut()
            .is_some_and(|shim| matches!(shim.try_wait(), Ok(None)))
    }

    /// Whether what it was lent of the host is still what is there: a file that was replaced is another one.
    pub(super) fn is_current(&self) -> bool {
        files_of(&self.binds).is_ok_and(|files| files == self.bound)
    }

    /// Tells its shim that its agent is on the way. What cannot be said at once is not said.
    pub(super) fn announce(&mut self) {
        let Some(stdin) = self.shim.as_mut().and_then(|shim| shim.stdin.as_mut()) else {
            return;
        };
        // A pipe that says so takes a short line whole.
        if is_writable(stdin) {
            let _ = stdin.write_all(warm::COMING);
        }
    }

    /// The shim and its voice, for the agent's handle.
    pub(in crate::sandbox::docker) fn into_shim(mut self) -> Option<(Child, ShimVoice)> {
        self.shim.take().zip(self.voice.take())
    }

    /// What the agent is yet to be given of what its launch binds.
    pub(in crate::sandbox::docker) fn missing(&self, spec: &LaunchSpec) -> Vec<Bind> {
        let is_missing = |bind: &&Bind| !self.binds.contains(bind);
        spec.binds.iter().filter(is_missing).cloned().collect()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(shim) = &mut self.shim {
            let _ = shim.kill();
            let _ = shim.wait();
        }
    }
}

/// A file of the host's, wherever it is: device and number.
pub(super) type FileId = (u64, u64);

/// What is at the paths of these binds.
pub(super) fn files_of(binds: &[Bind]) -> io::Result<Vec<FileId>> {
    let found = binds.iter().map(|bind| fs::metadata(&bind.path));
    found
        .map(|found| found.map(|found| (found.dev(), found.ino())))
        .collect()
}

/// Whether a pipe takes a line without anybody waiting.
fn is_writable(pipe: &ChildStdin) -> bool {
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(pipe, PollFlags::OUT)];
    poll(&mut fds, Some(&at_once)).is_ok() && fds.iter().any(|fd| fd.revents() == PollFlags::OUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_replaced_is_not_what_was_lent() {
        let dir = tempfile::tempdir().unwrap();
        let [lent, new] = ["lent", "new"].map(|name| dir.path().join(name));
        fs::write(&lent, "old").unwrap();
        let binds = vec![Bind::read_only(&lent), Bind::read_only(dir.path())];
        let waiting = Waiting {
            slot: String::new(),
            container: String::new(),
            image: String::new(),
            bound: files_of(&binds).unwrap(),
            binds,
            shim: None,
            voice: None,
        };
        fs::write(&lent, "changed in place").unwrap();
        assert!(waiting.is_current());
        fs::write(&new, "new").unwrap();
        fs::rename(&new, &lent).unwrap();
        assert!(!waiting.is_current());
        fs::remove_file(&lent).unwrap();
        assert!(!waiting.is_current());
    }
}
