//! The process sandbox: agents as namespaces and cgroups of this host. See the module above for
//! what it promises; here is the daemon's side of it.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use mosaic_types::{AgentId, command::SandboxKind};

use super::{
    Containment, LaunchSpec, Prepared, Program, Sandbox, SandboxError, SandboxHandle, Scope,
    containment::{Engine, EngineKind},
    files::Starter,
    launcher::Launcher,
    tree::Tree,
};

mod check;
mod detection;

/// How the sandbox is set up.
#[derive(Debug, Clone)]
pub struct ProcessSandboxConfig {
    /// The node's data folder. The cgroup's place is remembered in it.
    pub data_dir: PathBuf,
    /// What tells this instance's cgroup from others'; becomes part of a directory name. Letters,
    /// digits, `-` and `_`.
    pub instance: String,
    /// Use this engine or none; the best one found if `None`.
    pub engine: Option<EngineKind>,
    /// Do without a cgroup even where there could be one.
    pub without_cgroup: bool,
    /// The executable of shims and inits.
    pub program: Program,
}

/// See [`Sandbox`].
#[derive(Debug)]
pub struct ProcessSandbox {
    containment: Containment,
    engine: Engine,
    launcher: Launcher,
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn kind(&self) -> SandboxKind {
        SandboxKind::Process
    }

    fn containment(&self) -> &Containment {
        &self.containment
    }

    fn tree(&self) -> &Tree {
        &self.launcher.tree
    }

    fn prepare(&self, spec: LaunchSpec) -> Result<Prepared, SandboxError> {
        self.check(&spec)?;
        let limits = spec.limits;
        self.launcher
            .prepare(spec, Starter::Engine(self.engine.clone()), &limits)
    }

    fn spawn(&self, prepared: Prepared) -> Result<Arc<dyn SandboxHandle>, SandboxError> {
        Ok(Arc::new(self.launcher.spawn(&prepared)?))
    }

    async fn cleanup(&self, scope: Scope, agent_id: AgentId) -> Result<(), SandboxError> {
        self.tree().remove_agent(scope, agent_id).await
    }
}
