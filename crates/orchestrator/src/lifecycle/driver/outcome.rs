//! From how a process ended to how an attempt came out.

use mosaic_types::agent::EndReason;

use crate::{
    lifecycle::state::{AttemptOutcome, Failure, worth_a_retry},
    runtime::{Ending, FailureKind, Outcome},
    sandbox::ExitStatus,
};

pub(super) fn ending_of(status: ExitStatus) -> Ending {
    match status {
        ExitStatus::Code(code) => Ending::Exited { code },
        ExitStatus::Signal(signal) => Ending::Signalled { signal },
        ExitStatus::NotStarted | ExitStatus::Lost => Ending::Unknown,
    }
}

/// The outcome where the output could not be read.
pub(super) fn unread(ending: Ending) -> Outcome {
    Outcome::Failed {
        kind: FailureKind::ExitUnknown,
        message: format!("the output could not be read; the attempt ended with {ending:?}"),
    }
}

/// The outcome where the agent's program did not run.
pub(super) fn never_started(why: String) -> Outcome {
    Outcome::Failed {
        kind: FailureKind::ExitUnknown,
        message: format!("the runtime did not start: {why}"),
    }
}

pub(super) fn attempt_outcome(outcome: Outcome, exit: Option<ExitStatus>) -> AttemptOutcome {
    let (reason, detail) = match outcome {
        Outcome::Completed { summary } => return AttemptOutcome::Completed { summary },
        Outcome::Killed => (EndReason::KillRequested, String::new()),
        Outcome::Failed { kind, message } => (reason_of(kind), message),
    };
    let reason = match exit {
        Some(ExitStatus::NotStarted) => EndReason::SpawnFailed,
        _ => reason,
    };
    AttemptOutcome::Failed(Failure {
        retryable: worth_a_retry(reason),
        reason,
        detail,
    })
}

fn reason_of(kind: FailureKind) -> EndReason {
    match kind {
        FailureKind::NoResult => EndReason::NoResult,
        FailureKind::RuntimeError => EndReason::RuntimeError,
        FailureKind::ExitStatus => EndReason::ExitStatus,
        FailureKind::Signal => EndReason::Signalled,
        FailureKind::ExitUnknown => EndReason::Vanished,
        FailureKind::Silent => EndReason::Silent,
        FailureKind::TimedOut => EndReason::TimedOut,
    }
}
