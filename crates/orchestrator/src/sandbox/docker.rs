//! The Docker sandbox: agents in containers of an engine on this host. What it promises beside the module above:
//!
//! - **The engine is asked to start, never trusted to stop.** A container's first process is our own init, which asks
//!   the agent's shim what to run; the shim holds it by pidfd, its cgroup is below ours, and kill and proof are the
//!   kernel's. An engine that is frozen, slow or gone delays no kill, and one that wakes up late starts an init that
//!   finds no shim and ends (A29, A30, A32).
//! - **The engine learns nothing.** Program, environment and output go over the shim's socket: no secret is in a
//!   container's configuration, no output in its logs (A31).
//! - **A container cannot hurt its host.** Not root, no capabilities, no new privileges, the default seccomp profile,
//!   a read-only root, limits; the host's namespaces, privileged mode and the engine's socket are not to be had,
//!   whoever asks (A35).
//! - **One agent, one container**, by name; one that exists already is taken up if it is this launch's, else it is
//!   removed first (A1, A4). Each launch's shim listens at a name of its own: an init that an engine starts late finds
//!   no other launch's.
//!
//! ```text
//! daemon ─ spawn ─► shim: listening ──────────────── init connects ─► ready ─► go
//!    └─ create, start ─► engine ─► container: init ─────┘
//! ```

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use mosaic_types::{AgentId, command::SandboxKind};

use super::{
    Bind, Containment, LaunchSpec, LimitSupport, Network, Prepared, Program, ResourceLimits,
    Sandbox, SandboxError, SandboxHandle, Scope, egress,
    files::{self, ContainerRecord, Starter},
    launcher::Launcher,
    tree::Tree,
};
use crate::{crash_points::crash_point, layout::Layout};

mod container;
mod engine;
mod handle;
mod ownership;
mod pool;
mod settings;
mod sweep;
mod toolkit;

pub use engine::EngineError;
pub use pool::WarmSettings;
pub use settings::{ContainerUser, DockerSettings, PoolSettings};
pub use toolkit::Toolkit;

use container::{Description, LABEL_INSTANCE, Owner, container_name};
use engine::Engine;
use handle::{DockerHandle, Making};
use pool::Pool;
pub(super) use pool::Waiting;

/// Where in a container our things are.
const INSIDE: &str = "/.mosaic";
/// The folder of an agent's run directory that its container sees.
const LINK: &str = "link";
/// Makes the folder in which a shim listens. An agent's user passes it, whatever our own umask: the folder above it
/// keeps everybody else of this host away.
fn make_link_dir(link: &Path) -> Result<(), SandboxError> {
    fs::create_dir_all(link)
        .and_then(|()| fs::set_permissions(link, fs::Permissions::from_mode(0o755)))
        .map_err(SandboxError::io("make", link))
}

/// How long a start waits for an engine to say what it is: agents that live are waiting to be adopted.
const AT_START: Duration = Duration::from_secs(2);

/// See the module documentation.
#[derive(Debug)]
pub struct DockerSandbox {
    containment: Containment,
    launcher: Launcher,
    engine: Arc<Engine>,
    toolkit: Toolkit,
    settings: DockerSettings,
    data_dir: PathBuf,
    layout: Layout,
    /// Tells our containers from those of other instances.
    instance: String,
    /// Tells what this daemon made from what one before it made.
    run: String,
    pools: Vec<Pool>,
    held_slots: Mutex<HashSet<String>>,
}

impl DockerSandbox {
    /// Containers of the engine of `settings`, in these groups, with some to be kept ready. The engine need not be
    /// there yet.
    ///
    /// # Errors
    /// [`SandboxError::InvalidLaunch`] for settings that cannot be, [`SandboxError::Io`] if what containers need of us
    /// cannot be laid out in the data folder.
    pub async fn open(
        settings: DockerSettings,
        warm: Vec<WarmSettings>,
        tree: Tree,
        data_dir: &Path,
        instance: String,
        program: Program,
    ) -> Result<Self, SandboxError> {
        settings.check()?;
        if !warm.is_empty() && (!rustix::process::geteuid().is_root() || tree.parent.is_none()) {
            return Err(SandboxError::InvalidLaunch {
                reason: "sandbox.docker.warm needs a spoke that is root's, and cgroup v2"
                    .to_owned(),
            });
        }
        let toolkit = Toolkit::install(data_dir, program.path())?;
        let engine = Arc::new(Engine::new(
            settings.socket.clone(),
            Duration::from_secs(settings.call_timeout_secs),
        ));
        // What it is told to be at the start only; nothing depends on it.
        let asked = tokio::time::timeout(AT_START, engine.facts()).await;
        let engine_version = match asked {
            Ok(Ok(facts)) => facts.version.clone(),
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the container engine is not there yet"
                );
                "not reached at start".to_owned()
            }
            Err(_) => {
                tracing::warn!("the container engine does not answer");
                "not reached at start".to_owned()
            }
        };
        Ok(Self {
            containment: Containment {
                engine: "Docker".to_owned(),
                engine_version,
                pid_namespace: true,
                cgroup: tree.support(),
                private_filesystem: true,
                limits: LimitSupport {
                    memory: true,
                    cpu: true,
                    pids: true,
                },
                egress: true,
            },
            launcher: Launcher::new(tree, program),
            engine,
            toolkit,
            settings,
            data_dir: data_dir.to_owned(),
            layout: Layout::new(data_dir.to_owned()),
            instance,
            run: uuid::Uuid::now_v7().to_string(),
            pools: warm.into_iter().map(Pool::new).collect(),
            held_slots: Mutex::default(),
        })
    }

    /// What the engine is to be told of a launch.
    fn describe(&self, spec: &LaunchSpec, launch: &str) -> Description {
        Description {
            settings: self.settings.clone(),
            instance: self.instance.clone(),
            run: self.run.clone(),
            toolkit: self.toolkit.clone(),
            owner: Owner::Agent {
                agent_id: spec.agent_id,
                scope: spec.scope,
                launch: launch.to_owned(),
            },
            link_dir: spec.agent_dir.join(LINK),
            binds: spec.binds.clone(),
            network: spec.network.clone(),
            limits: spec.limits,
            cgroup_parent: self.launcher.tree.relative(spec.scope, spec.agent_id),
            later: None,
        }
    }

    /// What the engine is to be told of a container that waits for an agent.
    fn describe_waiting(&self, warm: &WarmSettings, slot: &str, link_dir: PathBuf) -> Description {
        Description {
            settings: self.settings.clone(),
            instance: self.instance.clone(),
            run: self.run.clone(),
            toolkit: self.toolkit.clone(),
            owner: Owner::Slot(slot.to_owned()),
            link_dir,
            binds: warm.binds.clone(),
            network: warm.network.clone(),
            limits: ResourceLimits::default(),
            cgroup_parent: self.launcher.tree.relative_to(pool::FOLDER, slot),
            later: Some(self.data_dir.clone()),
        }
    }

    /// The container that an agent was given of those that waited, if it was.
    fn container_of(&self, agent_id: AgentId) -> Result<Option<ContainerRecord>, SandboxError> {
        let run_dir = self.layout.agent(agent_id).run_dir();
        files::read(&run_dir.join(files::CONTAINER))
    }

    /// Lays out what a launch needs on disk and in the groups, with what waits for it if there is something.
    fn lay_out(
        &self,
        spec: LaunchSpec,
        link: PathBuf,
        waiting: Option<Waiting>,
    ) -> Result<Prepared, SandboxError> {
        // The engine sets the limits of what it makes. Of what it made before, version 2's are ours to set.
        let limits = match &waiting {
            Some(_) if self.tree().legacy.is_empty() => spec.limits,
            _ => ResourceLimits::default(),
        };
        let agent_dir = spec.agent_dir.clone();
        let launch = uuid::Uuid::now_v7().to_string();
        let starter = Starter::Container {
            socket: link.join(container::socket_name(&launch)),
            launch,
        };
        let prepared = self.launcher.prepare(spec, starter, &limits)?;
        files::remove(&agent_dir.join(files::CONTAINER))?;
        if let Some(waiting) = waiting {
            return self.assign(prepared, waiting);
        }
        // With the sockets of earlier launches.
        match fs::remove_dir_all(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SandboxError::io("clear", &link)(error));
            }
            _ => make_link_dir(&link)?,
        }
        Ok(prepared)
    }

    /// Gives the agent what waits: what its shim is told, and what is on disk of it.
    fn assign(&self, mut prepared: Prepared, waiting: Waiting) -> Result<Prepared, SandboxError> {
        crash_point("slot.taken");
        let dir = prepared.plan.launch.agent_dir.clone();
        let record = ContainerRecord {
            id: waiting.container().to_owned(),
            slot: Some(waiting.slot().to_owned()),
        };
        files::write(&dir.join(files::CONTAINER), &record)
            .map_err(SandboxError::io("write the record in", &dir))?;
        self.forget_slot(waiting.slot());
        crash_point("slot.assigned");
        prepared.plan.attach = waiting.missing(&prepared.plan.launch);
        prepared.waiting = Some(waiting);
        Ok(prepared)
    }
}

#[async_trait]
impl Sandbox for DockerSandbox {
    fn kind(&self) -> SandboxKind {
        SandboxKind::Docker
    }

    fn containment(&self) -> &Containment {
        &self.containment
    }

    fn tree(&self) -> &Tree {
        &self.launcher.tree
    }

    fn announce(&self, warm: &str) {
        self.announce_launch(warm);
    }

    async fn hand_over(&self, spec: &LaunchSpec) -> Result<(), SandboxError> {
        ownership::hand_over(spec, self.settings.user, &self.data_dir).await
    }

    fn prepare(&self, mut spec: LaunchSpec) -> Result<Prepared, SandboxError> {
        spec.check()?;
        container::check(&spec, &self.settings)?;
        let link = spec.agent_dir.join(LINK);
        // An agent's program is looked for where its image has it.
        spec.env
            .insert("PATH".to_owned(), self.settings.path.clone());
        if matches!(spec.network, Network::Allow(_)) {
            // The shim makes its socket there; the engine wants the folder before.
            let dir = egress::socket_dir(&spec.agent_dir);
            fs::create_dir_all(&dir).map_err(SandboxError::io("make", &dir))?;
            spec.binds.push(Bind::read_only(dir));
        }
        let waiting = self.take(&spec);
        let slot = waiting.as_ref().map(|waiting| waiting.slot().to_owned());
        let prepared = self.lay_out(spec, link, waiting);
        if let (Err(_), Some(slot)) = (&prepared, slot) {
            // What was taken in vain is dead by now, and the sweep's.
            self.forget_slot(&slot);
        }
        prepared
    }

    fn spawn(&self, mut prepared: Prepared) -> Result<Arc<dyn SandboxHandle>, SandboxError> {
        let name = container_name(prepared.plan.launch.agent_id);
        let waiting = prepared.waiting.take();
        let Some((shim, voice)) = waiting.and_then(|waiting| {
            let container = waiting.container().to_owned();
            waiting
                .into_shim()
                .map(|(shim, voice)| ((shim, container), voice))
        }) else {
            let Starter::Container { launch, .. } = &prepared.plan.starter else {
                return Err(SandboxError::InvalidLaunch {
                    reason: "it was prepared for another kind of sandbox".to_owned(),
                });
            };
            let description = self.describe(&prepared.plan.launch, launch);
            let shim = Arc::new(self.launcher.spawn(&prepared)?);
            let making = Making::Now(Box::new(description));
            return Ok(Arc::new(DockerHandle::new(
                shim,
                Arc::clone(&self.engine),
                name,
                self.instance.clone(),
                making,
            )));
        };
        let (shim, container) = shim;
        let shim = self.launcher.hand_plan(shim, &prepared)?;
        let shim = Arc::new(shim.with_voice(voice));
        let making = Making::Before(container);
        Ok(Arc::new(DockerHandle::new(
            shim,
            Arc::clone(&self.engine),
            name,
            self.instance.clone(),
            making,
        )))
    }

    async fn cleanup(&self, scope: Scope, agent_id: AgentId) -> Result<(), SandboxError> {
        // The groups last: the engine's own are in them until it has let go of the container.
        let name = container_name(agent_id);
        if let Some(id) = self
            .engine
            .owned(&name, (LABEL_INSTANCE, &self.instance))
            .await?
        {
            self.engine.remove(&id).await?;
        }
        // One that cannot be read names nothing that could be removed: the sweep finds its container by its label.
        let container = self.container_of(agent_id).unwrap_or_default();
        if let Some(container) = &container {
            self.engine.remove(&container.id).await?;
        }
        crash_point("clean-up.container-gone");
        if let Some(slot) = container.and_then(|container| container.slot) {
            self.remove_slot_remains(&slot).await;
            crash_point("clean-up.slot-gone");
        }
        self.tree().remove_agent(scope, agent_id).await
    }
}
