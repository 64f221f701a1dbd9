//! An agent's container as its engine is told to make it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountTmpfsOptions,
    MountType, RestartPolicy, RestartPolicyNameEnum,
};
use mosaic_types::AgentId;

use super::{DockerSettings, INSIDE, Toolkit};
use crate::sandbox::{
    Bind, LaunchSpec, Network, ResourceLimits, SandboxError, Scope, init::AGENT_OPEN_FILES,
};

/// Whose a container is: the spoke's instance. Only what carries it is ever touched.
pub(super) const LABEL_INSTANCE: &str = "dev.mosaic.instance";
/// The agent in it.
pub(super) const LABEL_AGENT: &str = "dev.mosaic.agent";
/// The launch that it was made for: one that exists already and has it is this launch's own.
pub(super) const LABEL_LAUNCH: &str = "dev.mosaic.launch";
/// The run of the daemon that it was made in.
pub(super) const LABEL_RUN: &str = "dev.mosaic.run";
/// The slot of a container that waits for an agent.
pub(super) const LABEL_SLOT: &str = "dev.mosaic.slot";
/// The connection that its agent came by, or `local`.
const LABEL_CONNECTION: &str = "dev.mosaic.connection";

/// Its folder in an image is shut to all others in most of them.
const ROOTS_HOME: &str = "/root";
/// What every container has in memory, whatever its image wants there.
const SCRATCH: [&str; 3] = ["/tmp", "/var/tmp", "/run"];
/// Size of what a container has in place of a volume of its image.
const VOLUME_BYTES: i64 = 64 << 20;
/// When memory runs out, agents go before anything of ours.
const OOM_SCORE: i64 = 500;
/// Names of sockets by which an engine could be asked for more (A35).
const ENGINE_SOCKETS: [&str; 5] = [
    "docker.sock",
    "containerd.sock",
    "podman.sock",
    "crio.sock",
    "buildkitd.sock",
];

/// The name of an agent's container.
pub(super) fn container_name(agent_id: AgentId) -> String {
    format!("mosaic-{agent_id}")
}

/// The name of the socket at which a launch's shim listens, in the folder that its container sees.
pub(super) fn socket_name(launch: &str) -> String {
    format!("{launch}.sock")
}

/// What an engine is told of one launch.
#[derive(Debug, Clone)]
pub(super) struct Description {
    pub(super) settings: DockerSettings,
    pub(super) instance: String,
    pub(super) toolkit: Toolkit,
    /// This run of the daemon.
    pub(super) run: String,
    pub(super) owner: Owner,
    pub(super) link_dir: PathBuf,
    pub(super) binds: Vec<Bind>,
    pub(super) network: Network,
    pub(super) limits: ResourceLimits,
    /// The group it belongs to, from the root of the hierarchy.
    pub(super) cgroup_parent: Option<String>,
    /// A place where files are attached later.
    pub(super) later: Option<PathBuf>,
}

/// For whom a container is made.
#[derive(Debug, Clone)]
pub(super) enum Owner {
    /// An agent.
    Agent {
        agent_id: AgentId,
        scope: Scope,
        /// Tells this launch from others of the agent.
        launch: String,
    },
    /// Whoever comes first.
    Slot(String),
}

impl Owner {
    fn labels(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Agent {
                agent_id,
                scope,
                launch,
            } => vec![
                (LABEL_AGENT, agent_id.to_string()),
                (LABEL_CONNECTION, scope.to_string()),
                (LABEL_LAUNCH, launch.clone()),
            ],
            Self::Slot(slot) => vec![(LABEL_SLOT, slot.clone())],
        }
    }
}

impl Description {
    /// The image it is made of.
    pub(super) fn image(&self) -> &str {
        &self.settings.image
    }

    /// Tells this launch from others of its agent.
    pub(super) fn launch(&self) -> Option<&str> {
        match &self.owner {
            Owner::Agent { launch, .. } => Some(launch),
            Owner::Slot(_) => None,
        }
    }

    /// Where its init finds its shim, as a container sees it.
    fn socket(&self) -> String {
        let name = match &self.owner {
            Owner::Agent { launch, .. } => socket_name(launch),
            Owner::Slot(slot) => socket_name(slot),
        };
        format!("{INSIDE}/{}/{name}", super::LINK)
    }

    /// The request. `cgroupfs` says whether the engine takes a path for its group's parent.
    /// `volumes` are the places where the image wants some.
    pub(super) fn body(&self, cgroupfs: bool, volumes: &[String]) -> ContainerCreateBody {
        let settings = &self.settings;
        let mut labels = self.owner.labels();
        labels.push((LABEL_INSTANCE, self.instance.clone()));
        labels.push((LABEL_RUN, self.run.clone()));
        let labels = labels
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        ContainerCreateBody {
            image: Some(settings.image.clone()),
            user: Some(settings.user.to_string()),
            entrypoint: Some(self.toolkit.init_command(self.socket())),
            cmd: Some(Vec::new()),
            working_dir: Some("/".to_owned()),
            labels: Some(labels.collect()),
            // An image's health check is a process that nobody asked for.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            // Our init is deaf to what an engine says before it kills: an engine that stops need not wait.
            stop_timeout: Some(0),
            attach_stdin: Some(false),
            attach_stdout: Some(false),
            attach_stderr: Some(false),
            host_config: Some(self.host_config(cgroupfs, volumes)),
            ..ContainerCreateBody::default()
        }
    }

    fn host_config(&self, cgroupfs: bool, volumes: &[String]) -> HostConfig {
        let settings = &self.settings;
        let bytes = |mb: u64| i64::try_from(mb.saturating_mul(1 << 20)).unwrap_or(i64::MAX);
        let later = self.later.iter().filter_map(|path| {
            let path = path.to_str()?.to_owned();
            Some((path, "rw,nosuid,nodev,noexec,mode=0755,size=1m".to_owned()))
        });
        let memory = self.limits.memory_mb.map(bytes);
        let scratch = |mode: &str, mb: u64| format!("rw,nosuid,nodev,exec,mode={mode},size={mb}m");
        HostConfig {
            network_mode: Some(match &self.network {
                // What a list lets through comes by a socket.
                Network::None | Network::Allow(_) => "none".to_owned(),
                Network::Host => settings.network.clone(),
            }),
            // A killed container stays dead (A33), and what it leaves is ours to remove.
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            auto_remove: Some(false),
            // Output goes to the shim; an engine's log could block or rotate it (A31).
            log_config: Some(HostConfigLogConfig {
                typ: Some("none".to_owned()),
                config: None,
            }),
            init: Some(false),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            ipc_mode: Some("private".to_owned()),
            readonly_rootfs: Some(true),
            tmpfs: Some(
                [
                    ("/tmp", scratch("1777", settings.tmp_mb)),
                    ("/var/tmp", scratch("1777", settings.tmp_mb)),
                    ("/run", scratch("0755", 16)),
                ]
                .into_iter()
                // What is mounted below it could not be reached. The mode becomes the image's folder's, so that to
                // own it is the way in.
                .chain(self.lends_from(ROOTS_HOME).then(|| {
                    let options = format!("{},uid={}", scratch("0755", 1), settings.user.uid);
                    (ROOTS_HOME, options)
                }))
                .map(|(path, options)| (path.to_owned(), options))
                .chain(later)
                .collect(),
            ),
            mounts: Some(self.mounts(volumes)),
            memory,
            // Swap would only make the limit slow.
            memory_swap: memory,
            nano_cpus: self.limits.cpus.map(nano_cpus),
            pids_limit: self
                .limits
                .pids
                .map(|pids| i64::try_from(pids).unwrap_or(i64::MAX)),
            ulimits: Some(vec![bollard::models::ResourcesUlimits {
                name: Some("nofile".to_owned()),
                soft: i64::try_from(AGENT_OPEN_FILES).ok(),
                hard: i64::try_from(AGENT_OPEN_FILES).ok(),
            }]),
            oom_score_adj: Some(OOM_SCORE),
            cgroup_parent: self.cgroup_parent.clone().filter(|_| cgroupfs),
            ..HostConfig::default()
        }
    }

    /// Whether anything below the folder is in the container, or is to be.
    fn lends_from(&self, folder: &str) -> bool {
        let bound = self.binds.iter().map(|bind| bind.path.as_path());
        let mut lent = bound.chain(self.later.as_deref());
        lent.any(|path| path.starts_with(folder))
    }

    fn mounts(&self, volumes: &[String]) -> Vec<Mount> {
        let ours = [
            (self.toolkit.dir().to_owned(), Toolkit::inside()),
            (self.link_dir.clone(), format!("{INSIDE}/{}", super::LINK)),
        ];
        let ours = ours
            .into_iter()
            .map(|(source, target)| mount(&source, target, true));
        let agents = self.binds.iter().map(|bind| {
            mount(
                &bind.path,
                bind.path.to_string_lossy().into_owned(),
                !bind.writable,
            )
        });
        // An engine would put its own there, on the host's disk and without a bound.
        let is_taken = |volume: &&String| {
            SCRATCH.contains(&volume.as_str())
                || self.binds.iter().any(|bind| bind.path == Path::new(volume))
        };
        let volumes = volumes
            .iter()
            .filter(|volume| !is_taken(volume))
            .map(|volume| Mount {
                typ: Some(MountType::TMPFS),
                target: Some(volume.clone()),
                tmpfs_options: Some(MountTmpfsOptions {
                    size_bytes: Some(VOLUME_BYTES),
                    mode: Some(0o1777),
                    ..MountTmpfsOptions::default()
                }),
                ..Mount::default()
            });
        ours.chain(agents).chain(volumes).collect()
    }
}

fn mount(source: &Path, target: String, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

fn nano_cpus(cpus: f64) -> i64 {
    // Below 10 ms in a second the engine refuses.
    let nanos = (cpus * 1e9).clamp(1e7, 1e15);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "clamped to a range that fits"
    )]
    let nanos = nanos as i64;
    nanos
}

/// Refuses what would open the host to a container, whoever asks for it (A35), or show it what no agent may see: in a
/// container nothing lies over a part of what is bound.
pub(super) fn check(spec: &LaunchSpec, settings: &DockerSettings) -> Result<(), SandboxError> {
    let refuse = |reason: String| Err(SandboxError::InvalidLaunch { reason });
    let engine = fs::canonicalize(&settings.socket).unwrap_or_else(|_| settings.socket.clone());
    let masked = existing(&spec.masked);
    for bind in &spec.binds {
        let Some(text) = bind.path.to_str() else {
            return refuse(format!("{} is no text", bind.path.display()));
        };
        let path = fs::canonicalize(&bind.path).map_err(SandboxError::io("find", &bind.path))?;
        let name = path.file_name().and_then(|name| name.to_str());
        let is_socket = name.is_some_and(|name| ENGINE_SOCKETS.contains(&name));
        if engine.starts_with(&path) || is_socket {
            return refuse(format!(
                "{text} would hand the engine of containers to an agent"
            ));
        }
        if let Some(masked) = masked.iter().find(|masked| masked.starts_with(&path)) {
            return refuse(format!(
                "{text} would show an agent {}, which is masked",
                masked.display()
            ));
        }
        if path.starts_with(INSIDE) || path.starts_with("/dev") {
            return refuse(format!("{text} cannot be bound into a container"));
        }
    }
    Ok(())
}

/// Those paths that are there, or may be, as no symbolic link leads around them.
fn existing(paths: &[PathBuf]) -> Vec<PathBuf> {
    let found = paths
        .iter()
        .filter_map(|path| match fs::canonicalize(path) {
            Ok(path) => Some(path),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => None,
                _ => Some(path.clone()),
            },
        });
    found.collect()
}

#[cfg(test)]
mod tests;
