//! Objects of an agent into the mirror, as one pack.

use std::{collections::BTreeSet, fs, io::Write, path::Path};

use git2::{Oid, Repository, Revwalk, Sort};

use super::super::{error::WorktreeError, tags, trees::Trees};

/// What is to be in the mirror.
pub(super) struct Wanted {
    pub(super) commits: BTreeSet<Oid>,
    /// Annotated tags of some of them.
    pub(super) tags: BTreeSet<Oid>,
    /// Has been there before.
    pub(super) base: Oid,
}

/// Copies what the mirror lacks. The mirror's own indexer computes every id anew from the content, so an object under a
/// false name cannot get in.
pub(super) fn import(
    own: &Repository,
    mirror: &Repository,
    wanted: &Wanted,
    trees: &mut Trees,
) -> Result<(), WorktreeError> {
    let failed = || WorktreeError::git("importing the agent's objects");
    let present = mirror.odb().map_err(failed())?;
    let missing = |id: &&Oid| !present.exists(**id);
    let commits: Vec<Oid> = wanted.commits.iter().filter(missing).copied().collect();
    let followed = wanted.tags.iter().filter_map(|tag| tags::follow(own, *tag));
    let tags: BTreeSet<Oid> = followed.flat_map(|followed| followed.tags).collect();
    let tags: Vec<Oid> = tags.iter().filter(missing).copied().collect();
    if commits.is_empty() && tags.is_empty() {
        return Ok(());
    }
    let mut builder = own.packbuilder().map_err(failed())?;
    if !commits.is_empty() {
        // The base is gone through as well, for what need not be packed.
        trees.of_commit(own, wanted.base)?;
        for commit in walk(own, &commits, wanted.base).map_err(failed())? {
            trees.of_commit(own, commit.map_err(failed())?)?;
        }
        let mut walk = walk(own, &commits, wanted.base).map_err(failed())?;
        builder.insert_walk(&mut walk).map_err(failed())?;
    }
    for tag in tags {
        builder.insert_object(tag, None).map_err(failed())?;
    }
    let packs = mirror.path().join("objects/pack");
    let before = names(&packs);
    let mut writer = present.packwriter().map_err(failed())?;
    let mut written = Ok(());
    let built = builder.foreach(|bytes| {
        written = writer.write_all(bytes);
        written.is_ok()
    });
    written.map_err(WorktreeError::io("importing the agent's objects", &packs))?;
    built.map_err(failed())?;
    writer.commit().map_err(failed())?;
    // The agent's copy goes once this is said to be safe: it must survive a power cut.
    for name in names(&packs).difference(&before) {
        let path = packs.join(name);
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(WorktreeError::io("syncing the agent's objects", &path))?;
    }
    fs::File::open(&packs)
        .and_then(|dir| dir.sync_all())
        .map_err(WorktreeError::io("syncing the agent's objects", &packs))?;
    present.refresh().map_err(failed())
}

fn walk<'r>(own: &'r Repository, commits: &[Oid], base: Oid) -> Result<Revwalk<'r>, git2::Error> {
    let mut walk = own.revwalk()?;
    walk.set_sorting(Sort::TOPOLOGICAL)?;
    for commit in commits {
        walk.push(*commit)?;
    }
    walk.hide(base)?;
    Ok(walk)
}

fn names(dir: &Path) -> BTreeSet<std::ffi::OsString> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect()
}
