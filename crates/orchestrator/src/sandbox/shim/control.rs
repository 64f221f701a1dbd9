//! What the daemon says: one line with the plan, then the word to go. The end of it means that the
//! daemon is gone.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The daemon's end of our standard input: a line with the plan, then the word to go.
#[derive(Default)]
pub(super) struct Control {
    held: Vec<u8>,
}

impl Control {
    /// One read; `false` at the end of file.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 8192];
        loop {
            match rustix::io::read(io::stdin(), &mut chunk) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.held
                        .extend_from_slice(chunk.get(..count).unwrap_or_default());
                    return Ok(true);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the daemon has let go of its end, whatever it had said before.
    pub(super) fn is_abandoned() -> io::Result<bool> {
        let stdin = io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        loop {
            match poll(&mut fds, Some(&at_once)) {
                Ok(_) => return Ok(fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.held.iter().position(|byte| *byte == b'\n')?;
        let rest = self.held.split_off(end + 1);
        Some(std::mem::replace(&mut self.held, rest))
    }

    /// Waits for a line; `None` at the end of file.
    pub(super) fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Some(line));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }
}
