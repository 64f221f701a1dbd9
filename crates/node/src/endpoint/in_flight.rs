//! Commands that are being executed, so that those who ask for the same meanwhile get the same answer.

use std::{
    collections::{HashMap, hash_map},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use mosaic_federation::command::ClaimRequest;
use mosaic_types::{InstanceId, MessageId};
use tokio::sync::watch;

use super::lock;

type Key = (InstanceId, MessageId);

/// No larger than the number of commands that may be under way.
#[derive(Debug, Default, Clone)]
pub(super) struct InFlight {
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    digest: [u8; 32],
    answer: watch::Receiver<Option<Bytes>>,
}

/// What became of entering.
pub(super) enum Entered {
    /// The caller's to execute.
    First(First),
    /// Somebody executes it: the answer will be here, or the sender is dropped without one.
    Again(watch::Receiver<Option<Bytes>>),
    /// Somebody executes another request of that id.
    Conflict,
}

/// The right, and duty, to execute. Leaves when dropped.
pub(super) struct First {
    key: Key,
    entries: InFlight,
    answer: watch::Sender<Option<Bytes>>,
}

impl InFlight {
    pub(super) fn enter(&self, request: &ClaimRequest) -> Entered {
        let key = (request.peer().clone(), request.message_id());
        match lock(&self.entries).entry(key) {
            hash_map::Entry::Occupied(taken) if taken.get().digest == request.digest() => {
                Entered::Again(taken.get().answer.clone())
            }
            hash_map::Entry::Occupied(_) => Entered::Conflict,
            hash_map::Entry::Vacant(free) => {
                let (sender, answer) = watch::channel(None);
                let key = free.key().clone();
                free.insert(Entry {
                    digest: request.digest(),
                    answer,
                });
                Entered::First(First {
                    key,
                    entries: self.clone(),
                    answer: sender,
                })
            }
        }
    }
}

impl First {
    /// Gives the answer to all who wait for it, and to whoever asks until this is dropped.
    pub(super) fn answer(&self, bytes: &Bytes) {
        self.answer.send_replace(Some(bytes.clone()));
    }
}

impl Drop for First {
    fn drop(&mut self) {
        lock(&self.entries.entries).remove(&self.key);
    }
}
