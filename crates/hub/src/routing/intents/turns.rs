//! When each spoke is to be asked again, and who comes before whom.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mosaic_types::{ConnectionId, KillIntentId, kill::KillIntent};

use super::{Intents, Kept, Spoke, State};

/// The first and the longest pause between two deliveries to a spoke.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(250);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// When a spoke is to be asked again. There is one for each spoke that something is pending for.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) failures: u32,
    pub(super) next_at: Instant,
    pub(super) busy: bool,
    /// The next delivery comes right after the one under way.
    pressed: bool,
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
            pressed: false,
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
        if std::mem::take(&mut self.pressed) {
            self.next_at = now;
        }
    }
}

impl State {
    /// Whether a kill is pending that the spoke has not answered in any way; of those that are `under_way` for the first
    /// time only if they count.
    fn is_undelivered(&self, spoke: &Spoke, under_way: UnderWay) -> bool {
        self.pending.values().any(|kept| {
            kept.spoke == *spoke
                && kept.intent.delivered_at.is_none()
                && (!kept.direct || under_way == UnderWay::Counts)
        })
    }

    /// What is under way for the first time is delivered as well.
    fn send_again(&mut self, spoke: &Spoke) {
        let of_it = |kept: &&mut Kept| kept.spoke == *spoke;
        for kept in self.pending.values_mut().filter(of_it) {
            kept.again = true;
        }
    }
}

/// Whether a command waits for a kill that is under way for the first time, and so was sent before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::routing) enum UnderWay {
    /// It may have been lost, and then the command would come first.
    Counts,
    /// Whichever comes first, nothing is different.
    Passes,
}

impl Intents {
    /// The spokes to ask now, each by a connection that leads there or has, taken by the caller; and when the next is due.
    pub(in crate::routing) fn due(&self, now: Instant) -> (Vec<ConnectionId>, Option<Instant>) {
        let mut state = self.lock();
        let deliverable: HashMap<Spoke, ConnectionId> = state
            .pending
            .values()
            .filter(|kept| kept.is_deliverable())
            .map(|kept| (kept.spoke.clone(), kept.intent.connection_id))
            .collect();
        let (mut due, mut next) = (Vec::new(), None);
        for (spoke, pace) in &mut state.paces {
            let Some(connection) = deliverable.get(spoke).filter(|_| !pace.busy) else {
                continue;
            };
            if pace.next_at <= now {
                pace.busy = true;
                pace.last_at = Some(now);
                due.push(*connection);
            } else {
                next = Some(next.map_or(pace.next_at, |next: Instant| next.min(pace.next_at)));
            }
        }
        (due, next)
    }

    /// What is to be delivered to a spoke, in the order in which it was ordered.
    pub(in crate::routing) fn for_spoke(&self, connection: ConnectionId) -> Vec<KillIntent> {
        let spoke = self.spoke(connection);
        let of_it = |kept: &&Kept| kept.is_deliverable() && kept.spoke == spoke;
        let state = self.lock();
        let kept = state.pending.values().filter(of_it);
        kept.map(|kept| kept.intent.clone()).collect()
    }

    /// A delivery that [`Self::due`] gave out is over.
    pub(in crate::routing) fn round_over(&self, connection: ConnectionId, now: Instant) {
        let spoke = self.spoke(connection);
        if let Some(pace) = self.lock().paces.get_mut(&spoke) {
            pace.busy = false;
            pace.over(now, true);
        }
        self.wake.notify_one();
        self.touch();
    }

    /// The spoke was heard: what is pending for it is tried at once (F23), also what is under way and may be lost.
    pub(in crate::routing) fn heard(&self, connection: ConnectionId, now: Instant) {
        let spoke = self.spoke(connection);
        let mut state = self.lock();
        if let Some(pace) = state.paces.get_mut(&spoke)
            && !pace.busy
            && pace
                .last_at
                .is_none_or(|last| now.duration_since(last) >= FIRST_PAUSE)
        {
            pace.failures = 0;
            pace.next_at = now;
            state.send_again(&spoke);
            self.wake.notify_one();
        }
    }

    /// Asks for a delivery at once. How many are over once that one is; `None` if there is nothing to wait for.
    pub(in crate::routing) fn press(
        &self,
        connection: ConnectionId,
        under_way: UnderWay,
        now: Instant,
    ) -> Option<u64> {
        let spoke = self.spoke(connection);
        let mut state = self.lock();
        if !state.is_undelivered(&spoke, under_way) {
            return None;
        }
        if under_way == UnderWay::Counts {
            state.send_again(&spoke);
        }
        let pace = state.paces.get_mut(&spoke)?;
        if pace.busy {
            // The one under way has looked already at what there is to deliver.
            pace.pressed = true;
            return Some(pace.rounds + 2);
        }
        pace.next_at = now;
        self.wake.notify_one();
        Some(pace.rounds + 1)
    }

    /// How many deliveries to a spoke are over; `None` if nothing is pending for it.
    pub(in crate::routing) fn rounds(&self, connection: ConnectionId) -> Option<u64> {
        let spoke = self.spoke(connection);
        self.lock().paces.get(&spoke).map(|pace| pace.rounds)
    }

    /// Whether a kill is pending that the spoke has not answered in any way.
    pub(in crate::routing) fn is_undelivered(
        &self,
        connection: ConnectionId,
        under_way: UnderWay,
    ) -> bool {
        let spoke = self.spoke(connection);
        self.lock().is_undelivered(&spoke, under_way)
    }
}
