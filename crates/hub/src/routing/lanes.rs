//! How much of a spoke this hub may take up at once.
//!
//! A spoke takes so many connections from one address and no more. Watchers and calls have shares of their own that
//! together stay well below that, so that a kill, which has no share and never waits for one, always finds room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mosaic_types::{ConnectionId, ErrorCode, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Event streams open at once to one spoke.
pub(super) const STREAMS: usize = 64;
/// Calls that do not kill, under way at once to one spoke.
pub(super) const CALLS: usize = 48;
/// Patches fetched at once from one spoke: fewer than all spokes together have, so that a slow one has not all.
pub(super) const FETCHES: usize = 2;

/// What is taken of a spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Stream,
    Call,
    Fetch,
}

/// The shares of one spoke.
#[derive(Debug)]
struct Shares {
    streams: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
}

/// The shares of all spokes: as many as there are connections.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    spokes: Mutex<HashMap<ConnectionId, Shares>>,
}

impl Lanes {
    fn share(&self, spoke: ConnectionId, lane: Lane) -> Arc<Semaphore> {
        let mut spokes = self.spokes.lock().unwrap_or_else(PoisonError::into_inner);
        let shares = spokes.entry(spoke).or_insert_with(|| Shares {
            streams: Arc::new(Semaphore::new(STREAMS)),
            calls: Arc::new(Semaphore::new(CALLS)),
            fetches: Arc::new(Semaphore::new(FETCHES)),
        });
        Arc::clone(match lane {
            Lane::Stream => &shares.streams,
            Lane::Call => &shares.calls,
            Lane::Fetch => &shares.fetches,
        })
    }

    /// A place, given back when dropped.
    ///
    /// # Errors
    /// `overloaded` if none is free.
    pub(super) fn enter(
        &self,
        spoke: ConnectionId,
        lane: Lane,
    ) -> Result<OwnedSemaphorePermit, Refusal> {
        self.share(spoke, lane).try_acquire_owned().map_err(|_| {
            let what = match lane {
                Lane::Stream => "event streams are open to",
                Lane::Call => "requests are under way to",
                Lane::Fetch => "results are being fetched from",
            };
            Refusal::new(
                ErrorCode::Overloaded,
                format!("too many {what} this spoke at once"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A30: kills need room that nobody else can take. Besides what is under way, calls leave idle connections.
    #[test]
    fn a30_the_shares_leave_most_of_a_spokes_connections_to_kills() {
        let limits = mosaic_node::HttpLimits::default();
        assert!(STREAMS * 4 <= limits.max_connections_per_address);
        assert!(STREAMS + 2 * CALLS < limits.max_connections_per_address);
        assert!(STREAMS <= limits.max_streams_per_peer);
    }

    #[test]
    fn a_share_is_of_one_spoke_and_comes_back() {
        let lanes = Lanes::default();
        let (one, other) = (ConnectionId::generate(), ConnectionId::generate());
        let taken: Vec<_> = (0..FETCHES)
            .map(|_| lanes.enter(one, Lane::Fetch).unwrap())
            .collect();
        let refusal = lanes.enter(one, Lane::Fetch).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Overloaded);
        assert!(lanes.enter(other, Lane::Fetch).is_ok());
        assert!(lanes.enter(one, Lane::Call).is_ok());
        drop(taken);
        assert!(lanes.enter(one, Lane::Fetch).is_ok());
    }
}
