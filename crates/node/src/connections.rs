//! The connections of this node: a write-through cache of the store.
//!
//! Reads never touch the store, so that a peer's kill is verified with the store gone. Changes go through the store
//! first, one at a time, and are carried through whoever hangs up meanwhile: what is on record is in force. The exception
//! is a move that takes a connection out of use: in memory that holds before the store is asked, and before its turn comes
//! behind changes that the store is still at (F15). If the store fails, the caller is told that a restart would undo it,
//! and asking again makes it last.
//!
//! What the store forgets to make room for a new connection is forgotten here too: memory is no larger than the table,
//! and a restart changes nothing.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    task::Poll,
};

use mosaic_federation::key::Keyring;
use mosaic_store::{SharedStore, StoreError};
use mosaic_types::{
    ConnectionId, ErrorCode, InstanceId, InviteId, KeyId, Refusal, Timestamp,
    audit::{Actor, AuditEvent},
    connection::{Connection, ConnectionState},
    grant::Grants,
};
use tokio::sync::watch;

use crate::http::problem::store_refusal;

/// Moves that take a connection out of use and wait for their turn although nobody may wait for them. One more waits like
/// any other change.
const MAX_LEAVING: usize = 8;

/// See the module documentation.
#[derive(Clone)]
pub struct Connections {
    store: SharedStore,
    table: Arc<RwLock<Table>>,
    changes: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

#[derive(Default)]
struct Table {
    by_id: HashMap<ConnectionId, Entry>,
    by_key: HashMap<KeyId, ConnectionId>,
    by_peer: HashMap<InstanceId, ConnectionId>,
}

struct Entry {
    connection: Arc<Connection>,
    /// As it is on record, where that differs: the store has not taken, or not yet, what holds in memory.
    stored: Option<Arc<Connection>>,
    /// How many moves that take it out of use wait for their turn. While there are any, it is not in use in memory,
    /// whatever comes before them.
    leaving: usize,
    /// The connection's keys, enrolled once.
    keyring: Arc<Keyring>,
    state: watch::Sender<ConnectionState>,
    changes: watch::Sender<Arc<Connection>>,
}

impl Entry {
    fn show(&mut self, connection: Arc<Connection>) {
        self.connection = Arc::clone(&connection);
        self.state.send_replace(connection.state);
        self.changes.send_replace(connection);
    }

    /// In memory; on record it is `stored` until the store has taken what becomes of it.
    fn suspend(&mut self, stored: Arc<Connection>) {
        self.show(Arc::new(Connection {
            state: ConnectionState::Suspended,
            ..(*stored).clone()
        }));
        self.stored = Some(stored);
    }
}

impl Table {
    fn put(&mut self, connection: Arc<Connection>) {
        let id = connection.connection_id;
        self.forget_keys(id);
        if connection.state == ConnectionState::Disconnected {
            if self.by_peer.get(&connection.peer) == Some(&id) {
                self.by_peer.remove(&connection.peer);
            }
        } else {
            for key in &connection.keys {
                // Never taken from another connection that is alive: whoever shows a key later may not own it.
                self.by_key.entry(key.key_id.clone()).or_insert(id);
            }
            self.by_peer.insert(connection.peer.clone(), id);
        }
        let mut keyring = Keyring::default();
        keyring.add(&connection);
        let keyring = Arc::new(keyring);
        match self.by_id.get_mut(&id) {
            Some(entry) => {
                entry.keyring = keyring;
                if entry.leaving > 0 && connection.state == ConnectionState::Active {
                    entry.suspend(connection);
                } else {
                    entry.stored = None;
                    entry.show(connection);
                }
            }
            None => {
                let entry = Entry {
                    connection: Arc::clone(&connection),
                    stored: None,
                    leaving: 0,
                    keyring,
                    state: watch::Sender::new(connection.state),
                    changes: watch::Sender::new(connection),
                };
                self.by_id.insert(id, entry);
            }
        }
    }

    fn forget(&mut self, id: ConnectionId) {
        self.forget_keys(id);
        if let Some(entry) = self.by_id.remove(&id)
            && self.by_peer.get(&entry.connection.peer) == Some(&id)
        {
            self.by_peer.remove(&entry.connection.peer);
        }
    }

    fn forget_keys(&mut self, id: ConnectionId) {
        let Some(entry) = self.by_id.get(&id) else {
            return;
        };
        for key in &entry.connection.keys {
            if self.by_key.get(&key.key_id) == Some(&id) {
                self.by_key.remove(&key.key_id);
            }
        }
    }
}

impl Connections {
    pub(crate) async fn load(store: SharedStore) -> Result<Self, StoreError> {
        let mut table = Table::default();
        for connection in store.connections().await? {
            table.put(Arc::new(connection));
        }
        Ok(Self {
            store,
            table: Arc::new(RwLock::new(table)),
            changes: Arc::default(),
        })
    }

    /// The connection of that id, in whatever state.
    #[must_use]
    pub fn get(&self, id: ConnectionId) -> Option<Arc<Connection>> {
        self.read(|table| {
            table
                .by_id
                .get(&id)
                .map(|entry| Arc::clone(&entry.connection))
        })
    }

    /// The connection that a key of a peer belongs to, unless it is disconnected.
    #[must_use]
    pub fn by_key(&self, key: &KeyId) -> Option<Arc<Connection>> {
        self.read(|table| {
            let id = table.by_key.get(key)?;
            table
                .by_id
                .get(id)
                .map(|entry| Arc::clone(&entry.connection))
        })
    }

    /// As [`by_key`](Self::by_key), with the connection's keys ready to verify.
    pub(crate) fn verifier(&self, key: &KeyId) -> Option<(Arc<Connection>, Arc<Keyring>)> {
        self.read(|table| {
            let entry = table.by_id.get(table.by_key.get(key)?)?;
            Some((Arc::clone(&entry.connection), Arc::clone(&entry.keyring)))
        })
    }

    /// The connection to a peer, unless it is disconnected.
    #[must_use]
    pub fn by_peer(&self, peer: &InstanceId) -> Option<Arc<Connection>> {
        self.read(|table| {
            let id = table.by_peer.get(peer)?;
            table
                .by_id
                .get(id)
                .map(|entry| Arc::clone(&entry.connection))
        })
    }

    /// Every connection, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Connection>> {
        let mut list: Vec<_> = self.read(|table| {
            let entries = table.by_id.values();
            entries.map(|entry| Arc::clone(&entry.connection)).collect()
        });
        list.sort_by_key(|connection| (connection.created_at, connection.connection_id));
        list
    }

    /// The state of a connection as it changes. Of a connection that is not known: disconnected, for good.
    #[must_use]
    pub fn subscribe(&self, id: ConnectionId) -> watch::Receiver<ConnectionState> {
        self.read(|table| {
            table.by_id.get(&id).map_or_else(
                || watch::Sender::new(ConnectionState::Disconnected).subscribe(),
                |entry| entry.state.subscribe(),
            )
        })
    }

    /// A connection as it changes: its state, its grants. One that is not known is disconnected, for good.
    pub(crate) fn changes_of(&self, connection: &Connection) -> watch::Receiver<Arc<Connection>> {
        self.read(|table| match table.by_id.get(&connection.connection_id) {
            Some(entry) => entry.changes.subscribe(),
            None => {
                let gone = Connection {
                    state: ConnectionState::Disconnected,
                    ..connection.clone()
                };
                watch::Sender::new(Arc::new(gone)).subscribe()
            }
        })
    }

    /// Changes a connection by `f`, which answers with the connection of the next version or refuses. It is asked of the
    /// connection as it is in memory and, should it refuse, as it is on record. The move is audited as
    /// `connection.<what became of it>`.
    ///
    /// # Errors
    /// `unknown-connection`, what `f` refuses, or what the store says. After a failure of the store a connection
    /// that was to leave `active` is out of use in memory all the same.
    pub async fn change<E: Into<Refusal>>(
        &self,
        id: ConnectionId,
        actor: Actor,
        f: impl Fn(&Connection, Timestamp) -> Result<Connection, E> + Send + 'static,
    ) -> Result<Arc<Connection>, Refusal> {
        let this = self.clone();
        let is_out_already = self.take_out_of_use_if(id, &f);
        let mut turn = Box::pin(Arc::clone(&self.changes).lock_owned());
        // In the queue from here on, before whatever the caller asks for next.
        let taken = match futures_util::poll!(&mut turn) {
            Poll::Ready(taken) => Some(taken),
            // Others wait here: whoever hangs up leaves nothing behind that waits.
            Poll::Pending if !is_out_already => Some((&mut turn).await),
            Poll::Pending => None,
        };
        carried_through(async move {
            let taken = match taken {
                Some(taken) => taken,
                None => turn.await,
            };
            this.change_in_turn(id, actor, f, is_out_already, taken)
                .await
        })
        .await
    }

    async fn change_in_turn<E: Into<Refusal>>(
        &self,
        id: ConnectionId,
        actor: Actor,
        f: impl Fn(&Connection, Timestamp) -> Result<Connection, E>,
        is_out_already: bool,
        _turn: tokio::sync::OwnedMutexGuard<()>,
    ) -> Result<Arc<Connection>, Refusal> {
        let now = Timestamp::now();
        let (from, next) = self.next(id, is_out_already, |connection| {
            f(connection, now).map_err(Into::into)
        })?;
        let audit = event(actor, verb(from.state, next.state), &next, now);
        let leaves = from.state == ConnectionState::Active && next.state != ConnectionState::Active;
        if leaves {
            self.write(|table| {
                if let Some(entry) = table.by_id.get_mut(&id) {
                    entry.suspend(Arc::clone(&from));
                }
            });
        }
        match self.store.save_connection(next.clone(), audit).await {
            Ok(_) => Ok(self.put(next)),
            Err(error) if leaves => {
                let refusal = store_refusal(&error);
                let message = &refusal.message;
                Err(Refusal {
                    message: format!("{message}; the connection is out of use until a restart"),
                    ..refusal
                })
            }
            Err(error) => Err(store_refusal(&error)),
        }
    }

    /// What a change makes of a connection whose turn has come, and of what.
    fn next(
        &self,
        id: ConnectionId,
        is_out_already: bool,
        f: impl Fn(&Connection) -> Result<Connection, Refusal>,
    ) -> Result<(Arc<Connection>, Connection), Refusal> {
        let mut known = None;
        self.write(|table| {
            if let Some(entry) = table.by_id.get_mut(&id) {
                // What a move that waits has made of it in memory is nobody's to build on.
                let only_stored = entry.leaving > 0;
                entry.leaving -= usize::from(is_out_already);
                let current = Arc::clone(&entry.connection);
                known = Some(match (entry.stored.clone(), only_stored) {
                    (Some(stored), true) => (stored, None),
                    (stored, _) => (current, stored),
                });
            }
        });
        let (first, second) = known.ok_or_else(|| {
            Refusal::new(ErrorCode::UnknownConnection, "no connection of that id")
        })?;
        match (f(&first), second) {
            (Ok(next), _) => Ok((first, next)),
            (Err(refusal), Some(second)) => {
                let next = f(&second).map_err(|_| refusal)?;
                Ok((second, next))
            }
            (Err(refusal), None) => Err(refusal),
        }
    }

    /// Takes a connection out of use in memory, and keeps it so, if that is what `f` makes of it, or would if what comes
    /// before had put it into use. Whether it did; then the move is to be carried through.
    fn take_out_of_use_if<E>(
        &self,
        id: ConnectionId,
        f: &impl Fn(&Connection, Timestamp) -> Result<Connection, E>,
    ) -> bool {
        let mut leaves = false;
        self.write(|table| {
            let Some(entry) = table.by_id.get_mut(&id) else {
                return;
            };
            let current = Arc::clone(&entry.connection);
            if current.state == ConnectionState::Disconnected || entry.leaving >= MAX_LEAVING {
                return;
            }
            let in_use = Connection {
                state: ConnectionState::Active,
                ..(*current).clone()
            };
            leaves = f(&in_use, Timestamp::now())
                .is_ok_and(|next| next.state != ConnectionState::Active);
            entry.leaving += usize::from(leaves);
            if leaves && current.state == ConnectionState::Active {
                entry.suspend(current);
            }
        });
        leaves
    }

    /// Saves a connection that is new, or the next version of one, decided by `f` under the lock that all changes
    /// take. Uses an invitation up in the same transaction if one is given.
    pub(crate) async fn decide<T>(
        &self,
        f: impl FnOnce(&Self) -> Result<(Decision, T), Refusal>,
    ) -> Result<(Arc<Connection>, T), Refusal> {
        let turn = Arc::clone(&self.changes).lock_owned().await;
        let (decision, extra) = f(self)?;
        let Decision {
            connection,
            invite,
            actor,
            action,
            requested,
        } = decision;
        let Some(action) = action else {
            return Ok((Arc::new(connection), extra));
        };
        let now = Timestamp::now();
        let mut audit = event(actor, action, &connection, now);
        if let Some(requested) = requested
            && let Some(detail) = audit.detail.as_object_mut()
        {
            detail.insert("requested".to_owned(), serde_json::json!(requested));
        }
        let this = self.clone();
        let saving = async move {
            let _turn = turn;
            let store = &this.store;
            let saved = match invite {
                Some(invite) => {
                    let redeemed = store.redeem_invite(invite, now, connection.clone(), audit);
                    redeemed.await
                }
                None => store.save_connection(connection.clone(), audit).await,
            };
            if let Some(forgotten) = saved.map_err(|error| not_saved(&error))? {
                this.write(|table| table.forget(forgotten));
            }
            Ok(this.put(connection))
        };
        let connection = carried_through(saving).await?;
        Ok((connection, extra))
    }

    /// Waits until changes under way are in the cache: the store may know of them before.
    pub(crate) async fn settled(&self) {
        drop(self.changes.lock().await);
    }

    fn put(&self, connection: Connection) -> Arc<Connection> {
        let connection = Arc::new(connection);
        self.write(|table| table.put(Arc::clone(&connection)));
        connection
    }

    fn write(&self, f: impl FnOnce(&mut Table)) {
        f(&mut self.table.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn read<T>(&self, f: impl FnOnce(&Table) -> T) -> T {
        f(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Does what was begun to its end, whoever waits for it.
async fn carried_through<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a change of a connection broke off");
        Err(Refusal::new(
            ErrorCode::Internal,
            "a fault of this node; its log has the details",
        ))
    })
}

/// A connection to save.
pub(crate) struct Decision {
    /// As it shall be.
    pub(crate) connection: Connection,
    /// The invitation that this uses up.
    pub(crate) invite: Option<InviteId>,
    /// Who asked for it.
    pub(crate) actor: Actor,
    /// The action on the trail; `None` if nothing is to be saved.
    pub(crate) action: Option<&'static str>,
    /// What the peer would like to be granted: nothing but a hint for the operator, on the trail.
    pub(crate) requested: Option<Grants>,
}

/// Why a connection is not saved. That the table is full is told apart from a queue that is, which passes by itself.
fn not_saved(error: &StoreError) -> Refusal {
    match error {
        StoreError::Full => Refusal::new(
            ErrorCode::Overloaded,
            "as many connections as may be are on record, and all of them are needed",
        ),
        error => store_refusal(error),
    }
}

fn verb(from: ConnectionState, to: ConnectionState) -> &'static str {
    use ConnectionState::{Active, Disconnected, Pending, Suspended};
    match (from, to) {
        (Pending, Active) => "connection.accept",
        (Pending, Disconnected) => "connection.reject",
        (Active, Suspended) => "connection.suspend",
        (Suspended, Active) => "connection.resume",
        (_, Disconnected) => "connection.disconnect",
        _ => "connection.update",
    }
}

fn event(actor: Actor, action: &str, connection: &Connection, at: Timestamp) -> AuditEvent {
    AuditEvent {
        at,
        actor,
        action: action.to_owned(),
        subject: Some(connection.connection_id.to_string()),
        outcome: "ok".to_owned(),
        detail: serde_json::json!({
            "peer": connection.peer,
            "name": connection.name,
            "state": connection.state,
            "granted": connection.granted,
        }),
    }
}

#[cfg(test)]
mod tests;
