//! Commands that kill: claimed in memory, with permits of their own, on disk only after they have answered.
//!
//! After a restart the claims in memory are those that were on disk. What had not come there yet may be executed
//! again: in doubt we kill.
//!
//! No peer takes more than a quarter of the permits, and a kill that waits for a clean-up gives its own back.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use mosaic_federation::{
    command::{ClaimRequest, Claimed, GrantedCommand, Refused, Usage},
    replay::KillClaimOutcome,
};
use mosaic_store::ClaimOutcome;
use mosaic_types::{
    ConnectionId, ErrorCode, InstanceId, MessageId, Refusal, Timestamp, connection::Connection,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Endpoint, answer,
    commands::{Arrival, conflict, outcome_unknown},
    lock,
};
use crate::limits::HttpLimits;

/// How long a kill waits for a permit when all are taken, its own share included.
const KILL_PERMIT_WAIT: Duration = Duration::from_secs(5);

/// How long the store may take to tell of a kill that was answered before.
const KILL_RECORD_WAIT: Duration = Duration::from_secs(2);

/// Answers to kills that are kept in memory.
const ANSWERED_KILLS: usize = 1024;
const ANSWERED_KILLS_BYTES: usize = 16 << 20;

impl Endpoint {
    /// A kill: claim in memory, execution, answer; the disk afterwards.
    pub(super) async fn kill(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        granted: GrantedCommand,
        request: &ClaimRequest,
        now: Timestamp,
    ) -> Bytes {
        let refused = |refusal| Refused {
            refusal,
            message_id: Some(request.message_id()),
            digest: request.digest(),
        };
        let share = self.kill_shares.of(connection.connection_id);
        let Some(permit) = self.kill_permit(&share).await else {
            let refusal = Refusal::new(ErrorCode::Overloaded, "too many kills at once");
            return self.refuse(connection, &refused(refusal), now);
        };
        let outcome = lock(&self.kill_claims).claim(request.clone(), now);
        let claim = match outcome {
            KillClaimOutcome::Fresh(claim) | KillClaimOutcome::InDoubt(claim) => claim,
            KillClaimOutcome::Repeated => return self.repeated_kill(request, refused).await,
            KillClaimOutcome::Conflict => {
                return self.refuse(connection, &refused(conflict()), now);
            }
            KillClaimOutcome::NotAKill => {
                let refusal = Refusal::new(ErrorCode::Internal, "only a kill is claimed so");
                return self.refuse(connection, &refused(refusal), now);
            }
        };
        let claimable = match granted.within(&Usage::default()) {
            Ok(claimable) => claimable,
            Err(refused) => return self.refuse(connection, &refused, now),
        };
        let claimed = Claimed::InMemory(claim);
        let mut running = pin!(self.run(connection, claimable, claimed, Arrival::of(now)));
        let hold = self.node.limits().kill_permit_hold;
        let bytes = match tokio::time::timeout(hold, running.as_mut()).await {
            Ok(bytes) => bytes,
            Err(_) => {
                // By now it waits for a clean-up: no reason to keep another kill from beginning.
                let slow = Arc::clone(&share.slow).try_acquire_owned();
                let _held = slow.map_or_else(|_| Held::Fast(permit), Held::Slow);
                running.await
            }
        };
        self.answered_kills.insert(request, bytes.clone());
        self.record_kill(request.clone(), bytes.clone());
        bytes
    }

    /// The answer to a kill that was executed before: from memory, or, if it was too long ago, from the store.
    async fn repeated_kill(
        &self,
        request: &ClaimRequest,
        refused: impl FnOnce(Refusal) -> Refused,
    ) -> Bytes {
        if let Some(bytes) = self.answered_kills.get(request) {
            return bytes;
        }
        match tokio::time::timeout(KILL_RECORD_WAIT, self.claim(request)).await {
            Ok(Ok(ClaimOutcome::Repeated {
                response: Some(bytes),
            })) => bytes.into(),
            _ => answer::refusal(&self.node, request.peer(), &refused(outcome_unknown())),
        }
    }

    async fn kill_permit(&self, share: &KillShare) -> Option<KillPermit> {
        // Who hangs up leaves its kill waiting here (F22).
        let _place = share.waiting.try_acquire().ok()?;
        let taking = async {
            let own = Arc::clone(&share.fast).acquire_owned().await.ok()?;
            for pool in [&self.commands, &self.kills] {
                if let Ok(permit) = Arc::clone(pool).try_acquire_owned() {
                    return Some(KillPermit(own, permit));
                }
            }
            let permit = Arc::clone(&self.kills).acquire_owned().await.ok()?;
            Some(KillPermit(own, permit))
        };
        tokio::time::timeout(KILL_PERMIT_WAIT, taking).await.ok()?
    }

    /// Puts a kill on record, in the background, so that a repetition after a restart is known for one.
    fn record_kill(self: &Arc<Self>, request: ClaimRequest, bytes: Bytes) {
        let Ok(permit) = Arc::clone(&self.kill_records).try_acquire_owned() else {
            tracing::warn!("too many kills wait to be put on record; one is not");
            return;
        };
        let this = Arc::clone(self);
        self.node.tasks().spawn(async move {
            let _permit = permit;
            let store = this.node.store();
            let recorded = match this.claim(&request).await {
                Ok(ClaimOutcome::Fresh) => {
                    store
                        .keep_response(request.peer(), request.message_id(), bytes.to_vec())
                        .await
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = recorded {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "failed to put a kill on record; it was executed"
                );
            }
        });
    }
}

/// One of the peer's own permits, and one of the node's.
struct KillPermit(
    #[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit,
);

/// What a kill that takes long holds.
enum Held {
    /// Its permit: too many of the peer take long.
    Fast(#[expect(dead_code, reason = "held for its drop")] KillPermit),
    /// A place among the slow ones.
    Slow(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit),
}

/// Kills that one peer may have executed at once, so that it cannot take the permits of the others.
#[derive(Debug)]
pub(super) struct KillShare {
    /// That hold a permit.
    fast: Arc<Semaphore>,
    /// That wait for a clean-up.
    slow: Arc<Semaphore>,
    /// That wait for a permit.
    waiting: Semaphore,
}

/// The share of each connection. As many as there are connections that have killed.
#[derive(Debug)]
pub(super) struct KillShares {
    reserved: usize,
    waiting: usize,
    of: Mutex<HashMap<ConnectionId, Arc<KillShare>>>,
}

impl KillShares {
    pub(super) fn new(limits: &HttpLimits) -> Self {
        Self {
            reserved: limits.reserved_kills,
            waiting: limits.max_waiting_kills,
            of: Mutex::default(),
        }
    }

    fn of(&self, connection: ConnectionId) -> Arc<KillShare> {
        let mut of = lock(&self.of);
        let share = of.entry(connection).or_insert_with(|| {
            Arc::new(KillShare {
                fast: Arc::new(Semaphore::new((self.reserved / 4).max(1))),
                slow: Arc::new(Semaphore::new(self.reserved.max(1))),
                waiting: Semaphore::new(self.waiting),
            })
        });
        Arc::clone(share)
    }
}

/// The answers to the newest kills, so that a kill that is repeated needs no store.
#[derive(Debug, Default)]
pub(super) struct AnsweredKills(Mutex<KillAnswers>);

#[derive(Debug, Default)]
struct KillAnswers {
    newest: VecDeque<((InstanceId, MessageId), Bytes)>,
    bytes: usize,
}

impl AnsweredKills {
    fn get(&self, request: &ClaimRequest) -> Option<Bytes> {
        lock(&self.0)
            .newest
            .iter()
            .find(|((peer, id), _)| *id == request.message_id() && peer == request.peer())
            .map(|(_, bytes)| bytes.clone())
    }

    fn insert(&self, request: &ClaimRequest, bytes: Bytes) {
        let mut answers = lock(&self.0);
        answers.bytes += bytes.len();
        answers
            .newest
            .push_back(((request.peer().clone(), request.message_id()), bytes));
        while answers.newest.len() > ANSWERED_KILLS || answers.bytes > ANSWERED_KILLS_BYTES {
            let Some((_, oldest)) = answers.newest.pop_front() else {
                return;
            };
            answers.bytes -= oldest.len();
        }
    }
}
