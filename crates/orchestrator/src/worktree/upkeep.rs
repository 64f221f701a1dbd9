//! What is asked of the trees besides their agents' work: whether one could be made, and what of an old one may go.

use std::{fs, path::PathBuf};

use mosaic_types::AgentId;

use super::{
    BranchName, Removal, RemovalMode, RepositoryUrl, Transport, WorktreeError, Worktrees, blocking,
    checkout::AgentDirs, mirror, removal,
};

impl Worktrees {
    /// Whether a tree of this branch could be made, as far as this can be told at once: what is on this machine is
    /// looked at, what is elsewhere is found out by the fetch.
    ///
    /// # Errors
    /// Those of [`Worktrees::prepare`] for a repository or branch that is not there.
    pub async fn check(
        &self,
        repository: &RepositoryUrl,
        branch: &BranchName,
    ) -> Result<(), WorktreeError> {
        if repository.transport() != Transport::File {
            return Ok(());
        }
        let (repository, branch) = (repository.clone(), branch.clone());
        blocking("looking at the repository", move || {
            mirror::check_local(&repository, &branch)
        })
        .await
    }

    /// Where the patch of an ended agent is, if it has one.
    #[must_use]
    pub fn patch_path(&self, agent: &AgentId) -> PathBuf {
        AgentDirs::new(&self.inner.config.agents_dir, agent).patch()
    }

    /// Removes a directory of an agent that holds nothing of its work, as its `HOME` mostly does.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn remove_scratch(&self, path: PathBuf) -> Result<(), WorktreeError> {
        self.inner
            .clearing
            .run("removing scratch files", move || {
                removal::remove_tree(&path)
            })
            .await
    }

    /// Removes everything of an ended agent but its refs in the mirror: tree, patch, output, records. A tree that
    /// holds work which is nowhere else is kept, and everything with it.
    ///
    /// # Errors
    /// What could not be read or removed.
    pub async fn forget(&self, agent: &AgentId) -> Result<Removal, WorktreeError> {
        let kept = self.remove(agent, RemovalMode::OnlySecured).await?;
        if kept != Removal::Removed {
            return Ok(kept);
        }
        let dirs = AgentDirs::new(&self.inner.config.agents_dir, agent);
        let turn = self.inner.agents.lock(&agent.to_string()).await;
        self.inner
            .clearing
            .run("removing an agent's files", move || {
                if fs::symlink_metadata(&dirs.root).is_ok_and(|found| found.is_dir()) {
                    removal::remove_tree(&dirs.root)?;
                }
                drop(turn);
                Ok(Removal::Removed)
            })
            .await
    }
}
