//! Word of every kill, left on disk before it is answered.
//!
//! A kill is answered before the store knows of it, so that no store can delay it. What makes the answer outlive
//! this process is a line in an append-only file: whoever starts next reads it before it starts anything, and an
//! agent that is named there is never run again. The file is synced once for a kill or a kill-all, beside the
//! proofs and under a time limit; if the disk cannot take it the kill is answered all the same.
//!
//! A kill without a daemon ([`crate::offline`]) leaves its word here as well, while a daemon may be running: that one
//! looks for it ([`KillJournal::news`]) whenever an agent ends or is about to start.
//!
//! | line | says |
//! |---|---|
//! | `agentId`, `order` | this agent is killed |
//! | `everything` | every agent that was accepted before this order and has not ended is killed |
//! | `told` | this is to go on the audit trail |
//!
//! It also keeps an agent from coming back that was killed before it was on record: whoever asks for it again is
//! refused, for a day. Lines of agents whose death is on record are dropped at the next start, or when the file grows.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use mosaic_types::{AgentId, Timestamp, audit::AuditEvent};
use thiserror::Error;

use crate::lifecycle::KillOrder;

mod line;
mod remembered;
mod shared;

pub use line::Words;
use line::{Line, parse};
use remembered::Remembered;
pub use shared::leave;

/// Beyond this size the file is rewritten without the lines that are no longer needed, in bytes.
const COMPACT_BEYOND: u64 = 4 << 20;

/// The journal's name in the data folder.
const NAME: &str = "kills.jsonl";

/// Why the journal could not be read or written.
#[derive(Debug, Error)]
#[error("failed to {operation} {path:?}")]
pub struct JournalError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// See the module documentation.
#[derive(Debug)]
pub struct KillJournal {
    path: PathBuf,
    state: Mutex<State>,
    remembered: Remembered,
    heeding: Mutex<()>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// How much of which file this process has read or written, in bytes.
    inode: u64,
    known: u64,
    /// What others left for the audit trail and is not stored yet.
    told: Vec<AuditEvent>,
}

impl KillJournal {
    /// Opens the journal of a data folder, and tells what it says.
    ///
    /// A line that is not whole was never answered for, unless the disk was slow: it is taken at its word if it
    /// names an agent, for in doubt we kill.
    ///
    /// # Errors
    /// [`JournalError`] if it cannot be read or made.
    pub fn open(data_dir: &Path) -> Result<(Self, Words), JournalError> {
        let path = data_dir.join(NAME);
        let failed = |operation, source| JournalError {
            operation,
            path: path.clone(),
            source,
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("read", error)),
        };
        let file = append_to(&path).map_err(|error| failed("open", error))?;
        let inode = file
            .metadata()
            .map_err(|error| failed("read", error))?
            .ino();
        let words = parse(&bytes);
        let state = State {
            file,
            inode,
            known: bytes.len() as u64,
            told: words.told.clone(),
        };
        let journal = Self {
            path,
            state: Mutex::new(state),
            remembered: Remembered::new(&words.agents),
            heeding: Mutex::default(),
        };
        Ok((journal, words))
    }

    /// Remembers, in this process, that these agents are killed.
    pub fn name(&self, agents: &[AgentId]) {
        self.remembered.add(agents);
    }

    /// Whether an agent was killed whose death is not on record.
    #[must_use]
    pub fn names(&self, agent: AgentId) -> bool {
        self.remembered.has(agent)
    }

    /// An agent's death is on record: nothing else needs to remember it.
    pub fn recorded(&self, agent: AgentId) {
        self.remembered.forget(agent);
    }

    /// Leaves word that these agents are killed; durable when it answers. Blocks for one sync.
    ///
    /// # Errors
    /// [`JournalError`] if the disk did not take it.
    pub fn append(&self, agents: &[AgentId], order: &KillOrder) -> Result<(), JournalError> {
        let lines = agents.iter().map(|agent_id| Line::Agent {
            agent_id: *agent_id,
            order: order.clone(),
        });
        let lines = line::after_any(lines).map_err(|error| self.failed("encode", error))?;
        let mut state = self.lock();
        state
            .file
            .write_all(&lines)
            .and_then(|()| state.file.sync_data())
            .map_err(|error| self.failed("append to", error))?;
        // What another left meanwhile makes the file longer than this, and is looked at.
        state.known += lines.len() as u64;
        Ok(())
    }

    /// Whoever takes up news holds this until it has, so that nobody who comes meanwhile finds none and goes on.
    pub fn heeding(&self) -> MutexGuard<'_, ()> {
        self.heeding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the journal says, if another process has written to it since this one last looked.
    pub fn news(&self) -> Option<Words> {
        let mut state = self.lock();
        let found = fs::metadata(&self.path).ok()?;
        if (found.ino(), found.len()) == (state.inode, state.known) {
            return None;
        }
        let bytes = fs::read(&self.path).ok()?;
        let words = parse(&bytes);
        let seen = usize::try_from(state.known).unwrap_or(usize::MAX);
        let fresh = if found.ino() == state.inode {
            bytes.get(seen..).unwrap_or_default()
        } else {
            // Until it can be written to, it is as new as it was: our own words must not go into a file that nobody reads.
            let Ok(file) = append_to(&self.path) else {
                return Some(words);
            };
            state.file = file;
            &bytes
        };
        state.told.extend(parse(fresh).told);
        state.inode = found.ino();
        state.known = bytes.len() as u64;
        Some(words)
    }

    /// What others left for the audit trail. [`Self::settle`] once it is stored.
    pub fn told(&self) -> Vec<AuditEvent> {
        self.lock().told.clone()
    }

    /// Whether [`Self::retain`] is due.
    #[must_use]
    pub fn is_large(&self) -> bool {
        let state = self.lock();
        state
            .file
            .metadata()
            .is_ok_and(|meta| meta.len() > COMPACT_BEYOND)
    }

    /// Drops the lines of agents that are neither `wanted` nor remembered for being killed before they were on
    /// record. Blocks.
    ///
    /// # Errors
    /// [`JournalError`]; the file is as it was.
    pub fn retain(&self, wanted: impl Fn(AgentId) -> bool) -> Result<(), JournalError> {
        self.rewrite(|words| {
            self.remembered
                .keep(&mut words.agents, Timestamp::now(), wanted);
        })
    }

    /// Keeps the lines of these agents, each with a line of its own, those of agents that were killed before they were on
    /// record, and nothing else of what was read so far: what was told is on
    /// the audit trail, and an order for everything is one for each of them. Blocks.
    ///
    /// # Errors
    /// [`JournalError`]; the file is as it was.
    pub fn settle(&self, orders: &HashMap<AgentId, KillOrder>) -> Result<(), JournalError> {
        self.rewrite(|words| {
            let mut agents = std::mem::take(&mut words.agents);
            agents.extend(orders.iter().map(|(agent, order)| (*agent, order.clone())));
            self.remembered
                .keep(&mut agents, Timestamp::now(), |agent| {
                    orders.contains_key(&agent)
                });
            *words = Words {
                agents,
                ..Words::default()
            };
        })?;
        self.lock().told.clear();
        Ok(())
    }

    /// Rewrites what was read so far; what came since stays as it is, also what one wrote who could not wait for the
    /// lock. After an error the file is as it was, or it is rewritten and that may not outlive a power cut.
    fn rewrite(&self, change: impl FnOnce(&mut Words)) -> Result<(), JournalError> {
        let mut state = self.lock();
        let rewrite = || -> io::Result<()> {
            let mut old = OpenOptions::new()
                .read(true)
                .append(true)
                .open(&self.path)?;
            let kept = old.try_clone()?;
            let _alone = shared::lock(&kept)?;
            let mut bytes = Vec::new();
            old.read_to_end(&mut bytes)?;
            let known = usize::try_from(state.known).unwrap_or(usize::MAX);
            let (seen, since) = bytes.split_at(known.min(bytes.len()));
            let mut words = parse(seen);
            change(&mut words);
            let mut lines = line::encode(words.into_lines())?;
            let known = lines.len() as u64;
            lines.extend(since);
            let fresh = self.path.with_extension("fresh");
            let mut new = File::create(&fresh)?;
            new.write_all(&lines)?;
            new.sync_all()?;
            // Opened before it takes its place: from then on every word goes there.
            let file = append_to(&fresh)?;
            let inode = file.metadata()?.ino();
            reached(Step::Rewritten)?;
            fs::rename(&fresh, &self.path)?;
            (state.file, state.inode, state.known) = (file, inode, known);
            reached(Step::Replaced)?;
            let mut late = Vec::new();
            old.read_to_end(&mut late)?;
            if !late.is_empty() {
                state.file.write_all(&late)?;
                state.file.sync_data()?;
            }
            match self.path.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        rewrite().map_err(|error| self.failed("rewrite", error))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> JournalError {
        JournalError {
            operation,
            path: self.path.clone(),
            source,
        }
    }
}

/// Where a test may come in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The rewritten file is about to take the old one's place.
    Rewritten,
    /// It has.
    Replaced,
    /// Word was left by another process.
    Left,
}

#[cfg(not(test))]
fn reached(_step: Step) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use tests::reached;

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests;
