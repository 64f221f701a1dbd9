//! Kills. They ask nothing first: where it is not known what the node is, both of its faces are tried.

use mosaic_types::{
    AgentId, ErrorCode, KillIntentId,
    api::{FederationKillAll, KillAllRequest, KillRequest},
    command::{KillAllReport, KillReport},
    kill::{KillIntent, KillIntents},
};
use reqwest::Method;
use serde::Serialize;

use super::{Client, LONG, SHORT};
use crate::error::{CliError, Exit};

/// What a kill-all did, as a hub or a spoke tells it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum KilledAll {
    Hub(FederationKillAll),
    Spoke(KillAllReport),
}

impl KilledAll {
    /// How the verb ends, of an order with a hold if `hold`.
    pub(crate) fn exit(&self, hold: bool) -> Exit {
        if self.is_complete(hold) {
            Exit::Ok
        } else {
            Exit::KillIncomplete
        }
    }

    /// Whether every death is proven, and spawns are held for good if that was asked for.
    fn is_complete(&self, hold: bool) -> bool {
        let is_held = |report: &KillAllReport| !hold || is_held_for_good(report);
        match self {
            Self::Hub(all) => {
                let proven = all.complete && all.unverified == 0 && all.unreachable == 0;
                let mut reports = all.spokes.iter().filter_map(|spoke| spoke.report.as_ref());
                proven && reports.all(is_held)
            }
            Self::Spoke(report) => report.unverified == 0 && is_held(report),
        }
    }
}

/// Whether spawns are held there, after a restart too.
fn is_held_for_good(report: &KillAllReport) -> bool {
    // A spoke of an older version does not say whether its hold is on disk.
    report.held && report.hold_durable != Some(false)
}

/// A kill that failed is not proven, unless it was refused for good: a refusal that may pass, or is of its times, leaves
/// the agent alive, as does an answer that nobody can read. Which node was not reached is known already.
fn not_proven(error: CliError) -> CliError {
    let is_open = match &error {
        CliError::Malformed { .. } => true,
        CliError::Refused(problem) => match problem.code {
            ErrorCode::PeerUnreachable => false,
            ErrorCode::Expired => true,
            code => code.retryable(),
        },
        _ => false,
    };
    if is_open {
        CliError::NotProven(Box::new(error))
    } else {
        error
    }
}

/// Whether the node has no such route, and so is of the other kind.
fn no_such_route<T>(answer: &Result<T, CliError>) -> bool {
    matches!(answer, Err(CliError::Refused(problem)) if problem.code == ErrorCode::NotFound)
}

impl Client {
    /// The kills that the hub keeps.
    pub(crate) async fn kept_kills(&self) -> Result<KillIntents, CliError> {
        self.get("/federation/kills").await
    }

    /// Takes a kept kill back.
    pub(crate) async fn cancel_kill(&self, id: KillIntentId) -> Result<KillIntent, CliError> {
        let path = format!("/federation/kills/{id}");
        let response = self
            .send(Method::DELETE, &path, None, &[], Some(SHORT))
            .await?;
        self.json(response).await
    }

    /// Kills one agent.
    pub(crate) async fn kill(
        &self,
        agent: AgentId,
        request: &KillRequest,
    ) -> Result<KillReport, CliError> {
        let at_spoke = format!("/agents/{agent}/kill");
        let known = self.known_spoke();
        if known != Some(true) {
            let at_hub = format!("/federation{at_spoke}");
            let answer = self.post(&at_hub, request, LONG).await;
            if known.is_some() || !no_such_route(&answer) {
                return answer.map_err(not_proven);
            }
        }
        let answer = self.post(&at_spoke, request, LONG).await;
        answer.map_err(not_proven)
    }

    /// Kills all agents in scope.
    pub(crate) async fn kill_all(&self, request: &KillAllRequest) -> Result<KilledAll, CliError> {
        let known = self.known_spoke();
        if known != Some(true) {
            let path = "/federation/agents/kill-all";
            let answer = self.post(path, request, SHORT).await;
            if known.is_some() || !no_such_route(&answer) {
                return answer.map(KilledAll::Hub).map_err(not_proven);
            }
        }
        let answer = self.post("/agents/kill-all", request, SHORT).await;
        answer.map(KilledAll::Spoke).map_err(not_proven)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_all_that_is_not_complete_is_exit_code_5() {
        for (complete, unverified, unreachable, code) in [
            (true, 0, 0, 0),
            (false, 0, 0, 5),
            (true, 1, 0, 5),
            (true, 0, 1, 5),
        ] {
            let report = FederationKillAll {
                complete,
                killed: 1,
                unverified,
                unreachable,
                elapsed_micros: 1,
                pending: 0,
                spokes: Vec::new(),
            };
            assert_eq!(KilledAll::Hub(report).exit(false).code(), code);
        }
    }

    // A30: as a hub sees it. Without a hold in force the next spawn runs.
    #[test]
    fn a30_a_hold_that_is_not_in_force_for_good_is_exit_code_5_at_a_spoke_too() {
        for (held, hold_durable, code) in [
            (true, Some(true), 0),
            (true, None, 0),
            (true, Some(false), 5),
            (false, Some(true), 5),
            (false, None, 5),
        ] {
            let report = KillAllReport {
                killed: 1,
                unverified: 0,
                held,
                hold_durable,
                elapsed_micros: 1,
                completed_at: mosaic_types::Timestamp::now(),
                agents: Vec::new(),
            };
            let report = KilledAll::Spoke(report);
            assert_eq!(report.exit(true).code(), code, "{report:?}");
            assert_eq!(report.exit(false).code(), 0, "nobody asked for it");
        }
    }

    // A30: what may be alive is not told like what is not there.
    #[test]
    fn a30_a_kill_that_is_refused_and_not_over_is_exit_code_5() {
        for (code, exit) in [
            (ErrorCode::Overloaded, 5),
            (ErrorCode::Expired, 5),
            (ErrorCode::NotYetValid, 5),
            (ErrorCode::Internal, 5),
            (ErrorCode::OutcomeUnknown, 5),
            (ErrorCode::StoreUnavailable, 5),
            (ErrorCode::PeerUnreachable, 4),
            (ErrorCode::UnknownAgent, 3),
            (ErrorCode::NotGranted, 3),
            (ErrorCode::Forbidden, 3),
        ] {
            let problem = mosaic_types::Refusal::new(code, "x").into();
            let error = not_proven(CliError::Refused(Box::new(problem)));
            assert_eq!(error.exit().code(), exit, "{code}");
        }
    }
}
