//! The threads that a node's tasks run on.

use std::{io, num::NonZeroUsize, thread};

use tokio::runtime::{Builder, Runtime};

/// Threads beyond one for each processor. Tasks make system calls that take some milliseconds where a machine is busy: a
/// file is written, a control group is made, a process is started. A kill must find a thread that is in none of them (A30).
const SPARE_THREADS: usize = 8;

/// A runtime for a daemon.
///
/// # Errors
/// A thread cannot be started.
pub fn runtime() -> io::Result<Runtime> {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Builder::new_multi_thread()
        .worker_threads(processors + SPARE_THREADS)
        .enable_all()
        .build()
}
