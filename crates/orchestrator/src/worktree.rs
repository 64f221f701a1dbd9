//! Working trees: one isolated repository per agent, and its work brought home.
//!
//! ```text
//! remote ──fetch──► mirror (bare, host only) ──objects, read-only──► <agents>/<id>/work (the agent's own)
//!                      ▲                                                   │ proven dead
//!                      └── refs/heads/mosaic/<id> ◄── harvest, salvage ────┘
//! ```
//!
//! Promises: an agent never writes to the mirror nor to a sibling's tree; nothing an agent wrote is run
//! or believed by the host (its `.git` is copied by name and kind, never opened); a tree is removed only
//! when every part of it is reachable from a ref of the mirror; preparing, harvesting, salvaging and
//! removing may each be repeated, or cut short by a crash at any point.
//!
//! `harvest`, `salvage` and `remove` want an agent that is *proven dead*; that is the caller's part.
//! Files that git ignores by `.gitignore` are not work and go with the tree.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mosaic_types::AgentId;
use tokio::sync::{OwnedMutexGuard, Semaphore};

mod address;
mod bundle;
mod checkout;
mod config;
mod error;
mod gather;
mod harvest;
mod homecoming;
mod lock;
mod mirror;
mod patch;
mod preparing;
mod push;
mod remote;
mod removal;
mod result;
mod salvaged;
mod snapshot;
mod tags;
mod trees;
mod upkeep;
mod workshop;

pub use address::{BranchName, BranchNameError, RepositoryUrl, RepositoryUrlError, Transport};
pub use bundle::BundleOf;
pub use config::{Limits, WorktreeConfig};
pub use error::WorktreeError;
pub use harvest::{HarvestRequest, Landing};
pub(crate) use patch::told;
pub use preparing::Prepared;
pub use push::{PushResult, PushRule};
pub use remote::{Credential, CredentialKind};
pub use removal::{KeptWhy, Removal, RemovalMode};
pub use result::{CommitSummary, NotBroughtHome, PatchForm, PatchSummary, WhyNot, WorkResult};
pub use salvaged::HeldRef;

use checkout::AgentDirs;
use lock::{KeyedLocks, MirrorLock};
use push::PushRules;
use remote::Remotes;
use workshop::Workshop;

/// How many bundles are made at once.
const BUNDLES_AT_ONCE: usize = 2;

#[derive(Debug)]
struct Inner {
    config: WorktreeConfig,
    remotes: Remotes,
    pushes: PushRules,
    repositories: KeyedLocks,
    agents: KeyedLocks,
    fetched: Mutex<HashMap<PathBuf, (Instant, Option<BranchName>)>>,
    /// Where trees are made.
    preparing: Workshop,
    /// Where work is brought home and trees are removed; apart, so that neither keeps the other waiting.
    clearing: Workshop,
    /// Turns for bundles. Whoever asks for many must not keep clean-ups waiting.
    bundles: Arc<Semaphore>,
}

/// The working trees of one orchestrator. A cheap handle.
#[derive(Debug, Clone)]
pub struct Worktrees {
    inner: Arc<Inner>,
}

impl Worktrees {
    /// Opens, making the directories that are missing.
    ///
    /// # Errors
    /// A directory that cannot be made or written, a credential that cannot be used.
    pub async fn open(config: WorktreeConfig) -> Result<Self, WorktreeError> {
        blocking("opening the working trees", move || {
            for dir in [&config.mirrors_dir, &config.agents_dir] {
                fs::create_dir_all(dir)
                    .map_err(WorktreeError::io("making the data folder", dir))?;
                let probe = dir.join(".writable");
                fs::write(&probe, b"")
                    .and_then(|()| fs::remove_file(&probe))
                    .map_err(WorktreeError::io("trying the data folder", dir))?;
            }
            let absolute = |dir: &Path| {
                fs::canonicalize(dir).map_err(WorktreeError::io("opening the data folder", dir))
            };
            let config = WorktreeConfig {
                mirrors_dir: absolute(&config.mirrors_dir)?,
                agents_dir: absolute(&config.agents_dir)?,
                ..config
            };
            let remotes = Remotes::new(&config)?;
            let pushes = PushRules::new(&config.pushes)?;
            Ok(Self {
                inner: Arc::new(Inner {
                    config,
                    remotes,
                    pushes,
                    repositories: KeyedLocks::default(),
                    agents: KeyedLocks::default(),
                    fetched: Mutex::default(),
                    preparing: Workshop::open("tree-prepare")?,
                    clearing: Workshop::open("tree-clear")?,
                    bundles: Arc::new(Semaphore::new(BUNDLES_AT_ONCE)),
                }),
            })
        })
        .await
    }

    /// Where an agent's tree is, or would be.
    #[must_use]
    pub fn workdir(&self, agent: &AgentId) -> PathBuf {
        AgentDirs::new(&self.inner.config.agents_dir, agent).work()
    }

    /// The bare mirror of a repository; it may not exist yet.
    #[must_use]
    pub fn mirror_path(&self, repository: &RepositoryUrl) -> PathBuf {
        self.inner
            .config
            .mirrors_dir
            .join(format!("{}.git", repository.mirror_key()))
    }

    async fn lock_mirror(&self, repository: &RepositoryUrl) -> Result<MirrorLock, WorktreeError> {
        let mirror = self.mirror_path(repository);
        let limit = Duration::from_secs(self.inner.config.lock_timeout_secs);
        let guard: OwnedMutexGuard<()> =
            self.inner.repositories.lock(&repository.mirror_key()).await;
        blocking("locking the mirror", move || {
            MirrorLock::acquire(&mirror, guard, limit)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, WorktreeError> + Send + 'static,
) -> Result<T, WorktreeError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(WorktreeError::Interrupted { operation }))
}
