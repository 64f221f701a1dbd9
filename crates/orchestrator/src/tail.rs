//! Wakes those who wait for files of an agent to grow.
//!
//! One inotify instance serves every agent. A wake-up is a hint, never a fact: whoever is woken reads the file,
//! and whoever waits also looks by itself once in a while, for hosts where inotify is used up.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tracing::warn;

/// How often a waiter looks by itself.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Listeners = Arc<Mutex<HashMap<PathBuf, Arc<Notify>>>>;

/// See the module documentation.
#[derive(Debug)]
pub struct TailWatcher {
    listeners: Listeners,
    watcher: Mutex<Option<RecommendedWatcher>>,
}

impl TailWatcher {
    /// Starts watching nothing.
    #[must_use]
    pub fn start() -> Self {
        let listeners = Listeners::default();
        let heard = Arc::clone(&listeners);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            let listeners = heard.lock().unwrap_or_else(PoisonError::into_inner);
            for dir in event.paths.iter().filter_map(|path| path.parent()) {
                if let Some(listener) = listeners.get(dir) {
                    listener.notify_one();
                }
            }
        });
        let watcher = watcher
            .inspect_err(|error| {
                warn!(
                    error = error as &dyn std::error::Error,
                    "inotify is not available"
                )
            })
            .ok();
        Self {
            listeners,
            watcher: Mutex::new(watcher),
        }
    }

    /// Watches the files directly in `dir`, until the answer is dropped.
    pub fn watch(self: &Arc<Self>, dir: &Path) -> Tail {
        let listener = Arc::new(Notify::new());
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(dir.to_owned(), Arc::clone(&listener));
        if let Some(watcher) = &mut *self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = watcher.watch(dir, RecursiveMode::NonRecursive)
        {
            warn!(
                ?dir,
                error = &error as &dyn std::error::Error,
                "failed to watch for growth"
            );
        }
        Tail {
            watcher: Arc::clone(self),
            dir: dir.to_owned(),
            listener,
        }
    }
}

/// One watched folder.
#[derive(Debug)]
pub struct Tail {
    watcher: Arc<TailWatcher>,
    dir: PathBuf,
    listener: Arc<Notify>,
}

impl Tail {
    /// Waits until something may have grown.
    pub async fn grown(&self) {
        // An elapsed time limit is the look by itself.
        let _ = tokio::time::timeout(LOOK_EVERY, self.listener.notified()).await;
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.watcher
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.dir);
        if let Some(watcher) = &mut *self
            .watcher
            .watcher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            // The folder may be gone already; then the watch is too.
            let _ = watcher.unwatch(&self.dir);
        }
    }
}
