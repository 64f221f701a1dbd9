//! The working tree as a git tree: read file by file, following nothing, running nothing.
//!
//! Ignored files are not work (they are what `git status` would not show), unless a commit or the index has them.
//! Everything else is taken, or named with the reason why it was not.

use std::{
    collections::BTreeSet,
    fs, io,
    ops::Bound,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use git2::{Index, Oid, Repository, Tree};

use super::{
    Limits, NotBroughtHome, WhyNot,
    error::WorktreeError,
    gather::{Gathered, LeftOut, enterable, read_small},
};

mod checked_out;
mod contents;
mod ignoring;

pub(super) use checked_out::CheckedOut;
use ignoring::Ignoring;

const MAX_DEPTH: usize = 256;
const MAX_CONTROL_FILE_BYTES: u64 = 1 << 20;
const TREE: i32 = 0o040_000;
const REGULAR: i32 = 0o100_644;
const EXECUTABLE: i32 = 0o100_755;
const LINK: i32 = 0o120_000;
const GITLINK: i32 = 0o160_000;

/// A working tree as it was found.
pub(super) struct Snapshot {
    pub(super) tree: Oid,
    pub(super) missed: Vec<NotBroughtHome>,
}

struct Walk<'a> {
    checked_out: &'a CheckedOut,
    repository: &'a Repository,
    shadow: &'a Path,
    left_out: &'a LeftOut,
    index: Option<&'a Index>,
    /// The repository's own index: of the file whose content is being written.
    at_hand: Index,
    limits: &'a Limits,
    ignoring: Ignoring,
    missed: Vec<NotBroughtHome>,
    seen: u64,
}

/// Writes the tree of `work` into the repository, beside `head`'s tree, against which unreadable or
/// left-out files are kept as they were. What is in the index is tracked as well.
pub(super) fn take(
    gathered: &Gathered,
    index: Option<&Index>,
    work: &Path,
    head: Option<&Tree<'_>>,
    checked_out: &CheckedOut,
    limits: &Limits,
) -> Result<Snapshot, WorktreeError> {
    let repository = &gathered.repository;
    let failed = || WorktreeError::git("writing the tree");
    let mut at_hand = Index::new().map_err(failed())?;
    repository.set_index(&mut at_hand).map_err(failed())?;
    let mut walk = Walk {
        checked_out,
        repository,
        shadow: &gathered.shadow,
        left_out: &gathered.left_out,
        index,
        at_hand,
        limits,
        ignoring: Ignoring::default(),
        missed: Vec::new(),
        seen: 0,
    };
    let tree = walk.directory(work, b"", head, false, 0)?;
    let tree = match tree {
        Some(tree) => tree,
        None => repository
            .treebuilder(None)
            .and_then(|builder| builder.write())
            .map_err(failed())?,
    };
    Ok(Snapshot {
        tree,
        missed: walk.missed,
    })
}

impl Walk<'_> {
    fn miss(&mut self, path: &[u8], why: WhyNot) {
        if self.missed.len() < 1000 {
            self.missed.push(NotBroughtHome::new(path, why));
        }
    }

    /// Whether git tracks this although no commit has it, or something in this directory.
    fn is_indexed(&self, path: &[u8], is_dir: bool) -> bool {
        let starts_with = |prefix: &[u8]| {
            let index = self.index?;
            index.get(index.find_prefix(prefix).ok()?)
        };
        // Itself comes before whatever has a longer name.
        starts_with(path).is_some_and(|entry| entry.path == path)
            || is_dir && starts_with(&[path, b"/"].concat()).is_some()
    }

    fn directory(
        &mut self,
        dir: &Path,
        path: &[u8],
        head: Option<&Tree<'_>>,
        ignored: bool,
        depth: usize,
    ) -> Result<Option<Oid>, WorktreeError> {
        let failed = || WorktreeError::git("writing the tree");
        let keep = head.filter(|tree| !tree.is_empty()).map(Tree::id);
        if depth > MAX_DEPTH {
            self.miss(path, WhyNot::TooDeep);
            return Ok(keep);
        }
        enterable(dir);
        let listed: io::Result<Vec<fs::DirEntry>> = fs::read_dir(dir).and_then(Iterator::collect);
        let Ok(mut listed) = listed else {
            self.miss(path, WhyNot::Unreadable);
            return Ok(keep);
        };
        listed.sort_by_key(fs::DirEntry::file_name);
        self.take_attributes(dir, path, head)?;
        let rules = read_small(&dir.join(".gitignore"), MAX_CONTROL_FILE_BYTES);
        let outside = self.ignoring.enter(path, rules);

        let mut builder = self.repository.treebuilder(None).map_err(failed())?;
        let mut present = BTreeSet::new();
        for entry in listed {
            let name = entry.file_name();
            let name = name.as_bytes();
            if name.eq_ignore_ascii_case(b".git") {
                if depth > 0 {
                    self.miss(path, WhyNot::NestedRepository);
                } else if name != b".git" && !self.ignoring.is_ignored(name, true) {
                    // To git it is as good as the one beside it, and in no tree of anybody's.
                    self.miss(name, WhyNot::NameRefused);
                }
                continue;
            }
            self.seen += 1;
            if self.seen > self.limits.max_files {
                return Err(WorktreeError::TooLarge {
                    what: "number of files",
                    limit: self.limits.max_files,
                });
            }
            let child = join(path, name);
            present.insert(name.to_vec());
            let tracked = head
                .and_then(|tree| tree.get_name_bytes(name))
                .map(|entry| (entry.id(), entry.filemode()));
            if let Some((id, mode)) = self.child(&entry.path(), &child, tracked, ignored, depth)?
                && builder.insert(name, id, mode).is_err()
            {
                self.miss(&child, WhyNot::NameRefused);
            }
        }
        self.ignoring.leave(outside);
        if let Some(head) = head {
            for entry in head
                .iter()
                .filter(|entry| !present.contains(entry.name_bytes()))
            {
                let child = join(path, entry.name_bytes());
                let (id, mode) = (entry.id(), entry.filemode());
                if let Some((id, mode)) = self.left_out(&child, id, mode, depth + 1)? {
                    builder
                        .insert(entry.name_bytes(), id, mode)
                        .map_err(failed())?;
                }
            }
        }
        if builder.is_empty() {
            return Ok(None);
        }
        builder.write().map(Some).map_err(failed())
    }

    fn child(
        &mut self,
        file: &Path,
        path: &[u8],
        tracked: Option<(Oid, i32)>,
        ignored: bool,
        depth: usize,
    ) -> Result<Option<(Oid, i32)>, WorktreeError> {
        let failed = || WorktreeError::git("writing the tree");
        let Ok(found) = fs::symlink_metadata(file) else {
            self.miss(path, WhyNot::Unreadable);
            return Ok(tracked);
        };
        if found.is_dir() {
            if let Some((id, GITLINK)) = tracked {
                // A submodule's own history lives elsewhere; what was made here cannot be told.
                enterable(file);
                if !fs::read_dir(file).is_ok_and(|mut inside| inside.next().is_none()) {
                    self.miss(path, WhyNot::Submodule);
                }
                return Ok(Some((id, GITLINK)));
            }
            let head = match tracked {
                Some((id, TREE)) => Some(self.repository.find_tree(id).map_err(failed())?),
                _ => None,
            };
            let ignored = ignored || self.ignoring.is_ignored(path, true);
            if ignored && head.is_none() && !self.is_indexed(path, true) {
                return Ok(None);
            }
            let tree = self.directory(file, path, head.as_ref(), ignored, depth + 1)?;
            return Ok(tree.map(|tree| (tree, TREE)));
        }
        let was_file = tracked.filter(|(_, mode)| !matches!(*mode, TREE | GITLINK));
        if was_file.is_none()
            && (ignored || self.ignoring.is_ignored(path, false))
            && !self.is_indexed(path, false)
        {
            return Ok(None);
        }
        if found.is_symlink() {
            return match fs::read_link(file) {
                Ok(target) => {
                    let id = self
                        .repository
                        .blob(target.as_os_str().as_bytes())
                        .map_err(failed())?;
                    Ok(Some((id, LINK)))
                }
                Err(_) => {
                    self.miss(path, WhyNot::Unreadable);
                    Ok(was_file)
                }
            };
        }
        if !found.is_file() {
            return Ok(None);
        }
        if found.size() > self.limits.max_file_bytes {
            self.miss(path, WhyNot::TooLarge);
            return Ok(was_file);
        }
        let mode = if found.mode() & 0o100 == 0 {
            REGULAR
        } else {
            EXECUTABLE
        };
        match self.blob(file, path, was_file, &found)? {
            Some(id) => Ok(Some((id, mode))),
            None => {
                self.miss(path, WhyNot::Unreadable);
                Ok(was_file)
            }
        }
    }

    fn is_left_out(&self, path: &[u8]) -> bool {
        match self.left_out {
            LeftOut::These(paths) => paths.contains(path),
            LeftOut::Unknown => true,
        }
    }

    /// What of a tracked entry that is not on disk was left out by a sparse checkout, not deleted.
    fn left_out(
        &mut self,
        path: &[u8],
        id: Oid,
        mode: i32,
        depth: usize,
    ) -> Result<Option<(Oid, i32)>, WorktreeError> {
        let whole = Some((id, mode));
        let LeftOut::These(paths) = self.left_out else {
            return Ok(whole);
        };
        if mode != TREE {
            return Ok(whole.filter(|_| paths.contains(path)));
        }
        let inside = join(path, b"");
        let first = paths.range::<[u8], _>((Bound::Included(inside.as_slice()), Bound::Unbounded));
        if !first
            .take(1)
            .any(|first| first.starts_with(inside.as_slice()))
        {
            return Ok(None);
        }
        if depth > MAX_DEPTH {
            self.miss(path, WhyNot::TooDeep);
            return Ok(whole);
        }
        let failed = || WorktreeError::git("writing the tree");
        let tree = self.repository.find_tree(id).map_err(failed())?;
        let mut builder = self.repository.treebuilder(None).map_err(failed())?;
        for entry in &tree {
            let child = join(path, entry.name_bytes());
            if let Some((id, mode)) =
                self.left_out(&child, entry.id(), entry.filemode(), depth + 1)?
            {
                builder
                    .insert(entry.name_bytes(), id, mode)
                    .map_err(failed())?;
            }
        }
        if builder.is_empty() {
            return Ok(None);
        }
        Ok(Some((builder.write().map_err(failed())?, TREE)))
    }
}

/// The path of what lies in a directory; that of the root is empty.
fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
