//! A daemon's life: it admits agents, is killed at any moment, and takes over what the one before it left.

use mosaic_types::agent::AgentState;

use super::{
    Steps, offline,
    world::{AGENTS, Agent, AllAt, At, Came, Daemon, Exit, Flaw, OfflineAt, Phase, World},
};
use crate::lifecycle::state::{Left, left};

pub(super) fn steps(steps: &mut Steps<'_>) {
    let world = *steps.from;
    match world.daemon {
        // One that starts earlier waits for nobody, but that is not in the model.
        Daemon::Down if world.offline != OfflineAt::Nowhere => {}
        Daemon::Down => {
            let lacks = steps.lacks(Flaw::EndedStartsAgain);
            steps.step("daemon starts", AGENTS, |world| {
                world.daemon = Daemon::TakingOver;
                if world.everything {
                    offline::becomes_one_for_each(world, lacks);
                }
                for agent in &mut world.agents {
                    take_up(agent);
                }
            });
        }
        Daemon::TakingOver => {
            let examined = |agent: &Agent| !matches!(agent.at, At::Examine | At::Remains);
            if world.agents.iter().all(examined) {
                let lacks = steps.lacks(Flaw::SlotNotTakenOver);
                steps.step("daemon serves", AGENTS, |world| serve(world, lacks));
            }
        }
        Daemon::Serving => {
            for who in 0..steps.bounds.agents {
                admit(steps, who);
            }
            let held = world.hold_in_memory || world.hold_on_disk;
            if held && world.releases > 0 && world.kill_all == AllAt::Nowhere {
                steps.step("hold is released", AGENTS, |world| {
                    world.releases -= 1;
                    world.hold_on_disk = false;
                    world.hold_in_memory = false;
                    world.told_held = false;
                });
            }
        }
    }
    if world.daemon != Daemon::Down && world.crashes > 0 {
        let slots = steps.bounds.slots;
        steps.step("daemon is killed", AGENTS, |world| crash(world, slots));
    }
}

fn crash(world: &mut World, slots: u8) {
    world.crashes -= 1;
    world.daemon = Daemon::Down;
    world.free_slots = slots;
    world.hold_in_memory = false;
    world.kill_all = AllAt::Nowhere;
    world.kill_all_durable = false;
    for agent in &mut world.agents {
        agent.forget();
        for sandbox in &mut agent.sandboxes {
            // One that runs its agent no longer listens.
            sandbox.deserted =
                sandbox.deserted || (sandbox.is_alive() && sandbox.phase != Phase::Running);
        }
    }
}

fn take_up(agent: &mut Agent) {
    match agent.record {
        Some(state) if !state.is_terminal() => {
            agent.in_fleet = true;
            agent.gate.not_found_yet();
            if agent.word {
                agent.gate.order(());
                agent.answered = true;
            } else if agent.no_more {
                agent.answered |= agent.gate.order_after(());
            }
            agent.at = At::Examine;
        }
        Some(_) if agent.cleanup_pending => {
            agent.in_fleet = true;
            agent.at = At::Salvage;
        }
        _ => {
            agent.word = false;
            agent.no_more = false;
            agent.strike_group();
        }
    }
}

fn serve(world: &mut World, slot_not_taken_over: bool) {
    world.daemon = Daemon::Serving;
    // What is known to live comes first.
    for is_known in [true, false] {
        for agent in &mut world.agents {
            let takes = match agent.at {
                At::Watch => is_known,
                At::FinishKill => is_known && agent.gate.is_live() && !slot_not_taken_over,
                At::Find => {
                    !is_known && agent.record != Some(AgentState::Queued) && !slot_not_taken_over
                }
                _ => false,
            };
            if takes && world.free_slots > 0 {
                world.free_slots -= 1;
                agent.slot = true;
            }
        }
    }
}

fn admit(steps: &mut Steps<'_>, who: usize) {
    let agent = steps.from.agents[who];
    let is_free = !agent.in_fleet && agent.kill.is_none() && agent.in_kill_all.is_none();
    // Word of a kill that was answered while the record was still being tried refuses the agent from then on.
    if is_free && agent.record.is_none() && !agent.told_dead {
        steps.agent("is asked for, enters the fleet", who, |agent| {
            agent.in_fleet = true;
            agent.at = At::HoldAtEntry;
        });
    }
}

/// The steps of a driver that looks for what the daemon before it left.
pub(super) fn examine(steps: &mut Steps<'_>, who: usize, is_first: bool) {
    let agent = steps.from.agents[who];
    if agent.gate.is_over() {
        steps.agent("is found killed", who, |agent| agent.at = At::FinishKill);
        return;
    }
    if steps.from.faults > 0 {
        let is_guessed = steps.lacks(Flaw::UnknownIsDead);
        steps.step("cannot be examined", who, |world| {
            world.faults -= 1;
            if is_guessed {
                found(world, who);
            } else {
                world.agents[who].at = At::Find;
            }
        });
    }
    let looks = !steps.lacks(Flaw::NotExamined);
    if agent.exit != Exit::Unwritten || !looks {
        steps.step("has ended meanwhile", who, |world| found(world, who));
    } else if let Some(place) = agent.listed() {
        steps.agent("is found alive", who, |agent| {
            order_if_killing(agent);
            agent.gate.adopt(place);
            agent.handle = place;
            agent.adopted = true;
            if agent.gate.ordered().is_some() {
                agent.strike(place);
                agent.at = At::FinishKill;
            } else {
                agent.at = At::Watch;
            }
        });
    } else {
        let groups = steps.bounds.groups;
        steps.agent("is not found; remains are killed", who, |agent| {
            if groups {
                agent.strike_group();
            }
            agent.at = if is_first {
                At::Remains
            } else {
                At::FindRemains
            };
        });
    }
}

/// Remains are dead, or never were.
pub(super) fn remains(steps: &mut Steps<'_>, who: usize) {
    if !steps.bounds.groups || steps.from.agents[who].group_is_empty() {
        steps.step("no remains", who, |world| found(world, who));
    }
}

fn order_if_killing(agent: &mut Agent) {
    if agent.record == Some(AgentState::Killing) && agent.gate.ordered().is_none() {
        agent.gate.order(());
        agent.answered = true;
    }
}

fn found(world: &mut World, who: usize) {
    let agent = &mut world.agents[who];
    order_if_killing(agent);
    agent.gate.found_nothing();
    let state = agent.record.unwrap_or(AgentState::Queued);
    let left = left(state, agent.exit == Exit::NotStarted);
    if left == Left::NeverRan {
        agent.attempt_over();
    }
    if agent.gate.ordered().is_some() {
        agent.gate.killed(());
        agent.at = At::FinishKill;
        return;
    }
    agent.at = match left {
        Left::Waiting => At::Wait,
        Left::NeverRan => At::BackToQueue,
        Left::Ended => At::Over(match agent.exit {
            Exit::Done => Came::Completed,
            _ => Came::Failed,
        }),
    };
}
