//! Threads for heavy work on files and objects: as many as there are processors, behind everything else.
//!
//! Trees that are made and work that is brought home take a processor for as long as a repository is large. As many
//! threads as agents would leave nothing to a kill (A30); these are few, and the kernel runs them when nobody else wants to.
//! What waits for a network or for another process has no place here: it would keep others waiting.

use std::{num::NonZeroUsize, thread};

use tokio::runtime::{Builder, Runtime};
use tracing::warn;

use super::WorktreeError;

/// Below agents, which are at 5.
const NICE: i32 = 10;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Workshop(Option<Runtime>);

impl Workshop {
    /// Threads of this name, which are started when there is work.
    pub(super) fn open(name: &'static str) -> Result<Self, WorktreeError> {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        // Nothing is driven by it: it has a pool of threads with a queue.
        Builder::new_current_thread()
            .thread_name(name)
            .max_blocking_threads(threads)
            .on_thread_start(|| {
                // Of this thread alone, as Linux has it. Without, it is only less polite.
                let _ = rustix::process::nice(NICE);
            })
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(WorktreeError::io("starting threads in", "."))
    }

    /// Does this when a thread is free.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> Result<T, WorktreeError> + Send + 'static,
    ) -> Result<T, WorktreeError> {
        let interrupted = Err(WorktreeError::Interrupted { operation });
        let Some(runtime) = &self.0 else {
            return interrupted;
        };
        runtime.spawn_blocking(work).await.unwrap_or_else(|error| {
            warn!(operation, %error, "work broke off");
            interrupted
        })
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Work under way goes on to its end, as it does on any thread; who drops this may be a task.
            runtime.shutdown_background();
        }
    }
}
