//! How much of a spoke this hub may take up at once.
//!
//! A spoke takes so many connections from one address and no more. Watchers, calls and renewals have shares of their own that
//! together stay well below that, so that a kill, which has no share and never waits for one, always finds room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mosaic_types::{ConnectionId, ErrorCode, Refusal, command::CommandType};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Event streams open at once to one spoke.
pub(super) const STREAMS: usize = 64;
/// Calls that do not kill, under way at once to one spoke.
pub(super) const CALLS: usize = 48;
/// Renewals of leases under way at once to one spoke: their own, because agents die that are not renewed in time.
pub(super) const RENEWALS: usize = 8;
/// Patches fetched at once from one spoke: fewer than all spokes together have, so that a slow one has not all.
pub(super) const FETCHES: usize = 2;

/// What is taken of a spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Stream,
    Call,
    Renewal,
    Fetch,
}

impl Lane {
    /// What a command takes when it is sent. A kill takes nothing, and a renewal is given its place when it falls due.
    pub(super) fn of(command_type: CommandType) -> Option<Self> {
        let has_its_own = command_type.is_kill() || command_type == CommandType::AgentRenew;
        (!has_its_own).then_some(Self::Call)
    }
}

/// The shares of one spoke.
#[derive(Debug)]
struct Shares {
    streams: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    renewals: Arc<Semaphore>,
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
            renewals: Arc::new(Semaphore::new(RENEWALS)),
            fetches: Arc::new(Semaphore::new(FETCHES)),
        });
        Arc::clone(match lane {
            Lane::Stream => &shares.streams,
            Lane::Call => &shares.calls,
            Lane::Renewal => &shares.renewals,
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
                Lane::Renewal => "renewals are under way to",
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
        assert!(STREAMS + 2 * (CALLS + RENEWALS) < limits.max_connections_per_address);
        assert!(STREAMS <= limits.max_streams_per_peer);
    }

    // A37: whatever else is asked of a spoke at once, its agents are kept alive.
    #[test]
    fn a37_a_renewal_finds_room_whatever_else_is_under_way() {
        let (lanes, spoke) = (Lanes::default(), ConnectionId::generate());
        let lane = Lane::of(CommandType::AgentStatus).unwrap();
        let _calls: Vec<_> = (0..CALLS)
            .map(|_| lanes.enter(spoke, lane).unwrap())
            .collect();
        assert!(lanes.enter(spoke, lane).is_err());
        assert_eq!(Lane::of(CommandType::AgentRenew), None);
        assert!(lanes.enter(spoke, Lane::Renewal).is_ok());
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
