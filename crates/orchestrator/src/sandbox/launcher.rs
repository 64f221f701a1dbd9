//! What every kind of sandbox does to launch an agent: its files and groups first, then its shim, which waits for the
//! word. Nothing of the agent runs before [`super::SandboxHandle::go`].

use std::{
    fs,
    io::{self, Write},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use zeroize::Zeroizing;

use super::{
    LaunchSpec, Prepared, Program, ResourceLimits, SandboxError,
    files::{self, Plan, SandboxRecord, Starter},
    handle::ShimHandle,
    identity::{self, ProcessIdentity},
    shim,
    spool::SpoolReader,
    tree::Tree,
};

const RECORD_VERSION: u32 = 1;
/// The most that is repeated of what an engine said, in characters.
const MAX_COMPLAINT_CHARS: usize = 1000;

/// See the module documentation.
#[derive(Debug, Clone)]
pub(super) struct Launcher {
    pub(super) tree: Tree,
    program: Program,
}

impl Launcher {
    /// Launches in these groups, with this executable as the shim.
    pub(super) fn new(tree: Tree, program: Program) -> Self {
        Self { tree, program }
    }

    /// Makes what a checked launch needs on disk and in the cgroup tree. `limits` are those that the tree enforces.
    pub(super) fn prepare(
        &self,
        spec: LaunchSpec,
        starter: Starter,
        limits: &ResourceLimits,
    ) -> Result<Prepared, SandboxError> {
        let dir = spec.agent_dir.clone();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(SandboxError::io("make", &dir))?;
        if let Some(shim) = files::read::<ProcessIdentity>(&dir.join(files::SHIM))?
            && shim
                .open()
                .map_err(SandboxError::io("look for the shim of", &dir))?
                .is_some()
        {
            return Err(SandboxError::AlreadyRunning(spec.agent_id));
        }
        // What an earlier launch left must not speak for this one.
        for name in [files::EXIT, files::INIT, files::INIT_GROUP, files::SHIM] {
            files::remove(&dir.join(name))?;
        }
        let (cgroup, limit_groups) = self.tree.make_groups(&spec, limits)?;
        let shim_cgroup = match (&cgroup, &starter) {
            // Beside the container's, not above it: a group that holds others holds no process in version 2.
            (Some(group), Starter::Container { .. }) => Some(group.child("shim")?),
            _ => cgroup.clone(),
        };
        let record = SandboxRecord {
            version: RECORD_VERSION,
            agent_id: spec.agent_id,
            scope: spec.scope,
            boot_id: identity::boot_id().map_err(SandboxError::io("read the boot id for", &dir))?,
            cgroup: cgroup.clone(),
            limit_groups: limit_groups.clone(),
        };
        let path = dir.join(files::SANDBOX);
        let written = match &starter {
            // A process agent's group says after a loss of power that nothing is there. A container's may be elsewhere,
            // and only the record tells that it is of an earlier boot.
            Starter::Container { .. } => files::write_durable(&path, &record),
            Starter::Engine(_) => files::write(&path, &record),
        };
        written.map_err(SandboxError::io("write the record in", &dir))?;
        Ok(Prepared {
            plan: Plan {
                launch: spec,
                starter,
                cgroup,
                shim_cgroup,
                limit_groups,
                attach: Vec::new(),
            },
            waiting: None,
        })
    }

    /// Starts the shim.
    pub(super) fn spawn(&self, prepared: &Prepared) -> Result<ShimHandle, SandboxError> {
        let plan = &prepared.plan;
        let dir = &plan.launch.agent_dir;
        let spooled_before = fs::metadata(dir.join(files::SPOOL)).map_or(0, |meta| meta.len());
        let child = self
            .start_shim(plan)
            .map_err(SandboxError::io("start the shim in", dir))?;
        ShimHandle::spawned(child, plan, spooled_before)
    }

    /// Tells a shim that waited what it waited for.
    pub(super) fn hand_plan(
        &self,
        mut shim: Child,
        prepared: &Prepared,
    ) -> Result<ShimHandle, SandboxError> {
        let plan = &prepared.plan;
        let dir = &plan.launch.agent_dir;
        let told = plan_line(plan).and_then(|line| {
            let stdin = shim.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
            stdin.write_all(&line)
        });
        if let Err(error) = told {
            let _ = shim.kill();
            let _ = shim.wait();
            return Err(SandboxError::io("tell the waiting shim of", dir)(error));
        }
        let spooled_before = fs::metadata(dir.join(files::SPOOL)).map_or(0, |meta| meta.len());
        ShimHandle::spawned(shim, plan, spooled_before)
    }

    /// Starts a shim and hands it the plan. It waits for the word.
    pub(super) fn start_shim(&self, plan: &Plan) -> io::Result<Child> {
        self.start(&plan.launch.agent_dir, &[], &plan_line(plan)?)
    }

    /// Starts a shim with this folder for its log, and tells it this first.
    pub(super) fn start(&self, dir: &Path, flags: &[&str], line: &[u8]) -> io::Result<Child> {
        let mut child = Command::new(self.program.path())
            .arg0("mosaic-sandbox")
            .arg(shim::SHIM_VERB)
            .arg(dir)
            .args(flags)
            .env_clear()
            .current_dir("/")
            // Ctrl-C at the daemon's terminal is not meant for its agents.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(shim::log_file(dir)?))
            .spawn()?;
        let told = child
            .stdin
            .as_mut()
            .map_or(Ok(()), |stdin| stdin.write_all(line));
        if let Err(error) = told {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }
}

/// A plan as shims are told it.
pub(super) fn plan_line(plan: &Plan) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(serde_json::to_vec(plan)?);
    line.push(b'\n');
    Ok(line)
}

/// What the engine said when a launch came to nothing: in the spool, behind what was there before
/// (`from`, in bytes), which is an earlier launch's output and nobody's complaint.
pub(super) fn spooled_complaint(agent_dir: &Path, from: u64) -> String {
    let mut text = String::new();
    if let Ok(mut reader) = SpoolReader::open(&agent_dir.join(files::SPOOL), from) {
        while let Ok(Some(record)) = reader.next() {
            text.push_str(&String::from_utf8_lossy(&record.payload));
            if text.len() > MAX_COMPLAINT_CHARS {
                break;
            }
        }
    }
    text.trim().chars().take(MAX_COMPLAINT_CHARS).collect()
}
