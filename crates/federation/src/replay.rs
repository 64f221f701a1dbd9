//! Claims of kills, in memory.
//!
//! A store that is slow or gone must never delay a kill, so a kill is claimed here first and on disk
//! afterwards. The table is bounded and never evicts a claim that has not expired (F12). When it is full, or
//! after a restart, it cannot tell whether a kill was executed: then it is executed, because to kill what is
//! dead changes nothing. In doubt, we kill.

use std::{cmp::Reverse, collections::BinaryHeap, collections::HashMap};

use mosaic_types::{InstanceId, MessageId, Timestamp};

use crate::command::ClaimRequest;

/// Proof that a kill was claimed in memory, or is executed in doubt. Made by [`KillClaims`] alone.
#[derive(Debug, PartialEq, Eq)]
pub struct KillClaim {
    request: ClaimRequest,
}

impl KillClaim {
    /// What was claimed, to be claimed on disk as well.
    #[must_use]
    pub fn request(&self) -> &ClaimRequest {
        &self.request
    }
}

/// What a claim of a kill came to.
#[derive(Debug, PartialEq, Eq)]
pub enum KillClaimOutcome {
    /// The first time, as far as this process knows: execute it.
    Fresh(KillClaim),
    /// The table is full and the claim was not kept: execute it all the same.
    InDoubt(KillClaim),
    /// Claimed before with the same digest: give the same answer.
    Repeated,
    /// Claimed before with another digest.
    Conflict,
    /// Not a kill: only the store claims it.
    NotAKill,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    digest: [u8; 32],
    expires_at: Timestamp,
}

/// The kills that were claimed and have not expired.
#[derive(Debug)]
pub struct KillClaims {
    capacity: usize,
    kept: HashMap<(InstanceId, MessageId), Kept>,
    by_expiry: BinaryHeap<Reverse<(Timestamp, InstanceId, MessageId)>>,
}

impl KillClaims {
    /// A table of at most `capacity` claims.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            kept: HashMap::new(),
            by_expiry: BinaryHeap::new(),
        }
    }

    /// Claims a kill. Forgets what expired before `now`, and nothing else.
    pub fn claim(&mut self, request: ClaimRequest, now: Timestamp) -> KillClaimOutcome {
        if !request.is_kill() {
            return KillClaimOutcome::NotAKill;
        }
        self.sweep(now);
        let key = (request.peer().clone(), request.message_id());
        if let Some(kept) = self.kept.get(&key) {
            return if kept.digest == request.digest() {
                KillClaimOutcome::Repeated
            } else {
                KillClaimOutcome::Conflict
            };
        }
        if self.kept.len() >= self.capacity {
            return KillClaimOutcome::InDoubt(KillClaim { request });
        }
        let (expires_at, digest) = (request.expires_at(), request.digest());
        self.by_expiry
            .push(Reverse((expires_at, key.0.clone(), key.1)));
        self.kept.insert(key, Kept { digest, expires_at });
        KillClaimOutcome::Fresh(KillClaim { request })
    }

    /// Takes up a claim that an earlier process put on disk, of whatever command, so that a kill of before a restart
    /// is known for a repetition after it. Not kept when the table is half full: the rest is for fresh kills.
    pub fn restore(
        &mut self,
        peer: InstanceId,
        message_id: MessageId,
        digest: [u8; 32],
        expires_at: Timestamp,
    ) {
        if self.kept.len() < self.capacity / 2 {
            let key = (peer, message_id);
            self.by_expiry
                .push(Reverse((expires_at, key.0.clone(), key.1)));
            self.kept.insert(key, Kept { digest, expires_at });
        }
    }

    /// How many claims are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn sweep(&mut self, now: Timestamp) {
        while self
            .by_expiry
            .peek()
            .is_some_and(|Reverse((expires_at, ..))| *expires_at < now)
        {
            let Some(Reverse((expires_at, peer, message_id))) = self.by_expiry.pop() else {
                return;
            };
            let key = (peer, message_id);
            if self
                .kept
                .get(&key)
                .is_some_and(|kept| kept.expires_at <= expires_at)
            {
                self.kept.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
