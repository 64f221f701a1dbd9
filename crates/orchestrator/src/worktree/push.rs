//! An agent's branch, pushed from the mirror to the repository that it came from: only where the configuration says
//! so, with the spoke's own credentials, and never over what is there.
//!
//! No hook of this machine runs: to another machine the hardened git child speaks, and a directory of this one is
//! written by libgit2, which has no hooks; it must be a bare repository.

use std::time::Duration;

use mosaic_federation::command::RepositoryGlobs;
use mosaic_types::AgentId;
use serde::{Deserialize, Serialize};

use super::{
    BranchName, RepositoryUrl, Transport, WorktreeError, Worktrees, blocking,
    checkout::AgentDirs,
    mirror::{self, agent_ref},
    patch::told,
};

/// Where agents' branches may be pushed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PushRule {
    /// Glob over repository URLs: `*` stops at `/`, `**` does not.
    pub repositories: String,
    /// What the branch is called there, before the agent's id.
    #[serde(default = "default_prefix")]
    pub branch_prefix: String,
    /// How long a push may take, seconds.
    #[serde(default = "default_timeout_secs")]
    pub timeout_secs: u64,
}

fn default_prefix() -> String {
    "mosaic/".to_owned()
}

fn default_timeout_secs() -> u64 {
    30
}

/// What came of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushResult {
    /// The ref at the repository.
    pub reference: String,
    /// The commit.
    pub commit: String,
    /// Why the repository does not have it.
    pub why_not: Option<String>,
}

/// The rules, compiled.
#[derive(Debug)]
pub(super) struct PushRules(Vec<(RepositoryGlobs, PushRule)>);

impl PushRules {
    pub(super) fn new(rules: &[PushRule]) -> Result<Self, WorktreeError> {
        let mut compiled = Vec::new();
        for rule in rules {
            let unusable = |reason: String| WorktreeError::PushRule {
                pattern: rule.repositories.clone(),
                reason,
            };
            let globs = RepositoryGlobs::new(std::slice::from_ref(&rule.repositories))
                .map_err(|error| unusable(error.to_string()))?;
            BranchName::parse(&format!("{}{}", rule.branch_prefix, AgentId::generate()))
                .map_err(|error| unusable(format!("branch-prefix: {error}")))?;
            if !(1..=600).contains(&rule.timeout_secs) {
                return Err(unusable("timeout-secs must be 1 to 600".to_owned()));
            }
            compiled.push((globs, rule.clone()));
        }
        Ok(Self(compiled))
    }

    fn rule(&self, url: &RepositoryUrl) -> Option<&PushRule> {
        let mut rules = self.0.iter();
        rules
            .find(|(globs, _)| globs.include(url.as_str()))
            .map(|(_, rule)| rule)
    }
}

impl Worktrees {
    /// Whether the configuration lets agents' branches be pushed to this repository.
    #[must_use]
    pub fn pushes_to(&self, repository: &RepositoryUrl) -> bool {
        self.inner.pushes.rule(repository).is_some()
    }

    /// Pushes the branch of an agent whose work is home. `None` if it has no commit of its own. May be repeated.
    ///
    /// # Errors
    /// What is wrong on this side. That the repository does not take it, or is not reached, is a result.
    pub async fn push(&self, agent: &AgentId) -> Result<Option<PushResult>, WorktreeError> {
        let agent = *agent;
        let dirs = AgentDirs::new(&self.inner.config.agents_dir, &agent);
        let record = dirs.read_record()?.ok_or(WorktreeError::NotPrepared)?;
        let url = record.repository;
        let path = self.mirror_path(&url);
        let ours = agent_ref(&agent);
        let (mirror_path, name) = (path.clone(), ours.clone());
        let tip = blocking("reading the agent's branch", move || {
            let mirror = mirror::open_own(&mirror_path)?;
            let tip = mirror
                .refname_to_id(&name)
                .map_err(WorktreeError::git("reading the agent's branch"))?;
            Ok(tip.to_string())
        })
        .await?;
        if tip == record.base_commit {
            return Ok(None);
        }
        let rule = self.inner.pushes.rule(&url);
        let prefix = rule.map_or("mosaic/", |rule| rule.branch_prefix.as_str());
        let theirs = format!("refs/heads/{prefix}{agent}");
        let result = |why_not| {
            Ok(Some(PushResult {
                reference: theirs.clone(),
                commit: tip.clone(),
                why_not,
            }))
        };
        let Some(rule) = rule else {
            return result(Some(
                "the configuration does not allow it any more".to_owned(),
            ));
        };
        let refspec = format!("{ours}:{theirs}");
        let limit = Duration::from_secs(rule.timeout_secs);
        if url.transport() == Transport::File {
            // As long as copying on this machine takes: there is no third party to wait for.
            let local = blocking("pushing", move || push_local(&path, &url, &refspec));
            return result(local.await?);
        }
        match self.inner.remotes.push(&url, &path, &refspec, limit).await {
            Ok(()) => result(None),
            Err(WorktreeError::FetchTimedOut { limit_secs, .. }) => {
                result(Some(format!("it took longer than {limit_secs} s")))
            }
            Err(error @ WorktreeError::Interrupted { .. }) => Err(error),
            Err(error) => result(Some(told(&error.to_string()))),
        }
    }
}

/// Why it was refused, if it was.
fn push_local(
    mirror: &std::path::Path,
    url: &RepositoryUrl,
    refspec: &str,
) -> Result<Option<String>, WorktreeError> {
    let mirror = mirror::open_own(mirror)?;
    let mut remote = mirror
        .remote_anonymous(url.as_str())
        .map_err(WorktreeError::git("configuring the mirror"))?;
    let mut refused = None;
    let mut callbacks = git2::RemoteCallbacks::new();
    callbacks.push_update_reference(|_, status| {
        refused = status.map(told);
        Ok(())
    });
    let mut options = git2::PushOptions::new();
    options.remote_callbacks(callbacks);
    // A refspec without `+`: what is there and not contained in the branch is refused.
    let pushed = remote.push(&[refspec], Some(&mut options));
    drop(options);
    match pushed {
        Ok(()) => Ok(refused),
        Err(error) => Ok(Some(told(error.message()))),
    }
}
