//! The commits that a patch is of, and whether libgit2 may compare their trees.

use git2::{Oid, Repository, Sort};

use super::super::{PatchForm, error::WorktreeError, trees::Trees};

/// How many mails a patch has at most; of more commits it is one mail.
const MAX_MAILS: usize = 100_000;

/// The commits of a range, oldest first, and how a patch tells them.
pub(in super::super) struct Range {
    pub(in super::super) commits: Vec<Oid>,
    pub(super) form: PatchForm,
}

pub(in super::super) fn range(
    repository: &Repository,
    base: Oid,
    head: Oid,
) -> Result<Range, WorktreeError> {
    let failed = || WorktreeError::git("listing the agent's commits");
    let mut walk = repository.revwalk().map_err(failed())?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE)
        .map_err(failed())?;
    walk.push(head).map_err(failed())?;
    walk.hide(base).map_err(failed())?;
    let commits = walk.collect::<Result<Vec<Oid>, _>>().map_err(failed())?;
    let mut parent = base;
    let mut linear = true;
    for id in &commits {
        let commit = repository.find_commit(*id).map_err(failed())?;
        linear = linear && commit.parent_ids().eq([parent]);
        parent = *id;
    }
    let form = if linear && parent == head && commits.len() <= MAX_MAILS {
        PatchForm::Commits
    } else {
        PatchForm::Squashed
    };
    Ok(Range { commits, form })
}

impl Range {
    /// Whether the trees that will be compared may be gone through.
    ///
    /// # Errors
    /// `TooLarge` if not; what could not be read.
    pub(in super::super) fn measure(
        &self,
        repository: &Repository,
        (base, head): (Oid, Oid),
        trees: &mut Trees,
    ) -> Result<(), WorktreeError> {
        if base == head {
            return Ok(());
        }
        for commit in [base, head] {
            trees.of_commit(repository, commit)?;
        }
        if self.form == PatchForm::Commits {
            for commit in &self.commits {
                trees.of_commit(repository, *commit)?;
            }
        }
        Ok(())
    }
}
