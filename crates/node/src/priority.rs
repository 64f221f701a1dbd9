//! Kills go first: who only asks a node for something stands aside while a kill is under way (A30).
//!
//! A kill waits for nobody by rule; what it lacks beside a flood is a processor. So whoever asks for a status, a list, a
//! result or a stream meanwhile begins once the kill has its answer, and they begin a few at a time:
//!
//! | when | who only asks |
//! |---|---|
//! | no kill lately | is served at once, as many as the other bounds let in |
//! | a kill is under way | waits for a turn, and then for the kill, for [`HttpLimits::stand_aside`] at most |
//! | for [`HttpLimits::by_turns`] after it | waits for a turn; there are [`HttpLimits::turns`], each held for [`HttpLimits::turn_hold`] at most |
//!
//! So kills without end slow others down and stop nobody, and what takes long keeps nobody's turn. What was begun before
//! a kill came goes on beside it. What changes something never waits here: a spawn that did could be let through by the
//! very kill that was to take it. Its process does, before it comes up.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::Instant,
};

use crate::limits::HttpLimits;

/// See the module documentation. Clones are of the same node.
#[derive(Debug, Clone)]
pub struct KillPriority(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Kills under way.
    kills: watch::Sender<usize>,
    /// When the last one ended.
    last: Mutex<Option<Instant>>,
    turns: Semaphore,
    kill_hold: Duration,
    stand_aside: Duration,
    turn_hold: Duration,
    by_turns: Duration,
}

impl KillPriority {
    /// Nobody stands aside yet.
    #[must_use]
    pub fn new(limits: &HttpLimits) -> Self {
        Self(Arc::new(Inner {
            kills: watch::Sender::new(0),
            last: Mutex::default(),
            turns: Semaphore::new(limits.turns),
            kill_hold: limits.kill_permit_hold,
            stand_aside: limits.stand_aside,
            turn_hold: limits.turn_hold,
            by_turns: limits.by_turns,
        }))
    }

    /// Does what a kill needs while others stand aside, as long as it would hold a permit
    /// ([`HttpLimits::kill_permit_hold`]).
    pub async fn first<T>(&self, kill: impl Future<Output = T>) -> T {
        let under_way = UnderWay::begin(&self.0);
        held(under_way, self.0.kill_hold, kill).await
    }

    /// Does what is no kill when its turn comes.
    pub async fn in_turn<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(turn) = self.turn().await else {
            return work.await;
        };
        self.stand_aside().await;
        held(turn, self.0.turn_hold, work).await
    }

    /// Waits until no kill is under way, for [`HttpLimits::stand_aside`] at most: for work that has a bound of its own on
    /// how much of it is done at once.
    pub async fn stand_aside(&self) {
        let mut kills = self.0.kills.subscribe();
        let over = kills.wait_for(|kills| *kills == 0);
        // Either way it goes on.
        let _ = tokio::time::timeout(self.0.stand_aside, over).await;
    }

    /// A turn, if there are turns now.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        if !self.0.goes_by_turns() {
            return None;
        }
        // Never closed.
        self.0.turns.acquire().await.ok()
    }
}

impl Inner {
    fn goes_by_turns(&self) -> bool {
        let lately = |last: Instant| last.elapsed() < self.by_turns;
        *self.kills.borrow() > 0 || self.last().is_some_and(lately)
    }

    fn last(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does `work` to its end, and holds `what` for so long at most.
async fn held<T>(what: impl Sized, limit: Duration, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match tokio::time::timeout(limit, work.as_mut()).await {
        Ok(done) => done,
        Err(_) => {
            drop(what);
            work.await
        }
    }
}

/// A kill under way, until it is dropped.
struct UnderWay<'a>(&'a Inner);

impl<'a> UnderWay<'a> {
    fn begin(inner: &'a Inner) -> Self {
        inner.kills.send_modify(|kills| *kills += 1);
        Self(inner)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.last() = Some(Instant::now());
        self.0.kills.send_modify(|kills| *kills -= 1);
    }
}

#[cfg(test)]
mod tests;
