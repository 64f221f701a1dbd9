//! What a kill without a daemon did, as a table and as JSON.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

use mosaic_types::{
    AgentId,
    agent::{DeathProof, ProofMethod},
};
use serde::Serialize;

use super::proof;
use crate::{
    killswitch::micros,
    sandbox::{Found, Look},
};

/// How an agent came out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Proven dead.
    Killed,
    /// The kernel has not confirmed it, or it cannot be known.
    Unverified,
}

/// A process of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// `shim` or `init`.
    pub role: &'static str,
    /// Its pid at the time.
    pub pid: u32,
}

/// What became of an agent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fate {
    /// Whose.
    pub agent_id: AgentId,
    /// How it came out.
    pub outcome: Outcome,
    /// The proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<DeathProof>,
    /// Its shim and its init, as far as they were alive.
    pub processes: Vec<Process>,
    /// The engine's id of its container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Who was alive at the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub survivors: Vec<u32>,
    /// What cannot be known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Fate {
    /// Takes what a later look found.
    pub(super) fn merge(&mut self, later: &Self) {
        for process in &later.processes {
            if !self.processes.contains(process) {
                self.processes.push(process.clone());
            }
        }
        self.outcome = later.outcome;
        self.proof.clone_from(&later.proof);
        self.survivors.clone_from(&later.survivors);
        self.detail.clone_from(&later.detail);
    }
}

pub(super) fn fate(found: &Found, died: bool, started: Instant) -> Fate {
    let is_proven = died && found.unknown.is_none();
    let processes = found.processes().map(|(role, pid)| Process { role, pid });
    Fate {
        agent_id: found.agent_id,
        outcome: if is_proven {
            Outcome::Killed
        } else {
            Outcome::Unverified
        },
        proof: is_proven.then(|| proof(found, started)),
        processes: processes.collect(),
        container: found.container.clone(),
        survivors: if died { Vec::new() } else { found.survivors() },
        detail: found.unknown.clone(),
    }
}

/// What was done to a data folder.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The folder.
    pub data_dir: PathBuf,
    /// Those of which something was alive, or of which that could not be known.
    pub agents: Vec<Fate>,
    /// How many are proven dead.
    pub killed: u64,
    /// How many are not.
    pub unverified: u64,
    /// Who is alive below our cgroup, whoever's it is.
    pub left: Vec<u32>,
    /// What could not be looked at: agents may be behind it.
    pub blind: Vec<String>,
    /// Whether the hold is on disk, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// Whether word for the next daemon is on disk.
    pub word: bool,
    /// Whether the entry for the audit trail is.
    pub told: bool,
    /// What the disk had to say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How long it took.
    pub elapsed_micros: u64,
}

impl Report {
    pub(super) fn new(
        data_dir: &Path,
        fates: BTreeMap<AgentId, Fate>,
        look: &Look,
        started: Instant,
    ) -> Self {
        let agents: Vec<Fate> = fates.into_values().collect();
        let count = |outcome| agents.iter().filter(|fate| fate.outcome == outcome).count() as u64;
        Self {
            data_dir: data_dir.to_owned(),
            killed: count(Outcome::Killed),
            unverified: count(Outcome::Unverified),
            agents,
            left: look.left(),
            blind: look.blind.clone(),
            hold: None,
            word: true,
            told: true,
            notes: Vec::new(),
            elapsed_micros: micros(started.elapsed()),
        }
    }

    /// Whether everything of this folder is proven dead.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.unverified == 0 && self.left.is_empty() && self.blind.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.agents.is_empty() {
            writeln!(f, "nothing was running")?;
        } else {
            writeln!(
                f,
                "{:36}  {:10}  {:6}  PROCESSES",
                "AGENT", "OUTCOME", "PROOF"
            )?;
        }
        for fate in &self.agents {
            let outcome = match fate.outcome {
                Outcome::Killed => "killed",
                Outcome::Unverified => "unverified",
            };
            let proof = fate.proof.as_ref();
            let proof = match proof.map(|proof| proof.method) {
                Some(ProofMethod::Cgroup) => "cgroup",
                Some(_) => "pidfd",
                None => "-",
            };
            let mut processes: Vec<String> = fate
                .processes
                .iter()
                .map(|process| format!("{} {}", process.role, process.pid))
                .collect();
            processes.extend(fate.container.iter().map(|id| {
                let short: String = id.chars().take(12).collect();
                format!("container {short}")
            }));
            if !fate.survivors.is_empty() {
                processes.push(format!("alive: {:?}", fate.survivors));
            }
            processes.extend(fate.detail.clone());
            let id = fate.agent_id.to_string();
            writeln!(
                f,
                "{id:36}  {outcome:10}  {proof:6}  {}",
                processes.join(", ")
            )?;
        }
        if !self.left.is_empty() {
            writeln!(f, "alive below our cgroup: {:?}", self.left)?;
        }
        for blind in &self.blind {
            writeln!(f, "could not be looked at: {blind}")?;
        }
        let millis = self.elapsed_micros / 1000;
        write!(
            f,
            "{} killed, {} not proven, in {millis} ms",
            self.killed, self.unverified
        )?;
        if let Some(hold) = self.hold {
            let how = if hold {
                "held; `mosaic hold release` lets spawns in again"
            } else {
                "NOT HELD"
            };
            write!(f, "; {how}")?;
        }
        writeln!(f)
    }
}
