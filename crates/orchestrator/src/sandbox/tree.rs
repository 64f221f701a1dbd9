//! Our part of the cgroup tree: `<parent>/<scope>/<agent id>`, by which one agent, a scope or everything is killed and
//! proven dead, whatever kind of sandbox it lives in.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mosaic_types::AgentId;

use super::{
    Candidate, CgroupSupport, LaunchSpec, LimitSupport as Limits, ProcessSandboxConfig,
    ResourceLimits, SandboxError, Scope,
    cgroup::{self, Group, Mounts},
    freezer,
};

/// The cgroup side of the containment, as the launcher uses it.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    pub(super) parent: Option<Group>,
    /// Controllers that version 2 grants to agents' groups.
    pub(super) unified: Vec<&'static str>,
    /// Version 1 parents of ours, by controller.
    pub(super) legacy: Vec<(&'static str, PathBuf)>,
    /// Where a container's engine makes the likes of our parent in version 1 hierarchies, whether or not we use them.
    pub(super) shadows: Vec<PathBuf>,
    /// The parent from the root of its hierarchy, as engines are told it.
    relative: Option<PathBuf>,
}

impl Tree {
    /// The tree of an instance: nothing where it is to do without.
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    pub fn of(config: &ProcessSandboxConfig) -> Result<Self, SandboxError> {
        if config.without_cgroup {
            return Ok(Self::default());
        }
        Self::find(&config.data_dir, &format!("mosaic-{}", config.instance))
    }

    /// Finds or makes the parent, and remembers it in the data folder, so that a daemon started in
    /// another session looks in the same place.
    pub(super) fn find(data_dir: &Path, name: &str) -> Result<Self, SandboxError> {
        let mounts =
            Mounts::read().map_err(SandboxError::io("read", Path::new("/proc/self/mountinfo")))?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = cgroup::own_group(&own)
            .unwrap_or("/")
            .trim_start_matches('/')
            .to_owned();
        let remembered = remembered_parent(data_dir)?;
        let mut tree = Self::default();
        if let Some(mount) = &mounts.unified {
            // The root first: below a service's own group ours would die, or stay, with the service.
            let places = [mount.join(name), mount.join(own).join(name)];
            let found = remembered
                .into_iter()
                .filter(|path| path.starts_with(mount) && path.is_dir())
                .chain(places)
                .find(|path| is_usable(path));
            if let Some(path) = found {
                if let Ok(relative) = path.strip_prefix(mount) {
                    tree.relative = Some(Path::new("/").join(relative));
                    tree.shadows = mounts
                        .version_one
                        .iter()
                        .map(|at| at.join(relative))
                        .collect();
                }
                remember_parent(data_dir, &path)?;
                tree.parent = Some(Group::at(path));
            }
        }
        if let Some(parent) = &tree.parent {
            if let Some(above) = parent.path().parent() {
                Group::at(above.to_owned()).enable_controllers();
            }
            tree.unified = parent.enable_controllers();
        }
        for (controller, mount) in mounts.legacy {
            let group = mount.join(name);
            if !tree.unified.contains(&controller) && fs::create_dir_all(&group).is_ok() {
                tree.legacy.push((controller, group));
            }
        }
        Ok(tree)
    }

    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for controller in self
            .unified
            .iter()
            .chain(self.legacy.iter().map(|(name, _)| name))
        {
            limits.set(controller);
        }
        limits
    }

    pub(super) fn support(&self) -> CgroupSupport {
        self.parent
            .as_ref()
            .map_or(CgroupSupport::None, |parent| CgroupSupport::V2 {
                path: parent.path().to_owned(),
            })
    }

    /// The group that kills an agent; `None` without version 2.
    pub(super) fn agent_group(&self, scope: Scope, agent_id: AgentId) -> Option<Group> {
        let parent = self.parent.as_ref()?;
        Some(Group::at(
            parent.scope(scope).path().join(agent_id.to_string()),
        ))
    }

    /// An agent's groups, made and limited before anything starts: the one that kills it, and those of version 1 that
    /// limit it.
    pub(super) fn make_groups(
        &self,
        spec: &LaunchSpec,
        limits: &ResourceLimits,
    ) -> Result<(Option<Group>, Vec<PathBuf>), SandboxError> {
        let group = self.agent_group(spec.scope, spec.agent_id);
        if let (Some(group), Some(parent)) = (&group, &self.parent) {
            if group
                .is_populated()
                .map_err(SandboxError::io("read the state of", group.path()))?
            {
                return Err(SandboxError::AlreadyRunning(spec.agent_id));
            }
            // A group that was frozen or limited before starts afresh.
            group
                .remove()
                .map_err(SandboxError::io("remove", group.path()))?;
            let scope = parent.scope(spec.scope);
            scope.create()?;
            scope.enable_controllers();
            group.create()?;
            let mut unified = *limits;
            keep_only(&mut unified, &self.unified);
            group.limit(&unified)?;
        }
        let mut limit_groups = Vec::new();
        for (controller, parent) in &self.legacy {
            let path = parent.join(spec.agent_id.to_string());
            if cgroup::limit_legacy(&path, controller, limits)? {
                limit_groups.push(path);
            }
        }
        Ok((group, limit_groups))
    }

    /// An agent's group from the root of the hierarchy.
    pub(super) fn relative(&self, scope: Scope, agent_id: AgentId) -> Option<String> {
        let path = self
            .relative
            .as_ref()?
            .join(scope.to_string())
            .join(agent_id.to_string());
        Some(path.to_str()?.to_owned())
    }

    /// A group below the parent from the root of the hierarchy.
    pub(super) fn relative_to(&self, folder: &str, name: &str) -> Option<String> {
        let path = self.relative.as_ref()?.join(folder).join(name);
        Some(path.to_str()?.to_owned())
    }

    /// Every agent's group. Empty where there is no version 2.
    pub(super) fn list(&self) -> Result<Vec<Candidate>, SandboxError> {
        self.parent
            .as_ref()
            .map_or(Ok(Vec::new()), Group::candidates)
    }

    /// Kills what [`Tree::list`] found, by its group, and proves it.
    pub(super) async fn kill_candidate(
        &self,
        candidate: &Candidate,
        deadline: Instant,
    ) -> Result<(), SandboxError> {
        let Some(group) = self.agent_group(candidate.scope, candidate.agent_id) else {
            return Ok(());
        };
        group.kill()?;
        freezer::thaw_members(&group);
        wait_empty(&group, deadline).await
    }

    /// Kills everything of a scope by one write.
    pub(super) fn kill_scope(&self, scope: Scope) -> Result<(), SandboxError> {
        self.parent
            .as_ref()
            .map_or(Ok(()), |parent| parent.scope(scope).kill())
    }

    /// Kills everything of ours by one write.
    pub(super) fn kill_everything(&self) -> Result<(), SandboxError> {
        self.parent.as_ref().map_or(Ok(()), Group::kill)
    }

    /// Removes what a dead agent left in every hierarchy.
    pub(super) async fn remove_agent(
        &self,
        scope: Scope,
        agent_id: AgentId,
    ) -> Result<(), SandboxError> {
        let name = agent_id.to_string();
        let limits = self.legacy.iter().map(|(_, parent)| parent.join(&name));
        let shadows = self
            .shadows
            .iter()
            .map(|parent| parent.join(scope.to_string()).join(&name));
        let groups = limits.chain(shadows).map(Group::at);
        for group in groups.chain(self.agent_group(scope, agent_id)) {
            remove_dead(&group).await?;
        }
        Ok(())
    }

    /// Removes an empty group below the parent, in every hierarchy.
    pub(super) async fn remove_group(&self, folder: &str, name: &str) -> Result<(), SandboxError> {
        let ours = self.parent.iter().map(|parent| parent.path().to_owned());
        for parent in ours.chain(self.shadows.iter().cloned()) {
            remove_dead(&Group::at(parent.join(folder).join(name))).await?;
        }
        Ok(())
    }

    /// Where groups of this folder are, in every hierarchy.
    pub(super) fn groups_in(&self, folder: &str) -> Vec<PathBuf> {
        let ours = self.parent.iter().map(Group::path);
        let shadows = self.shadows.iter().map(PathBuf::as_path);
        ours.chain(shadows)
            .map(|parent| parent.join(folder))
            .collect()
    }

    /// Gives the parents back to the host.
    pub(super) fn release(&self) -> Result<(), SandboxError> {
        let limits = self.legacy.iter().map(|(_, path)| path.clone());
        let parents = limits.chain(self.shadows.iter().cloned()).map(Group::at);
        for group in parents.chain(self.parent.clone()) {
            group
                .remove()
                .map_err(SandboxError::io("remove", group.path()))?;
        }
        Ok(())
    }
}

/// What the controllers of version 2 do not enforce is left to those of version 1.
fn keep_only(limits: &mut ResourceLimits, controllers: &[&str]) {
    if !controllers.contains(&"memory") {
        limits.memory_mb = None;
    }
    if !controllers.contains(&"cpu") {
        limits.cpus = None;
    }
    if !controllers.contains(&"pids") {
        limits.pids = None;
    }
}

/// Removes a group that is empty, waiting a moment for the kernel to think so too.
pub(super) async fn remove_dead(group: &Group) -> Result<(), SandboxError> {
    const TRIES: u32 = 50;
    for tried in 1..=TRIES {
        match group.remove() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tried < TRIES => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => break,
            Err(error) => return Err(SandboxError::io("remove", group.path())(error)),
        }
    }
    Err(SandboxError::StillPopulated {
        path: group.path().to_owned(),
        survivors: group.pids(),
    })
}

/// Waits until nobody lives in the group, which is an error at the deadline.
pub(super) async fn wait_empty(group: &Group, deadline: Instant) -> Result<(), SandboxError> {
    let ask = || {
        group
            .is_populated()
            .map_err(SandboxError::io("read the state of", group.path()))
    };
    while ask()? {
        if Instant::now() >= deadline {
            return Err(SandboxError::StillPopulated {
                path: group.path().to_owned(),
                survivors: group.pids(),
            });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Whether groups can be made there, and killed. Whether processes can be moved into them is
/// what the trial launch finds out.
fn is_usable(path: &Path) -> bool {
    fs::create_dir_all(path).is_ok()
        && fs::OpenOptions::new()
            .write(true)
            .open(path.join("cgroup.kill"))
            .is_ok()
        && fs::OpenOptions::new()
            .write(true)
            .open(path.join("cgroup.procs"))
            .is_ok()
}

const REMEMBERED: &str = "cgroup-parent";

/// The parent that a daemon with this data folder used last.
pub(super) fn remembered_parent(data_dir: &Path) -> Result<Option<PathBuf>, SandboxError> {
    let path = data_dir.join(REMEMBERED);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(PathBuf::from(text.trim()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SandboxError::io("read", &path)(error)),
    }
}

fn remember_parent(data_dir: &Path, parent: &Path) -> Result<(), SandboxError> {
    let path = data_dir.join(REMEMBERED);
    let write = || {
        fs::create_dir_all(data_dir)?;
        fs::write(&path, format!("{}\n", parent.display()))
    };
    write().map_err(SandboxError::io("write", &path))
}
