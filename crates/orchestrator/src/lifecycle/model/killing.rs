//! What the killswitch does, a step for each thing that others can see: `killswitch.rs`.

use super::{
    Steps,
    world::{AGENTS, Agent, AllAt, Daemon, Flaw, Kill, Proof, World},
};
use crate::lifecycle::gate::Target;

pub(super) fn steps(steps: &mut Steps<'_>) {
    if steps.from.daemon != Daemon::Serving {
        return;
    }
    for who in 0..steps.bounds.agents {
        kill(steps, who);
    }
    kill_all(steps);
}

fn kill(steps: &mut Steps<'_>, who: usize) {
    let agent = steps.from.agents[who];
    let Some(kill) = agent.kill else {
        if agent.in_fleet && steps.from.kills > 0 {
            steps.step("is to be killed", who, |world| {
                world.kills -= 1;
                let agent = &mut world.agents[who];
                if agent.has_ended() {
                    agent.told_dead = true;
                } else {
                    agent.kill = Some(Kill::of(agent.gate.order(())));
                }
            });
        }
        return;
    };
    if !kill.struck {
        steps.agent("is struck", who, |agent| {
            strike(agent, kill);
            agent.kill = Some(Kill {
                struck: true,
                ..kill
            });
        });
        return;
    }
    if !kill.word {
        let lacks = steps.lacks(Flaw::NoWord);
        steps.agent("word of its kill is on disk", who, |agent| {
            agent.word |= !lacks;
            agent.kill = Some(Kill { word: true, ..kill });
        });
    }
    prove(steps, who, kill, |agent| &mut agent.kill);
    if kill.word && kill.proof != Proof::Pending {
        steps.agent("its kill is answered", who, |agent| {
            agent.told_dead |= kill.proof == Proof::Dead;
            agent.answered = agent.in_fleet;
            agent.kill = None;
            tidy(agent);
        });
    }
}

/// A cell that nobody holds any more is gone.
fn tidy(agent: &mut Agent) {
    if !agent.in_fleet && agent.kill.is_none() && agent.in_kill_all.is_none() {
        agent.forget();
    }
}

fn strike(agent: &mut Agent, kill: Kill) {
    if let Target::Live(place) = kill.met {
        agent.strike(place);
    }
}

fn prove(
    steps: &mut Steps<'_>,
    who: usize,
    kill: Kill,
    of: impl Fn(&mut Agent) -> &mut Option<Kill>,
) {
    if kill.proof != Proof::Pending {
        return;
    }
    let agent = steps.from.agents[who];
    let groups = steps.bounds.groups;
    let (is_dead, is_kill) = match kill.met {
        Target::NeverStarted | Target::Between(()) => (true, true),
        Target::Ended(()) => (true, false),
        Target::Live(place) => (agent.is_dead(place, groups), true),
        Target::Unknown => (groups && agent.group_is_empty(), true),
    };
    if kill.met == Target::Unknown && groups && !agent.group_is_empty() {
        let all_struck = agent
            .sandboxes
            .iter()
            .all(|sandbox| sandbox.struck || !sandbox.is_grouped());
        if !all_struck {
            steps.agent("what is unseen of it is struck", who, Agent::strike_group);
        }
    }
    let mut says = |name, proof| {
        steps.agent(name, who, |agent| {
            if proof == Proof::Dead && is_kill {
                agent.gate.killed(());
            }
            if let Some(kill) = of(agent) {
                kill.proof = proof;
            }
        });
    };
    if is_dead {
        says("its death is proven", Proof::Dead);
    } else {
        says("its death is not proven in time", Proof::Unverified);
    }
    if !is_dead && steps.lacks(Flaw::AnswerBeforeProof) {
        steps.agent("its death is taken for granted", who, |agent| {
            if let Some(kill) = of(agent) {
                kill.proof = Proof::Dead;
            }
        });
    }
}

fn kill_all(steps: &mut Steps<'_>) {
    let world = *steps.from;
    match world.kill_all {
        AllAt::Nowhere if world.kill_alls > 0 => {
            let hold = steps.bounds.hold;
            steps.step("kill-all begins", AGENTS, |world| {
                world.kill_alls -= 1;
                world.hold_in_memory |= hold;
                world.kill_all = AllAt::Look { second: false };
            });
        }
        AllAt::Nowhere => {}
        AllAt::Look { second } => look(steps, second),
        AllAt::Shut { second, left } => shut(steps, second, left),
        AllAt::StrikeScope => {
            let (groups, reach) = (steps.bounds.groups, steps.bounds.reach);
            steps.step("kill-all strikes the scope", AGENTS, |world| {
                for (who, agent) in world.agents.iter_mut().enumerate() {
                    if groups && reach.includes(Steps::connection(who)) {
                        agent.struck_by_scope =
                            agent.in_fleet && !agent.has_ended() && !agent.group_is_empty();
                        agent.strike_group();
                    }
                }
                world.kill_all = AllAt::StrikeEach { second: false };
            });
        }
        AllAt::StrikeEach { second } => {
            let looks_again = !second && !steps.lacks(Flaw::NoSecondLook);
            steps.step("kill-all strikes each", AGENTS, |world| {
                for agent in &mut world.agents {
                    if let Some(kill) = agent.in_kill_all {
                        strike(agent, kill);
                    }
                }
                world.kill_all = if looks_again {
                    AllAt::Look { second: true }
                } else {
                    AllAt::Prove
                };
            });
        }
        AllAt::Prove => answer(steps),
    }
}

/// One look at the fleet, under its lock.
fn look(steps: &mut Steps<'_>, second: bool) {
    let mut left = 0;
    for (who, agent) in steps.from.agents.iter().enumerate() {
        let wanted = steps.bounds.reach.includes(Steps::connection(who))
            && (!steps.bounds.one_task || who == 0);
        if agent.in_fleet && !agent.has_ended() && wanted && agent.in_kill_all.is_none() {
            left |= 1 << who;
        }
    }
    steps.step("kill-all looks", AGENTS, |world| {
        world.kill_all = AllAt::Shut { second, left };
    });
}

fn shut(steps: &mut Steps<'_>, second: bool, left: u8) {
    let first = (0..AGENTS).find(|who| left & (1 << who) != 0);
    match first {
        Some(who) => steps.step("kill-all shuts the gate", who, |world| {
            let agent = &mut world.agents[who];
            agent.in_kill_all = Some(Kill::of(agent.gate.order(())));
            let left = left & !(1 << who);
            world.kill_all = AllAt::Shut { second, left };
        }),
        None => {
            // A task's agents have no group of their own.
            let next = if second || steps.bounds.one_task {
                AllAt::StrikeEach { second }
            } else {
                AllAt::StrikeScope
            };
            steps.step("kill-all has shut the gates", AGENTS, |world| {
                world.kill_all = next;
            });
        }
    }
}

fn answer(steps: &mut Steps<'_>) {
    let world = *steps.from;
    if !world.kill_all_durable {
        let (hold, lacks) = (steps.bounds.hold, steps.lacks(Flaw::HoldNotOnDisk));
        let no_word = steps.lacks(Flaw::NoWord);
        steps.step("hold and word are on disk", AGENTS, |world| {
            world.kill_all_durable = true;
            world.hold_on_disk |= hold && !lacks;
            for agent in &mut world.agents {
                agent.word |= agent.in_kill_all.is_some() && !no_word;
            }
        });
    }
    let mut is_proven = true;
    for (who, agent) in world.agents.iter().enumerate() {
        if let Some(kill) = agent.in_kill_all {
            is_proven &= kill.proof != Proof::Pending;
            prove(steps, who, kill, |agent| &mut agent.in_kill_all);
        }
    }
    if is_proven && world.kill_all_durable {
        let hold = steps.bounds.hold;
        steps.step("kill-all is answered", AGENTS, |world| {
            answered(world, hold)
        });
    }
}

fn answered(world: &mut World, hold: bool) {
    world.kill_all = AllAt::Nowhere;
    world.kill_all_durable = false;
    world.told_held |= hold;
    for agent in &mut world.agents {
        let Some(kill) = agent.in_kill_all.take() else {
            if agent.struck_by_scope && !agent.has_ended() {
                world.wrong =
                    Some("no survivor: struck by a kill-all, and neither ordered nor told of");
            }
            agent.struck_by_scope = false;
            continue;
        };
        agent.told_dead |= kill.proof == Proof::Dead;
        agent.answered = agent.in_fleet;
        agent.struck_by_scope = false;
        tidy(agent);
    }
}
