//! How large the trees of commits are, found out before libgit2 goes through them: it does so by calls within calls, one
//! for each level, and as often as a tree is named. A few objects can be more levels than a thread has room for, or more
//! paths than anybody can wait for.
//!
//! Each tree is read once, however often it is named and by however many commits.

use std::collections::HashMap;

use git2::{ErrorCode, ObjectType, OdbLookupFlags, Oid, Repository};

use super::{Limits, error::WorktreeError};

/// Trees within each other. No path that a system can open has as many.
const MAX_LEVELS: usize = 2000;

/// What is known of trees so far.
pub(super) struct Trees {
    known: HashMap<Oid, Size>,
    max_entries: u64,
}

#[derive(Debug, Clone, Copy)]
struct Size {
    levels: usize,
    /// Files and directories, by path.
    entries: u64,
}

/// A tree that is being gone through.
struct Open {
    id: Oid,
    /// Those within it that are still to come.
    within: Vec<Oid>,
    /// Entries of its own.
    own: u64,
    size: Size,
}

impl Trees {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            known: HashMap::new(),
            max_entries: limits.max_files,
        }
    }

    /// For who goes through each tree once: only how many are within each other matters.
    pub(super) fn of_any_size() -> Self {
        Self {
            known: HashMap::new(),
            max_entries: u64::MAX,
        }
    }

    /// Whether the tree of a commit may be gone through.
    ///
    /// # Errors
    /// `TooLarge` if not; what could not be read.
    pub(super) fn of_commit(
        &mut self,
        repository: &Repository,
        commit: Oid,
    ) -> Result<(), WorktreeError> {
        let commit = repository.find_commit(commit).map_err(failed())?;
        self.of_tree(repository, commit.tree_id())
    }

    /// As [`Self::of_commit`], of a tree that may be no commit's.
    pub(super) fn of_tree(
        &mut self,
        repository: &Repository,
        root: Oid,
    ) -> Result<(), WorktreeError> {
        let mut open = Vec::new();
        // Whatever is in one of them is in the root.
        let mut held = 0;
        self.enter(repository, root, &mut open, &mut held)?;
        while let Some(last) = open.last_mut() {
            if let Some(next) = last.within.pop() {
                match self.known.get(&next) {
                    Some(known) => last.size = self.sum(last.size, *known)?,
                    None => self.enter(repository, next, &mut open, &mut held)?,
                }
            } else if let Some(done) = open.pop() {
                held = held.saturating_sub(done.own);
                self.known.insert(done.id, done.size);
                if let Some(outer) = open.last_mut() {
                    outer.size = self.sum(outer.size, done.size)?;
                }
            }
        }
        Ok(())
    }

    /// One that is not there ends here: whoever goes through it ends there as well, and says so.
    fn enter(
        &self,
        repository: &Repository,
        id: Oid,
        open: &mut Vec<Open>,
        held: &mut u64,
    ) -> Result<(), WorktreeError> {
        if self.known.contains_key(&id) {
            return Ok(());
        }
        if open.len() >= MAX_LEVELS {
            return Err(too_deep());
        }
        // Without looking at all packs anew for each that is not there: a tree may name millions.
        let objects = repository.odb().map_err(failed())?;
        if !objects.exists_ext(id, OdbLookupFlags::NO_REFRESH) {
            return Ok(());
        }
        let tree = match repository.find_tree(id) {
            Ok(tree) => tree,
            Err(error) if error.code() == ErrorCode::NotFound => return Ok(()),
            Err(error) => return Err(failed()(error)),
        };
        let own = u64::try_from(tree.len()).unwrap_or(u64::MAX);
        *held = held.saturating_add(own);
        if *held > self.max_entries {
            return Err(self.too_many());
        }
        let trees = tree
            .iter()
            .filter(|entry| entry.kind() == Some(ObjectType::Tree));
        open.push(Open {
            id,
            within: trees.map(|entry| entry.id()).collect(),
            own,
            size: Size {
                levels: 1,
                entries: own,
            },
        });
        Ok(())
    }

    /// A tree with one more within it.
    fn sum(&self, outer: Size, inner: Size) -> Result<Size, WorktreeError> {
        let sum = Size {
            levels: outer.levels.max(inner.levels + 1),
            entries: outer.entries.saturating_add(inner.entries),
        };
        if sum.levels > MAX_LEVELS {
            return Err(too_deep());
        }
        if sum.entries > self.max_entries {
            return Err(self.too_many());
        }
        Ok(sum)
    }

    fn too_many(&self) -> WorktreeError {
        WorktreeError::TooLarge {
            what: "number of files of a commit",
            limit: self.max_entries,
        }
    }
}

fn too_deep() -> WorktreeError {
    WorktreeError::TooLarge {
        what: "number of directories within each other in a commit",
        limit: u64::try_from(MAX_LEVELS).unwrap_or(u64::MAX),
    }
}

fn failed() -> impl FnOnce(git2::Error) -> WorktreeError {
    WorktreeError::git("measuring the trees of commits")
}
