//! What the mirror holds of an agent: its branch, and what was saved beside it.

use std::collections::BTreeSet;

use git2::{Oid, Repository};
use mosaic_types::AgentId;

use super::{
    WorktreeError, Worktrees, blocking,
    checkout::AgentDirs,
    mirror::{self, agent_ref, salvage_ref},
    patch, tags,
    trees::Trees,
};

/// How many refs are told of.
const TOLD: usize = 200;

/// A ref of the mirror with work of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRef {
    /// The ref in full.
    pub name: String,
    /// The commit that it points to, or leads to by an annotated tag.
    pub commit: String,
    /// The start of its message.
    pub subject: String,
    /// Commits since the base.
    pub commits: usize,
    /// Files that differ from the base.
    pub files_changed: usize,
}

impl Worktrees {
    /// The refs of a dead agent that hold what its base has not, at most 200, and whether there are more.
    ///
    /// # Errors
    /// What could not be read.
    pub async fn salvaged(&self, agent: &AgentId) -> Result<(Vec<HeldRef>, bool), WorktreeError> {
        let agent = *agent;
        let dirs = AgentDirs::new(&self.inner.config.agents_dir, &agent);
        let record = dirs.read_record()?.ok_or(WorktreeError::NotPrepared)?;
        let mirror = self.mirror_path(&record.repository);
        let mut trees = Trees::new(&self.inner.config.limits);
        blocking("reading the mirror's refs", move || {
            let mirror = mirror::open_own(&mirror)?;
            let base = Oid::from_str(&record.base_commit)
                .map_err(WorktreeError::git("reading the agent's record"))?;
            let refs = all(&mirror, base, &agent)?;
            let more = refs.len() > TOLD;
            let held = refs
                .iter()
                .take(TOLD)
                .map(|(name, tip)| describe(&mirror, base, name, *tip, &mut trees))
                .collect::<Result<_, _>>()?;
            Ok((held, more))
        })
        .await
    }
}

fn describe(
    mirror: &Repository,
    base: Oid,
    name: &[u8],
    tip: Oid,
    trees: &mut Trees,
) -> Result<HeldRef, WorktreeError> {
    let failed = || WorktreeError::git("reading the mirror's refs");
    let tip = tags::follow(mirror, tip).map_or(tip, |followed| followed.commit);
    for commit in [base, tip] {
        trees.of_commit(mirror, commit)?;
    }
    let commit = mirror.find_commit(tip).map_err(failed())?;
    let old = mirror
        .find_commit(base)
        .and_then(|base| base.tree())
        .map_err(failed())?;
    let new = commit.tree().map_err(failed())?;
    // Names alone: the contents of what an agent stashed away are nothing to read for a list.
    let files_changed = mirror
        .diff_tree_to_tree(Some(&old), Some(&new), None)
        .map_err(failed())?
        .deltas()
        .len();
    let mut walk = mirror.revwalk().map_err(failed())?;
    walk.push(tip).map_err(failed())?;
    walk.hide(base).map_err(failed())?;
    Ok(HeldRef {
        name: String::from_utf8_lossy(name).into_owned(),
        commit: tip.to_string(),
        subject: patch::summary(&commit).subject,
        commits: walk.count(),
        files_changed,
    })
}

/// Every ref of an agent with work in it: its branch, its salvage, the rest by name.
pub(super) fn all(
    mirror: &Repository,
    base: Oid,
    agent: &AgentId,
) -> Result<Vec<(Vec<u8>, Oid)>, WorktreeError> {
    let globs = [
        agent_ref(agent),
        salvage_ref(agent),
        format!("refs/mosaic/agents/{agent}/*"),
        format!("refs/mosaic/previous/{agent}/*"),
    ];
    with_work(mirror, base, &globs)
}

/// The refs, by glob, that point to a commit which the base does not contain.
pub(super) fn with_work(
    mirror: &Repository,
    base: Oid,
    globs: &[String],
) -> Result<Vec<(Vec<u8>, Oid)>, WorktreeError> {
    let failed = || WorktreeError::git("reading the mirror's refs");
    let mut refs = Vec::new();
    for glob in globs {
        let mut found = BTreeSet::new();
        for reference in mirror.references_glob(glob).map_err(failed())? {
            let reference = reference.map_err(failed())?;
            let Some(tip) = reference.target() else {
                continue;
            };
            // The others were not reachable from anything when they were made, and there may be many.
            let one = !glob.ends_with('*');
            let old =
                tip == base || one && mirror.graph_descendant_of(base, tip).map_err(failed())?;
            if !old {
                found.insert((reference.name_bytes().to_vec(), tip));
            }
        }
        refs.extend(found);
    }
    Ok(refs)
}
