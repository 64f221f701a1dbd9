//! An agent's lease: it lives on while its hub renews it, and is stopped when no renewal came in time.
//!
//! A lease in force is measured by the clock of this boot, which nobody can set and which goes on while the machine
//! sleeps. What is written down for a restart has that clock's time and, for another boot, the wall clock's. In
//! either case what is left after a restart is at most the whole lease, however the wall clock was set.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use mosaic_store::LeaseRecord;
use mosaic_types::{AgentId, Timestamp};
use rustix::time::{ClockId, clock_gettime};

use crate::sandbox::identity::boot_id;

/// How much of a lease may be renewed in memory only, as a part of it, and at most.
const UNSAVED_PART: u64 = 4;
const UNSAVED_MAX_MS: u64 = 30_000;

/// The clocks that leases are measured by.
#[derive(Debug)]
pub struct LeaseClock {
    boot_id: String,
}

/// A moment by all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Which boot.
    pub boot_id: String,
    /// Milliseconds of it, sleep included.
    pub boot_ms: u64,
    /// The wall clock.
    pub wall: Timestamp,
}

impl LeaseClock {
    /// The clocks of this boot.
    ///
    /// # Errors
    /// Its id cannot be read.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            boot_id: boot_id()?,
        })
    }

    /// Milliseconds of this boot, sleep included.
    #[must_use]
    pub fn boot_ms(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        let secs = u64::try_from(now.tv_sec).unwrap_or(0);
        let millis = u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
        secs.saturating_mul(1000).saturating_add(millis)
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment {
            boot_id: self.boot_id.clone(),
            boot_ms: self.boot_ms(),
            wall: Timestamp::now(),
        }
    }
}

/// What is left of a lease after a restart.
#[must_use]
pub fn left_after_restart(
    secs: u64,
    kept: Option<&LeaseRecord>,
    queued_at: Timestamp,
    now: &Moment,
) -> Duration {
    let whole = Duration::from_secs(secs);
    let left = match kept {
        Some(kept) if kept.boot_id == now.boot_id => {
            Duration::from_millis(kept.boot_deadline_ms.saturating_sub(now.boot_ms))
        }
        Some(kept) => kept.deadline.since(now.wall),
        // Nothing was written yet: the lease of the beginning.
        None => queued_at.saturating_add(whole).since(now.wall),
    };
    left.min(whole)
}

/// A lease in force. Renewals never make it shorter, so what was written of it is never later than the truth.
#[derive(Debug)]
pub struct Lease {
    secs: u64,
    deadline_ms: AtomicU64,
    /// What was last written, and when.
    saved_ms: AtomicU64,
    saved_at_ms: AtomicU64,
    fired: AtomicBool,
}

impl Lease {
    /// A lease of `secs` of which so much is left.
    #[must_use]
    pub fn new(secs: u64, left: Duration, now_ms: u64) -> Self {
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Self {
            secs,
            deadline_ms: AtomicU64::new(now_ms.saturating_add(left)),
            saved_ms: AtomicU64::new(0),
            saved_at_ms: AtomicU64::new(0),
            fired: AtomicBool::new(false),
        }
    }

    /// Its length in seconds.
    #[must_use]
    pub fn secs(&self) -> u64 {
        self.secs
    }

    /// Renews it for `secs` from now, or for its own length if that is less. `false` if it had run out.
    #[must_use]
    pub fn renew(&self, secs: u64, now_ms: u64) -> bool {
        let until = now_ms.saturating_add(secs.min(self.secs).saturating_mul(1000));
        // One step, so that a renewal and the end of the lease are one after the other.
        self.deadline_ms
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |deadline| {
                (deadline > now_ms).then_some(deadline.max(until))
            })
            .is_ok()
    }

    /// How long it still reaches; nothing if it has run out.
    #[must_use]
    pub fn left(&self, now_ms: u64) -> Duration {
        Duration::from_millis(
            self.deadline_ms
                .load(Ordering::Acquire)
                .saturating_sub(now_ms),
        )
    }

    /// Whether it has run out and nobody has acted on it yet. Whoever is told so acts.
    #[must_use]
    pub fn fire(&self, now_ms: u64) -> bool {
        self.left(now_ms).is_zero() && !self.fired.swap(true, Ordering::AcqRel)
    }

    /// It was not acted on after all.
    pub fn unfire(&self) {
        self.fired.store(false, Ordering::Release);
    }

    /// What is to be written of it now, if enough has changed since the last time.
    #[must_use]
    pub fn to_save(&self, agent_id: AgentId, now: &Moment) -> Option<LeaseRecord> {
        let deadline = self.deadline_ms.load(Ordering::Acquire);
        let every = (self.secs.saturating_mul(1000) / UNSAVED_PART).min(UNSAVED_MAX_MS);
        let saved_at = self.saved_at_ms.load(Ordering::Acquire);
        let is_due = saved_at == 0 || now.boot_ms.saturating_sub(saved_at) >= every;
        if !is_due || deadline <= self.saved_ms.load(Ordering::Acquire) {
            return None;
        }
        let left = Duration::from_millis(deadline.saturating_sub(now.boot_ms));
        Some(LeaseRecord {
            agent_id,
            boot_id: now.boot_id.clone(),
            boot_deadline_ms: deadline,
            deadline: now.wall.saturating_add(left),
        })
    }

    /// It was written.
    pub fn saved(&self, record: &LeaseRecord, now_ms: u64) {
        self.saved_ms
            .fetch_max(record.boot_deadline_ms, Ordering::AcqRel);
        self.saved_at_ms.store(now_ms.max(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moment(boot: &str, boot_ms: u64, wall_ms: i64) -> Moment {
        Moment {
            boot_id: boot.to_owned(),
            boot_ms,
            wall: Timestamp::from_unix_millis(wall_ms),
        }
    }

    const AT: i64 = 1_700_000_000_000;

    proptest! {
        /// A37: within a boot the wall clock says nothing at all.
        #[test]
        fn a37_a_clock_set_back_or_forth_does_not_move_a_lease_of_this_boot(
            secs in 1_u64..=86_400, written_ms in 1_u64..1 << 40, down_ms in 0_u64..1 << 33,
            wall in AT - (1 << 40)..AT + (1 << 40),
        ) {
            let lease = Lease::new(secs, Duration::from_secs(secs), written_ms);
            let agent = AgentId::generate();
            let kept = lease.to_save(agent, &moment("a", written_ms, AT)).unwrap();
            let now = moment("a", written_ms + down_ms, wall);
            let left = left_after_restart(secs, Some(&kept), now.wall, &now);
            prop_assert_eq!(left, lease.left(now.boot_ms));
        }

        /// A37: in whatever boot, with whatever clock, no more is left than the whole lease; and no more than was left,
        /// if the clock was not set.
        #[test]
        fn a37_no_restart_leaves_more_than_the_whole_lease(
            secs in 1_u64..=86_400, used_ms in 0_u64..90_000_000, down_ms in 0_i64..1 << 33,
            set_ms in -(1_i64 << 40)..1 << 40, is_kept in any::<bool>(),
        ) {
            let lease = Lease::new(secs, Duration::from_secs(secs), 1);
            let agent = AgentId::generate();
            let then = moment("a", 1 + used_ms, AT + i64::try_from(used_ms).unwrap());
            let kept = lease.to_save(agent, &then).filter(|_| is_kept);
            let queued_at = Timestamp::from_unix_millis(AT);
            let honest = moment("b", 5, then.wall.unix_millis() + down_ms);
            let left = left_after_restart(secs, kept.as_ref(), queued_at, &honest);
            prop_assert!(left <= lease.left(then.boot_ms));
            let set = moment("b", 5, honest.wall.unix_millis() + set_ms);
            let left = left_after_restart(secs, kept.as_ref(), queued_at, &set);
            prop_assert!(left <= Duration::from_secs(secs));
        }

        /// What is written is never later than the truth, whatever comes after it.
        #[test]
        fn a37_what_was_written_is_never_later_than_the_truth(
            secs in 1_u64..=86_400,
            steps in prop::collection::vec((0_u64..50_000_000, 0_u64..100_000, any::<bool>()), 1..40),
        ) {
            let lease = Lease::new(secs, Duration::from_secs(secs), 1);
            let agent = AgentId::generate();
            let (mut now_ms, mut written) = (1, 0);
            for (pause, asked, saves) in steps {
                now_ms += pause;
                let before = lease.left(now_ms);
                let renewed = lease.renew(asked, now_ms);
                prop_assert_eq!(renewed, !before.is_zero(), "what has run out stays so");
                prop_assert!(lease.left(now_ms) >= before);
                prop_assert!(lease.left(now_ms) <= Duration::from_secs(secs));
                let now = moment("a", now_ms, AT);
                if let Some(record) = lease.to_save(agent, &now).filter(|_| saves) {
                    written = record.boot_deadline_ms;
                    lease.saved(&record, now_ms);
                }
                prop_assert!(written <= now_ms + u64::try_from(lease.left(now_ms).as_millis()).unwrap()
                    || lease.left(now_ms).is_zero());
            }
        }
    }

    #[test]
    fn a_lease_is_acted_on_once() {
        let lease = Lease::new(5, Duration::from_secs(5), 1000);
        assert!(!lease.fire(5999));
        assert!(lease.fire(6000));
        assert!(!lease.fire(7000));
        lease.unfire();
        assert!(lease.fire(7000));
        assert!(!lease.renew(5, 7000), "it had run out");
    }

    #[test]
    fn it_is_written_at_a_bounded_rate() {
        let lease = Lease::new(8, Duration::from_secs(8), 1000);
        let agent = AgentId::generate();
        let first = lease.to_save(agent, &moment("a", 1000, AT)).unwrap();
        lease.saved(&first, 1000);
        assert!(lease.renew(8, 1500));
        assert_eq!(lease.to_save(agent, &moment("a", 2999, AT)), None);
        assert!(lease.to_save(agent, &moment("a", 3000, AT)).is_some());
    }
}
