//! The hold: while it is set, no agent starts.
//!
//! A sentinel file for each hold lies in `<data>/hold/`, so that a hold outlives a restart, works with the
//! store gone, and can be set while no daemon runs. Every start asks [`Hold::covers`] before *and* after it
//! starts something.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use mosaic_types::{ConnectionId, api::HoldStatus};
use thiserror::Error;

use crate::sandbox::Scope;

const EVERYTHING: &str = "all";

/// Why a hold could not be written or removed.
#[derive(Debug, Error)]
#[error("failed to {operation} {path:?}")]
pub struct HoldError {
    /// What was attempted, as a verb.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// What a hold holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldScope {
    /// Every spawn.
    Everything,
    /// The spawns of one connection.
    Connection(ConnectionId),
}

impl HoldScope {
    /// The holds of which each keeps the agents of a scope from starting.
    pub fn over(scope: Scope) -> impl Iterator<Item = Self> {
        let own = match scope {
            Scope::Local => None,
            Scope::Connection(id) => Some(Self::Connection(id)),
        };
        [Some(Self::Everything), own].into_iter().flatten()
    }

    fn file_name(self) -> String {
        match self {
            Self::Everything => EVERYTHING.to_owned(),
            Self::Connection(id) => id.to_string(),
        }
    }
}

/// The holds of one data folder.
#[derive(Debug)]
pub struct Hold {
    dir: PathBuf,
    // Holds that could not be written (a full disk) hold until this process ends all the same.
    memory: RwLock<BTreeSet<HoldScope>>,
}

impl Hold {
    /// Opens the holds of a data folder.
    ///
    /// # Errors
    /// [`HoldError`] if the folder cannot be made.
    pub fn open(data_dir: &Path) -> Result<Self, HoldError> {
        let dir = data_dir.join("hold");
        fs::create_dir_all(&dir).map_err(|source| HoldError {
            operation: "make",
            path: dir.clone(),
            source,
        })?;
        Ok(Self {
            dir,
            memory: RwLock::default(),
        })
    }

    /// Holds from now on, in this process.
    pub fn set(&self, scope: HoldScope) {
        self.memory
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(scope);
    }

    /// Makes a hold outlive this process. Blocks for a sync.
    ///
    /// # Errors
    /// [`HoldError`] if the sentinel could not be made durable; in this process it holds all the same.
    pub fn make_durable(&self, scope: HoldScope) -> Result<(), HoldError> {
        let path = self.dir.join(scope.file_name());
        let write = || {
            File::create(&path)?.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| HoldError {
            operation: "write",
            path: path.clone(),
            source,
        })
    }

    /// Ends a hold; with [`HoldScope::Everything`], each of them.
    ///
    /// # Errors
    /// [`HoldError`] if a sentinel could not be removed; what remains still holds.
    pub fn release(&self, scope: HoldScope) -> Result<(), HoldError> {
        let released: Vec<HoldScope> = match scope {
            HoldScope::Everything => self.holds(),
            HoldScope::Connection(_) => vec![scope],
        };
        for scope in released {
            let path = self.dir.join(scope.file_name());
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(HoldError {
                        operation: "remove",
                        path,
                        source,
                    });
                }
                _ => {}
            }
            self.memory
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&scope);
        }
        Ok(())
    }

    /// Whether an agent of this scope must not start. In doubt, it must not.
    #[must_use]
    pub fn covers(&self, scope: Scope) -> bool {
        HoldScope::over(scope).any(|hold| {
            self.memory.read().unwrap_or_else(PoisonError::into_inner).contains(&hold)
                // The disk is asked each time: an offline kill-all may have set it.
                || self.dir.join(hold.file_name()).try_exists().unwrap_or(true)
        })
    }

    /// Does something unless a hold covers the scope; a hold that is set meanwhile waits for it, so that whoever has
    /// set one knows that nothing slipped through behind it. `None` if it was held.
    pub fn unless_held<T>(&self, scope: Scope, act: impl FnOnce() -> T) -> Option<T> {
        // The disk is asked before, without the lock: a kill-all must not wait for it.
        if self.covers(scope) {
            return None;
        }
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let held = HoldScope::over(scope).any(|hold| memory.contains(&hold));
        (!held).then(act)
    }

    /// Every hold.
    #[must_use]
    pub fn status(&self) -> HoldStatus {
        let holds = self.holds();
        HoldStatus {
            all: holds.contains(&HoldScope::Everything),
            connections: holds
                .into_iter()
                .filter_map(|hold| match hold {
                    HoldScope::Connection(id) => Some(id),
                    HoldScope::Everything => None,
                })
                .collect(),
        }
    }

    fn holds(&self) -> Vec<HoldScope> {
        let mut holds = self
            .memory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Ok(entries) = fs::read_dir(&self.dir) else {
            // As `covers` says: what cannot be read holds.
            holds.insert(HoldScope::Everything);
            return holds.into_iter().collect();
        };
        for entry in entries.flatten() {
            match entry.file_name().to_str() {
                Some(EVERYTHING) => holds.insert(HoldScope::Everything),
                Some(name) => name
                    .parse()
                    .is_ok_and(|id| holds.insert(HoldScope::Connection(id))),
                None => false,
            };
        }
        holds.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a9_a_hold_outlives_its_process_and_ends_by_release() {
        let data = tempfile::tempdir().unwrap();
        let id = ConnectionId::generate();
        let hold = Hold::open(data.path()).unwrap();
        assert!(!hold.covers(Scope::Local));
        hold.set(HoldScope::Connection(id));
        hold.make_durable(HoldScope::Connection(id)).unwrap();
        assert!(hold.covers(Scope::Connection(id)));
        assert!(!hold.covers(Scope::Local));

        let restarted = Hold::open(data.path()).unwrap();
        assert!(restarted.covers(Scope::Connection(id)));
        restarted.set(HoldScope::Everything);
        restarted.make_durable(HoldScope::Everything).unwrap();
        assert!(hold.covers(Scope::Local), "set by another process");
        assert_eq!(
            hold.status(),
            HoldStatus {
                all: true,
                connections: vec![id]
            }
        );

        restarted.release(HoldScope::Everything).unwrap();
        assert!(!restarted.covers(Scope::Connection(id)));
        assert_eq!(
            restarted.status(),
            HoldStatus {
                all: false,
                connections: vec![]
            }
        );
    }

    #[test]
    fn a9_nothing_slips_through_while_a_hold_is_set() {
        use std::sync::{
            atomic::{AtomicBool, Ordering},
            mpsc,
        };
        let data = tempfile::tempdir().unwrap();
        let hold = Hold::open(data.path()).unwrap();
        let acted = AtomicBool::new(false);
        let (about_to_set, setting) = mpsc::channel();
        std::thread::scope(|threads| {
            hold.unless_held(Scope::Local, || {
                threads.spawn(|| {
                    about_to_set.send(()).unwrap();
                    hold.set(HoldScope::Everything);
                    assert!(acted.load(Ordering::SeqCst), "set in the middle of it");
                });
                setting.recv().unwrap();
                for _ in 0..1000 {
                    std::thread::yield_now();
                }
                acted.store(true, Ordering::SeqCst);
            })
            .unwrap();
        });
        assert_eq!(hold.unless_held(Scope::Local, || ()), None);
    }

    #[test]
    fn a_hold_that_cannot_be_written_holds_all_the_same() {
        let data = tempfile::tempdir().unwrap();
        let hold = Hold::open(data.path()).unwrap();
        fs::remove_dir(data.path().join("hold")).unwrap();
        fs::write(data.path().join("hold"), "in the way").unwrap();
        hold.set(HoldScope::Everything);
        assert!(hold.make_durable(HoldScope::Everything).is_err());
        assert!(hold.covers(Scope::Local));
    }
}
