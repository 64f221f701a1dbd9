//! The state of the model: what is on disk, what the kernel has, what a daemon remembers, and what was promised.

use mosaic_types::agent::AgentState;

use crate::{
    killswitch::Reach,
    lifecycle::gate::{Machine, Target},
};

pub(super) const AGENTS: usize = 2;
/// The places of an agent's sandboxes: one that is, one that must not be, and one that ends itself.
pub(super) const PLACES: usize = 3;

/// What is searched: how much may happen, and which defence is taken away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Which agents are spawned.
    pub(super) agents: usize,
    pub(super) slots: u8,
    pub(super) max_retries: u32,
    /// How often the daemon is killed.
    pub(super) crashes: u8,
    /// How often one agent is killed.
    pub(super) kills: u8,
    pub(super) kill_alls: u8,
    /// How often everything is killed while there is no daemon.
    pub(super) offline_kills: u8,
    /// Whether a kill-all sets a hold.
    pub(super) hold: bool,
    /// Whether the hold is released at some time.
    pub(super) releases: u8,
    /// Whether the kill-all takes the first agent only: one of another task is held, not killed.
    pub(super) one_task: bool,
    /// How often an attempt fails.
    pub(super) failures: u8,
    /// How often a launch, a look or a store's insert fails.
    pub(super) faults: u8,
    /// Whether there are cgroups.
    pub(super) groups: bool,
    /// Whether a container engine starts the agents' inits, as late as it likes.
    pub(super) containers: bool,
    /// Whom a kill-all and its hold take.
    pub(super) reach: Reach,
    /// The defence that is taken away, if one is.
    pub(super) flaw: Option<Flaw>,
}

/// A defence that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    GateNotAsked,
    NoHoldAfterLaunch,
    NoHoldAtGo,
    HoldNotOnDisk,
    NoSecondLook,
    SlotFreedBeforeProof,
    SlotNotTakenOver,
    AnswerBeforeProof,
    RecordBeforeProof,
    GoBeforeRecord,
    NoWord,
    EndedStartsAgain,
    NotExamined,
    UnknownIsDead,
    ShimOutlivesDaemon,
    LateShimLeavesFiles,
    CrashCounts,
    LateInitRuns,
    RemovedBeforeSalvage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Phase {
    Nothing,
    /// Has its plan; in no group, in no file.
    Spawned,
    Joined,
    /// Its identity is on disk; the init is on its way.
    Listed,
    /// The init waits for the word.
    Ready,
    /// The agent's own.
    Running,
}

/// A shim and its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sandbox {
    pub(super) phase: Phase,
    /// A SIGKILL is on its way: it does nothing more, and is dead some time later.
    pub(super) struck: bool,
    /// The word was given, perhaps not read yet.
    pub(super) told: bool,
    /// The daemon that began it is gone.
    pub(super) deserted: bool,
}

impl Sandbox {
    pub(super) const NONE: Self = Self {
        phase: Phase::Nothing,
        struck: false,
        told: false,
        deserted: false,
    };

    pub(super) fn is_alive(self) -> bool {
        self.phase != Phase::Nothing
    }

    /// Whether the agent's own runs here, or may yet. A shim whose daemon left without a word ends itself.
    pub(super) fn may_run(self) -> bool {
        self.phase == Phase::Running || (self.is_alive() && (self.told || !self.deserted))
    }

    pub(super) fn is_grouped(self) -> bool {
        self.phase >= Phase::Joined
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Exit {
    Unwritten,
    NotStarted,
    Done,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Tree {
    Nothing,
    /// Nothing in it would be lost.
    Safe,
    /// Holds work that no ref has.
    Dirty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Came {
    Completed,
    Failed,
}

/// Where a driver is: what it does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum At {
    Nowhere,
    // Admission.
    HoldAtEntry,
    Insert,
    // A restart.
    Examine,
    Remains,
    Find,
    FindRemains,
    // An attempt.
    Wait,
    StoreSpawning,
    Prepare,
    HoldBefore,
    Files,
    Launch,
    Init,
    StoreRunning,
    HoldAfter,
    Go,
    LateRunning,
    Undo { held: bool },
    UndoProof { held: bool },
    BackToQueue,
    Watch,
    // Its end.
    Over(Came),
    Between,
    Requeue,
    End(Came),
    Harvest(Came),
    StoreEnd(Came),
    FinishKill,
    ProveKill,
    StoreKilling,
    StoreKilled,
    Salvage,
    RemoveTree,
    StoreCleanUp { saved: bool },
}

pub(super) type Met = Target<u8, ()>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Proof {
    Pending,
    Dead,
    Unverified,
}

/// A kill of one agent: as its own task, or as part of a kill-all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kill {
    pub(super) met: Met,
    pub(super) struck: bool,
    pub(super) word: bool,
    pub(super) proof: Proof,
}

impl Kill {
    pub(super) fn of(met: Met) -> Self {
        Self {
            met,
            struck: false,
            word: false,
            proof: Proof::Pending,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Agent {
    // On disk.
    pub(super) record: Option<AgentState>,
    pub(super) attempt: u8,
    pub(super) cleanup_pending: bool,
    pub(super) home: bool,
    pub(super) word: bool,
    /// Word that its attempt, which had ended, keeps its result, and no other follows.
    pub(super) no_more: bool,
    pub(super) tree: Tree,
    pub(super) exit: Exit,
    pub(super) shim_file: Option<u8>,
    // The kernel's and the engine's.
    pub(super) sandboxes: [Sandbox; PLACES],
    pub(super) engine_asked: bool,
    // The daemon's memory.
    pub(super) in_fleet: bool,
    pub(super) gate: Machine<(), u8, ()>,
    pub(super) answered: bool,
    pub(super) slot: bool,
    pub(super) at: At,
    pub(super) handle: u8,
    /// A daemon before this one started what the handle holds.
    pub(super) adopted: bool,
    pub(super) kill: Option<Kill>,
    pub(super) in_kill_all: Option<Kill>,
    // What happened, for the properties.
    /// Somebody was told that it is dead for good.
    pub(super) told_dead: bool,
    /// The scope's strike met it.
    pub(super) struck_by_scope: bool,
    pub(super) was_done: bool,
}

impl Agent {
    pub(super) const NONE: Self = Self {
        record: None,
        attempt: 0,
        cleanup_pending: false,
        home: false,
        word: false,
        no_more: false,
        tree: Tree::Nothing,
        exit: Exit::Unwritten,
        shim_file: None,
        sandboxes: [Sandbox::NONE; PLACES],
        engine_asked: false,
        in_fleet: false,
        gate: Machine::NEW,
        answered: false,
        slot: false,
        at: At::Nowhere,
        handle: 0,
        adopted: false,
        kill: None,
        in_kill_all: None,
        told_dead: false,
        struck_by_scope: false,
        was_done: false,
    };

    pub(super) fn has_ended(&self) -> bool {
        self.record.is_some_and(AgentState::is_terminal)
    }

    pub(super) fn sandbox(&mut self, place: u8) -> &mut Sandbox {
        &mut self.sandboxes[usize::from(place)]
    }

    pub(super) fn strike(&mut self, place: u8) {
        let sandbox = self.sandbox(place);
        sandbox.struck = sandbox.is_alive();
    }

    /// One write to its `cgroup.kill`.
    pub(super) fn strike_group(&mut self) {
        for sandbox in &mut self.sandboxes {
            sandbox.struck |= sandbox.is_grouped();
        }
    }

    pub(super) fn group_is_empty(&self) -> bool {
        !self.sandboxes.iter().any(|sandbox| sandbox.is_grouped())
    }

    /// The kernel's word: pidfds, and the group where there is one.
    pub(super) fn is_dead(&self, place: u8, groups: bool) -> bool {
        !self.sandboxes[usize::from(place)].is_alive() && (!groups || self.group_is_empty())
    }

    /// Whether the shim that is on disk lives.
    pub(super) fn listed(&self) -> Option<u8> {
        self.shim_file
            .filter(|place| self.sandboxes[usize::from(*place)].is_alive())
    }

    /// Its attempt is proven dead.
    pub(super) fn attempt_over(&mut self) {
        self.answered |= self.gate.attempt_over(());
    }

    /// What a daemon that is gone no longer knows.
    pub(super) fn forget(&mut self) {
        self.in_fleet = false;
        self.gate = Machine::NEW;
        self.answered = false;
        self.slot = false;
        self.at = At::Nowhere;
        self.handle = 0;
        self.adopted = false;
        self.kill = None;
        self.in_kill_all = None;
        self.struck_by_scope = false;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Daemon {
    Down,
    TakingOver,
    Serving,
}

/// Where a kill-all is: what it does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum AllAt {
    Nowhere,
    Look { second: bool },
    Shut { second: bool, left: u8 },
    StrikeScope,
    StrikeEach { second: bool },
    Prove,
}

/// Where a kill without a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum OfflineAt {
    Nowhere,
    Strike,
    Prove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) agents: [Agent; AGENTS],
    pub(super) daemon: Daemon,
    pub(super) free_slots: u8,
    pub(super) hold_in_memory: bool,
    pub(super) hold_on_disk: bool,
    pub(super) kill_all: AllAt,
    pub(super) kill_all_durable: bool,
    pub(super) offline: OfflineAt,
    /// Word of it for everything is on disk, and no daemon has read it.
    pub(super) everything: bool,
    // What may still happen.
    pub(super) crashes: u8,
    pub(super) kills: u8,
    pub(super) kill_alls: u8,
    pub(super) offline_kills: u8,
    pub(super) releases: u8,
    pub(super) failures: u8,
    pub(super) faults: u8,
    /// Somebody was told that nothing starts.
    pub(super) told_held: bool,
    /// What went wrong on the way here.
    pub(super) wrong: Option<&'static str>,
}
