//! The threads that read, each with a read-only connection of its own, so that a long read never holds up a
//! write.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use super::{CACHED_STATEMENTS, QUEUE_READS};
use crate::StoreError;

const READERS: usize = 2;

/// A queued read.
pub(super) type Read = Box<dyn FnOnce(&Connection) + Send>;

/// Makes a read ready for the queue, and a receiver for its answer.
pub(super) fn read<T: Send + 'static>(
    query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
) -> (Read, oneshot::Receiver<Result<T, StoreError>>) {
    let (sender, receiver) = oneshot::channel();
    let read: Read = Box::new(move |connection| {
        let result = catch_unwind(AssertUnwindSafe(|| query(connection))).unwrap_or_else(|_| {
            tracing::error!("a read of the store panicked");
            Err(StoreError::Panicked)
        });
        let _caller_may_have_left = sender.send(result);
    });
    (read, receiver)
}

/// Starts the readers. They end when the sender is dropped and the queue is empty.
pub(super) fn start(
    database: &Path,
) -> Result<(SyncSender<Read>, Vec<JoinHandle<()>>), StoreError> {
    let (sender, queue) = sync_channel(QUEUE_READS);
    let queue = Arc::new(Mutex::new(queue));
    let threads = (0..READERS)
        .map(|_| {
            let connection = open(database).map_err(StoreError::of(StoreError::Open))?;
            let queue = Arc::clone(&queue);
            Builder::new()
                .name("store-reader".to_owned())
                .spawn(move || serve(&connection, &queue))
                .map_err(|error| StoreError::StartThread(Arc::new(error)))
        })
        .collect::<Result<_, _>>()?;
    Ok((sender, threads))
}

fn open(database: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.busy_timeout(super::BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    Ok(connection)
}

fn serve(connection: &Connection, queue: &Mutex<Receiver<Read>>) {
    loop {
        // One reader waits in `recv` with the lock, the others for the lock.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(read) = next else { return };
        read(connection);
    }
}
