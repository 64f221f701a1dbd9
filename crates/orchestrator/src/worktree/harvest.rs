//! A dead agent's work, into the mirror and into a patch.

use mosaic_types::AgentId;

use super::{
    WorkResult, WorktreeError, Worktrees,
    checkout::AgentDirs,
    homecoming::{self, State},
    lock::MirrorLock,
    mirror, patch, removal,
    trees::Trees,
};

/// Which tree to bring home.
#[derive(Debug, Clone)]
pub struct HarvestRequest {
    /// The agent, proven dead.
    pub agent: AgentId,
    /// Now, Unix seconds: the time of the commit that is made of uncommitted work.
    pub now_secs: i64,
    /// Where what it had not committed goes.
    pub landing: Landing,
}

/// Where the uncommitted work of an agent goes. Its commits go to its branch either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// To its branch, as the last commit: it ended by itself.
    Branch,
    /// To `refs/mosaic/salvage/<agentId>` (A22): it was killed in the middle.
    Salvage,
}

/// A dead agent's state beside the mirror it goes to.
pub(super) struct Home {
    pub(super) state: State,
    pub(super) mirror: git2::Repository,
    dirs: AgentDirs,
    lock: MirrorLock,
}

impl Worktrees {
    /// Brings a dead agent's work home and writes the patch. May be repeated.
    ///
    /// # Errors
    /// The tree is as it was; what went wrong is said.
    pub async fn harvest(&self, request: &HarvestRequest) -> Result<WorkResult, WorktreeError> {
        let HarvestRequest {
            agent,
            now_secs,
            landing,
        } = *request;
        let limits = self.inner.config.limits.clone();
        self.on_dead(agent, move |home| {
            let Home {
                state,
                mirror,
                dirs,
                lock,
            } = home;
            let mut trees = Trees::new(&limits);
            let landed = homecoming::land(&state, &mirror, &agent, landing, now_secs, &mut trees)?;
            // From here on objects are read, of which none is ever removed. Others wait for the mirror.
            drop(lock);
            let failed = || WorktreeError::git("listing the agent's commits");
            let (base, head) = (state.base, landed.head);
            let range = patch::range(&mirror, base, head)?;
            range.measure(&mirror, (base, head), &mut trees)?;
            let mut commits = Vec::new();
            for id in &range.commits {
                commits.push(patch::summary(&mirror.find_commit(*id).map_err(failed())?));
            }
            let (files_changed, insertions, deletions) = patch::stats(&mirror, base, head)?;
            let patch = patch::write(
                &mirror,
                &range,
                (base, head),
                &dirs.patch(),
                limits.max_patch_bytes,
            )?;
            Ok(WorkResult {
                base_commit: base.to_string(),
                head_commit: head.to_string(),
                reference: match landing {
                    Landing::Branch => mirror::agent_ref(&agent),
                    Landing::Salvage => mirror::salvage_ref(&agent),
                },
                commits,
                uncommitted_committed: landed.uncommitted.is_some(),
                files_changed,
                insertions,
                deletions,
                patch,
                refs: landed.refs,
                not_brought_home: landed.missed,
            })
        })
        .await
    }

    /// Examines a dead agent's tree, then does `then` under the mirror's lock, for as long as that wants it.
    pub(super) async fn on_dead<T: Send + 'static>(
        &self,
        agent: AgentId,
        then: impl FnOnce(Home) -> Result<T, WorktreeError> + Send + 'static,
    ) -> Result<T, WorktreeError> {
        let dirs = AgentDirs::new(&self.inner.config.agents_dir, &agent);
        let turn = self.inner.agents.lock(&agent.to_string()).await;
        let record = dirs.read_record()?.ok_or(WorktreeError::NotPrepared)?;
        let repository = record.repository.clone();
        let path = self.mirror_path(&repository);
        let limits = self.inner.config.limits.clone();
        let (dirs_read, path_read) = (dirs.clone(), path.clone());
        let clearing = &self.inner.clearing;
        let state = clearing
            .run("reading the agent's work", move || {
                homecoming::examine(&dirs_read, &agent, &record, &path_read, &limits)
                    .map(|state| (state, turn))
            })
            .await;
        let (state, turn) = state?;
        let lock = self.lock_mirror(&repository).await?;
        clearing
            .run("bringing the agent's work home", move || {
                let mirror = mirror::open_or_create(&path)?;
                let harvest = dirs.harvest();
                let done = then(Home {
                    state,
                    mirror,
                    dirs,
                    lock,
                });
                // A copy of what lies in the tree and in the mirror.
                let _ = removal::remove_tree(&harvest);
                drop(turn);
                done
            })
            .await
    }
}
