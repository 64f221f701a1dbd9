//! What an agent's driver does once it runs, and at its end, a step for each thing that others can see: `driver.rs`,
//! `driver/watching.rs`, `driver/ending.rs`.

use mosaic_types::agent::{AgentState, EndReason};

use super::{
    Steps,
    drive::{fault, free_slot, leave, store},
    world::{Agent, At, Came, Exit, Flaw, Tree, World},
};
use crate::lifecycle::{
    gate::Target,
    state::{AttemptOutcome, Failure, Left, Next, after_attempt, left},
};

pub(super) fn steps(steps: &mut Steps<'_>, who: usize) {
    let agent = steps.from.agents[who];
    let groups = steps.bounds.groups;
    let is_dead = agent.is_dead(agent.handle, groups);
    match agent.at {
        At::Watch if agent.answered => steps.goes("sees that it was killed", who, At::FinishKill),
        At::Watch if is_dead && never_ran(&agent) && !steps.lacks(Flaw::CrashCounts) => {
            steps.agent("sees that nothing of it ran", who, |agent| {
                agent.attempt_over();
                agent.at = unless_killed(agent, At::BackToQueue);
            });
        }
        At::Watch if is_dead => {
            let came = match agent.exit {
                Exit::Done => Came::Completed,
                _ => Came::Failed,
            };
            steps.goes("sees the end", who, At::Over(came));
        }
        At::Over(_) if agent.gate.ordered().is_some() => {
            steps.goes("ended under a kill order", who, At::FinishKill);
        }
        At::Over(came) => over(steps, who, came),
        At::Between => steps.agent("is between attempts", who, |agent| {
            agent.attempt_over();
            agent.at = unless_killed(agent, At::Requeue);
        }),
        At::Requeue => steps.step("stores queued", who, |world| {
            store(world, who, AgentState::Queued);
            free_slot(world, who);
            world.agents[who].at = At::Wait;
        }),
        At::End(came) => steps.agent("ends by itself, says the gate", who, |agent| {
            agent.at = match agent.gate.end(()) {
                Ok(()) => At::Harvest(came),
                Err(()) => At::StoreKilling,
            };
        }),
        At::Harvest(came) => {
            steps.agent("its work comes home", who, |agent| {
                save(&mut agent.tree, &mut agent.home);
                agent.at = At::StoreEnd(came);
            });
            fault(
                steps,
                "its work does not come home",
                who,
                At::StoreEnd(came),
            );
        }
        At::StoreEnd(came) => steps.step("stores its end", who, |world| {
            let state = match came {
                Came::Completed => AgentState::Completed,
                Came::Failed => AgentState::Failed,
            };
            store(world, who, state);
            free_slot(world, who);
            world.agents[who].cleanup_pending = true;
            world.agents[who].at = At::Salvage;
        }),
        At::FinishKill => {
            let early = steps.lacks(Flaw::SlotFreedBeforeProof);
            steps.step("makes sure of the kill", who, |world| {
                if early {
                    free_slot(world, who);
                }
                let agent = &mut world.agents[who];
                if let Target::Live(place) = agent.gate.order(()) {
                    agent.handle = place;
                    agent.strike(place);
                    agent.at = At::ProveKill;
                } else {
                    agent.gate.killed(());
                    agent.at = At::StoreKilling;
                }
            });
        }
        At::ProveKill => {
            if is_dead || steps.lacks(Flaw::RecordBeforeProof) {
                steps.agent("the kill is proven", who, |agent| {
                    agent.gate.killed(());
                    agent.at = At::StoreKilling;
                });
            } else if agent.record != Some(AgentState::Killing) {
                steps.step("says killing meanwhile", who, |world| {
                    store(world, who, AgentState::Killing);
                });
            }
        }
        At::StoreKilling => steps.step("stores killing", who, |world| {
            store(world, who, AgentState::Killing);
            world.agents[who].at = At::StoreKilled;
        }),
        At::StoreKilled => steps.step("stores killed", who, |world| {
            store(world, who, AgentState::Killed);
            free_slot(world, who);
            world.agents[who].cleanup_pending = true;
            world.agents[who].at = At::Salvage;
        }),
        At::Salvage | At::RemoveTree | At::StoreCleanUp { .. } => clean_up(steps, who),
        _ => {}
    }
}

/// Whether what was found alive was a shim that had not seen yet that its daemon was gone.
fn never_ran(agent: &Agent) -> bool {
    let state = agent.record.unwrap_or(AgentState::Queued);
    let is_ordered = agent.gate.ordered().is_some();
    agent.adopted && !is_ordered && left(state, agent.exit == Exit::NotStarted) != Left::Ended
}

/// Where an agent goes on whose attempt is over.
fn unless_killed(agent: &Agent, at: At) -> At {
    match agent.gate.ordered() {
        Some(()) => At::FinishKill,
        None => at,
    }
}

fn over(steps: &mut Steps<'_>, who: usize, came: Came) {
    let outcome = match came {
        Came::Completed => AttemptOutcome::Completed {
            summary: String::new(),
        },
        Came::Failed => AttemptOutcome::Failed(Failure {
            reason: EndReason::ExitStatus,
            detail: String::new(),
            retryable: true,
        }),
    };
    let attempt = u32::from(steps.from.agents[who].attempt);
    match after_attempt(outcome, attempt, steps.bounds.max_retries) {
        Next::Retry { .. } => steps.goes("is to be tried again", who, At::Between),
        Next::Complete { .. } | Next::Fail(_) => steps.goes("is over", who, At::End(came)),
    }
}

fn save(tree: &mut Tree, home: &mut bool) {
    if *tree == Tree::Dirty {
        *tree = Tree::Safe;
    }
    *home = true;
}

fn clean_up(steps: &mut Steps<'_>, who: usize) {
    let agent = steps.from.agents[who];
    match agent.at {
        At::Salvage if steps.lacks(Flaw::RemovedBeforeSalvage) => {
            steps.step("removes its tree", who, |world| remove(world, who));
        }
        At::Salvage if agent.home => {
            steps.goes("its work is home", who, At::RemoveTree);
        }
        At::Salvage => {
            steps.agent("its work is salvaged", who, |agent| {
                save(&mut agent.tree, &mut agent.home);
                agent.at = At::RemoveTree;
            });
            let at = At::StoreCleanUp { saved: false };
            fault(steps, "its work is not salvaged", who, at);
        }
        At::RemoveTree => steps.step("removes its tree", who, |world| {
            // What no ref has stays, whatever was salvaged.
            if world.agents[who].tree == Tree::Dirty {
                world.agents[who].at = At::StoreCleanUp { saved: true };
            } else {
                remove(world, who);
            }
        }),
        At::StoreCleanUp { saved } => steps.step("stores its clean-up", who, |world| {
            world.agents[who].cleanup_pending = !saved;
            if saved {
                leave(world, who);
            } else {
                world.agents[who].at = At::Salvage;
            }
        }),
        _ => {}
    }
}

fn remove(world: &mut World, who: usize) {
    let agent = &mut world.agents[who];
    if agent.tree == Tree::Dirty {
        world.wrong = Some("no lost work: a tree was removed with work that no ref has");
    }
    if agent.sandboxes.iter().any(|sandbox| sandbox.may_run()) {
        world.wrong = Some("no lost work: a tree was removed under a live agent");
    }
    agent.tree = Tree::Nothing;
    agent.at = At::StoreCleanUp { saved: true };
}
