//! The embedded backend: one SQLite file in the data folder.
//!
//! ```text
//! verb ──► bounded queue ──► writer ──► one transaction for all that waited ──► commit ──► answers
//! read ──► bounded queue ──► readers, each with a read-only connection
//! ```
//!
//! The file is in WAL mode with `synchronous = FULL`: a commit is on the disk before it is answered. A queue
//! that is full refuses with [`StoreError::Busy`] at once; a quarter of the writer's queue is out of reach of
//! claims and responses, so that no flood of peers' messages keeps an agent's end from being recorded.

mod agents;
mod audit_trail;
mod claims;
mod commands;
mod connections;
mod folder;
mod forgotten;
mod kill_intents;
mod leases;
mod readers;
mod remote_agents;
mod rows;
mod schema;
mod spending;
mod store;
mod tokens;
mod witnesses;
mod writer;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

pub use folder::DATABASE_FILE;
use folder::Folder;
use readers::Read;
use writer::{Facts, Job, Published, Tx, Writer};

use crate::{Limits, StoreError};

/// Writes that may wait. At some microseconds each this is a fraction of a second.
const QUEUE_WRITES: usize = 1_024;
/// Of these, how many may be claims and responses.
const QUEUE_PEERS_WRITES: usize = QUEUE_WRITES / 4 * 3;
/// Reads that may wait.
const QUEUE_READS: usize = 1_024;
const CACHED_STATEMENTS: usize = 128;
/// Only a backup tool could hold the file's lock; our own threads never wait for one another.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);

/// The embedded backend; see the module documentation. Dropping it drains and closes it too.
#[derive(Debug)]
pub struct SqliteStore {
    queues: RwLock<Option<Queues>>,
    threads: Mutex<Threads>,
    published: Arc<Published>,
    /// Claims and responses in the queue.
    peers_writes: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Queues {
    writes: SyncSender<Job>,
    reads: SyncSender<Read>,
}

#[derive(Debug, Default)]
struct Threads {
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
}

/// Which share of the writer's queue a verb may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// All of it.
    Whole,
    /// What peers' messages may fill.
    Peers,
}

impl SqliteStore {
    /// Opens the store in `folder`, which is made if it is missing, and brings it to this release's schema.
    /// Blocks on the disk: call it before serving.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has the folder, [`StoreError::Prepare`] if it cannot be
    /// written, [`StoreError::NotOurs`] and [`StoreError::SchemaTooNew`] for files that are left as they are,
    /// and those of the machine.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, StoreError> {
        let folder = Folder::take(folder)?;
        let connection = open_writer(&folder.database)?;
        Self::start(connection, folder, limits)
    }

    fn start(connection: Connection, folder: Folder, limits: Limits) -> Result<Self, StoreError> {
        let count = |sql: &str, error: fn(Arc<rusqlite::Error>) -> StoreError| {
            connection
                .query_row(sql, [], |row| row.get::<_, i64>(0))
                .map_err(StoreError::of(error))
                .and_then(|count| rows::number("count", count))
        };
        let facts = Facts {
            tip: audit_trail::Tip::load(&connection)?,
            claims: claims::Claims::load(&connection)?,
            forgotten: forgotten::Forgotten::load(&connection)?,
            agents: count("SELECT count(*) FROM agents", StoreError::Agents)?,
            remote_agents: count(
                "SELECT count(*) FROM remote_agents",
                StoreError::RemoteAgents,
            )?,
            highest_heads: Vec::new(),
        };
        let highest_heads: HashMap<_, _> = witnesses::highest(&connection)?
            .into_iter()
            .map(|seen| (seen.instance, seen.head))
            .collect();
        let published = Arc::new(Published {
            head: RwLock::new(facts.tip.head()),
            highest_heads: RwLock::new(highest_heads),
        });
        let (reads, readers) = readers::start(&folder.database)?;
        let (writes, queue) = sync_channel(QUEUE_WRITES);
        let writer = Writer {
            connection,
            facts,
            limits,
            published: Arc::clone(&published),
            folder,
        };
        let writer = Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|error| StoreError::StartThread(Arc::new(error)))?;
        Ok(Self {
            queues: RwLock::new(Some(Queues { writes, reads })),
            threads: Mutex::new(Threads {
                readers,
                writer: Some(writer),
            }),
            published,
            peers_writes: Arc::default(),
        })
    }

    async fn write<T: Send + 'static>(
        &self,
        share: Share,
        verb: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = Place::take(&self.peers_writes, share)?;
        let (job, answer) = writer::job(move |tx| {
            drop(place);
            verb(tx)
        });
        self.enqueue(|queues| refusal(queues.writes.try_send(job)))?;
        // The writer answers every job; if it cannot, its thread is gone.
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (read, answer) = readers::read(query);
        self.enqueue(|queues| refusal(queues.reads.try_send(read)))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    fn enqueue(
        &self,
        send: impl FnOnce(&Queues) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        send(queues.as_ref().ok_or(StoreError::Closed)?)
    }

    /// Ends the threads after what is queued, readers first so that the writer's checkpoint is complete.
    fn shut_down(&self) {
        drop(
            self.queues
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let Threads { readers, writer } = std::mem::take(&mut *threads);
        for thread in readers.into_iter().chain(writer) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// A place in the peers' share of the queue, given back when the verb's turn comes or it is refused.
struct Place(Option<Arc<AtomicUsize>>);

impl Place {
    fn take(counter: &Arc<AtomicUsize>, share: Share) -> Result<Self, StoreError> {
        if share == Share::Whole {
            return Ok(Self(None));
        }
        let before = counter.fetch_add(1, Ordering::Relaxed);
        let place = Self(Some(Arc::clone(counter)));
        if before >= QUEUE_PEERS_WRITES {
            return Err(StoreError::Busy);
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(counter) = &self.0 {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn refusal<T>(sent: Result<(), TrySendError<T>>) -> Result<(), StoreError> {
    sent.map_err(|refused| match refused {
        TrySendError::Full(_) => StoreError::Busy,
        TrySendError::Disconnected(_) => StoreError::Closed,
    })
}

fn open_writer(database: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection =
        Connection::open_with_flags(database, flags).map_err(StoreError::of(StoreError::Open))?;
    let configure = |connection: &Connection| {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        // Savepoints keep their undo log in memory.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        Ok(())
    };
    configure(&connection).map_err(StoreError::of(StoreError::Open))?;
    schema::migrate(&mut connection, database, schema::STEPS)?;
    // After the schema, so that a file that is not ours is not changed by as much as its journal mode.
    connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
        .and_then(|()| connection.pragma_update(None, "synchronous", "FULL"))
        .and_then(|()| connection.pragma_update(None, "journal_size_limit", 64 << 20))
        .map_err(StoreError::of(StoreError::Open))?;
    Ok(connection)
}

#[cfg(test)]
mod tests;
