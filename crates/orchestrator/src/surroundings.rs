//! What the rooms of a spoke share: its agents, its record, and the things that they are made with.

use std::{fmt, path::PathBuf, sync::Arc};

use mosaic_node::{AuditLog, KillPriority};
use mosaic_store::SharedStore;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    budget::Budgets,
    config::{EgressSettings, Limits},
    hold::Hold,
    kill_journal::KillJournal,
    killswitch::PastOrders,
    layout::Layout,
    lifecycle::{Fleet, lease::LeaseClock},
    runtime::RuntimeCatalog,
    sandbox::Sandboxes,
    tail::TailWatcher,
    worktree::Worktrees,
};

/// See the module documentation. Nothing here waits for anything else here.
pub struct Surroundings {
    /// The agents that have not ended.
    pub fleet: Arc<Fleet>,
    /// The record of all.
    pub store: SharedStore,
    /// Where agents run.
    pub sandboxes: Sandboxes,
    /// Where their trees come from.
    pub worktrees: Worktrees,
    /// What they run.
    pub runtimes: RuntimeCatalog,
    /// Holds.
    pub hold: Arc<Hold>,
    /// Word of kills that the store may not know yet.
    pub kills: Arc<KillJournal>,
    /// That word on its way to the disk, which may be slower than the answer.
    pub words: TaskTracker,
    /// One permit for each agent that may run. A permit is its owner's: nobody else's end frees it (A28).
    pub slots: Arc<Semaphore>,
    /// Bounds how many agents come up at once as processes: a flood of spawns leaves a processor to a kill (A30). Engines of
    /// containers have bounds of their own, and one that hangs must hold up nobody else.
    pub launches: Semaphore,
    /// What lets kills go first.
    pub priority: KillPriority,
    /// Bounds how many harvests and clean-ups run at once.
    pub chores: Arc<Semaphore>,
    /// Wakes readers of output.
    pub tails: Arc<TailWatcher>,
    /// Where things lie.
    pub layout: Layout,
    /// What no agent may see, besides the data folder.
    pub masked: Vec<PathBuf>,
    /// Limits of the spoke.
    pub limits: Limits,
    /// What agents with an allow-list may reach.
    pub egress: EgressSettings,
    /// What was spent, and what may be.
    pub budgets: Arc<Budgets>,
    /// The trail.
    pub audit: AuditLog,
    /// What leases are measured by.
    pub clock: LeaseClock,
    /// Kills of peers, for spawns that they have overtaken.
    pub past_orders: PastOrders,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("layout", &self.layout)
            .field("sandboxes", &self.sandboxes)
            .finish_non_exhaustive()
    }
}
