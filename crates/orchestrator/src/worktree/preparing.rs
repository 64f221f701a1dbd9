//! From a remote to a tree that is ready for its agent.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use mosaic_types::AgentId;

use super::{
    BranchName, RepositoryUrl, Transport, WorktreeError, Worktrees, blocking,
    checkout::{self, AgentDirs, Plan, Record},
    lock::{self, MirrorLock},
    mirror,
};

/// A working tree that is ready for its agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The tree, writable by the agent.
    pub workdir: PathBuf,
    /// The mirror's objects, to be readable by the agent at this very path.
    pub mirror_objects: PathBuf,
    /// The commit the agent starts from, full hex id.
    pub base_commit: String,
    /// The agent's branch, `mosaic/<agentId>`.
    pub branch: String,
}

impl Worktrees {
    /// Fetches the repository, says so to `fetched`, and makes the agent's tree, which takes as long as that is large and
    /// waits for nobody else. An agent that has one continues in it.
    ///
    /// # Errors
    /// Those with a `field()` are the caller's; nothing is left half done.
    pub async fn prepare(
        &self,
        agent: &AgentId,
        repository: &RepositoryUrl,
        branch: &BranchName,
        fetched: impl FnOnce() + Send,
    ) -> Result<Prepared, WorktreeError> {
        let agent = *agent;
        let dirs = AgentDirs::new(&self.inner.config.agents_dir, &agent);
        let turn = self.inner.agents.lock(&agent.to_string()).await;
        let record = dirs.read_record()?;
        if let Some(record) = &record
            && (record.repository != *repository || record.branch != *branch)
        {
            return Err(WorktreeError::PreparedOtherwise {
                repository: record.repository.clone(),
                branch: record.branch.clone(),
            });
        }
        let mirror = self.mirror_path(repository);
        let prepared = |base_commit: String| Prepared {
            workdir: dirs.work(),
            mirror_objects: mirror::objects_dir(&mirror),
            base_commit,
            branch: format!("mosaic/{agent}"),
        };
        if let Some(record) = &record
            && fs::symlink_metadata(dirs.work()).is_ok_and(|found| found.is_dir())
        {
            // Whoever prepares it again has seen the attempt before it dead.
            fetched();
            let work = dirs.work();
            blocking("sweeping an attempt's locks", move || {
                lock::sweep_locks_of_the_dead(&work);
                drop(turn);
                Ok(())
            })
            .await?;
            return Ok(prepared(record.base_commit.clone()));
        }

        let asked = Instant::now();
        let lock = Arc::new(self.lock_mirror(repository).await?);
        let default = self
            .fetch(repository, branch, asked, Arc::clone(&lock))
            .await?;
        fetched();
        let (repository, branch, dirs_for_build, mirror_for_build) = (
            repository.clone(),
            branch.clone(),
            dirs.clone(),
            mirror.clone(),
        );
        let limits = self.inner.config.limits.clone();
        let making = &self.inner.preparing;
        let base = making
            .run("preparing the working tree", move || {
                let mirror = mirror::open_or_create(&mirror_for_build)?;
                let base = match &record {
                    Some(record) => git2::Oid::from_str(&record.base_commit)
                        .map_err(WorktreeError::git("reading the agent's record"))?,
                    None => mirror::resolve(&mirror, &repository, &branch, default.as_ref())?,
                };
                // From now on the base is held by a ref, whatever the remote does to its branches.
                let reference = mirror::agent_ref(&agent);
                let tip = match mirror.refname_to_id(&reference) {
                    Ok(tip) => tip,
                    Err(_) => {
                        mirror
                            .reference(&reference, base, true, "prepared")
                            .map_err(WorktreeError::git("making the agent's branch"))?;
                        base
                    }
                };
                let refs = mirror::remote_refs(&mirror)?;
                drop(mirror);
                drop(lock);
                dirs_for_build.write_record(&Record {
                    version: 1,
                    repository: repository.clone(),
                    branch,
                    base_commit: base.to_string(),
                })?;
                let objects = mirror::objects_dir(&mirror_for_build);
                let plan = Plan {
                    agent: &agent,
                    repository: &repository,
                    mirror_objects: &objects,
                    refs: &refs,
                    tip,
                    limits: &limits,
                };
                checkout::build(&dirs_for_build, &plan)?;
                drop(turn);
                Ok(base)
            })
            .await?;
        Ok(prepared(base.to_string()))
    }

    /// Brings the mirror up to date, unless that was done since `asked`: of many who wait for the same
    /// repository, one fetches.
    async fn fetch(
        &self,
        repository: &RepositoryUrl,
        branch: &BranchName,
        asked: Instant,
        lock: Arc<MirrorLock>,
    ) -> Result<Option<BranchName>, WorktreeError> {
        let path = self.mirror_path(repository);
        let known = {
            let fetched = self
                .inner
                .fetched
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            fetched
                .get(&path)
                .filter(|(since, _)| *since >= asked)
                .map(|(_, default)| default.clone())
        };
        if let Some(default) = known
            && (default.is_some() || !branch.is_default())
        {
            return Ok(default);
        }
        let started = Instant::now();
        let limit = Duration::from_secs(self.inner.config.fetch_timeout_secs);
        let default = if repository.transport() == Transport::File {
            let (repository, path) = (repository.clone(), path.clone());
            blocking("fetching", move || {
                let mirror = mirror::open_or_create(&path)?;
                let default = mirror::fetch_local(&mirror, &repository, limit)?;
                drop(lock);
                Ok(default)
            })
            .await?
        } else {
            let made = path.clone();
            blocking("making the mirror", move || {
                mirror::open_or_create(&made).map(drop)
            })
            .await?;
            self.inner
                .remotes
                .fetch(repository, &path, &lock, limit, branch.is_default())
                .await?
        };
        let mut fetched = self
            .inner
            .fetched
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        fetched.insert(path, (started, default.clone()));
        Ok(default)
    }
}
