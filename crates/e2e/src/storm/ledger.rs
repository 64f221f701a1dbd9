//! What a storm was told, and what must be true because of it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mosaic_types::AgentId;

use super::{kernel::Sight, plan::Birth};

/// Operations that are told when something is wrong.
const REMEMBERED: usize = 200;

/// What is known of one agent.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) birth: Birth,
    /// A spawn of it was answered with success.
    pub(super) accepted: bool,
    /// A kill of it was answered `killed`.
    pub(super) killed: bool,
    /// It was said to have ended, by a kill's answer or a status.
    pub(super) dead: bool,
    /// Its file was seen in its tree.
    pub(super) wrote: bool,
    /// The terminal state that was seen first.
    pub(super) ended: Option<String>,
}

/// How much happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations, crashes and outages included.
    pub operations: usize,
    /// Agents asked for.
    pub spawns: usize,
    /// Of them accepted.
    pub accepted: usize,
    /// Kills of one.
    pub kills: usize,
    /// Kills of all.
    pub kill_alls: usize,
    /// Deaths that were answered with proof.
    pub deaths: usize,
    /// Answers that said that a death is not proven yet.
    pub unverified: usize,
    /// Requests that got no answer.
    pub unanswered: usize,
    /// Nodes killed by SIGKILL.
    pub crashes: usize,
    /// Stores that were locked.
    pub locks: usize,
    /// Agents of those asked for that were to live in containers.
    pub contained: usize,
    /// Times that the engine was frozen.
    pub engine_freezes: usize,
    /// Times that it died.
    pub engine_crashes: usize,
    /// Sights of a container that came up after its agent was killed, and ended.
    pub late_engines: usize,
    /// Times that everything was checked.
    pub checks: usize,
}

/// Holds of a spoke that are in force: nothing of what they cover starts.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) spoke: usize,
    /// Whether agents of the spoke's own operator are held too.
    pub(super) everything: bool,
    /// What ran when it was answered.
    pub(super) running: BTreeSet<(AgentId, PathBuf)>,
    /// Agents that were let go before it was answered, by the record: the first attempt of theirs that is seen is that one.
    pub(super) let_go: BTreeSet<AgentId>,
}

impl Held {
    /// How many of these attempts began under the hold.
    fn started(&mut self, agent: AgentId, spaces: &BTreeSet<PathBuf>) -> usize {
        let fresh = spaces
            .iter()
            .filter(|space| self.running.insert((agent, (*space).clone())))
            .count();
        fresh - usize::from(fresh > 0 && self.let_go.remove(&agent))
    }
}

#[derive(Debug, Default)]
struct Inside {
    agents: BTreeMap<AgentId, Known>,
    held: Vec<Held>,
    counts: Counts,
    log: VecDeque<String>,
    violations: Vec<String>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Ledger {
    began: Instant,
    inside: Mutex<Inside>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            inside: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the counts.
    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.lock().counts);
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Notes what happened, with the time.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        let at = self.began.elapsed();
        let mut inside = self.lock();
        if inside.log.len() == REMEMBERED {
            inside.log.pop_front();
        }
        let line = format!("{:>10.3} {}", at.as_secs_f64(), text.as_ref());
        inside.log.push_back(line);
    }

    /// Something that must be true is not.
    pub(super) fn violated(&self, text: String) {
        self.note(format!("VIOLATED: {text}"));
        self.lock().violations.push(text);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// The last operations.
    pub(super) fn log(&self) -> Vec<String> {
        self.lock().log.iter().cloned().collect()
    }

    pub(super) fn born(&self, agent: AgentId, birth: Birth) {
        let known = Known {
            birth,
            accepted: false,
            killed: false,
            dead: false,
            wrote: false,
            ended: None,
        };
        self.lock().agents.insert(agent, known);
    }

    pub(super) fn change(&self, agent: AgentId, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.lock().agents.get_mut(&agent) {
            change(known);
        }
    }

    pub(super) fn agents(&self) -> BTreeMap<AgentId, Known> {
        self.lock().agents.clone()
    }

    /// A state of an agent was seen. Terminal is final, and dead.
    pub(super) fn saw(&self, agent: AgentId, state: &str, by: &str) {
        let terminal = ["completed", "failed", "killed"].contains(&state);
        let mut wrong = None;
        self.change(agent, |known| match &known.ended {
            // A node that cannot ask says so; it does not say something else.
            Some(before) if before != state && state != "unknown" => {
                wrong = Some(format!("{by} says {state} of {agent}, which was {before}"));
            }
            None if terminal => {
                known.ended = Some(state.to_owned());
                known.dead = true;
            }
            _ => {}
        });
        if let Some(wrong) = wrong {
            self.violated(wrong);
        }
    }

    /// A hold was answered.
    pub(super) fn hold(&self, held: Held) {
        self.lock().held.push(held);
    }

    /// The holds of a spoke may be gone.
    pub(super) fn release(&self, spoke: usize) {
        self.lock().held.retain(|held| held.spoke != spoke);
    }

    pub(super) fn is_anything_held(&self) -> bool {
        !self.lock().held.is_empty()
    }

    /// Checks what was seen of the processes against what was told before.
    pub(super) fn judge(&self, sight: &Sight, dead: &BTreeSet<AgentId>) {
        let agents = self.agents();
        for agent in sight.alive().filter(|agent| dead.contains(agent)) {
            if agents
                .get(&agent)
                .is_some_and(|known| known.birth.contained)
                && sight.is_only_an_engine_late(agent)
            {
                self.count(|counts| counts.late_engines += 1);
                continue;
            }
            let what = describe(sight.of(agent));
            self.violated(format!("a dead agent lives: {agent}: {what}"));
        }
        for (agent, spaces) in sight.attempts() {
            let Some(known) = agents.get(&agent) else {
                continue;
            };
            if spaces.len() > 1 {
                self.violated(format!("{agent} runs {} times at once", spaces.len()));
            }
            let by_hub = known.birth.by_hub;
            let spoke = known.birth.spoke;
            let mut started = 0;
            for held in &mut self.lock().held {
                if held.spoke == spoke && (held.everything || by_hub) {
                    started += held.started(agent, spaces);
                }
            }
            if started > 0 {
                self.violated(format!("{agent} started while spawns were held"));
            }
        }
    }

    /// The agents that were said to have ended.
    pub(super) fn dead(&self) -> BTreeSet<AgentId> {
        let inside = self.lock();
        let dead = inside.agents.iter().filter(|(_, known)| known.dead);
        dead.map(|(agent, _)| *agent).collect()
    }
}

/// What processes these are, for somebody who looks into it.
fn describe(pids: Option<&BTreeSet<u32>>) -> String {
    let told = pids.into_iter().flatten().map(|pid| {
        let read = |file: &str| {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&text).replace('\0', " ")
        };
        format!("{pid} [{}] {}", read("stat"), read("cmdline"))
    });
    told.collect::<Vec<_>>().join("; ")
}
