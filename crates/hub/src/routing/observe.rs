//! Looking: one agent, all agents, a spoke itself.

use std::sync::Arc;

use mosaic_store::RemoteAgent;
use mosaic_types::{
    AgentId, ConnectionId, Refusal, TaskId,
    agent::{AgentStatus, ObservedState},
    api::{FederationAgent, FederationAgents},
    command::{AgentPage, AgentRef, CommandType, ListPayload, PingPayload, Pong},
    connection::{Connection, ConnectionState},
    label::Label,
};

use super::{Routing, intents::Known, require_about, require_active, store_refusal};

/// Which agents to show.
#[derive(Debug, Clone, Default)]
pub struct AgentsQuery {
    /// Only those at this spoke.
    pub connection: Option<ConnectionId>,
    /// Only those of this task.
    pub task: Option<TaskId>,
    /// Only those that have not ended. What is `unknown` may not have ended.
    pub active: bool,
    /// Only those with an older id: the last of the page before.
    pub before: Option<AgentId>,
    /// Page size, 1 to 500.
    pub limit: u32,
    /// Only those with this label.
    pub label: Option<Label>,
}

/// What one spoke contributes to a list.
struct Share {
    connection: ConnectionId,
    agents: Vec<FederationAgent>,
    more: bool,
    unreachable: bool,
}

impl Routing {
    /// One agent, as its spoke tells it. If the spoke cannot be asked: as it was last seen, with the state `unknown`
    /// unless it was seen to end.
    ///
    /// # Errors
    /// `unknown-agent`, `unknown-connection`, `store-unavailable`, or the spoke's refusal.
    pub async fn status(&self, agent: AgentId) -> Result<FederationAgent, Refusal> {
        let connection = self.locate(agent).await?;
        let why = match require_active(&connection) {
            Err(refusal) => refusal,
            Ok(()) => {
                let payload = AgentRef { agent_id: agent };
                let asked: Result<AgentStatus, _> = self
                    .ask(&connection, CommandType::AgentStatus, &payload)
                    .await;
                match asked.and_then(|told| require_about(agent, told.agent_id).map(|()| told)) {
                    Ok(status) => {
                        let status = self.take_in(connection.connection_id, status);
                        return Ok(self.at_spoke(&connection, status));
                    }
                    Err(failure) if failure.is_final() => return Err(failure.refusal),
                    Err(failure) => failure.refusal,
                }
            }
        };
        let remote = self
            .node()
            .store()
            .remote_agent(agent)
            .await
            .map_err(store_refusal)?;
        // An agent that only its spoke knows cannot be told of without it.
        let remembered = remote.and_then(|remote| recall(&remote, &why)).ok_or(why)?;
        Ok(self.at_spoke(&connection, remembered))
    }

    /// Agents of all spokes, newest first. Spokes that cannot be asked are named, and their agents shown as they
    /// were last seen.
    ///
    /// # Errors
    /// `unknown-connection` if the query names one that is not there; `store-unavailable` if a spoke cannot be asked
    /// and what was last seen of its agents cannot be read.
    pub async fn list(&self, query: &AgentsQuery) -> Result<FederationAgents, Refusal> {
        let spokes = match query.connection {
            Some(id) => vec![self.connection(id)?],
            None => self.spokes(&[ConnectionState::Active, ConnectionState::Suspended]),
        };
        let asked = spokes.iter().map(|spoke| self.list_at(spoke, query));
        let shares = futures_util::future::try_join_all(asked).await?;
        Ok(merge(shares, query.limit))
    }

    async fn list_at(
        &self,
        connection: &Arc<Connection>,
        query: &AgentsQuery,
    ) -> Result<Share, Refusal> {
        let id = connection.connection_id;
        let why = match require_active(connection) {
            Err(refusal) => refusal,
            Ok(()) => {
                let payload = ListPayload {
                    active: query.active.then_some(true),
                    task_id: query.task.clone(),
                    before: query.before,
                    limit: Some(query.limit),
                    label: query.label.clone(),
                };
                match self
                    .ask::<AgentPage>(connection, CommandType::AgentList, &payload)
                    .await
                {
                    Ok(page) => {
                        let agents = page
                            .agents
                            .into_iter()
                            // Another spoke's agent is not this one's to tell of.
                            .filter(|told| !self.inner.whereabouts.is_elsewhere(told.agent_id, id))
                            .map(|status| self.at_spoke(connection, self.take_in(id, status)))
                            .collect();
                        return Ok(Share {
                            connection: id,
                            agents,
                            more: page.more,
                            unreachable: false,
                        });
                    }
                    Err(failure) => failure.refusal,
                }
            }
        };
        let remembered = self
            .node()
            .store()
            .remote_agents(Some(id), query.task.clone(), query.before, query.limit)
            .await
            .map_err(store_refusal)?;
        let more = remembered.len() >= usize::try_from(query.limit).unwrap_or(usize::MAX);
        let agents = remembered
            .iter()
            .filter(|agent| !(query.active && agent.terminal))
            .filter_map(|agent| recall(agent, &why))
            .filter(|status| {
                let label = query.label.as_ref();
                label.is_none_or(|label| label.is_among(&status.labels))
            })
            .map(|status| self.at_spoke(connection, status))
            .collect();
        Ok(Share {
            connection: id,
            agents,
            more,
            unreachable: true,
        })
    }

    fn at_spoke(&self, connection: &Connection, status: AgentStatus) -> FederationAgent {
        let ended = status
            .state
            .known()
            .is_some_and(|state| state.is_terminal());
        let kill_pending = !ended
            && self.inner.intents.covers(Known {
                agent: status.agent_id,
                connection: connection.connection_id,
                task: &status.task_id,
                labels: &status.labels,
                asked_at: status.queued_at,
            });
        FederationAgent {
            connection_id: connection.connection_id,
            spoke: connection.name.clone(),
            status,
            kill_pending,
        }
    }

    /// A spoke's own word on itself.
    ///
    /// # Errors
    /// `unknown-connection`, `connection-not-active`, `peer-unreachable`, or the peer's refusal.
    pub async fn ping(&self, id: ConnectionId) -> Result<Pong, Refusal> {
        let connection = self.connection(id)?;
        require_active(&connection)?;
        self.ask(&connection, CommandType::InstancePing, &PingPayload {})
            .await
            .map_err(Refusal::from)
    }
}

/// The status that was last seen of an agent.
pub(super) fn last_status(remote: &RemoteAgent) -> Option<AgentStatus> {
    serde_json::from_str(remote.last_status_json.as_deref()?).ok()
}

/// The state that was last seen of an agent.
pub(super) fn last_state(remote: &RemoteAgent) -> Option<ObservedState> {
    #[derive(serde::Deserialize)]
    struct State {
        state: ObservedState,
    }
    let text = remote.last_status_json.as_deref()?;
    serde_json::from_str(text).ok().map(|State { state }| state)
}

/// What was last seen of an agent whose spoke cannot be asked. Only an end that was seen is still true.
fn recall(remote: &RemoteAgent, why: &Refusal) -> Option<AgentStatus> {
    let text = remote.last_status_json.as_deref()?;
    let mut status: AgentStatus = match serde_json::from_str(text) {
        Ok(status) => status,
        Err(error) => {
            tracing::error!(%error, agent = %remote.agent_id, "a kept status cannot be read");
            return None;
        }
    };
    if remote.terminal {
        return Some(status);
    }
    status.detail = Some(match (status.state, remote.last_seen_at) {
        // Refused, and so never started; kept as not terminal because the same spawn may be accepted later.
        (ObservedState::Failed, _) => return Some(status),
        (ObservedState::Unknown, _) | (_, None) => {
            format!("{}; no word of this agent has come yet", why.message)
        }
        (state, Some(at)) => format!("{}; last seen {state} at {at}", why.message),
    });
    status.state = ObservedState::Unknown;
    Some(status)
}

/// The newest `limit` agents of all shares. Ids are ordered by time, so each share's page is enough.
fn merge(shares: Vec<Share>, limit: u32) -> FederationAgents {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut more = shares.iter().any(|share| share.more);
    let unreachable = shares
        .iter()
        .filter(|share| share.unreachable)
        .map(|share| share.connection)
        .collect();
    let mut agents: Vec<_> = shares.into_iter().flat_map(|share| share.agents).collect();
    agents.sort_by_key(|at| std::cmp::Reverse(at.status.agent_id));
    more |= agents.len() > limit;
    agents.truncate(limit);
    FederationAgents {
        agents,
        unreachable,
        more,
    }
}
