//! The lifecycle and the killswitch as a model, searched exhaustively.
//!
//! A few agents, a daemon that may be killed at every step, kills, a kill-all with a hold or, while no daemon runs, without
//! one, launches and attempts that fail, and an engine that starts an init as late as it likes: every order in which their steps can come is tried,
//! and in every state the promises are looked at:
//!
//! - *no survivor*: once somebody was told that an agent is dead, nothing of it runs and nothing starts;
//! - *no double*: an agent has at most one sandbox that may run, and a job that was done is not run again;
//! - *no lost slot*: what may run has a slot, slots are neither lost nor made, and all are free in the end;
//! - *terminal is final*, and says that nothing runs; each move is one of the table;
//! - *no lost work*: a tree goes only when refs have all that was in it, and nothing runs in it;
//! - *a hold holds*: once it was answered nothing is let go until it is released, whoever crashes;
//! - *a crash alone fails nobody*: an agent fails only where an attempt or a launch did;
//! - *nothing is stuck*: where nothing but the world outside can move, every agent has ended or is held.
//!
//! What decides is the code's own: the table (`AgentState::may_become`), the gate without its lock
//! ([`super::gate::Machine`]), what follows an attempt and a restart ([`super::state`]), whom a hold and a kill-all
//! cover ([`HoldScope::over`], [`Reach::includes`]). The order of the steps is written down again here; whoever changes
//! it in the driver, the spawner, the killswitch or the reconciler changes it in `model/` too.
//!
//! A store that does not answer is a step that comes late; only an insert that is refused is a step of its own. Not in
//! the model: disks that refuse word of a kill or a hold (the answer says so), hosts that restart, time limits of
//! agents (an end like others), and what is inside a step.

use std::sync::LazyLock;

use mosaic_types::{ConnectionId, agent::AgentState};

use crate::{hold::HoldScope, killswitch::Reach, sandbox::Scope};

mod checker;
mod daemon;
mod drive;
mod ending;
mod kernel;
mod killing;
mod offline;
mod tests;
mod world;

use checker::Model;
use world::{AGENTS, Agent, AllAt, At, Bounds, Daemon, Flaw, OfflineAt, World};

/// The connection of the second agent; the first is the spoke's own operator's.
static CONNECTION: LazyLock<ConnectionId> = LazyLock::new(ConnectionId::generate);

/// What happened, to whom; no agent's own if it is not one of them.
type Label = (&'static str, usize);

/// Steps that the world outside takes if it likes: nothing may depend on them.
const OUTSIDE: [&str; 6] = [
    "is asked for, enters the fleet",
    "daemon is killed",
    "is to be killed",
    "kill-all begins",
    "kill without a daemon leaves its word",
    "hold is released",
];

/// Collects what can happen next.
struct Steps<'a> {
    bounds: &'a Bounds,
    from: &'a World,
    into: &'a mut Vec<(Label, World)>,
}

impl Steps<'_> {
    fn step(&mut self, name: &'static str, who: usize, change: impl FnOnce(&mut World)) {
        let mut then = *self.from;
        change(&mut then);
        self.into.push(((name, who), then));
    }

    fn agent(&mut self, name: &'static str, who: usize, change: impl FnOnce(&mut Agent)) {
        self.step(name, who, |world| change(&mut world.agents[who]));
    }

    fn goes(&mut self, name: &'static str, who: usize, at: At) {
        self.agent(name, who, |agent| agent.at = at);
    }

    fn lacks(&self, flaw: Flaw) -> bool {
        self.bounds.flaw == Some(flaw)
    }

    fn connection(who: usize) -> Option<ConnectionId> {
        (who == 1).then(|| *CONNECTION)
    }

    /// Whether a hold of the kill-all's reach is one over this agent.
    fn is_in_hold(&self, who: usize) -> bool {
        let scope = Self::connection(who).map_or(Scope::Local, Scope::Connection);
        let hold = match self.bounds.reach {
            Reach::Everything => HoldScope::Everything,
            Reach::Connection(id) => HoldScope::Connection(id),
        };
        HoldScope::over(scope).any(|over| over == hold)
    }

    /// Whether a hold keeps this agent from starting now.
    fn covered(&self, who: usize) -> bool {
        (self.from.hold_in_memory || self.from.hold_on_disk) && self.is_in_hold(who)
    }
}

impl Model for Bounds {
    type State = World;
    type Label = Label;

    fn initial(&self) -> World {
        World {
            agents: [Agent::NONE; AGENTS],
            daemon: Daemon::Serving,
            free_slots: self.slots,
            hold_in_memory: false,
            hold_on_disk: false,
            kill_all: AllAt::Nowhere,
            kill_all_durable: false,
            offline: OfflineAt::Nowhere,
            everything: false,
            crashes: self.crashes,
            kills: self.kills,
            kill_alls: self.kill_alls,
            offline_kills: self.offline_kills,
            releases: self.releases,
            failures: self.failures,
            faults: self.faults,
            told_held: false,
            wrong: None,
        }
    }

    fn successors(&self, state: &World, into: &mut Vec<(Label, World)>) {
        let mut steps = Steps {
            bounds: self,
            from: state,
            into,
        };
        daemon::steps(&mut steps);
        killing::steps(&mut steps);
        offline::steps(&mut steps);
        for who in 0..self.agents {
            kernel::steps(&mut steps, who);
            drive::steps(&mut steps, who);
        }
    }

    fn wrong(&self, world: &World, next: &[(Label, World)]) -> Option<&'static str> {
        if world.wrong.is_some() {
            return world.wrong;
        }
        let nothing_failed = world.failures == self.failures && world.faults == self.faults;
        let has_failed = |agent: &Agent| agent.record == Some(AgentState::Failed);
        // A strike whose word a crash kept from the disk was never answered: its agent is found dead.
        let nobody_struck = world.kill_alls == self.kill_alls && world.kills == self.kills;
        if nothing_failed && nobody_struck && world.agents.iter().any(has_failed) {
            return Some("a crash alone fails nobody: an agent failed, and nothing else did");
        }
        let mut taken = 0;
        for agent in &world.agents {
            let may_run = agent.sandboxes.iter().filter(|it| it.may_run()).count();
            taken += u8::from(agent.slot);
            if may_run == 0 {
                continue;
            }
            if may_run > 1 {
                return Some("no double: two sandboxes of one agent may run");
            }
            if agent.told_dead {
                return Some("no survivor: it may run after it was told to be dead");
            }
            if agent.has_ended() {
                return Some("terminal is final: it may run after its end is on record");
            }
            if world.daemon == Daemon::Serving && !agent.slot {
                return Some("no lost slot: what may run has none");
            }
        }
        if taken + world.free_slots != self.slots {
            return Some("no lost slot: the slots do not add up");
        }
        let is_settled = next.iter().all(|((name, _), _)| OUTSIDE.contains(name));
        is_settled.then(|| self.stuck(world)).flatten()
    }
}

impl Bounds {
    /// What is wrong where nothing goes on by itself.
    fn stuck(&self, world: &World) -> Option<&'static str> {
        if world.free_slots != self.slots {
            return Some("no lost slot: one is not free in the end");
        }
        let held = world.hold_in_memory || world.hold_on_disk;
        for agent in &world.agents {
            let is_over = match agent.record {
                None => !agent.in_fleet,
                Some(AgentState::Queued) => held && agent.gate.ordered().is_none(),
                Some(state) => state.is_terminal() && !agent.cleanup_pending && !agent.in_fleet,
            };
            if !is_over || agent.kill.is_some() || agent.sandboxes.iter().any(|it| it.is_alive()) {
                return Some("nothing is stuck: an agent is");
            }
        }
        None
    }
}
