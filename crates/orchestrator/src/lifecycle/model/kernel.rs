//! What the kernel, the shims and the container engine do by themselves, whether or not a daemon is there.

use super::{
    Steps,
    world::{Agent, Exit, Flaw, Phase, Sandbox, Tree, World},
};

pub(super) fn steps(steps: &mut Steps<'_>, who: usize) {
    let agent = steps.from.agents[who];
    for (place, sandbox) in agent.sandboxes.into_iter().enumerate() {
        if sandbox.struck {
            steps.agent("dies", who, |agent| agent.sandboxes[place] = Sandbox::NONE);
        } else {
            shim(steps, who, place, sandbox);
        }
    }
    if agent.engine_asked {
        engine(steps, who, &agent);
    }
}

fn shim(steps: &mut Steps<'_>, who: usize, place: usize, sandbox: Sandbox) {
    let is_lonely = sandbox.deserted && !sandbox.told;
    let to = |phase| move |agent: &mut Agent| agent.sandboxes[place].phase = phase;
    match sandbox.phase {
        Phase::Nothing => {}
        // Its plan is in the pipe already, whether or not the daemon still is.
        Phase::Spawned => steps.agent("shim joins its group", who, to(Phase::Joined)),
        Phase::Joined if is_lonely && !steps.lacks(Flaw::LateShimLeavesFiles) => {
            steps.agent("shim sees that its daemon is gone", who, |agent| {
                agent.sandboxes[place] = Sandbox::NONE;
            });
        }
        Phase::Joined => steps.agent("shim is on disk", who, |agent| {
            agent.sandboxes[place].phase = Phase::Listed;
            agent.shim_file = u8::try_from(place).ok();
        }),
        Phase::Listed | Phase::Ready if is_lonely => {
            let lives_on = steps.lacks(Flaw::ShimOutlivesDaemon) && sandbox.phase == Phase::Ready;
            steps.step("shim sees that its daemon is gone", who, |world| {
                if lives_on {
                    runs(world, who, place);
                } else {
                    ends(world, who, place, Exit::NotStarted);
                }
            });
        }
        Phase::Listed => {
            if !steps.bounds.containers {
                steps.agent("init is ready", who, to(Phase::Ready));
            }
            if steps.from.faults > 0 {
                steps.step("namespace cannot be made", who, |world| {
                    world.faults -= 1;
                    ends(world, who, place, Exit::NotStarted);
                });
            }
        }
        Phase::Ready => {
            if sandbox.told {
                steps.step("agent runs", who, |world| runs(world, who, place));
            }
        }
        Phase::Running => {
            steps.step("agent is done", who, |world| {
                world.agents[who].was_done = true;
                ends(world, who, place, Exit::Done);
            });
            if steps.from.failures > 0 {
                steps.step("agent fails", who, |world| {
                    world.failures -= 1;
                    ends(world, who, place, Exit::Failed);
                });
            }
        }
    }
}

fn engine(steps: &mut Steps<'_>, who: usize, agent: &Agent) {
    let listening = agent
        .sandboxes
        .iter()
        .position(|sandbox| sandbox.phase == Phase::Listed && !sandbox.struck);
    match listening {
        Some(place) => steps.agent("engine starts the init", who, |agent| {
            agent.engine_asked = false;
            agent.sandboxes[place].phase = Phase::Ready;
        }),
        None if steps.lacks(Flaw::LateInitRuns) => {
            let free = agent.sandboxes.iter().position(|other| !other.is_alive());
            if let Some(place) = free {
                steps.step("a late init runs what the engine was told", who, |world| {
                    world.agents[who].engine_asked = false;
                    runs(world, who, place);
                });
            }
        }
        None => steps.agent("a late init finds no shim and ends", who, |agent| {
            agent.engine_asked = false;
        }),
    }
}

fn runs(world: &mut World, who: usize, place: usize) {
    let agent = &mut world.agents[who];
    if agent.was_done {
        world.wrong = Some("no double: a job that was done runs again");
    }
    agent.tree = Tree::Dirty;
    agent.sandboxes[place] = Sandbox {
        phase: Phase::Running,
        ..Sandbox::NONE
    };
}

fn ends(world: &mut World, who: usize, place: usize, exit: Exit) {
    let agent = &mut world.agents[who];
    agent.exit = exit;
    agent.sandboxes[place] = Sandbox::NONE;
}
