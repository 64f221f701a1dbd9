//! The way to the init: a pair of sockets that the engine inherits, or a socket at a path that only the agent's
//! container sees.

use std::{
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    net::sockopt::{set_socket_passcred, socket_peercred},
    process::{PidfdFlags, pidfd_open},
};

use zeroize::Zeroizing;

use super::init_link::send_streams;
use crate::sandbox::{files::InitPlan, identity};

/// What the init is told first: its agent's streams, and the plan.
pub(super) struct Greeting {
    streams: [OwnedFd; 3],
    line: Zeroizing<Vec<u8>>,
}

impl Greeting {
    pub(super) fn new(plan: &InitPlan, streams: [OwnedFd; 3]) -> io::Result<Self> {
        let mut line = Zeroizing::new(serde_json::to_vec(plan)?);
        line.push(b'\n');
        Ok(Self { streams, line })
    }
}

/// See the module documentation.
pub(super) enum Link {
    /// The init has not come yet.
    Expected {
        listener: UnixListener,
        path: PathBuf,
        /// What it is told when it comes; `None` if that is not known yet.
        greeting: Option<Greeting>,
    },
    /// The init is at the other end.
    Up {
        socket: UnixStream,
        /// The init that knocked; `None` of one that inherited its end.
        init: Option<Init>,
    },
}

/// An init that knocked, held from then on: its pid alone may be somebody else's later (A13).
pub(super) struct Init {
    /// In our numbering.
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
}

impl Link {
    /// A link to an init that inherits its end.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        // Before the init can write: with this the kernel says who did, in our pid numbering.
        set_socket_passcred(&ours, true)?;
        let link = Self::Up {
            socket: ours,
            init: None,
        };
        Ok((link, theirs.into()))
    }

    /// A link to an init that connects to this path, whatever its uid.
    pub(super) fn listen(path: &Path, greeting: Option<Greeting>) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = bind(path)?;
        // The folders above it keep everybody else of this host away.
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        Ok(Self::Expected {
            listener,
            path: path.to_owned(),
            greeting,
        })
    }

    /// Whether the init is there.
    pub(super) fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// The socket to it.
    pub(super) fn socket(&self) -> Option<&UnixStream> {
        match self {
            Self::Up { socket, .. } => Some(socket),
            Self::Expected { .. } => None,
        }
    }

    /// The init that knocked.
    pub(super) fn init(&self) -> Option<&Init> {
        match self {
            Self::Up { init, .. } => init.as_ref(),
            Self::Expected { .. } => None,
        }
    }

    /// Lets in whoever knocks, if it is the first process of a namespace below ours. One is let in, ever.
    pub(super) fn accept(&mut self) -> io::Result<()> {
        let Self::Expected {
            listener,
            path,
            greeting,
        } = self
        else {
            return Ok(());
        };
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(init) = Init::behind(&socket)? else {
            return Ok(());
        };
        set_socket_passcred(&socket, true)?;
        socket.set_nonblocking(false)?;
        let link = Self::Up {
            socket,
            init: Some(init),
        };
        if let Some(greeting) = greeting {
            link.greet(greeting)?;
        }
        let _ = fs::remove_file(path);
        *self = link;
        Ok(())
    }

    /// Sends the init what it needs.
    pub(super) fn greet(&self, greeting: &Greeting) -> io::Result<()> {
        let Self::Up { socket, .. } = self else {
            return Ok(());
        };
        let [stdin, stdout, stderr] = &greeting.streams;
        let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let mut writer = socket;
        match send_streams(socket, streams).and_then(|()| writer.write_all(&greeting.line)) {
            // One that has gone already: the watch finds its end, and what was said.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// Says something to the init.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Up { socket, .. } => socket.write_all(bytes),
            Self::Expected { .. } => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Binds a socket at a path of any length: an address has room for 107 bytes, which a data folder deep in a home uses
/// up.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = fs::File::open(folder)?;
    UnixListener::bind(Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

impl Init {
    /// Who is at the other end, if it is the first process of a namespace below ours and lives.
    fn behind(socket: &UnixStream) -> io::Result<Option<Self>> {
        let peer = socket_peercred(socket)?.pid;
        let Ok(pid) = u32::try_from(peer.as_raw_nonzero().get()) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(peer, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let is_init = identity::is_namespace_init(pid).unwrap_or(false);
        Ok((is_init && !identity::is_dead(&pidfd)?).then_some(Self { pid, pidfd }))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Expected { listener, .. } => listener.as_fd(),
            Self::Up { socket, .. } => socket.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_place_however_deep_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(200));
        fs::create_dir(&deep).unwrap();
        let path = deep.join("init.sock");
        let _listener = bind(&path).unwrap();
        assert!(path.exists());
    }
}
