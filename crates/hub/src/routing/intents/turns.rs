//! When each spoke is to be asked again, and who comes before whom.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mosaic_types::{ConnectionId, KillIntentId, kill::KillIntent};

use super::{Intents, Kept};

/// The first and the longest pause between two deliveries to a spoke.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(250);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// When a spoke is to be asked again. There is one for each spoke that something is pending for.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) failures: u32,
    pub(super) next_at: Instant,
    pub(super) busy: bool,
    /// Deliveries that are over.
    pub(super) rounds: u64,
    pub(super) last_at: Option<Instant>,
}

/// Doubles from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`], less up to half of it, so that hubs that lost a spoke at once do not
/// come back at once.
pub(super) fn pause(failures: u32, random: u8) -> Duration {
    let doubled = 2_u32
        .checked_pow(failures.saturating_sub(1))
        .unwrap_or(u32::MAX);
    let whole = FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
    whole - whole.mul_f64(f64::from(random) / 512.0)
}

/// Bits that nobody can foresee, from an id of which most are.
fn random() -> u8 {
    KillIntentId::generate().as_bytes()[15]
}

impl Pace {
    pub(super) fn due(now: Instant) -> Self {
        Self {
            failures: 0,
            next_at: now,
            busy: false,
            rounds: 0,
            last_at: None,
        }
    }

    pub(super) fn over(&mut self, now: Instant, more: bool) {
        self.rounds += 1;
        if more {
            self.failures = self.failures.saturating_add(1);
            self.next_at = now + pause(self.failures, random());
        }
    }
}

impl Intents {
    /// The spokes to ask now, taken by the caller; and when the next is due.
    pub(in crate::routing) fn due(&self, now: Instant) -> (Vec<ConnectionId>, Option<Instant>) {
        let mut state = self.lock();
        let deliverable: BTreeSet<ConnectionId> = state
            .pending
            .values()
            .filter(|kept| !kept.direct)
            .map(|kept| kept.intent.connection_id)
            .collect();
        let (mut due, mut next) = (Vec::new(), None);
        for (id, pace) in &mut state.paces {
            if pace.busy || !deliverable.contains(id) {
                continue;
            }
            if pace.next_at <= now {
                pace.busy = true;
                pace.last_at = Some(now);
                due.push(*id);
            } else {
                next = Some(next.map_or(pace.next_at, |next: Instant| next.min(pace.next_at)));
            }
        }
        (due, next)
    }

    /// What is to be delivered to a spoke, in the order in which it was ordered.
    pub(in crate::routing) fn for_spoke(&self, connection: ConnectionId) -> Vec<KillIntent> {
        let state = self.lock();
        let of_it = |kept: &&Kept| !kept.direct && kept.intent.connection_id == connection;
        state
            .pending
            .values()
            .filter(of_it)
            .map(|kept| kept.intent.clone())
            .collect()
    }

    /// A delivery that [`Self::due`] gave out is over.
    pub(in crate::routing) fn round_over(&self, connection: ConnectionId, now: Instant) {
        if let Some(pace) = self.lock().paces.get_mut(&connection) {
            pace.busy = false;
            pace.over(now, true);
        }
        self.wake.notify_one();
        self.touch();
    }

    /// The spoke was heard: what is pending for it is tried at once (F23).
    pub(in crate::routing) fn heard(&self, connection: ConnectionId, now: Instant) {
        if let Some(pace) = self.lock().paces.get_mut(&connection)
            && !pace.busy
            && pace
                .last_at
                .is_none_or(|last| now.duration_since(last) >= FIRST_PAUSE)
        {
            pace.failures = 0;
            pace.next_at = now;
            self.wake.notify_one();
        }
    }

    /// Asks for a delivery at once. How many are over, and whether anything has not come to the spoke yet.
    pub(in crate::routing) fn press(&self, connection: ConnectionId, now: Instant) -> Option<u64> {
        if !self.is_undelivered(connection) {
            return None;
        }
        let mut state = self.lock();
        let pace = state.paces.get_mut(&connection)?;
        if !pace.busy {
            pace.next_at = now;
            self.wake.notify_one();
        }
        Some(pace.rounds)
    }

    /// How many deliveries to a spoke are over; `None` if nothing is pending for it.
    pub(in crate::routing) fn rounds(&self, connection: ConnectionId) -> Option<u64> {
        self.lock().paces.get(&connection).map(|pace| pace.rounds)
    }

    /// Whether a kill is pending that the spoke has not answered in any way. One that is under way for the first time has
    /// gone first already.
    pub(in crate::routing) fn is_undelivered(&self, connection: ConnectionId) -> bool {
        self.lock().pending.values().any(|kept| {
            kept.intent.connection_id == connection
                && kept.intent.delivered_at.is_none()
                && !kept.direct
        })
    }
}
