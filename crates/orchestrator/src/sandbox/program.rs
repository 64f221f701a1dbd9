//! The executable of shims and inits: `mosaic-sandbox` beside the daemon's own, or else the daemon's own.
//!
//! Two of an agent's processes are it. Each maps some 1 MiB of the small one and 5 MiB of the daemon's, and whatever is
//! mapped is unmapped at a kill, agent by agent: of a kill-all of many that is a quarter. A daemon that was deployed
//! alone, or beside another build's, does with its own, and says so.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{PidfdFlags, pidfd_open};
use tracing::{info, warn};

use super::identity;

/// The hidden first argument that makes an executable of ours say which build of the sandbox is in it.
pub(super) const BUILD_VERB: &str = "sandbox-build";
const BUILD: &str = env!("MOSAIC_SANDBOX_BUILD");
const NAME: &str = "mosaic-sandbox";
/// How long it may take to say which build it is.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    // What was found is what is started, whatever is put in its place while this daemon runs.
    _held: Option<Arc<File>>,
}

impl Program {
    /// The executable at this path, which must be of this build.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, _held: None }
    }

    /// Looks beside this process's executable. Takes some milliseconds, on this thread.
    #[must_use]
    pub fn find() -> Self {
        let beside = std::env::current_exe().map(|own| own.with_file_name(NAME));
        beside.map_or_else(|_| Self::own(), |path| Self::beside(&path))
    }

    /// The executable at this path, if it is of this build, or else this process's own.
    #[must_use]
    pub fn beside(path: &Path) -> Self {
        match Self::hold(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                info!(
                    ?path,
                    "there is no such executable; agents are held by the daemon's own, which takes more memory"
                );
                Self::own()
            }
            Err(error) => {
                warn!(
                    ?path,
                    error = &error as &dyn std::error::Error,
                    "agents are held by the daemon's own executable, which takes more memory"
                );
                Self::own()
            }
        }
    }

    fn own() -> Self {
        Self::at(PathBuf::from("/proc/self/exe"))
    }

    fn hold(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // As a child sees it that has not closed its descriptors yet.
        let held = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let build = ask(&held)?;
        if build != BUILD {
            return Err(io::Error::other(format!(
                "it is of the build {build:?}, and this is {BUILD:?}"
            )));
        }
        Ok(Self {
            path: held,
            _held: Some(Arc::new(file)),
        })
    }

    /// What to start, as this process and its children see it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Says which build this is.
pub(super) fn main() -> ExitCode {
    println!("{BUILD}");
    ExitCode::SUCCESS
}

/// Which build an executable says it is.
fn ask(path: &Path) -> io::Result<String> {
    const MOST_BYTES: u64 = 64;
    let mut child = Command::new(path)
        .arg(BUILD_VERB)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let ended = wait(child.id());
    let _ = child.kill();
    child.wait()?;
    if !ended? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MOST_BYTES).read_to_string(&mut said)?;
    }
    Ok(said.trim().to_owned())
}

/// Waits until a child has ended; `false` if that takes too long.
fn wait(pid: u32) -> io::Result<bool> {
    let pid = identity::to_pid(pid).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = rustix::event::Timespec {
        tv_sec: ANSWER_WITHIN.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    identity::wait_readable(&pidfd, Some(limit))
}
