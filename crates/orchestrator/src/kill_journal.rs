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
//! | the same, `sparesResult` | its attempt had ended before: that keeps its result, and no other follows |
//! | `everything` | that, for every agent that has not ended when this is read |
//! | `told` | this is to go on the audit trail |
//!
//! Whoever accepts an agent reads what is new first. So who is there when a line for everything is read was accepted before
//! it, whatever the clock says; and it is made one for each of them at once ([`KillJournal::assign`]).
//!
//! It also keeps an agent from coming back that was killed before it was on record: whoever asks for it again is
//! refused, for a day. Lines of agents whose death is on record are dropped at the next start, or when the file grows.

use std::{
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

use line::{Line, parse};
pub use line::{Word, Words};
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
    /// Which file this process has read.
    inode: u64,
    /// How long it was at the last look, in bytes.
    looked: u64,
    /// How much of it, from its beginning, is lines that this process has read or written.
    known: u64,
    /// Whether an order for everything is among these.
    everything: bool,
    /// What others left for the audit trail and is not stored yet, in the order of the file.
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
        let (known, _) = bytes.split_at(line::whole(&bytes));
        let state = State {
            file,
            inode,
            looked: bytes.len() as u64,
            known: known.len() as u64,
            everything: words.everything.is_some(),
            told: parse(known).told,
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
            spares_result: false,
        });
        let lines = line::after_any(lines).map_err(|error| self.failed("encode", error))?;
        let mut state = self.lock();
        state
            .file
            .write_all(&lines)
            .and_then(|()| state.file.sync_data())
            .map_err(|error| self.failed("append to", error))?;
        // Behind what another left, or a line that was cut off, ours are news: twice heard does no harm.
        let end = state.known + lines.len() as u64;
        if state.file.metadata().is_ok_and(|found| found.len() == end) {
            (state.known, state.looked) = (end, end);
        }
        Ok(())
    }

    /// Whoever takes up news holds this until it has, so that nobody who comes meanwhile finds none and goes on.
    pub fn heeding(&self) -> MutexGuard<'_, ()> {
        self.heeding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What another process has written since this one last looked, if it has.
    pub fn news(&self) -> Option<Words> {
        let mut state = self.lock();
        let found = fs::metadata(&self.path).ok()?;
        if (found.ino(), found.len()) == (state.inode, state.looked) {
            return None;
        }
        let bytes = fs::read(&self.path).ok()?;
        if found.ino() != state.inode {
            // Until it can be written to, it is as new as it was: our own words must not go into a file that nobody reads.
            let Ok(file) = append_to(&self.path) else {
                return Some(parse(&bytes));
            };
            (state.file, state.inode, state.known) = (file, found.ino(), 0);
        }
        let seen = usize::try_from(state.known).unwrap_or(usize::MAX);
        let fresh = bytes.get(seen..).unwrap_or(&bytes);
        let (whole, _) = fresh.split_at(line::whole(fresh));
        let words = parse(fresh);
        state.told.extend(parse(whole).told);
        state.everything |= words.everything.is_some();
        state.looked = bytes.len() as u64;
        state.known = (bytes.len() - fresh.len() + whole.len()) as u64;
        Some(words)
    }

    /// Whether an order for everything was read that is not one for each yet: [`Self::assign`] is due.
    #[must_use]
    pub fn is_for_everything(&self) -> bool {
        self.lock().everything
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

    /// Puts these words on single agents in the place of an order for everything that was read: who is accepted from here
    /// on is not meant by it, also after a crash. Blocks.
    ///
    /// # Errors
    /// [`JournalError`]; the file is as it was.
    pub fn assign(&self, orders: &Words) -> Result<(), JournalError> {
        self.rewrite(|words| {
            words.add_agents(orders);
            words.everything = None;
        })
    }

    /// Drops the lines of agents that are neither `wanted` nor remembered for being killed before they were on
    /// record. Blocks.
    ///
    /// # Errors
    /// [`JournalError`]; the file is as it was.
    pub fn retain(&self, wanted: impl Fn(AgentId) -> bool) -> Result<(), JournalError> {
        self.rewrite(|words| {
            words.spared.retain(|agent, _| wanted(*agent));
            self.remembered
                .keep(&mut words.agents, Timestamp::now(), wanted);
        })
    }

    /// As [`Self::assign`], and keeps nothing else of what was read so far but the lines of agents that were killed before
    /// they were on record, and what was told after the first `told`, which are on the audit trail. Blocks.
    ///
    /// # Errors
    /// [`JournalError`]; the file is as it was.
    pub fn settle(&self, orders: &Words, told: usize) -> Result<(), JournalError> {
        self.rewrite(|words| {
            words.add_agents(orders);
            words.spared.clone_from(&orders.spared);
            words.everything = None;
            words.told.drain(..told.min(words.told.len()));
            self.remembered
                .keep(&mut words.agents, Timestamp::now(), |agent| {
                    orders.agents.contains_key(&agent)
                });
        })?;
        let mut state = self.lock();
        let told = told.min(state.told.len());
        state.told.drain(..told);
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
            let is_ours = old.metadata()?.ino() == state.inode;
            let known = if is_ours { state.known } else { 0 };
            let known = usize::try_from(known).unwrap_or(usize::MAX);
            let (seen, since) = bytes.split_at(known.min(bytes.len()));
            let mut words = parse(seen);
            change(&mut words);
            let everything = words.everything.is_some();
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
            (state.file, state.inode, state.everything) = (file, inode, everything);
            (state.known, state.looked) = (known, known);
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
