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
    /// How the verb ends.
    pub(crate) fn exit(&self) -> Exit {
        if self.complete() {
            Exit::Ok
        } else {
            Exit::KillIncomplete
        }
    }

    /// Whether every death is proven.
    pub(crate) fn complete(&self) -> bool {
        match self {
            Self::Hub(report) => {
                report.complete && report.unverified == 0 && report.unreachable == 0
            }
            Self::Spoke(report) => report.unverified == 0,
        }
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
                return answer;
            }
        }
        self.post(&at_spoke, request, LONG).await
    }

    /// Kills all agents in scope.
    pub(crate) async fn kill_all(&self, request: &KillAllRequest) -> Result<KilledAll, CliError> {
        let known = self.known_spoke();
        if known != Some(true) {
            let path = "/federation/agents/kill-all";
            let answer = self.post(path, request, SHORT).await;
            if known.is_some() || !no_such_route(&answer) {
                return answer.map(KilledAll::Hub);
            }
        }
        let report = self.post("/agents/kill-all", request, SHORT).await?;
        Ok(KilledAll::Spoke(report))
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
            assert_eq!(KilledAll::Hub(report).exit().code(), code);
        }
    }
}
