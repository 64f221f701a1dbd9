//! Threads for heavy work on files and objects: as many as there are processors, behind everything else, and one more for
//! a piece of work that is alone.
//!
//! Trees that are made and work that is brought home take a processor for as long as a repository is large. As many
//! threads as agents would leave nothing to a kill (A30); these are few, and give way to whoever else wants a processor.
//! What is alone does not: it is one thread's worth, and who waits for its tree should not wait for an engine that makes
//! the next container ready.
//! What waits for a network or for another process has no place here: it would keep others waiting.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::runtime::{Builder, Runtime};
use tracing::warn;

use super::WorktreeError;

/// As the daemon's own niceness and this much more: behind agents, which add 5.
const NICE: i32 = 10;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Workshop {
    /// For what is alone.
    prompt: Pool,
    /// For everything else.
    patient: Pool,
    /// How many pieces of work wait or are under way.
    pieces: Arc<AtomicUsize>,
}

impl Workshop {
    /// Threads of this name, which are started when there is work.
    pub(super) fn open(name: &'static str) -> Result<Self, WorktreeError> {
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Self {
            prompt: Pool::open(name, 1, 0)?,
            patient: Pool::open(name, processors, NICE)?,
            pieces: Arc::default(),
        })
    }

    /// Does this when a thread is free.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> Result<T, WorktreeError> + Send + 'static,
    ) -> Result<T, WorktreeError> {
        let (piece, is_alone) = Piece::of(&self.pieces);
        let pool = if is_alone {
            &self.prompt
        } else {
            &self.patient
        };
        let interrupted = Err(WorktreeError::Interrupted { operation });
        let Some(runtime) = &pool.0 else {
            return interrupted;
        };
        // Counted until it is done, whether or not somebody waits for it.
        let done = runtime.spawn_blocking(move || {
            let _piece = piece;
            work()
        });
        done.await.unwrap_or_else(|error| {
            warn!(operation, %error, "work broke off");
            interrupted
        })
    }
}

/// A piece of work that waits or is under way; counted until it is dropped.
struct Piece(Arc<AtomicUsize>);

impl Piece {
    /// One more, and whether it is the only one.
    fn of(pieces: &Arc<AtomicUsize>) -> (Self, bool) {
        let is_alone = pieces.fetch_add(1, Ordering::Relaxed) == 0;
        (Self(Arc::clone(pieces)), is_alone)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Threads with a queue.
#[derive(Debug)]
struct Pool(Option<Runtime>);

impl Pool {
    fn open(name: &'static str, threads: usize, nice: i32) -> Result<Self, WorktreeError> {
        // Nothing is driven by it: it has a pool of threads with a queue.
        Builder::new_current_thread()
            .thread_name(name)
            .max_blocking_threads(threads)
            .on_thread_start(move || {
                // Of this thread alone, as Linux has it. Without, it is only less polite.
                let _ = rustix::process::nice(nice);
            })
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(WorktreeError::io("starting threads in", "."))
    }
}

impl Drop for Pool {
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

    use futures_util::FutureExt as _;
    use rustix::process::getpriority_process;

    use super::*;

    /// Work that waits until it is let go, polled once so that it is counted.
    fn held<'a>(
        workshop: &'a Workshop,
        wait: mpsc::Receiver<()>,
    ) -> impl Future<Output = Result<i32, WorktreeError>> + 'a {
        let work = workshop.run("waiting", move || {
            let _ = wait.recv();
            Ok(getpriority_process(None).unwrap())
        });
        let mut work = Box::pin(work);
        assert!(work.as_mut().now_or_never().is_none());
        work
    }

    #[tokio::test]
    async fn work_is_done_by_few_threads_which_stand_back() {
        let processors = thread::available_parallelism().unwrap().get();
        let (workshop, used) = (Workshop::open("workshop").unwrap(), Mutex::default());
        let used: &'static Mutex<HashSet<_>> = Box::leak(Box::new(used));
        let own = getpriority_process(None).unwrap();
        let (go, wait) = mpsc::channel();
        let alone = held(&workshop, wait);
        let all = (0..processors * 8).map(|_| {
            workshop.run("noting a thread", move || {
                used.lock().unwrap().insert(thread::current().id());
                thread::yield_now();
                Ok(getpriority_process(None).unwrap())
            })
        });
        for nice in futures_util::future::join_all(all).await {
            assert_eq!(nice.unwrap(), (own + NICE).min(19));
        }
        assert!(used.lock().unwrap().len() <= processors);
        go.send(()).unwrap();
        assert_eq!(alone.await.unwrap(), own, "the first was alone");
    }

    #[tokio::test]
    async fn what_is_alone_does_not_stand_back() {
        let workshop = Workshop::open("workshop").unwrap();
        let own = getpriority_process(None).unwrap();
        let niceness = || workshop.run("asking", || Ok(getpriority_process(None).unwrap()));
        for _ in 0..3 {
            assert_eq!(niceness().await.unwrap(), own);
        }
        // One that nobody waits for any more is still under way.
        let (go, wait) = mpsc::channel();
        drop(held(&workshop, wait));
        assert_eq!(niceness().await.unwrap(), (own + NICE).min(19));
        drop(go);
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
