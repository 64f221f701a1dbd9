//! A kill-all that needs no daemon: none that runs, none that answers, and no store, port, queue or free disk either.
//!
//! ```text
//! hold on disk ─► look ─► word on disk ─► strike ─► proofs ─► look again ─► told
//!                                           └──── until nothing is alive ─┘
//! ```
//!
//! The word comes before the strike: a daemon that runs all the same, or comes back to itself, finds its agents dead and looks
//! for the reason. It then records them as killed, salvages their work, and starts none of those that waited
//! ([`crate::kill_journal`]). A disk that cannot take the word keeps nobody alive.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use mosaic_node::with_causes;
use mosaic_types::{
    AgentId, Timestamp,
    agent::{DeathProof, EndReason},
    audit::{Actor, AuditEvent},
};

use crate::{
    hold::{Hold, HoldScope},
    kill_journal::{self, Words},
    killswitch::{self, micros},
    lifecycle::KillOrder,
    sandbox::{self, Found, Look},
};

mod report;

pub use report::{Fate, Outcome, Process, Report};

/// How long the kernel may take to confirm.
pub const PROOF_WITHIN: Duration = Duration::from_secs(10);
/// How long the disk may take before the strike.
const DISK_WITHIN: Duration = Duration::from_millis(250);
/// How long it may take afterwards, until it is given up.
const DISK_AT_LAST: Duration = Duration::from_secs(5);

/// Kills every agent of a data folder and proves it. `hold`: and sees to it that none starts until the hold is released.
#[must_use]
pub fn kill_all(data_dir: &Path, hold: bool, within: Duration) -> Report {
    let started = Instant::now();
    let deadline = started + within;
    let order = order();
    let held = hold.then(|| in_time(data_dir, DISK_WITHIN, set_hold));
    let mut look = sandbox::look(data_dir);
    let mut word = Word::leave(data_dir, &look, &order);
    let mut fates: BTreeMap<AgentId, Fate> = BTreeMap::new();
    loop {
        look.strike();
        for found in &look.found {
            let died = found.wait_dead(deadline);
            let fate = report::fate(found, died, started);
            fates
                .entry(found.agent_id)
                .and_modify(|known| known.merge(&fate))
                .or_insert(fate);
        }
        while !look.left().is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        // Whoever was on its way to life meanwhile.
        let again = sandbox::look(data_dir);
        let is_over = again.found.iter().all(|found| found.survivors().is_empty());
        let over = is_over && again.left().is_empty();
        look.blind.clone_from(&again.blind);
        if over || Instant::now() >= deadline {
            look = again;
            break;
        }
        word.add(data_dir, &again, &order);
        look = again;
    }
    let mut report = Report::new(data_dir, fates, &look, started);
    let held = held.map(|held| held.at_last());
    report.hold = held.as_ref().map(Result::is_ok);
    report.notes.extend(held.and_then(Result::err));
    let left = word.at_last();
    report.word = left.is_ok();
    report.notes.extend(left.err());
    if let Err(note) = tell(data_dir, &order, &report) {
        report.told = false;
        report.notes.push(note);
    }
    report
}

/// The order, in the name of whoever has the data folder.
fn order() -> KillOrder {
    let actor = Actor::Operator {
        token: "offline".to_owned(),
    };
    killswitch::order(EndReason::KillAll, actor, Some("kill-all --offline"))
}

fn set_hold(data_dir: PathBuf) -> Result<(), String> {
    let held = Hold::open(&data_dir).and_then(|hold| hold.make_durable(HoldScope::Everything));
    held.map_err(|error| with_causes(&error))
}

/// What the disk is asked to do, in a thread that may hang with it.
struct Pending(
    mpsc::Receiver<Result<(), String>>,
    Option<Result<(), String>>,
);

impl Pending {
    fn at_last(self) -> Result<(), String> {
        let late = || Err("the disk does not answer".to_owned());
        self.1
            .unwrap_or_else(|| self.0.recv_timeout(DISK_AT_LAST).unwrap_or_else(|_| late()))
    }
}

fn in_time(
    data_dir: &Path,
    within: Duration,
    write: impl FnOnce(PathBuf) -> Result<(), String> + Send + 'static,
) -> Pending {
    let (done, outcome) = mpsc::channel();
    let data_dir = data_dir.to_owned();
    let spawned = thread::Builder::new().spawn(move || {
        let _ = done.send(write(data_dir));
    });
    let early = match spawned {
        Ok(_) => outcome.recv_timeout(within).ok(),
        Err(error) => Some(Err(format!("failed to start a thread: {error}"))),
    };
    Pending(outcome, early)
}

/// Word of the kill, left for the daemon that runs or comes next.
struct Word(Vec<Pending>);

impl Word {
    fn leave(data_dir: &Path, look: &Look, order: &KillOrder) -> Self {
        let everything = Words {
            everything: Some(order.clone()),
            ..named(&look.found, order)
        };
        Self(vec![leave(data_dir, everything, run_dirs(&look.found))])
    }

    fn add(&mut self, data_dir: &Path, look: &Look, order: &KillOrder) {
        if !look.found.is_empty() {
            let words = named(&look.found, order);
            self.0.push(leave(data_dir, words, run_dirs(&look.found)));
        }
    }

    fn at_last(self) -> Result<(), String> {
        self.0.into_iter().try_for_each(Pending::at_last)
    }
}

fn named(found: &[Found], order: &KillOrder) -> Words {
    let agents = found.iter().map(|found| (found.agent_id, order.clone()));
    Words {
        agents: agents.collect(),
        ..Words::default()
    }
}

fn run_dirs(found: &[Found]) -> Vec<(AgentId, PathBuf)> {
    let dirs = found.iter();
    dirs.map(|found| (found.agent_id, found.run_dir.clone()))
        .collect()
}

fn leave(data_dir: &Path, words: Words, run_dirs: Vec<(AgentId, PathBuf)>) -> Pending {
    in_time(data_dir, DISK_WITHIN, move |data_dir| {
        let agents = words.agents.clone();
        let Err(error) = kill_journal::leave(&data_dir, words) else {
            return Ok(());
        };
        // No room: each agent's shim has taken some.
        let mut unheard = 0;
        for (agent_id, run_dir) in run_dirs {
            let own = Words {
                agents: agents
                    .get(&agent_id)
                    .map(|order| (agent_id, order.clone()))
                    .into_iter()
                    .collect(),
                ..Words::default()
            };
            let left = own
                .to_bytes()
                .and_then(|word| sandbox::leave_word_in_reserve(&run_dir, &word));
            unheard += usize::from(left.is_err());
        }
        Err(format!(
            "{}; agents that have no word of their own: {unheard}; agents that wait may start",
            with_causes(&error)
        ))
    })
}

/// Leaves what was asked and done for the audit trail.
fn tell(data_dir: &Path, order: &KillOrder, report: &Report) -> Result<(), String> {
    let event = AuditEvent {
        at: order.at,
        actor: order.actor.clone(),
        action: "killswitch.kill-all".to_owned(),
        subject: None,
        outcome: if report.unverified == 0 {
            "ok"
        } else {
            "unverified"
        }
        .to_owned(),
        detail: serde_json::json!({
            "note": order.note,
            "uid": rustix::process::getuid().as_raw(),
            "told": {
                "killed": report.killed,
                "unverified": report.unverified,
                "hold": report.hold.is_some(),
                "holdDurable": report.hold,
                "elapsedMicros": report.elapsed_micros,
            },
        }),
    };
    let words = Words {
        told: vec![event],
        ..Words::default()
    };
    let write = move |data_dir: PathBuf| {
        kill_journal::leave(&data_dir, words).map_err(|error| with_causes(&error))
    };
    in_time(data_dir, DISK_AT_LAST, write).at_last()
}

/// A proof in the words of the wire.
fn proof(found: &Found, started: Instant) -> DeathProof {
    DeathProof {
        method: killswitch::method(found.method()),
        elapsed_micros: micros(started.elapsed()),
        proven_at: Timestamp::now(),
    }
}
