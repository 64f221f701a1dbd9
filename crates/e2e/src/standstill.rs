//! Processes whose time stands still.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How long a thread may take to stop: one that waits for a disk does so first.
const STOPS_WITHIN: Duration = Duration::from_secs(30);

/// Stops these processes, and returns when they do nothing any more. The signal alone leaves their threads running for a
/// moment, in which they may well do what the test thinks they cannot. Of one that is gone nothing is asked.
///
/// # Errors
/// The signal is refused, or a thread goes on.
pub fn stop(pids: &[Pid]) -> io::Result<()> {
    for pid in pids {
        match kill_process(*pid, Signal::STOP) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let deadline = Instant::now() + STOPS_WITHIN;
    while pids.iter().any(|pid| goes_on(*pid)) {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether a thread of it can still do something.
fn goes_on(pid: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    tasks.into_iter().flatten().flatten().any(|task| {
        state_of(&task.path()).is_some_and(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
    })
}

/// The state of a process or thread by its folder in `/proc`, as proc(5) names it; `None` if it is gone.
#[must_use]
pub fn state_of(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The name before it may have anything in it, parentheses too.
    stat.rsplit_once(") ")?.1.chars().next()
}
