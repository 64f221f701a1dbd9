//! What this host offers, found out by launching `true` for real: no claim is made that was not
//! tried, and nothing of the trial is left.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use mosaic_node::with_causes;
use mosaic_types::AgentId;
use rustix::process::{PidfdFlags, Resource, getrlimit, pidfd_open, setrlimit};
use tracing::warn;

use super::{ProcessSandbox, ProcessSandboxConfig};
use crate::sandbox::{
    EgressRules, ExitRecord, ExitStatus, LaunchSpec, Network, ResourceLimits, Sandbox,
    SandboxError, Scope,
    adoption::REMAINS_TIME_LIMIT,
    containment::{self, Engine, EngineKind},
    files::{self, Plan},
    identity,
    launcher::{Launcher, spooled_complaint},
    tree::Tree,
};

const TRIAL_TIME_LIMIT: Duration = Duration::from_secs(10);

impl ProcessSandbox {
    /// Finds out what this host offers, by trying it with a real sandbox. Takes some 100 ms, on this
    /// thread. Raises this process's limit of open files, since each agent takes two.
    ///
    /// # Errors
    /// [`SandboxError::NoContainment`] when nothing works; [`SandboxError::Io`].
    pub fn detect(config: &ProcessSandboxConfig) -> Result<Self, SandboxError> {
        raise_open_files();
        if !config
            .instance
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            return Err(SandboxError::InvalidLaunch {
                reason: "instance is no directory name".into(),
            });
        }
        let tree = Tree::of(config)?;
        let without_cgroup = Tree::default();
        let mut tried = Vec::new();
        for kind in [EngineKind::Bubblewrap, EngineKind::Unshare] {
            if config.engine.is_some_and(|wanted| wanted != kind) {
                continue;
            }
            let Some(engine) = Engine::find(kind) else {
                tried.push(format!("{} is not installed", kind.program()));
                continue;
            };
            for tree in [&tree, &without_cgroup] {
                let mut sandbox = Self {
                    containment: containment::describe(&engine, tree),
                    engine: engine.clone(),
                    launcher: Launcher::new(tree.clone(), config.program.clone()),
                };
                match sandbox.try_out(&config.data_dir, Network::Host) {
                    Ok(()) => {
                        let list = Network::Allow(EgressRules::default());
                        sandbox.containment.egress = sandbox.containment.egress
                            && sandbox.try_out(&config.data_dir, list).is_ok();
                        if !tried.is_empty() {
                            warn!(
                                tried = tried.join("; "),
                                found = %sandbox.containment,
                                "what would contain agents better does not work here"
                            );
                        }
                        return Ok(sandbox);
                    }
                    Err(error) => {
                        tried.push(format!("{}: {}", kind.program(), with_causes(&error)))
                    }
                }
            }
        }
        Err(SandboxError::NoContainment {
            tried: tried.join("; "),
        })
    }

    /// Launches `true`, for real, and removes every trace.
    fn try_out(&self, data_dir: &Path, network: Network) -> Result<(), SandboxError> {
        let agent_id = AgentId::generate();
        let agent_dir = data_dir.join(format!("trial-{agent_id}"));
        let spec = LaunchSpec {
            agent_id,
            scope: Scope::Local,
            agent_dir: agent_dir.clone(),
            argv: vec!["true".into()],
            env: [("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())].into(),
            cwd: "/".into(),
            stdin: None,
            binds: Vec::new(),
            masked: Vec::new(),
            network,
            limits: ResourceLimits::default(),
            spool_max_bytes: 64 << 10,
            warm: None,
            masks: Vec::new(),
        };
        let outcome = self
            .prepare(spec)
            .and_then(|prepared| self.run_trial(&prepared.plan));
        let group = self.tree().agent_group(Scope::Local, agent_id);
        if let Some(group) = &group {
            group.kill()?;
            let _ = group.wait_empty(Instant::now() + REMAINS_TIME_LIMIT);
            let _ = group.remove();
            let _ = fs::remove_dir(group.path().with_file_name(""));
        }
        let _ = fs::remove_dir_all(&agent_dir);
        outcome
    }

    fn run_trial(&self, plan: &Plan) -> Result<(), SandboxError> {
        let dir = &plan.launch.agent_dir;
        let mut child = self
            .launcher
            .start_shim(plan)
            .map_err(SandboxError::io("start a shim in", dir))?;
        let pidfd = identity::to_pid(child.id())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))
            .map_err(SandboxError::io("watch the shim in", dir))?;
        let mut stdin = child.stdin.take();
        let sent = stdin
            .as_mut()
            .map_or(Ok(()), |stdin| stdin.write_all(files::GO));
        let limit = rustix::event::Timespec {
            tv_sec: TRIAL_TIME_LIMIT.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        let in_time = identity::wait_readable(&pidfd, Some(limit));
        let _ = child.kill();
        let output = child
            .wait_with_output()
            .map_err(SandboxError::io("read the shim in", dir))?;
        if !matches!(in_time, Ok(true)) {
            return Err(SandboxError::StartTimedOut(TRIAL_TIME_LIMIT));
        }
        match files::read::<ExitRecord>(&dir.join(files::EXIT))? {
            Some(ExitRecord {
                status: ExitStatus::Code(0),
                ..
            }) => sent.map_err(SandboxError::io("let go in", dir)),
            record => Err(SandboxError::StartFailed {
                detail: record.and_then(|record| record.detail).unwrap_or_else(|| {
                    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                    format!("{said} {}", spooled_complaint(dir, 0))
                        .trim()
                        .to_owned()
                }),
            }),
        }
    }
}

fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
