//! Gives an agent's user what the agent is to own, and lets it read what the data folder lends it. A spoke that is not root shares
//! its user with its agents, and nothing is to be done.

use std::{fs, io, os::unix::fs::MetadataExt, os::unix::fs::PermissionsExt, path::Path};

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};

use super::settings::ContainerUser;
use crate::sandbox::{LaunchSpec, SandboxError};

/// Hands over what a launch binds, and what it reads as its input. Of what is borrowed, only what is in our own data
/// folder changes.
pub(super) async fn hand_over(
    spec: &LaunchSpec,
    user: ContainerUser,
    data_dir: &Path,
) -> Result<(), SandboxError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let binds = spec.binds.clone();
    let stdin = spec.stdin.clone();
    let agent_dir = spec.agent_dir.clone();
    let data_dir = data_dir.to_owned();
    let handed = tokio::task::spawn_blocking(move || {
        for bind in binds {
            let done = if bind.writable {
                give(&bind.path, user)
            } else if bind.path.starts_with(&data_dir) {
                open_to_all(&bind.path)
            } else {
                Ok(())
            };
            done.map_err(SandboxError::io("hand over", &bind.path))?;
        }
        // It inherits it open; by `/dev/stdin` it may open it again.
        match stdin {
            Some(stdin) if stdin.starts_with(&data_dir) => {
                open_to_all(&stdin).map_err(SandboxError::io("hand over", &stdin))
            }
            _ => Ok(()),
        }
    })
    .await;
    handed.unwrap_or_else(|error| {
        Err(SandboxError::io("hand over the files of", &agent_dir)(
            io::Error::other(error),
        ))
    })
}

/// Changes the owner of all below a path; no link is followed. What is the user's already costs a look.
fn give(root: &Path, user: ContainerUser) -> io::Result<()> {
    walk(root, &mut |path, found| {
        if found.uid() != user.uid || found.gid() != user.gid {
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    })
}

/// Lets everybody read what the host keeps for agents, where a strict umask did not.
fn open_to_all(root: &Path) -> io::Result<()> {
    walk(root, &mut |path, found| {
        let wanted = match () {
            () if found.is_dir() => 0o555,
            () if found.is_file() => 0o444,
            () => return Ok(()),
        };
        let mode = found.permissions().mode();
        if mode & wanted != wanted && found.uid() == rustix::process::geteuid().as_raw() {
            fs::set_permissions(path, fs::Permissions::from_mode(mode | wanted))?;
        }
        Ok(())
    })
}

fn walk(
    root: &Path,
    visit: &mut impl FnMut(&Path, &fs::Metadata) -> io::Result<()>,
) -> io::Result<()> {
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            // Objects are packed and locks are dropped while we look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        visit(&path, &found)?;
        if found.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
    }
    Ok(())
}
