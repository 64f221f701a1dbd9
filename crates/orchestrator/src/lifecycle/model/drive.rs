//! What an agent's driver does to start it, a step for each thing that others can see: `admission.rs`, `driver.rs`,
//! `spawner.rs`.

use mosaic_types::agent::AgentState;

use super::{
    Steps, daemon, ending,
    world::{At, Came, Daemon, Exit, Flaw, Phase, Sandbox, Tree, World},
};
use crate::lifecycle::gate::LaunchRefused;

/// Stores a move by the table.
pub(super) fn store(world: &mut World, who: usize, next: AgentState) {
    let agent = &mut world.agents[who];
    if let Some(before) = agent.record
        && before != next
        && !before.may_become(next)
    {
        world.wrong = Some(if before.is_terminal() {
            "terminal is final: a state that is final was left"
        } else {
            "a move that the table does not have"
        });
    }
    agent.record = Some(next);
}

pub(super) fn free_slot(world: &mut World, who: usize) {
    let agent = &mut world.agents[who];
    world.free_slots += u8::from(agent.slot);
    agent.slot = false;
}

pub(super) fn leave(world: &mut World, who: usize) {
    let agent = &mut world.agents[who];
    let (kill, in_kill_all) = (agent.kill, agent.in_kill_all);
    let gate = agent.gate;
    agent.forget();
    // Whoever kills still holds its cell.
    agent.kill = kill;
    agent.in_kill_all = in_kill_all;
    if kill.is_some() || in_kill_all.is_some() {
        agent.gate = gate;
    }
}

pub(super) fn steps(steps: &mut Steps<'_>, who: usize) {
    let world = *steps.from;
    let agent = world.agents[who];
    let taking_over = world.daemon == Daemon::TakingOver;
    match agent.at {
        At::Nowhere => {}
        At::Examine if taking_over => daemon::examine(steps, who, true),
        At::Remains if taking_over => daemon::remains(steps, who),
        _ if world.daemon != Daemon::Serving => {}
        At::Find => daemon::examine(steps, who, false),
        At::FindRemains => daemon::remains(steps, who),
        At::HoldAtEntry | At::Insert => enter(steps, who),
        At::Wait
        | At::StoreSpawning
        | At::Prepare
        | At::HoldBefore
        | At::Files
        | At::Launch
        | At::Init
        | At::StoreRunning
        | At::HoldAfter
        | At::Go
        | At::LateRunning
        | At::Undo { .. }
        | At::UndoProof { .. }
        | At::BackToQueue => attempt(steps, who),
        _ => ending::steps(steps, who),
    }
}

fn enter(steps: &mut Steps<'_>, who: usize) {
    if steps.from.agents[who].at == At::HoldAtEntry {
        if steps.covered(who) {
            steps.step("is refused: held", who, |world| leave(world, who));
        } else {
            steps.goes("may enter", who, At::Insert);
        }
        return;
    }
    steps.agent("is on record", who, |agent| {
        agent.record = Some(AgentState::Queued);
        agent.at = At::Wait;
    });
    if steps.from.faults > 0 {
        steps.step("is refused: no store", who, |world| {
            world.faults -= 1;
            leave(world, who);
        });
    }
}

fn attempt(steps: &mut Steps<'_>, who: usize) {
    let world = *steps.from;
    let agent = world.agents[who];
    let held = steps.covered(who);
    let sandbox = agent.sandboxes[usize::from(agent.handle)];
    match agent.at {
        At::Wait if agent.answered => steps.goes("waits no more: killed", who, At::FinishKill),
        At::Wait if !held && world.free_slots > 0 => steps.step("has a slot", who, |world| {
            world.free_slots -= 1;
            let agent = &mut world.agents[who];
            agent.slot = true;
            agent.at = match agent.gate.ordered() {
                Some(()) => At::FinishKill,
                None => At::StoreSpawning,
            };
        }),
        At::StoreSpawning => steps.step("stores spawning", who, |world| {
            store(world, who, AgentState::Spawning);
            world.agents[who].attempt += 1;
            world.agents[who].at = At::Prepare;
        }),
        At::Prepare if agent.answered => steps.goes("prepares no more", who, At::FinishKill),
        At::Prepare => {
            steps.agent("has its tree", who, |agent| {
                if agent.tree == Tree::Nothing {
                    agent.tree = Tree::Safe;
                }
                agent.at = At::HoldBefore;
            });
            fault(steps, "tree cannot be made", who, At::Over(Came::Failed));
        }
        At::HoldBefore if held => steps.goes("is held", who, At::BackToQueue),
        At::HoldBefore => steps.goes("is not held", who, At::Files),
        At::Files if agent.listed().is_some() => {
            steps.goes("runs already", who, At::Over(Came::Failed));
        }
        At::Files => steps.agent("files are fresh", who, |agent| {
            agent.exit = Exit::Unwritten;
            agent.shim_file = None;
            agent.at = At::Launch;
        }),
        // Shims that are slow to end themselves have taken every place.
        At::Launch
            if agent
                .sandboxes
                .iter()
                .all(|it| it.is_alive() && !it.may_run()) => {}
        At::Launch => {
            let unasked = steps.lacks(Flaw::GateNotAsked);
            steps.step("launches through the gate", who, |world| {
                launch(world, who, unasked);
            });
            fault(steps, "shim cannot be started", who, At::Over(Came::Failed));
        }
        At::Init if sandbox.struck || !sandbox.is_alive() => {
            steps.goes("init is gone", who, At::Undo { held: false });
        }
        At::Init if sandbox.phase == Phase::Ready => {
            let next = if steps.lacks(Flaw::GoBeforeRecord) {
                At::HoldAfter
            } else {
                At::StoreRunning
            };
            steps.goes("init is held", who, next);
        }
        At::Init => {
            if steps.bounds.containers && !agent.engine_asked && sandbox.phase == Phase::Listed {
                steps.agent("engine is asked for the init", who, |agent| {
                    agent.engine_asked = true;
                });
            }
            fault(steps, "init is late", who, At::Undo { held: false });
        }
        At::StoreRunning => steps.step("stores running", who, |world| {
            store(world, who, AgentState::Running);
            world.agents[who].at = At::HoldAfter;
        }),
        At::HoldAfter if held && !steps.lacks(Flaw::NoHoldAfterLaunch) => {
            steps.goes("is held after its launch", who, At::Undo { held: true });
        }
        At::HoldAfter => steps.goes("is still not held", who, At::Go),
        // Asked again under the lock that sets it.
        At::Go
            if world.hold_in_memory
                && held
                && !steps.lacks(Flaw::NoHoldAtGo)
                && !steps.lacks(Flaw::NoHoldAfterLaunch) =>
        {
            steps.goes("is held at the last moment", who, At::Undo { held: true });
        }
        At::Go if sandbox.struck || !sandbox.is_alive() => {
            steps.goes("cannot go", who, At::Undo { held: false });
        }
        At::Go => {
            let breaks_hold = world.told_held && steps.is_in_hold(who);
            let is_late = steps.lacks(Flaw::GoBeforeRecord);
            steps.step("is let go", who, |world| {
                if breaks_hold {
                    world.wrong = Some("a hold holds: one was let go under it");
                }
                let agent = &mut world.agents[who];
                agent.sandbox(agent.handle).told = true;
                agent.at = if is_late { At::LateRunning } else { At::Watch };
            });
        }
        At::LateRunning => steps.step("stores running", who, |world| {
            store(world, who, AgentState::Running);
            world.agents[who].at = At::Watch;
        }),
        At::Undo { held } => steps.agent("undoes its launch", who, |agent| {
            if agent.gate.ordered().is_some() {
                agent.at = At::FinishKill;
            } else {
                agent.strike(agent.handle);
                agent.at = At::UndoProof { held };
            }
        }),
        At::UndoProof { held } if agent.is_dead(agent.handle, steps.bounds.groups) => {
            steps.agent("its launch is undone", who, |agent| {
                agent.attempt_over();
                agent.at = if held {
                    At::BackToQueue
                } else {
                    At::Over(Came::Failed)
                };
            });
        }
        At::BackToQueue => steps.step("goes back to the queue", who, |world| {
            if world.agents[who].record != Some(AgentState::Queued) {
                store(world, who, AgentState::Queued);
                world.agents[who].attempt = world.agents[who].attempt.saturating_sub(1);
            }
            free_slot(world, who);
            world.agents[who].at = At::Wait;
        }),
        _ => {}
    }
}

pub(super) fn fault(steps: &mut Steps<'_>, name: &'static str, who: usize, at: At) {
    if steps.from.faults > 0 {
        steps.step(name, who, |world| {
            world.faults -= 1;
            world.agents[who].at = at;
        });
    }
}

fn launch(world: &mut World, who: usize, unasked: bool) {
    let agent = &mut world.agents[who];
    let sandboxes = &mut agent.sandboxes;
    let mut start = || {
        let free = sandboxes.iter().position(|place| !place.is_alive());
        let place = free.ok_or(())?;
        sandboxes[place] = Sandbox {
            phase: Phase::Spawned,
            ..Sandbox::NONE
        };
        u8::try_from(place).map_err(|_| ())
    };
    let launched = if unasked {
        start().map_err(LaunchRefused::Failed)
    } else {
        agent.gate.launch(start)
    };
    match launched {
        Ok(place) => {
            if unasked {
                agent.gate.adopt(place);
            }
            agent.handle = place;
            agent.adopted = false;
            agent.at = At::Init;
        }
        Err(LaunchRefused::Ordered) => agent.at = At::FinishKill,
        Err(LaunchRefused::Failed(())) => {
            world.wrong = Some("no double: a third sandbox was started");
        }
    }
}
