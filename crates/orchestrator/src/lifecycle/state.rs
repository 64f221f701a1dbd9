//! What a driver does next: pure policy, no locks and no I/O.

use std::time::Duration;

use mosaic_types::{
    Timestamp,
    agent::{AgentState, EndReason},
};

/// How an attempt came out, once its death is proven.
#[derive(Debug, Clone, PartialEq)]
pub enum AttemptOutcome {
    /// It did what it was asked.
    Completed {
        /// The runtime's final words.
        summary: String,
    },
    /// It did not.
    Failed(Failure),
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub reason: EndReason,
    /// More, safe to show.
    pub detail: String,
    /// Whether another attempt could end otherwise.
    pub retryable: bool,
}

/// What follows an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// It is over: completed.
    Complete {
        /// The runtime's final words.
        summary: String,
    },
    /// It is over: failed.
    Fail(Failure),
    /// Another attempt, after a pause.
    Retry {
        /// Why the attempt failed.
        failure: Failure,
        /// How long to wait.
        after: Duration,
    },
}

/// The first pause before a retry.
const BACKOFF_BASE: Duration = Duration::from_secs(2);
/// The longest pause before a retry.
const BACKOFF_CAP: Duration = Duration::from_secs(300);

/// Decides what follows attempt number `attempt` (from 1) of an agent with `max_retries` retries.
#[must_use]
pub fn after_attempt(outcome: AttemptOutcome, attempt: u32, max_retries: u32) -> Next {
    match outcome {
        AttemptOutcome::Completed { summary } => Next::Complete { summary },
        AttemptOutcome::Failed(failure) if failure.retryable && attempt <= max_retries => {
            Next::Retry {
                failure,
                after: backoff(attempt),
            }
        }
        AttemptOutcome::Failed(failure) => Next::Fail(failure),
    }
}

/// The pause after this many attempts: doubles from `BACKOFF_BASE` to `BACKOFF_CAP`.
#[must_use]
pub fn backoff(attempt: u32) -> Duration {
    let doubled = 2_u32
        .checked_pow(attempt.saturating_sub(1))
        .unwrap_or(u32::MAX);
    BACKOFF_BASE.saturating_mul(doubled).min(BACKOFF_CAP)
}

/// What is left until a time on record, of a span that was `whole`. A clock that was set back since leaves no more.
#[must_use]
pub fn left_until(until: Timestamp, whole: Duration, now: Timestamp) -> Duration {
    until.since(now).min(whole)
}

/// What follows for an agent of which nothing lives any more when a daemon takes it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It waits for an attempt.
    Waiting,
    /// Certainly nothing of its attempt ran: the attempt does not count.
    NeverRan,
    /// Its attempt ended.
    Ended,
}

/// Decides it by the state on record, and by whether the shim says that the agent was not started.
#[must_use]
pub fn left(state: AgentState, not_started: bool) -> Left {
    match (state, not_started) {
        (AgentState::Queued, _) => Left::Waiting,
        // `running` is on record before the go is given.
        (AgentState::Spawning, _) | (_, true) => Left::NeverRan,
        _ => Left::Ended,
    }
}

/// Whether a failure of this kind may go otherwise the next time. A limit that ran out would run out again.
#[must_use]
pub fn worth_a_retry(reason: EndReason) -> bool {
    match reason {
        EndReason::ExitStatus
        | EndReason::Signalled
        | EndReason::RuntimeError
        | EndReason::NoResult
        | EndReason::Silent
        | EndReason::Vanished
        | EndReason::SpawnFailed => true,
        EndReason::Finished
        | EndReason::HungAfterResult
        | EndReason::TimedOut
        | EndReason::KillRequested
        | EndReason::KillAll
        | EndReason::BudgetExceeded
        | EndReason::LeaseExpired => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failed(retryable: bool) -> AttemptOutcome {
        let detail = String::new();
        AttemptOutcome::Failed(Failure {
            reason: EndReason::ExitStatus,
            detail,
            retryable,
        })
    }

    proptest! {
        #[test]
        fn attempts_are_one_more_than_retries(max_retries in 0_u32..50) {
            let mut attempts = 1;
            while matches!(after_attempt(failed(true), attempts, max_retries), Next::Retry { .. }) {
                attempts += 1;
            }
            prop_assert_eq!(attempts, max_retries + 1);
        }

        #[test]
        fn pauses_grow_and_stay_bounded(attempt in 1_u32..=u32::MAX) {
            prop_assert!(backoff(attempt) >= BACKOFF_BASE);
            prop_assert!(backoff(attempt) <= BACKOFF_CAP);
            prop_assert!(backoff(attempt.saturating_add(1)) >= backoff(attempt));
        }
    }

    #[test]
    fn a7_a_clock_that_was_set_back_leaves_no_more_than_there_was() {
        let (at, whole) = (Timestamp::from_unix_millis, Duration::from_secs(60));
        assert_eq!(left_until(at(70_000), whole, at(20_000)).as_secs(), 50);
        assert_eq!(left_until(at(70_000), whole, at(80_000)), Duration::ZERO);
        assert_eq!(left_until(at(70_000), whole, at(0)), whole);
    }

    #[test]
    fn what_cannot_go_otherwise_is_not_retried() {
        assert!(matches!(after_attempt(failed(false), 1, 9), Next::Fail(_)));
        for reason in [
            EndReason::TimedOut,
            EndReason::KillRequested,
            EndReason::KillAll,
        ] {
            assert!(!worth_a_retry(reason));
        }
    }
}
