//! What became of a sandbox while no daemon was there: its processes are known by identity, never by
//! a bare pid (A13), and what a dead shim left is ended before the answer.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Adopted, ExitRecord, SandboxError,
    cgroup::{self, Group},
    files::{self, SandboxRecord},
    freezer,
    handle::ShimHandle,
    identity::{self, ProcessIdentity},
    tree::wait_empty,
};

/// For how long remains of a dead shim may take to die.
pub(super) const REMAINS_TIME_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn adopt(agent_dir: &Path) -> Result<Adopted, SandboxError> {
    let ended: Option<ExitRecord> = files::read(&agent_dir.join(files::EXIT))?;
    let over = |ended: Option<ExitRecord>| ended.map_or(Adopted::Vanished, Adopted::Ended);
    let record = match files::read::<SandboxRecord>(&agent_dir.join(files::SANDBOX)) {
        Ok(Some(record)) => record,
        Err(error) if ended.is_none() => return Err(error),
        Ok(None) | Err(_) => return Ok(over(ended)),
    };
    let look = SandboxError::io("look for the processes of", agent_dir);
    let boot_id = match identity::boot_id() {
        Ok(boot_id) => boot_id,
        Err(error) => return Err(look(error)),
    };
    if boot_id != record.boot_id {
        return Ok(over(ended));
    }
    if ended.is_some() {
        // Of an engine that was ended before its namespace was up, part may still be there.
        let init_group = files::read(&agent_dir.join(files::INIT_GROUP))?;
        end_remains(agent_dir, &record, None, init_group).await?;
        return Ok(over(ended));
    }
    let shim = open_recorded(agent_dir, files::SHIM)?;
    // Where an engine put it; else it is in the agent's own group.
    let init_group: Option<Group> = files::read(&agent_dir.join(files::INIT_GROUP))?;
    // Start times are in ticks of 10 ms; where it is and what it is settles the rest (A12).
    let expected = init_group.as_ref().or(record.cgroup.as_ref());
    let init = open_recorded(agent_dir, files::INIT)?.filter(|(init, _)| {
        identity::is_namespace_init(init.pid).unwrap_or(false)
            && is_in(expected, init).unwrap_or(false)
    });
    match shim {
        Some((shim, pidfd)) if is_in(record.cgroup.as_ref(), &shim).map_err(look)? => {
            Ok(Adopted::Live(Arc::new(ShimHandle::adopted(
                agent_dir, &record, shim, pidfd, init, init_group,
            ))))
        }
        _ => {
            // It may have ended between the first look and this one.
            end_remains(agent_dir, &record, init, init_group).await?;
            Ok(over(files::read(&agent_dir.join(files::EXIT))?))
        }
    }
}

/// Whether all that can live of a sandbox with this directory is in this group. Not of a container that its engine has
/// put elsewhere; where that cannot be read it is not known.
pub(super) fn is_all_in(agent_dir: &Path, group: &Group) -> bool {
    match files::read::<Group>(&agent_dir.join(files::INIT_GROUP)) {
        // Written before anything of the agent's runs: without, there is at most an init that finds no shim, and ends.
        Ok(None) => true,
        Ok(Some(init_group)) => init_group.path().starts_with(group.path()),
        Err(_) => false,
    }
}

/// Kills what a dead shim left, and proves it. Everything here is ours: the group carries the
/// agent's id, and the init was identified by its start time and boot (A12).
async fn end_remains(
    agent_dir: &Path,
    record: &SandboxRecord,
    init: Option<(ProcessIdentity, OwnedFd)>,
    init_group: Option<Group>,
) -> Result<(), SandboxError> {
    let deadline = Instant::now() + REMAINS_TIME_LIMIT;
    let init_group = init_group.filter(|group| group.is_a_containers(record.cgroup.as_ref()));
    let groups = || record.cgroup.iter().chain(&init_group);
    for group in groups() {
        group.kill()?;
        freezer::thaw_members(group);
    }
    if let Some((init, pidfd)) = init {
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        while !identity::is_dead(&pidfd)
            .map_err(SandboxError::io("watch the init of", agent_dir))?
        {
            if Instant::now() >= deadline {
                return Err(SandboxError::StillPopulated {
                    path: agent_dir.to_owned(),
                    survivors: vec![init.pid],
                });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for group in groups() {
        wait_empty(group, deadline).await?;
    }
    Ok(())
}

fn open_recorded(
    agent_dir: &Path,
    name: &str,
) -> Result<Option<(ProcessIdentity, OwnedFd)>, SandboxError> {
    let Some(identity) = files::read::<ProcessIdentity>(&agent_dir.join(name))? else {
        return Ok(None);
    };
    let pidfd = identity
        .open()
        .map_err(SandboxError::io("look for a process of", agent_dir))?;
    Ok(pidfd.map(|pidfd| (identity, pidfd)))
}

/// Whether the process is where its record says. Where there is no cgroup, identity has to do.
fn is_in(group: Option<&Group>, process: &ProcessIdentity) -> io::Result<bool> {
    match group.map(|group| group.holds(process.pid)) {
        None => Ok(true),
        Some(Err(error)) if cgroup::is_gone(&error) => Ok(false),
        Some(answer) => answer,
    }
}
