//! The work as a git bundle, for `git fetch`: an agent's refs and the commits that its base has not.
//!
//! Written from the mirror, whose objects the host has checked, by libgit2 alone. The base is a prerequisite, so
//! that a bundle is as small as the work. Beside the tree, as the patch is, it stays for whoever asks next.

use std::{
    fs,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use git2::{Oid, Repository};
use mosaic_types::AgentId;

use super::{
    Limits, WorktreeError, Worktrees, blocking,
    checkout::AgentDirs,
    mirror::{self, agent_ref},
    patch::Bounded,
    salvaged, tags,
    trees::Trees,
};

/// How long one bundle may take to make.
const MAKING_LIMIT: Duration = Duration::from_secs(120);

/// What goes into a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleOf {
    /// The agent's branch.
    Branch,
    /// Its branch, and whatever else the mirror holds of it.
    Salvaged,
}

impl Worktrees {
    /// The bundle of a dead agent's work, made if it is not there yet. `None` if there is nothing that its base has
    /// not.
    ///
    /// # Errors
    /// `TooLarge` if it would exceed its limit; what could not be read or written.
    pub async fn bundle(
        &self,
        agent: &AgentId,
        of: BundleOf,
    ) -> Result<Option<PathBuf>, WorktreeError> {
        let agent = *agent;
        let dirs = AgentDirs::new(&self.inner.config.agents_dir, &agent);
        let limits = self.inner.config.limits.clone();
        let turn = self.inner.agents.lock(&agent.to_string()).await;
        let making = Arc::clone(&self.inner.bundles).acquire_owned().await;
        let record = dirs.read_record()?.ok_or(WorktreeError::NotPrepared)?;
        let mirror = self.mirror_path(&record.repository);
        blocking("making the bundle", move || {
            // No lock: nothing is ever removed from a mirror, and its refs are ours alone to move.
            let mirror = mirror::open_own(&mirror)?;
            let base = Oid::from_str(&record.base_commit)
                .map_err(WorktreeError::git("reading the agent's record"))?;
            let (refs, path) = match of {
                BundleOf::Branch => (
                    salvaged::with_work(&mirror, base, &[agent_ref(&agent)])?,
                    dirs.notes().join("branch.bundle"),
                ),
                BundleOf::Salvaged => (
                    salvaged::all(&mirror, base, &agent)?,
                    dirs.notes().join("salvaged.bundle"),
                ),
            };
            if refs.is_empty() {
                return Ok(None);
            }
            let header = header(base, &agent, &refs);
            if !begins_with(&path, &header) {
                make(&mirror, &header, (base, &refs), &path, &limits)?;
            }
            drop((turn, making));
            Ok(Some(path))
        })
        .await
    }
}

/// Version 2 of the format, which every git reads.
fn header(base: Oid, agent: &AgentId, refs: &[(Vec<u8>, Oid)]) -> Vec<u8> {
    let mut text = format!("# v2 git bundle\n-{base} base of mosaic/{agent}\n").into_bytes();
    for (name, tip) in refs {
        text.extend_from_slice(format!("{tip} ").as_bytes());
        text.extend_from_slice(name);
        text.push(b'\n');
    }
    text.push(b'\n');
    text
}

/// Whether the bundle that is there is of the same refs: then it is the same bundle, whole, for it came by a rename.
fn begins_with(path: &Path, header: &[u8]) -> bool {
    let Ok(mut file) = fs::File::open(path) else {
        return false;
    };
    let mut start = vec![0; header.len()];
    file.read_exact(&mut start).is_ok() && start == header
}

fn make(
    mirror: &Repository,
    header: &[u8],
    (base, refs): (Oid, &[(Vec<u8>, Oid)]),
    path: &Path,
    limits: &Limits,
) -> Result<(), WorktreeError> {
    let temporary = path.with_extension("bundle.tmp");
    let written = write(mirror, header, (base, refs), &temporary, limits).and_then(|()| {
        fs::rename(&temporary, path).map_err(WorktreeError::io("writing the bundle", path))
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write(
    mirror: &Repository,
    header: &[u8],
    (base, refs): (Oid, &[(Vec<u8>, Oid)]),
    path: &Path,
    limits: &Limits,
) -> Result<(), WorktreeError> {
    let limit = limits.max_bundle_bytes;
    let failed = || WorktreeError::git("making the bundle");
    let io_failed = |error: io::Error| match error.kind() {
        io::ErrorKind::FileTooLarge => WorktreeError::TooLarge {
            what: "bytes of the bundle",
            limit,
        },
        _ => WorktreeError::io("writing the bundle", path)(error),
    };
    let walk = || {
        let mut walk = mirror.revwalk()?;
        for (_, tip) in refs {
            walk.push(*tip)?;
        }
        walk.hide(base)?;
        Ok(walk)
    };
    let mut trees = Trees::new(limits);
    trees.of_commit(mirror, base)?;
    for commit in walk().map_err(failed())? {
        trees.of_commit(mirror, commit.map_err(failed())?)?;
    }
    let mut builder = mirror.packbuilder().map_err(failed())?;
    builder.set_threads(1);
    let deadline = Instant::now().checked_add(MAKING_LIMIT);
    let in_time = move || deadline.is_none_or(|deadline| Instant::now() < deadline);
    builder
        .set_progress_callback(move |_, _, _| in_time())
        .map_err(failed())?;
    builder
        .insert_walk(&mut walk().map_err(failed())?)
        .map_err(failed())?;
    let followed = refs
        .iter()
        .filter_map(|(_, tip)| tags::follow(mirror, *tip));
    for tag in followed.flat_map(|followed| followed.tags) {
        builder.insert_object(tag, None).map_err(failed())?;
    }

    let file = fs::File::create(path).map_err(WorktreeError::io("writing the bundle", path))?;
    let mut out = Bounded::new(BufWriter::new(file), limit);
    out.write_all(header).map_err(io_failed)?;
    let mut written = Ok(());
    let built = builder.foreach(|bytes| {
        written = out.write_all(bytes);
        written.is_ok()
    });
    written.map_err(io_failed)?;
    built.map_err(|error| {
        if in_time() {
            failed()(error)
        } else {
            WorktreeError::Interrupted {
                operation: "making the bundle",
            }
        }
    })?;
    out.flush().map_err(io_failed)?;
    out.into_inner()
        .into_inner()
        .map_err(|error| io_failed(error.into_error()))?
        .sync_all()
        .map_err(io_failed)
}
