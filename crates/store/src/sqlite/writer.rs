//! The one thread that writes.
//!
//! Verbs queue up in a bounded channel. The writer takes what is there, runs each verb in a savepoint of one
//! transaction, commits once, and only then answers all of them: many verbs share one flush of the disk, and
//! nothing is answered before it is durable. A verb that fails or panics is undone alone.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, RwLock, mpsc::Receiver},
};

use mosaic_types::{InstanceId, audit::AuditHead};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{audit_trail::Tip, claims::Claims, folder::Folder, forgotten::Forgotten};
use crate::{Limits, StoreError};

/// Verbs committed at once, at most: bounds how long the first of a group waits for the others.
const GROUP_MAX: usize = 256;

/// What a verb works with.
pub(super) struct Tx<'a> {
    /// The write connection, in a transaction.
    pub(super) connection: &'a Connection,
    /// What the writer knows without asking the database; undone with the verb.
    pub(super) facts: &'a mut Facts,
    /// The bounds of the tables.
    pub(super) limits: &'a Limits,
    /// Why the whole transaction is lost, if it is.
    lost: &'a mut Option<StoreError>,
}

/// What the writer knows without asking the database.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Where the trail ends.
    pub(super) tip: Tip,
    /// Rows in `claims`.
    pub(super) claims: Claims,
    /// Rows in `forgotten_claims`.
    pub(super) forgotten: Forgotten,
    /// Rows in `agents`.
    pub(super) agents: u64,
    /// Rows in `remote_agents`.
    pub(super) remote_agents: u64,
    /// Heads that this group stored as the highest of their peer.
    pub(super) highest_heads: Vec<(InstanceId, AuditHead)>,
}

/// What the writer tells without a verb.
#[derive(Debug)]
pub(super) struct Published {
    /// Where the trail ends, as committed.
    pub(super) head: RwLock<AuditHead>,
    /// The highest head of each peer, as committed, so that seeing it again costs nothing.
    pub(super) highest_heads: RwLock<HashMap<InstanceId, AuditHead>>,
}

type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A queued verb. It is run in a transaction, or told why there is none; what it returns is called with how
/// the commit went.
pub(super) type Job = Box<dyn FnOnce(Result<&mut Tx<'_>, StoreError>) -> Answer + Send>;

/// Makes a verb ready for the queue, and a receiver for its answer.
pub(super) fn job<T: Send + 'static>(
    verb: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
) -> (Job, oneshot::Receiver<Result<T, StoreError>>) {
    let (sender, receiver) = oneshot::channel();
    let job: Job = Box::new(move |begun| {
        let result = begun.and_then(|tx| in_savepoint(tx, verb));
        Box::new(move |committed| {
            // Even a refusal may rest on a verb of the same group that was not committed after all.
            let _caller_may_have_left = sender.send(committed.and(result));
        })
    });
    (job, receiver)
}

fn in_savepoint<T>(
    tx: &mut Tx<'_>,
    verb: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let connection = tx.connection;
    let facts_before = tx.facts.clone();
    run(connection, "SAVEPOINT verb").map_err(StoreError::of(StoreError::Savepoint))?;
    let result = catch_unwind(AssertUnwindSafe(|| verb(tx))).unwrap_or_else(|_| {
        tracing::error!("a verb of the store panicked");
        Err(StoreError::Panicked)
    });
    let error = match result {
        Ok(value) => match run(connection, "RELEASE verb") {
            Ok(()) => return Ok(value),
            Err(error) => StoreError::of(StoreError::Savepoint)(error),
        },
        Err(error) => error,
    };
    *tx.facts = facts_before;
    if connection.is_autocommit() {
        // SQLite has rolled the whole transaction back, as it may when the disk is full.
        *tx.lost = Some(error.clone());
    } else if let Err(undo) =
        run(connection, "ROLLBACK TO verb").and_then(|()| run(connection, "RELEASE verb"))
    {
        *tx.lost = Some(StoreError::of(StoreError::Savepoint)(undo));
    }
    Err(error)
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// The writer's own belongings.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) facts: Facts,
    pub(super) limits: Limits,
    pub(super) published: Arc<Published>,
    /// Dropped last: the folder is ours until the database is closed.
    pub(super) folder: Folder,
}

impl Writer {
    /// Serves until every sender is gone and the queue is empty; then checkpoints and closes.
    pub(super) fn run(mut self, queue: &Receiver<Job>) {
        let mut group = VecDeque::with_capacity(GROUP_MAX);
        while let Ok(first) = queue.recv() {
            group.push_back(first);
            group.extend(queue.try_iter().take(GROUP_MAX - 1));
            while !group.is_empty() {
                self.commit_group(&mut group);
            }
        }
        let Self {
            connection, folder, ..
        } = self;
        let checkpointed = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = checkpointed {
            tracing::warn!(%error, "the store could not be checkpointed while closing");
        }
        if let Err((_, error)) = connection.close() {
            tracing::warn!(%error, "the store could not be closed cleanly");
        }
        drop(folder);
    }

    /// Runs and commits what is in `group`. If the transaction is lost on the way, those who had no part in
    /// it stay in `group` for the next one.
    fn commit_group(&mut self, group: &mut VecDeque<Job>) {
        let facts_before = self.facts.clone();
        let mut answers: Vec<Answer> = Vec::with_capacity(group.len());
        let committed = match run(&self.connection, "BEGIN IMMEDIATE") {
            Ok(()) => self.run_group(group, &mut answers).and_then(|()| {
                run(&self.connection, "COMMIT").map_err(StoreError::of(StoreError::Commit))
            }),
            Err(error) => {
                let error = StoreError::of(StoreError::Begin)(error);
                answers.extend(group.drain(..).map(|job| job(Err(error.clone()))));
                Err(error)
            }
        };
        match &committed {
            Ok(()) => self.publish(&facts_before),
            Err(error) => {
                tracing::error!(%error, verbs = answers.len(), "a group of verbs was not stored");
                self.facts = facts_before;
                if !self.connection.is_autocommit()
                    && let Err(error) = run(&self.connection, "ROLLBACK")
                {
                    tracing::error!(%error, "the store could not roll back");
                }
            }
        }
        for answer in answers {
            answer(committed.clone());
        }
    }

    fn run_group(
        &mut self,
        group: &mut VecDeque<Job>,
        answers: &mut Vec<Answer>,
    ) -> Result<(), StoreError> {
        while let Some(job) = group.pop_front() {
            let mut lost = None;
            answers.push(job(Ok(&mut Tx {
                connection: &self.connection,
                facts: &mut self.facts,
                limits: &self.limits,
                lost: &mut lost,
            })));
            if let Some(error) = lost {
                return Err(error);
            }
        }
        Ok(())
    }

    fn publish(&mut self, before: &Facts) {
        if self.facts.tip != before.tip {
            let mut head = self
                .published
                .head
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            *head = self.facts.tip.head();
        }
        if !self.facts.highest_heads.is_empty() {
            let mut highest = self
                .published
                .highest_heads
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            highest.extend(self.facts.highest_heads.drain(..));
        }
    }
}
