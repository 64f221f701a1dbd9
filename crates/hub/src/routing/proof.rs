//! What answers to a kill come to: only what a spoke proved counts as a death, and the worst that may be true is told.

use mosaic_types::{
    ErrorCode, Refusal,
    api::{FederationKillAll, SpokeKillAll},
    command::{KillAllReport, KillOutcome, KillReport},
};

use super::{Failure, unknown_agent};

/// A death without a proof is a claim.
pub(super) fn insist_on_proof(report: KillReport) -> KillReport {
    if report.outcome != KillOutcome::Killed || report.proof.is_some() {
        return report;
    }
    KillReport {
        outcome: KillOutcome::Unverified,
        detail: Some("the spoke gave no proof of the death".to_owned()),
        ..report
    }
}

/// The deaths that a report claims and does not prove are not counted as proven.
pub(super) fn recount(mut report: KillAllReport) -> KillAllReport {
    report.agents = report.agents.into_iter().map(insist_on_proof).collect();
    let proven = |one: &&KillReport| one.outcome == KillOutcome::Killed;
    let open = |one: &&KillReport| one.outcome == KillOutcome::Unverified;
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    report.killed = count(report.agents.iter().filter(proven).count());
    report.unverified = report
        .unverified
        .max(count(report.agents.iter().filter(open).count()));
    report
}

/// Why a hold that was asked for is not in force at a spoke, or not for good.
pub(super) fn without_hold(report: &KillAllReport, asked: bool) -> Option<&'static str> {
    match (asked, report.held, report.hold_durable) {
        (false, ..) | (true, true, None | Some(true)) => None,
        (true, false, _) => Some("that spawns are held there"),
        (true, true, Some(false)) => Some("that the hold outlives a restart of the spoke"),
    }
}

/// The report with more to say.
pub(super) fn with_word(mut report: KillReport, word: &str) -> KillReport {
    let told = report.detail.take().map(|told| format!("{told}; "));
    report.detail = Some(told.unwrap_or_default() + word);
    report
}

/// What was heard of spokes of which none has proven the agent's death.
#[derive(Debug, Default)]
pub(super) struct Heard {
    ended: Option<KillReport>,
    unverified: Option<KillReport>,
    refused: Option<Refusal>,
    /// Names of spokes that said nothing that can be used.
    pub(super) silent: Vec<String>,
}

impl Heard {
    /// Takes an answer in, or hands it back if it proves the death.
    pub(super) fn take(
        &mut self,
        name: &str,
        answer: &Result<KillReport, Failure>,
    ) -> Option<KillReport> {
        match answer {
            Ok(report) => match report.outcome {
                KillOutcome::Killed => return Some(report.clone()),
                KillOutcome::AlreadyEnded => self.ended = Some(report.clone()),
                KillOutcome::Unverified => self.unverified = Some(report.clone()),
            },
            Err(failure) if !failure.is_final() => self.silent.push(name.to_owned()),
            Err(failure) if failure.refusal.code == ErrorCode::UnknownAgent => {}
            Err(failure) => self.refused = Some(failure.refusal.clone()),
        }
        None
    }

    /// The worst that may be true. That it had ended counts only if nobody else might have it.
    pub(super) fn verdict(self) -> Result<KillReport, Refusal> {
        let not_heard = format!("not heard: {}", self.silent.join(", "));
        if let Some(report) = self.unverified {
            return Ok(if self.silent.is_empty() {
                report
            } else {
                with_word(report, &not_heard)
            });
        }
        if !self.silent.is_empty() {
            return Err(Refusal::field(
                ErrorCode::PeerUnreachable,
                "agentId",
                format!("no spoke that answered proved the agent's death; {not_heard}"),
            ));
        }
        match (self.refused, self.ended) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(report)) => Ok(report),
            (None, None) => Err(unknown_agent()),
        }
    }
}

/// What a kill-all came to, whose order has a hold if `hold`.
pub(super) fn summarise(
    spokes: Vec<SpokeKillAll>,
    hold: bool,
    elapsed_micros: u64,
) -> FederationKillAll {
    let reports = || spokes.iter().filter_map(|spoke| spoke.report.as_ref());
    let killed = reports().map(|report| report.killed).sum();
    let unverified = reports().map(|report| report.unverified).sum();
    let unreachable = spokes.iter().filter(|spoke| spoke.report.is_none()).count();
    let is_held = reports().all(|report| without_hold(report, hold).is_none());
    let pending = spokes
        .iter()
        .filter(|spoke| spoke.pending.is_some())
        .count();
    FederationKillAll {
        complete: unverified == 0 && unreachable == 0 && is_held,
        killed,
        unverified,
        unreachable: u64::try_from(unreachable).unwrap_or(u64::MAX),
        elapsed_micros,
        pending: u64::try_from(pending).unwrap_or(u64::MAX),
        spokes,
    }
}

#[cfg(test)]
mod tests {
    use mosaic_types::{ConnectionId, Timestamp};

    use super::*;

    fn spoke(report: Option<(u64, u64)>) -> SpokeKillAll {
        let error = report
            .is_none()
            .then(|| Refusal::new(ErrorCode::PeerUnreachable, "the spoke did not answer"));
        let report = report.map(|(killed, unverified)| KillAllReport {
            hold_durable: None,
            killed,
            unverified,
            held: false,
            elapsed_micros: 7,
            completed_at: Timestamp::from_unix_millis(0),
            agents: Vec::new(),
        });
        SpokeKillAll {
            connection_id: ConnectionId::generate(),
            name: "spoke".to_owned(),
            report,
            error,
            pending: None,
        }
    }

    #[test]
    fn complete_means_that_every_spoke_proved_every_death() {
        assert!(summarise(Vec::new(), true, 0).complete);
        assert!(summarise(vec![spoke(Some((2, 0))), spoke(Some((0, 0)))], false, 0).complete);
        assert!(!summarise(vec![spoke(Some((2, 1)))], false, 0).complete);
        let partial = summarise(vec![spoke(Some((3, 0))), spoke(None)], false, 9);
        assert!(!partial.complete);
        assert_eq!(
            (partial.killed, partial.unreachable, partial.elapsed_micros),
            (3, 1, 9)
        );
    }
}
