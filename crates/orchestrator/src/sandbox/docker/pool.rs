//! Containers that are there before their agents are, so that a spawn need not wait for the engine.
//!
//! A waiting container holds our init and nothing else; it has no agent's files, no secret, and belongs to no
//! connection. When an agent takes it, its shim moves the init into the agent's group, sets the agent's limits and
//! attaches the agent's files to it, before anything of the agent runs. It is that agent's for good, and is removed
//! with it like any other: nothing is ever used twice.
//!
//! Waiting containers live below our parent group: a kill-all ends them too, and the pool is filled again only when
//! nothing is held.

use std::{
    collections::{HashSet, VecDeque},
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{DockerSandbox, LINK, container::socket_name, engine::Image, make_link_dir};
use crate::{
    crash_points::crash_point,
    sandbox::{
        Bind, LaunchSpec, Network, SandboxError,
        cgroup::Group,
        handle::ShimVoice,
        shim::{LISTENING, warm},
    },
};

mod waiting;

pub(in crate::sandbox) use waiting::Waiting;
use waiting::files_of;

/// How long a container may take until its init waits.
const WARM_WITHIN: Duration = Duration::from_secs(60);
/// How long to wait after one could not be made.
const PAUSE: Duration = Duration::from_secs(5);
/// How long an orderly stop waits for the engine.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait after one was taken from a full pool: its agent is about to start, and an engine that makes the next
/// one is in the way of that.
const AFTER_TAKEN: Duration = Duration::from_millis(500);
/// Where slots are, below the data folder, and below the parent group.
pub(super) const FOLDER: &str = "warm";

/// What is to be kept ready.
#[derive(Debug, Clone)]
pub struct WarmSettings {
    /// The pool's name, which launches ask for: their runtime's.
    pub name: String,
    /// How many containers wait.
    pub size: usize,
    /// Their network.
    pub network: Network,
    /// What of the host every agent of this pool sees, beside what is the agent's own.
    pub binds: Vec<Bind>,
}

/// The containers that wait for the agents of one runtime.
#[derive(Debug)]
pub(super) struct Pool {
    settings: WarmSettings,
    waiting: Mutex<VecDeque<Waiting>>,
    taken: Notify,
}

impl Pool {
    pub(super) fn new(settings: WarmSettings) -> Self {
        Self {
            settings,
            waiting: Mutex::default(),
            taken: Notify::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waited and was ended meanwhile, or would be made otherwise now: of this image, if that is known.
    fn take_useless(&self, image: Option<&str>) -> Vec<Waiting> {
        let mut waiting = self.lock();
        let all = std::mem::take(&mut *waiting);
        let mut useless = Vec::new();
        for mut one in all {
            let is_of_now = image.is_none_or(|image| image == one.image) && one.is_current();
            if one.is_alive() && is_of_now {
                waiting.push_back(one);
            } else {
                useless.push(one);
            }
        }
        useless
    }

    /// Whether a launch fits what waits here: what is not attached later must be there already.
    fn fits(&self, spec: &LaunchSpec, data_dir: &Path) -> bool {
        spec.warm.as_deref() == Some(self.settings.name.as_str())
            && (spec.network == Network::Host) == (self.settings.network == Network::Host)
            && spec
                .binds
                .iter()
                .all(|bind| bind.path.starts_with(data_dir) || self.settings.binds.contains(bind))
    }
}

impl DockerSandbox {
    /// A waiting container for this launch, if there is one.
    pub(super) fn take(&self, spec: &LaunchSpec) -> Option<Waiting> {
        let pool = self
            .pools
            .iter()
            .find(|pool| pool.fits(spec, &self.data_dir))?;
        let taken = loop {
            let mut next = pool.lock().pop_front()?;
            if next.is_alive() && next.is_current() {
                break next;
            }
            // The sweep finds its container, which it spares while it is held. Nothing in it lives without its shim.
            self.forget_slot(next.slot());
        };
        pool.taken.notify_one();
        Some(taken)
    }

    /// Tells the next container that its agent is on the way.
    pub(super) fn announce_launch(&self, warm: &str) {
        for pool in self.pools.iter().filter(|pool| pool.settings.name == warm) {
            if let Some(next) = pool.lock().front_mut() {
                next.announce();
            }
        }
    }

    /// Keeps the pools filled while `may_fill` says so, until `stop`.
    pub async fn keep_warm(
        self: Arc<Self>,
        may_fill: impl Fn() -> bool + Send + Sync,
        stop: CancellationToken,
    ) {
        let filling = self
            .pools
            .iter()
            .map(|pool| self.fill(pool, &may_fill, &stop));
        futures_util::future::join_all(filling).await;
    }

    async fn fill(
        &self,
        pool: &Pool,
        may_fill: &(impl Fn() -> bool + Sync),
        stop: &CancellationToken,
    ) {
        let in_a_while = async || {
            tokio::select! {
                () = stop.cancelled() => {}
                () = async { pool.taken.notified().await; tokio::time::sleep(AFTER_TAKEN).await } => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        };
        while !stop.is_cancelled() {
            let image = tokio::select! {
                () = stop.cancelled() => return,
                // An engine that does not say it now says it at the next look.
                image = self.engine.image(&self.settings.image) => image,
            };
            let known = image.as_ref().ok().map(|image| image.id.as_str());
            for useless in pool.take_useless(known) {
                self.discard_unless(stop, useless).await;
            }
            if pool.lock().len() >= pool.settings.size || !may_fill() {
                in_a_while().await;
                continue;
            }
            let made = tokio::select! {
                made = async { self.warm_up(&pool.settings, &image?).await } => made,
                // What the engine is at is waited for, but not for ever.
                () = async { stop.cancelled().await; tokio::time::sleep(PAUSE).await } => return,
            };
            match made {
                // One whose shim came up behind the strike of a kill-all with a hold.
                Ok(waiting) if !may_fill() => self.discard_unless(stop, waiting).await,
                Ok(waiting) => {
                    let slot = waiting.slot().to_owned();
                    pool.lock().push_back(waiting);
                    info!(pool = pool.settings.name, slot, "a container waits");
                    crash_point("slot.waits");
                }
                Err(error) => {
                    warn!(
                        pool = pool.settings.name,
                        error = &error as &dyn std::error::Error,
                        "failed to make a container ready"
                    );
                    in_a_while().await;
                }
            }
        }
    }

    /// Makes one container ready.
    async fn warm_up(
        &self,
        settings: &WarmSettings,
        image: &Image,
    ) -> Result<Waiting, SandboxError> {
        let slot = uuid::Uuid::now_v7().to_string();
        let dir = self.slot_dir(&slot);
        self.lock_slots().insert(slot.clone());
        let made = tokio::time::timeout(
            WARM_WITHIN,
            self.start_waiting(settings, image, &slot, &dir),
        )
        .await;
        match made {
            Ok(Ok(waiting)) => Ok(waiting),
            Ok(Err(error)) => {
                self.remove_slot(&slot, &waiting_name(&slot)).await;
                Err(error)
            }
            Err(_) => {
                self.remove_slot(&slot, &waiting_name(&slot)).await;
                Err(SandboxError::StartTimedOut(WARM_WITHIN))
            }
        }
    }

    async fn start_waiting(
        &self,
        settings: &WarmSettings,
        image: &Image,
        slot: &str,
        dir: &Path,
    ) -> Result<Waiting, SandboxError> {
        let failed = |detail: String| SandboxError::StartFailed { detail };
        let link = dir.join(LINK);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(SandboxError::io("make", dir))?;
        make_link_dir(&link)?;
        let group = self.slot_group(slot).map(|group| group.child("shim"));
        let order = warm::WarmOrder {
            cgroup: group.transpose()?,
            socket: link.join(socket_name(slot)),
        };
        // As the image, before it is made: what changes meanwhile is found at the next look.
        let bound =
            files_of(&settings.binds).map_err(SandboxError::io("find what is lent in", dir))?;
        let mut shim = self
            .start_warm_shim(dir, &order)
            .map_err(SandboxError::io("start a shim in", dir))?;
        let stdout = shim.stdout.take();
        // From here on it ends when this is dropped.
        let mut waiting = Waiting {
            slot: slot.to_owned(),
            container: waiting_name(slot),
            image: image.id.clone(),
            binds: settings.binds.clone(),
            bound,
            shim: Some(shim),
            voice: None,
        };
        let heard = || SandboxError::io("hear the shim in", dir);
        let stdout = stdout.ok_or_else(|| failed("the shim has no voice".to_owned()))?;
        let mut voice = ShimVoice::of(stdout).map_err(heard())?;
        let line = voice.line().await.map_err(heard())?;
        if line.trim_end() != LISTENING {
            return Err(failed(line.trim().to_owned()));
        }
        let cgroupfs = self.engine.facts().await?.cgroupfs;
        if !cgroupfs {
            return Err(failed(
                "waiting containers need an engine with the cgroup driver `cgroupfs`".to_owned(),
            ));
        }
        let description = self.describe_waiting(settings, slot, link);
        let body = description.body(cgroupfs, &image.volumes);
        waiting.container = self.engine.create(&waiting.container, body).await?;
        crash_point("slot.container-made");
        self.engine.start(&waiting.container).await?;
        crash_point("slot.container-started");
        let line = voice.line().await.map_err(heard())?;
        if line.trim_end() != warm::WARM {
            return Err(failed(line.trim().to_owned()));
        }
        waiting.voice = Some(voice);
        Ok(waiting)
    }

    fn start_warm_shim(&self, dir: &Path, order: &warm::WarmOrder) -> std::io::Result<Child> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.launcher.start(dir, &[warm::WARM_FLAG], &line)
    }

    fn slot_dir(&self, slot: &str) -> PathBuf {
        self.data_dir.join(FOLDER).join(slot)
    }

    fn slot_group(&self, slot: &str) -> Option<Group> {
        let parent = self.launcher.tree.parent.as_ref()?;
        Some(Group::at(parent.path().join(FOLDER).join(slot)))
    }

    /// Ends what waits, for an orderly stop.
    pub async fn drain(&self) {
        let all: Vec<Waiting> = self
            .pools
            .iter()
            .flat_map(|pool| std::mem::take(&mut *pool.lock()))
            .collect();
        // Their inits end with their shims, whatever the engine does.
        drop(all);
        let removing = self.slots().into_iter().map(|slot| async move {
            self.remove_slot(&slot, &waiting_name(&slot)).await;
        });
        let removed = futures_util::future::join_all(removing);
        if tokio::time::timeout(DRAIN_WITHIN, removed).await.is_err() {
            warn!("waiting containers are left to the next start's sweep");
        }
    }

    /// How many containers wait for agents of this runtime.
    #[must_use]
    pub fn waiting(&self, runtime: &str) -> usize {
        let pools = self
            .pools
            .iter()
            .filter(|pool| pool.settings.name == runtime);
        pools
            .map(|pool| {
                pool.lock()
                    .iter_mut()
                    .filter_map(|one| one.is_alive().then_some(()))
                    .count()
            })
            .sum()
    }

    /// As [`Self::discard`]; a stop does not wait for an engine that hangs, but for what [`Self::drain`] does of it.
    async fn discard_unless(&self, stop: &CancellationToken, waiting: Waiting) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.discard(waiting) => {}
        }
    }

    async fn discard(&self, waiting: Waiting) {
        let (slot, container) = (waiting.slot.clone(), waiting.container.clone());
        drop(waiting);
        self.remove_slot(&slot, &container).await;
    }

    /// Removes what a slot has in the engine, in the groups and on disk. What fails is the sweep's.
    async fn remove_slot(&self, slot: &str, container: &str) {
        let removed = self.engine.remove(container).await;
        // Held until here: who is broken off by a stop leaves it to that.
        self.lock_slots().remove(slot);
        if let Err(error) = removed {
            // Without its folder the container cannot start, or finds no shim. An engine that is away for long leaves
            // no trail of slots.
            warn!(
                slot,
                error = &error as &dyn std::error::Error,
                "failed to remove a waiting container"
            );
        }
        self.remove_slot_remains(slot).await;
    }

    /// Removes what a slot has left in the groups and on disk, once its container is gone.
    pub(super) async fn remove_slot_remains(&self, slot: &str) {
        if let Err(error) = self.launcher.tree.remove_group(FOLDER, slot).await {
            warn!(
                slot,
                error = &error as &dyn std::error::Error,
                "failed to remove a waiting container's group"
            );
        }
        let dir = self.slot_dir(slot);
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(
                ?dir,
                error = &error as &dyn std::error::Error,
                "failed to remove a slot"
            );
        }
    }

    fn lock_slots(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.held_slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots that are being made ready, or wait.
    pub(super) fn slots(&self) -> HashSet<String> {
        self.lock_slots().clone()
    }

    /// A slot is held no more: its container was taken by an agent, and is known by that agent's files, or is nobody's.
    pub(super) fn forget_slot(&self, slot: &str) {
        self.lock_slots().remove(slot);
    }
}

/// The name of a container that has no agent yet.
pub(super) fn waiting_name(slot: &str) -> String {
    format!("mosaic-warm-{slot}")
}
