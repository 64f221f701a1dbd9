//! What a kill without a daemon does, a step for each thing that others can see: `offline.rs`. It comes while there is none,
//! and none starts before it is answered.

use mosaic_types::agent::AgentState;

use super::{
    Steps,
    world::{AGENTS, Agent, Daemon, Exit, OfflineAt, World},
};

pub(super) fn steps(steps: &mut Steps<'_>) {
    let world = *steps.from;
    match world.offline {
        OfflineAt::Nowhere if world.daemon == Daemon::Down && world.offline_kills > 0 => {
            steps.step("kill without a daemon leaves its word", AGENTS, |world| {
                world.offline_kills -= 1;
                world.offline = OfflineAt::Strike;
                world.everything = true;
                for agent in &mut world.agents {
                    agent.word |= !agent.group_is_empty();
                }
            });
        }
        OfflineAt::Nowhere => {}
        OfflineAt::Strike => steps.step("kill without a daemon strikes", AGENTS, |world| {
            world.offline = OfflineAt::Prove;
            world.agents.iter_mut().for_each(Agent::strike_group);
        }),
        OfflineAt::Prove => {
            if world.agents.iter().all(Agent::group_is_empty) {
                steps.step("kill without a daemon is answered", AGENTS, answered);
            } else if world.agents.iter().any(is_unstruck) {
                steps.step("kill without a daemon looks again", AGENTS, |world| {
                    for agent in &mut world.agents {
                        agent.word |= !agent.group_is_empty();
                        agent.strike_group();
                    }
                });
            }
        }
    }
}

fn is_unstruck(agent: &Agent) -> bool {
    agent
        .sandboxes
        .iter()
        .any(|sandbox| sandbox.is_grouped() && !sandbox.struck)
}

/// Whoever was accepted before it does not run any more.
fn answered(world: &mut World) {
    world.offline = OfflineAt::Nowhere;
    for agent in &mut world.agents {
        agent.told_dead |= agent.record.is_some();
    }
}

/// The word for everything means whom the next daemon finds active.
pub(super) fn becomes_one_for_each(world: &mut World, ended_starts_again: bool) {
    world.everything = false;
    for agent in &mut world.agents {
        let Some(state) = agent.record.filter(|state| !state.is_terminal()) else {
            continue;
        };
        // What was alive has word of its own: it did not end before.
        if state == AgentState::Running && agent.exit != Exit::Unwritten {
            agent.no_more |= !ended_starts_again;
        } else {
            agent.word = true;
        }
    }
}
