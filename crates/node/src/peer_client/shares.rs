//! How much of a peer's room for connections this node takes for what does not kill.
//!
//! Each call and each stream takes a TCP connection, of which a peer gives one address so many. Calls and streams
//! together stay well below that, so that a kill finds one however many watch, and whatever hangs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mosaic_types::InstanceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls to one peer at once that do not kill.
pub(super) const MAX_CALLS: usize = 96;

/// Open streams of one peer.
pub(super) const MAX_STREAMS: usize = 64;

/// The share of each peer. As many as there are peers that were called.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<HashMap<InstanceId, Arc<Share>>>);

impl Shares {
    pub(super) fn of(&self, peer: &InstanceId) -> Arc<Share> {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(shares.entry(peer.clone()).or_default())
    }
}

/// Room for calls to one peer.
#[derive(Debug)]
pub(super) struct Share {
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

impl Share {
    /// Waits for a place among the calls, for as long as the call may take.
    pub(super) async fn call(&self, timeout: Duration) -> Option<OwnedSemaphorePermit> {
        let taking = Arc::clone(&self.calls).acquire_owned();
        tokio::time::timeout(timeout, taking).await.ok()?.ok()
    }

    /// A place among the streams, if there is one.
    pub(super) fn stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HttpLimits;

    #[test]
    fn calls_and_streams_leave_a_peer_room_for_kills() {
        let limits = HttpLimits::default();
        assert!((MAX_CALLS + MAX_STREAMS) * 3 <= limits.max_connections_per_address * 2);
        assert!(MAX_STREAMS <= limits.max_streams_per_peer);
    }
}
