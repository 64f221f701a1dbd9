//! The way to the audit trail that never fails its caller.
//!
//! What the store does not take is kept in memory and in a spill file, and stored in order when the store is well
//! again, also after a restart. A crash in the moment between the two can store an entry twice, never lose it.
//!
//! None is held up by one before it that is too large (F21): the store takes that without its detail.
//!
//! Refusals are cheap to provoke: past a rate, they are counted and go on the trail as one sum.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mosaic_store::{SharedStore, StoreError};
use mosaic_types::{
    ConnectionId, InstanceId, Timestamp,
    audit::{Actor, AuditEvent, AuditHead},
    connection::Connection,
};
use thiserror::Error;
use tokio::sync::Notify;

mod spill_file;

/// The spill file's name in the data folder: one event a line, as JSON.
pub const SPILL_FILE: &str = "audit.spill";

/// Most events kept back. Past it the newest are lost, which is logged as an error.
const MAX_KEPT: usize = 100_000;

/// Events that are taken for the spill file at a time: bounds how long the queue is locked for it.
const SPILL_BATCH: usize = 1000;

/// Events that are stored at a time: a store that commits a hundred times a second takes thousands of them.
const STORE_BATCH: usize = 256;

/// Refusals of one peer that go on the trail singly within [`WINDOW`].
const SINGLE_REFUSALS: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);

/// Why the spill file of an earlier run cannot be taken up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpillError {
    /// Reading it.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    inner: Arc<Inner>,
}

struct Inner {
    store: SharedStore,
    /// Never held across anything that waits: kills take it.
    kept: Mutex<Kept>,
    /// Where the spill file is; held while it is written.
    spill: Arc<tokio::sync::Mutex<PathBuf>>,
    wake: Notify,
    /// Held while events are stored, so that each is stored once and in order.
    flushing: tokio::sync::Mutex<()>,
    refusals: Mutex<HashMap<Option<ConnectionId>, Tally>>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Arc<AuditEvent>>,
    /// Events that have left the front, ever: the number of the first one here.
    stored: u64,
    /// Number of the first event that is not in the spill file.
    spilled: u64,
    lost: u64,
}

impl Kept {
    /// The next events for the spill file, and the number of the one after them.
    fn unspilled(&self) -> (Vec<Arc<AuditEvent>>, u64) {
        let first = self.spilled.max(self.stored);
        let skip = usize::try_from(first - self.stored).unwrap_or(usize::MAX);
        let events: Vec<_> = self
            .events
            .iter()
            .skip(skip)
            .take(SPILL_BATCH)
            .cloned()
            .collect();
        let next = first + events.len() as u64;
        (events, next)
    }
}

struct Tally {
    peer: Option<InstanceId>,
    since: Timestamp,
    single: u32,
    summed: u64,
}

impl std::fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditLog")
            .field("kept", &self.kept())
            .finish()
    }
}

impl AuditLog {
    /// Takes up what an earlier run could not store.
    pub(crate) fn open(store: SharedStore, data_dir: &Path) -> Result<Self, SpillError> {
        let spill = data_dir.join(SPILL_FILE);
        let events = spill_file::read(&spill, MAX_KEPT).map_err(|source| SpillError::Read {
            path: spill.clone(),
            source,
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                spill: Arc::new(tokio::sync::Mutex::new(spill)),
                kept: Mutex::new(Kept {
                    spilled: events.len() as u64,
                    events,
                    ..Kept::default()
                }),
                wake: Notify::new(),
                flushing: tokio::sync::Mutex::new(()),
                refusals: Mutex::default(),
            }),
        })
    }

    /// Records an event: durable when this returns, in the store or, if the store fails, in the spill file.
    pub async fn record(&self, event: AuditEvent) {
        if self.kept() > 0 {
            // Others wait to be stored: this one comes after them, but not after those that come meanwhile.
            if let Some(number) = self.keep(event)
                && self.flush_through(number).await.is_err()
            {
                self.spill().await;
            }
            return;
        }
        if let Err(error) = self.append(&event).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the audit trail cannot be written; entries are kept back"
            );
            self.keep(event);
            self.spill().await;
        }
    }

    /// Records an event without waiting for anything: for whoever must not wait, such as a kill. It is stored by
    /// the task that flushes, in order with other events recorded so.
    pub fn record_later(&self, event: AuditEvent) {
        self.keep(event);
    }

    /// Where the trail ends, from memory.
    #[must_use]
    pub fn head(&self) -> AuditHead {
        self.inner.store.audit_head()
    }

    /// How many events wait to be stored.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.lock().events.len()
    }

    /// Records that a peer was refused, or, with `None`, that somebody unknown was. Past a rate such events are
    /// summed. Never waits.
    pub fn refused(
        &self,
        peer: Option<(&InstanceId, ConnectionId)>,
        action: &str,
        code: &str,
        now: Timestamp,
    ) {
        let key = peer.map(|(_, connection)| connection);
        let instance = peer.map(|(instance, _)| instance);
        if self.is_single(instance, key, now) {
            self.keep(AuditEvent {
                at: now,
                actor: actor(instance, key),
                action: action.to_owned(),
                subject: None,
                outcome: code.to_owned(),
                detail: serde_json::Value::Null,
            });
        }
    }

    /// The same of an order that came to nothing, with all that is to be told of it as long as such are few.
    pub(crate) fn refused_order(&self, connection: &Connection, event: AuditEvent) {
        let id = Some(connection.connection_id);
        if self.is_single(Some(&connection.peer), id, event.at) {
            self.keep(event);
        }
    }

    /// Counts a refusal, and says whether it goes on the trail by itself.
    fn is_single(
        &self,
        peer: Option<&InstanceId>,
        key: Option<ConnectionId>,
        now: Timestamp,
    ) -> bool {
        let mut due = None;
        let single = {
            let mut tallies = self
                .inner
                .refusals
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let tally = tallies.entry(key).or_insert_with(|| Tally {
                peer: peer.cloned(),
                since: now,
                single: 0,
                summed: 0,
            });
            if now.since(tally.since) >= WINDOW {
                due = sum(key, tally, now);
                (tally.since, tally.single, tally.summed) = (now, 0, 0);
            }
            // Whoever is unknown is only ever counted: the trail is not theirs to fill.
            let single = key.is_some() && tally.single < SINGLE_REFUSALS;
            if single {
                tally.single += 1;
            } else {
                tally.summed += 1;
            }
            single
        };
        if let Some(event) = due {
            self.keep(event);
        }
        single
    }

    /// Records the sums of refusals whose window is over, and forgets those peers. `all`: of every window.
    pub(crate) fn sum_refusals(&self, now: Timestamp, all: bool) {
        let mut due = Vec::new();
        self.inner
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, tally| {
                if !all && now.since(tally.since) < WINDOW {
                    return true;
                }
                due.extend(sum(*key, tally, now));
                false
            });
        for event in due {
            self.keep(event);
        }
    }

    /// Stores what was kept back, until `stop`. One task of the node runs it.
    pub(crate) async fn run(&self, stop: tokio_util::sync::CancellationToken) {
        let mut delay = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = async {
                    tokio::time::sleep(delay).await;
                    if self.kept() == 0 {
                        self.inner.wake.notified().await;
                    }
                } => {}
            }
            delay = match self.flush().await {
                Ok(()) => Duration::ZERO,
                Err(_) => {
                    self.spill().await;
                    (delay * 2).clamp(Duration::from_millis(250), Duration::from_secs(30))
                }
            };
        }
    }

    /// Stores what was kept back, in order.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        while self.flush_some().await? > 0 {}
        Ok(())
    }

    /// The same until the event of this number is stored.
    async fn flush_through(&self, number: u64) -> Result<(), StoreError> {
        while self.lock().stored <= number {
            self.flush_some().await?;
        }
        Ok(())
    }

    /// Stores the first of what was kept back, and says how many. By turns, so that nobody waits for what came later.
    async fn flush_some(&self) -> Result<usize, StoreError> {
        let _flushing = self.inner.flushing.lock().await;
        let events: Vec<AuditEvent> = {
            let kept = self.lock();
            let first = kept.events.iter().take(STORE_BATCH);
            first.map(|event| (**event).clone()).collect()
        };
        let count = events.len();
        if count == 0 {
            return Ok(0);
        }
        self.inner.store.append_audits(events).await?;
        let drained = {
            let mut kept = self.lock();
            kept.events.drain(..count);
            kept.stored += count as u64;
            kept.events.is_empty()
        };
        if drained {
            self.remove_spill().await;
        }
        Ok(count)
    }

    /// Stores an event. What fails here may succeed later, unchanged.
    async fn append(&self, event: &AuditEvent) -> Result<(), StoreError> {
        let stored = self.inner.store.append_audit(event.clone()).await;
        stored.map(drop)
    }

    /// Writes what is kept back to the spill file, durably. Nobody who records meanwhile waits for it.
    pub(crate) async fn spill(&self) {
        let this = self.clone();
        // Whoever spills at the same time comes after, so that the file's order is the queue's.
        let path = Arc::clone(&self.inner.spill).lock_owned().await;
        let written = tokio::task::spawn_blocking(move || {
            loop {
                let (events, next) = this.lock().unspilled();
                if events.is_empty() {
                    return Ok(());
                }
                spill_file::append(&path, &events)?;
                this.lock().spilled = next;
            }
        })
        .await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err::<(), io::Error>(error)) => {
                tracing::error!(%error, "failed to write the audit spill file");
            }
            Err(error) => tracing::error!(%error, "failed to run the audit spill"),
        }
    }

    async fn remove_spill(&self) {
        let path = self.inner.spill.lock().await;
        // What is kept from here on is not in the file: that takes the lock above.
        if self.kept() == 0
            && let Err(error) = std::fs::remove_file(path.as_path())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, "failed to remove the audit spill file");
        }
    }

    /// Keeps an event back, and says its number; `None` if there is no room for it.
    fn keep(&self, event: AuditEvent) -> Option<u64> {
        let mut kept = self.lock();
        let has_room = kept.events.len() < MAX_KEPT;
        let number = kept.stored + kept.events.len() as u64;
        if has_room {
            kept.events.push_back(Arc::new(event));
        } else {
            kept.lost += 1;
            if kept.lost.is_power_of_two() {
                tracing::error!(
                    lost = kept.lost,
                    "audit entries are lost: too many are kept back"
                );
            }
        }
        drop(kept);
        self.inner.wake.notify_one();
        has_room.then_some(number)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.inner
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn actor(peer: Option<&InstanceId>, connection: Option<ConnectionId>) -> Actor {
    peer.map_or(Actor::System, |instance| Actor::Peer {
        instance: instance.clone(),
        connection,
    })
}

fn sum(key: Option<ConnectionId>, tally: &Tally, now: Timestamp) -> Option<AuditEvent> {
    (tally.summed > 0).then(|| AuditEvent {
        at: now,
        actor: actor(tally.peer.as_ref(), key),
        action: "federation.refusals".to_owned(),
        subject: None,
        outcome: if key.is_some() {
            "refused"
        } else {
            "unauthorized"
        }
        .to_owned(),
        detail: serde_json::json!({ "count": tally.summed, "since": tally.since }),
    })
}
