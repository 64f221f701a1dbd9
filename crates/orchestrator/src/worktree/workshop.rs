//! Threads for heavy work on files and objects: as many as there are processors, behind everything else.
//!
//! Trees that are made and work that is brought home take a processor for as long as a repository is large. As many
//! threads as agents would leave nothing to a kill (A30); these are few, and give way to whoever else wants a processor.
//! What waits for a network or for another process has no place here: it would keep others waiting.

use std::{num::NonZeroUsize, thread};

use tokio::runtime::{Builder, Runtime};
use tracing::warn;

use super::WorktreeError;

/// As the daemon's own niceness and this much more: behind agents, which add 5.
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

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::{Mutex, mpsc},
    };

    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn work_is_done_by_few_threads_which_stand_back() {
        let processors = thread::available_parallelism().unwrap().get();
        let (workshop, used) = (Workshop::open("workshop").unwrap(), Mutex::default());
        let used: &'static Mutex<HashSet<_>> = Box::leak(Box::new(used));
        let all = (0..processors * 8).map(|_| {
            workshop.run("noting a thread", move || {
                used.lock().unwrap().insert(thread::current().id());
                thread::yield_now();
                Ok(getpriority_process(None).unwrap())
            })
        });
        let own = getpriority_process(None).unwrap();
        for nice in futures_util::future::join_all(all).await {
            assert_eq!(nice.unwrap(), (own + NICE).min(19));
        }
        assert!(used.lock().unwrap().len() <= processors);
    }

    #[tokio::test]
    async fn who_lets_go_of_it_waits_for_nobody() {
        let workshop = Workshop::open("workshop").unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let (begun, beginning) = tokio::sync::oneshot::channel();
        let working = workshop.run("waiting", move || {
            let _ = begun.send(());
            let _ = wait.recv();
            Ok(())
        });
        let mut working = Box::pin(working);
        tokio::select! {
            _ = &mut working => panic!("it waits"),
            begun = beginning => begun.unwrap(),
        }
        drop(working);
        drop(workshop);
        drop(go);
    }
}
