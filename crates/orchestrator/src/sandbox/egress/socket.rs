//! The proxy's socket on disk. It is named through a descriptor of its directory, because a socket's whole name has
//! room for 107 bytes only and a data folder may lie deeper.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::{SOCKET, socket_dir, socket_in};

/// A directory that is held open.
#[derive(Debug)]
struct Dir(OwnedFd);

impl Dir {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn at(&self, name: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name)
    }
}

/// Listens in the agent's directory. Whoever gets as far as the socket may connect: a container's agent is another
/// user, and on the host the directory above lets nobody pass.
pub(super) fn listen(agent_dir: &Path) -> io::Result<UnixListener> {
    let dir = socket_dir(agent_dir);
    match fs::DirBuilder::new().mode(0o755).create(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    remove(agent_dir)?;
    let listener = UnixListener::bind(Dir::open(&dir)?.at(Path::new(SOCKET)))?;
    fs::set_permissions(socket_in(&dir), fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Removes the socket, if it is there.
pub(super) fn remove(agent_dir: &Path) -> io::Result<()> {
    match fs::remove_file(socket_in(&socket_dir(agent_dir))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A way to the socket, for as often as needed.
#[derive(Debug)]
pub(super) struct Way {
    dir: Dir,
    name: PathBuf,
}

impl Way {
    pub(super) fn to(socket: &Path) -> io::Result<Self> {
        let missing = || io::Error::from(io::ErrorKind::InvalidInput);
        Ok(Self {
            dir: Dir::open(socket.parent().ok_or_else(missing)?)?,
            name: socket.file_name().ok_or_else(missing)?.into(),
        })
    }

    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.dir.at(&self.name))
    }
}
