//! The engine that a shim starts itself, and starts again if it ends before there is a namespace.
//!
//! Bubblewrap copies the host's mounts and then makes them read-only one by one. On a host where mounts come and go, as
//! beside an engine of containers, one may be gone in between, and it gives up: *Unable to apply mount flags … No such
//! file or directory*. Of a hundred launches beside containers that start and end, one or two. Nothing of the agent's
//! has run by then, so that another try is no second run.

use std::{
    fs::File,
    io::{self, PipeReader},
    os::fd::OwnedFd,
    process::{Child, Stdio},
};

use rustix::process::{PidfdFlags, pidfd_open};

use super::{
    explain,
    link::{Greeting, Link},
};
use crate::sandbox::{Network, containment::Engine, engine, filesystem::View, identity};

/// How often an engine is started for one launch.
const STARTS: u32 = 5;

/// An engine that runs.
pub(super) struct OwnEngine {
    pub(super) child: Child,
    pub(super) pidfd: OwnedFd,
}

/// An engine that was started, with the way to its init.
pub(super) struct Started {
    pub(super) engine: OwnEngine,
    pub(super) link: Link,
    /// What the engine itself has to say. Of interest only if nothing came of it; a few lines, which
    /// wait in the pipe.
    pub(super) complaints: PipeReader,
}

/// What it takes to start the engine of a launch. Holds the agent's ends of its streams: to be dropped when the init has
/// them.
pub(super) struct Starts {
    pub(super) program: Engine,
    pub(super) view: View,
    pub(super) network: Network,
    pub(super) greeting: Greeting,
    left: u32,
}

impl Starts {
    pub(super) fn new(program: Engine, view: View, network: Network, greeting: Greeting) -> Self {
        Self {
            program,
            view,
            network,
            greeting,
            left: STARTS,
        }
    }

    /// Starts the engine, and hands the init what it needs; `None` if it was tried often enough.
    pub(super) fn next(&mut self) -> io::Result<Option<Started>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        let (link, theirs) = Link::pair()?;
        let (complaints, writer) = io::pipe()?;
        let engine = self.start(theirs, writer)?;
        if let Err(error) = link.greet(&self.greeting) {
            let mut child = engine.child;
            let _ = child.kill();
            let _ = child.wait();
            return Err(explain("reach the namespace", &error));
        }
        Ok(Some(Started {
            engine,
            link,
            complaints,
        }))
    }

    /// Starts the engine with our end of its link as its standard output.
    fn start(&self, theirs: OwnedFd, complaints: io::PipeWriter) -> io::Result<OwnEngine> {
        let mut child = engine::command(&self.program, &self.view, &self.network)
            .stdin(Stdio::from(File::open("/proc/self/exe")?))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::from(complaints))
            .spawn()
            .map_err(|error| explain("start the engine", &error))?;
        let pidfd = identity::to_pid(child.id())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match pidfd {
            Ok(pidfd) => Ok(OwnEngine { child, pidfd }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(explain("watch the engine", &error))
            }
        }
    }
}
