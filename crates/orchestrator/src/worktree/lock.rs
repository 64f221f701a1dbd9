//! One mutator per repository: an async mutex within this process, a `flock` between processes.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::error::WorktreeError;

const POLL: Duration = Duration::from_millis(20);

/// Async mutexes by key; a key that nobody holds or awaits takes no memory.
#[derive(Debug, Default)]
pub(super) struct KeyedLocks {
    locks: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

impl KeyedLocks {
    pub(super) async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let slot = locks.entry(key.to_owned()).or_default();
            slot.upgrade().unwrap_or_else(|| {
                let lock = Arc::new(AsyncMutex::new(()));
                *slot = Arc::downgrade(&lock);
                lock
            })
        };
        lock.lock_owned().await
    }
}

/// The exclusive right to change one mirror. Released when dropped; by the kernel if we die.
#[derive(Debug)]
pub(super) struct MirrorLock {
    file: File,
    _within_process: OwnedMutexGuard<()>,
}

impl MirrorLock {
    /// Blocks for at most `limit`, then gives up.
    pub(super) fn acquire(
        mirror: &Path,
        guard: OwnedMutexGuard<()>,
        limit: Duration,
    ) -> Result<Self, WorktreeError> {
        let path = lock_path(mirror);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(WorktreeError::io("opening the mirror's lock", &path))?;
        let since = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR)
                    if since.elapsed() < limit =>
                {
                    thread::sleep(POLL);
                }
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                    return Err(WorktreeError::MirrorBusy {
                        mirror: mirror.to_owned(),
                        waited_secs: limit.as_secs(),
                    });
                }
                Err(errno) => {
                    return Err(WorktreeError::io("locking the mirror", &path)(errno.into()));
                }
            }
        }
        sweep_stale_locks(mirror);
        Ok(Self {
            file,
            _within_process: guard,
        })
    }

    /// The lock itself, for a child that must keep it even when this process is killed: the lock
    /// belongs to the open file, so whoever holds a copy of the descriptor holds the lock.
    pub(super) fn share(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }
}

fn lock_path(mirror: &Path) -> PathBuf {
    mirror.with_extension("lock")
}

/// A21: git's own `*.lock` files outlive a SIGKILL. Everybody who writes here holds our lock, children
/// included, so whatever lies here while we hold it has no owner.
fn sweep_stale_locks(mirror: &Path) {
    for path in stale_locks(mirror) {
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::warn!(path = %path.display(), "removed a stale lock of a mirror"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "could not remove a stale lock of a mirror");
            }
        }
    }
}

/// A21: the locks that an attempt left in its own repository, for the next one to find its git usable. Wants an agent
/// that is proven dead; nothing is followed out of its tree.
pub(super) fn sweep_locks_of_the_dead(work: &Path) {
    let git_dir = work.join(".git");
    if std::fs::symlink_metadata(&git_dir).is_ok_and(|found| found.is_dir()) {
        for path in stale_locks(&git_dir) {
            // What is in the way for another reason, the agent sees for itself.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// The lock files of a repository, symbolic links among them as themselves.
fn stale_locks(git_dir: &Path) -> Vec<PathBuf> {
    let mut stale: Vec<PathBuf> = [
        "HEAD.lock",
        "config.lock",
        "packed-refs.lock",
        "shallow.lock",
        "index.lock",
    ]
    .iter()
    .map(|name| git_dir.join(name))
    .collect();
    let refs = git_dir.join("refs");
    let mut pending = Vec::new();
    if std::fs::symlink_metadata(&refs).is_ok_and(|found| found.is_dir()) {
        pending.push(refs);
    }
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(_) if entry.path().extension().is_some_and(|ext| ext == "lock") => {
                    stale.push(entry.path());
                }
                _ => {}
            }
        }
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lock(mirror: &Path) -> Result<MirrorLock, WorktreeError> {
        let guard = KeyedLocks::default().lock("mirror").await;
        MirrorLock::acquire(mirror, guard, Duration::ZERO)
    }

    #[tokio::test]
    async fn a21_a_child_that_outlives_us_keeps_the_mirror_locked() {
        let dir = tempfile::tempdir().unwrap();
        let mirror = dir.path().join("m.git");
        std::fs::create_dir_all(mirror.join("refs")).unwrap();
        let ours = lock(&mirror).await.unwrap();
        let childs = ours.share().unwrap();
        let stale = mirror.join("refs/x.lock");
        std::fs::write(&stale, "").unwrap();
        drop(ours);
        assert!(matches!(
            lock(&mirror).await,
            Err(WorktreeError::MirrorBusy { .. })
        ));
        assert!(stale.exists());
        drop(childs);
        lock(&mirror).await.unwrap();
        assert!(!stale.exists());
    }

    #[tokio::test]
    async fn keys_are_independent_and_forgotten() {
        let locks = KeyedLocks::default();
        let first = locks.lock("a").await;
        drop(locks.lock("b").await);
        drop(first);
        drop(locks.lock("c").await);
        assert_eq!(locks.locks.lock().unwrap().len(), 1);
    }
}
