//! Why a spoke gave no answer that can be used.

use mosaic_node::PeerError;
use mosaic_types::{AgentId, ErrorCode, Refusal};

/// See the module documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// What the operator is told.
    pub(super) refusal: Refusal,
    /// Whether the spoke signed it, or nothing was sent. If neither, the command may have been executed.
    pub(super) signed: bool,
    /// The spoke was not heard at all: anything else that is sent to it now waits in vain as well.
    pub(super) silent: bool,
}

impl Failure {
    /// Of a command that was not sent.
    pub(super) fn unsent(refusal: Refusal) -> Self {
        Self {
            refusal,
            signed: true,
            silent: false,
        }
    }

    /// Whether the spoke's signed word is that nothing was done. A code that says "not known" or "ask again" is no
    /// such word: the same command may be under way, or have been executed before.
    pub(super) fn is_final(&self) -> bool {
        self.signed && self.refusal.code != ErrorCode::Internal && !self.refusal.code.retryable()
    }

    /// Whether a kill is refused for good. One that is refused for its times is not: it comes when the clocks are right.
    pub(super) fn is_final_of_a_kill(&self) -> bool {
        self.is_final() && self.refusal.code != ErrorCode::Expired
    }

    /// Whether the command may have been executed.
    pub(super) fn outcome_unknown(&self) -> bool {
        let vague = [ErrorCode::Internal, ErrorCode::OutcomeUnknown];
        !self.signed || vague.contains(&self.refusal.code)
    }
}

impl From<PeerError> for Failure {
    fn from(error: PeerError) -> Self {
        // Of what was not sent, as well, it is certain that it was not executed.
        let signed = matches!(error, PeerError::Refused(_) | PeerError::Busy);
        if !signed {
            tracing::info!(error = %mosaic_node::with_causes(&error), "no answer from a peer");
        }
        Self {
            refusal: error.refusal(),
            signed,
            silent: matches!(error, PeerError::Unreachable(_) | PeerError::TimedOut),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        failure.refusal
    }
}

/// Refuses an answer that is about another agent than the one asked about: a spoke speaks for its own agents only.
pub(super) fn require_about(asked: AgentId, told: AgentId) -> Result<(), Failure> {
    if asked == told {
        return Ok(());
    }
    tracing::warn!(%asked, %told, "a spoke answered about another agent");
    Err(Failure {
        refusal: Refusal::new(
            ErrorCode::PeerUnreachable,
            "the spoke answered about another agent than it was asked about",
        ),
        signed: false,
        silent: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // A4: what is vague must not be taken for "it never started".
    #[test]
    fn a4_only_a_signed_and_final_refusal_says_that_nothing_was_done() {
        for (code, signed, is_final, outcome_unknown) in [
            (ErrorCode::UnknownBranch, true, true, false),
            (ErrorCode::UnknownBranch, false, false, true),
            (ErrorCode::OutcomeUnknown, true, false, true),
            (ErrorCode::Internal, true, false, true),
            (ErrorCode::QuotaExceeded, true, false, false),
            (ErrorCode::Overloaded, true, false, false),
        ] {
            let failure = Failure {
                refusal: Refusal::new(code, "x"),
                signed,
                silent: false,
            };
            assert_eq!(failure.is_final(), is_final, "{code}");
            assert_eq!(failure.outcome_unknown(), outcome_unknown, "{code}");
        }
    }
}
