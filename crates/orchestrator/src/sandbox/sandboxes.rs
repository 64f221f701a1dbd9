//! The kinds of sandbox that a spoke offers, on one tree of groups: whatever an agent lives in, it is found, adopted,
//! killed and proven dead in the same way, also where its kind is not on offer any more.

use std::{path::Path, sync::Arc, time::Instant};

use mosaic_types::{AgentId, command::SandboxKind};

use super::{
    Adopted, Candidate, DockerSandbox, ProcessSandbox, Sandbox, SandboxError, Scope, adoption,
    tree::Tree,
};

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    process: Option<Arc<ProcessSandbox>>,
    docker: Option<Arc<DockerSandbox>>,
    default_kind: SandboxKind,
    tree: Tree,
}

impl Sandboxes {
    /// These sandboxes; `None` if there is none. A default that is not among them gives way to one that is.
    #[must_use]
    pub fn new(
        process: Option<ProcessSandbox>,
        docker: Option<DockerSandbox>,
        default_kind: SandboxKind,
    ) -> Option<Self> {
        let tree = match (&process, &docker) {
            (Some(process), _) => process.tree().clone(),
            (None, Some(docker)) => docker.tree().clone(),
            (None, None) => return None,
        };
        let default_kind = match (default_kind, &process, &docker) {
            (SandboxKind::Process, None, _) => SandboxKind::Docker,
            (SandboxKind::Docker, _, None) => SandboxKind::Process,
            (kind, ..) => kind,
        };
        Some(Self {
            process: process.map(Arc::new),
            docker: docker.map(Arc::new),
            default_kind,
            tree,
        })
    }

    /// What a spawn gets that names none.
    #[must_use]
    pub fn default_kind(&self) -> SandboxKind {
        self.default_kind
    }

    /// The sandbox of a kind, if it is on offer.
    #[must_use]
    pub fn of(&self, kind: SandboxKind) -> Option<Arc<dyn Sandbox>> {
        match kind {
            SandboxKind::Process => self.process.clone().map(|it| it as Arc<dyn Sandbox>),
            SandboxKind::Docker => self.docker.clone().map(|it| it as Arc<dyn Sandbox>),
        }
    }

    /// Every sandbox on offer.
    pub fn all(&self) -> impl Iterator<Item = Arc<dyn Sandbox>> {
        [SandboxKind::Process, SandboxKind::Docker]
            .into_iter()
            .filter_map(|kind| self.of(kind))
    }

    /// The containers, if they are on offer.
    #[must_use]
    pub fn docker(&self) -> Option<&Arc<DockerSandbox>> {
        self.docker.as_ref()
    }

    /// What is on offer, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let all: Vec<String> = self.all().map(|it| it.containment().to_string()).collect();
        all.join("; ")
    }

    /// As [`Sandbox::adopt`], for whatever kind left its files there.
    ///
    /// # Errors
    /// As there.
    pub async fn adopt(&self, agent_dir: &Path) -> Result<Adopted, SandboxError> {
        adoption::adopt(agent_dir).await
    }

    /// As [`Sandbox::list`].
    ///
    /// # Errors
    /// As there.
    pub fn list(&self) -> Result<Vec<Candidate>, SandboxError> {
        self.tree.list()
    }

    /// As [`Sandbox::kill_candidate`].
    ///
    /// # Errors
    /// As there.
    pub async fn kill_candidate(
        &self,
        candidate: &Candidate,
        deadline: Instant,
    ) -> Result<(), SandboxError> {
        self.tree.kill_candidate(candidate, deadline).await
    }

    /// Whether an agent is dead when its group is empty. Not where an engine has put its container elsewhere.
    #[must_use]
    pub fn group_proves(
        &self,
        kind: Option<SandboxKind>,
        agent_dir: &Path,
        scope: Scope,
        agent_id: AgentId,
    ) -> bool {
        self.tree.agent_group(scope, agent_id).is_some_and(|group| {
            kind.unwrap_or(SandboxKind::Process) == SandboxKind::Process
                || adoption::is_all_in(agent_dir, &group)
        })
    }

    /// As [`Sandbox::kill_scope`].
    ///
    /// # Errors
    /// As there.
    pub fn kill_scope(&self, scope: Scope) -> Result<(), SandboxError> {
        self.tree.kill_scope(scope)
    }

    /// As [`Sandbox::kill_everything`].
    ///
    /// # Errors
    /// As there.
    pub fn kill_everything(&self) -> Result<(), SandboxError> {
        self.tree.kill_everything()
    }

    /// As [`Sandbox::cleanup`], by the kind that an agent ran in. Of a kind that is not on offer any more the groups
    /// alone are removed.
    ///
    /// # Errors
    /// As there.
    pub async fn cleanup(
        &self,
        kind: Option<SandboxKind>,
        scope: Scope,
        agent_id: AgentId,
    ) -> Result<(), SandboxError> {
        match self.of(kind.unwrap_or(SandboxKind::Process)) {
            Some(sandbox) => sandbox.cleanup(scope, agent_id).await,
            None => self.tree.remove_agent(scope, agent_id).await,
        }
    }

    /// As [`Sandbox::release`].
    ///
    /// # Errors
    /// As there.
    pub fn release(&self) -> Result<(), SandboxError> {
        self.tree.release()
    }
}
