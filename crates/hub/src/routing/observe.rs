//! Looking: one agent, all agents, a spoke itself.

use std::{sync::Arc, time::Instant};

use mosaic_store::RemoteAgent;
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, TaskId,
    agent::{AgentStatus, ObservedState},
    api::{FederationAgent, FederationAgents},
    command::{AgentPage, AgentRef, CommandType, ListPayload, PingPayload, Pong},
    connection::{Connection, ConnectionState},
    label::Label,
};

use super::{
    ASK_LIMIT, Failure, Routing, intents::Known, require_about, require_active, store_refusal,
};

/// Rows of the record in one reading.
const ROWS: u32 = 500;

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
    /// Newest first.
    agents: Vec<FederationAgent>,
    /// If there are more: the last that was looked at. Of what is older nothing is known yet.
    more_below: Option<AgentId>,
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
    /// were last seen. A page may have fewer than the limit and still not be the last, but never none.
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
        let told = match require_active(connection) {
            Ok(()) => self.told_by(connection, query).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        };
        match told {
            Ok(share) => Ok(share),
            Err(why) => self.remembered_of(connection, query, &why).await,
        }
    }

    /// A page as the spoke tells it: the first that is not of others' agents alone.
    async fn told_by(
        &self,
        connection: &Connection,
        query: &AgentsQuery,
    ) -> Result<Share, Failure> {
        let (id, started) = (connection.connection_id, Instant::now());
        let mut payload = ListPayload {
            active: query.active.then_some(true),
            task_id: query.task.clone(),
            before: query.before,
            limit: Some(query.limit),
            label: query.label.clone(),
        };
        while started.elapsed() < ASK_LIMIT {
            let page: AgentPage = self
                .ask(connection, CommandType::AgentList, &payload)
                .await?;
            require_a_page(&page, &payload)?;
            let last = page.agents.last().map(|told| told.agent_id);
            let more_below = last.filter(|_| page.more);
            let agents: Vec<_> = page
                .agents
                .into_iter()
                // Another spoke's agent is not this one's to tell of. One that came by an earlier connection is.
                .filter_map(|status| {
                    let known = self.inner.whereabouts.get(status.agent_id).is_some();
                    let at = self.place_at(connection, status.agent_id);
                    let at = at.or((!known).then_some(id))?;
                    Some(self.at_spoke(connection, self.take_in(at, status)))
                })
                .collect();
            if !agents.is_empty() || more_below.is_none() {
                return Ok(Share {
                    connection: id,
                    agents,
                    more_below,
                    unreachable: false,
                });
            }
            payload.before = more_below;
        }
        Err(no_list("it goes on for ever with agents of others"))
    }

    /// A page as it was last seen, looked for until it is full or nothing is left.
    async fn remembered_of(
        &self,
        connection: &Connection,
        query: &AgentsQuery,
        why: &Refusal,
    ) -> Result<Share, Refusal> {
        let id = connection.connection_id;
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let mut share = Share {
            connection: id,
            agents: Vec::new(),
            more_below: None,
            unreachable: true,
        };
        let mut before = query.before;
        loop {
            let rows = self
                .node()
                .store()
                .remote_agents(Some(id), query.task.clone(), before, ROWS)
                .await
                .map_err(store_refusal)?;
            let Some(last) = rows.last() else {
                return Ok(share);
            };
            before = Some(last.agent_id);
            let wanted = rows
                .iter()
                .filter(|row| !(query.active && row.terminal))
                .filter_map(|row| recall(row, why))
                .filter(|status| is_wanted(query, status));
            for status in wanted {
                if share.agents.len() >= limit {
                    share.more_below = share.agents.last().map(|at| at.status.agent_id);
                    return Ok(share);
                }
                share.agents.push(self.at_spoke(connection, status));
            }
        }
    }

    fn at_spoke(&self, connection: &Connection, status: AgentStatus) -> FederationAgent {
        let kill_pending = !has_ended(&status)
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

fn has_ended(status: &AgentStatus) -> bool {
    status
        .state
        .known()
        .is_some_and(|state| state.is_terminal())
}

fn is_wanted(query: &AgentsQuery, status: &AgentStatus) -> bool {
    let label = query.label.as_ref();
    !(query.active && has_ended(status)) && label.is_none_or(|label| label.is_among(&status.labels))
}

/// Refuses what is no page of an answer: with it a spoke could hide others' agents, or its own.
fn require_a_page(page: &AgentPage, asked: &ListPayload) -> Result<(), Failure> {
    let ids: Vec<_> = page.agents.iter().map(|told| told.agent_id).collect();
    let limit = asked.limit.and_then(|limit| usize::try_from(limit).ok());
    if limit.is_some_and(|limit| ids.len() > limit) {
        return Err(no_list("a page has more agents than were asked for"));
    }
    if !ids.is_sorted_by(|newer, older| newer > older) {
        return Err(no_list("a page is not in order"));
    }
    if asked
        .before
        .is_some_and(|before| ids.iter().any(|id| *id >= before))
    {
        return Err(no_list("a page has agents of the one before"));
    }
    if page.more && ids.is_empty() {
        return Err(no_list("a page has no agents and is not the last"));
    }
    Ok(())
}

fn no_list(why: &str) -> Failure {
    tracing::warn!(why, "a spoke's list is none");
    Failure {
        refusal: Refusal::new(
            ErrorCode::PeerUnreachable,
            format!("the spoke's list cannot be read: {why}"),
        ),
        signed: false,
        silent: false,
    }
}

/// The newest `limit` agents of all shares: those down to where all shares are known. Ids are ordered by time, so what
/// one share has not told of yet is all older than that.
fn merge(shares: Vec<Share>, limit: u32) -> FederationAgents {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let known_down_to = shares.iter().filter_map(|share| share.more_below).max();
    let unreachable = shares
        .iter()
        .filter(|share| share.unreachable)
        .map(|share| share.connection)
        .collect();
    let mut agents: Vec<_> = shares.into_iter().flat_map(|share| share.agents).collect();
    let told = agents.len();
    agents.sort_by_key(|at| std::cmp::Reverse(at.status.agent_id));
    agents.retain(|at| known_down_to.is_none_or(|oldest| at.status.agent_id >= oldest));
    agents.truncate(limit);
    FederationAgents {
        more: known_down_to.is_some() || agents.len() < told,
        agents,
        unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // F8
    #[test]
    fn f8_what_was_not_asked_for_is_no_page() {
        let mut ids: Vec<_> = (0..4).map(|_| AgentId::generate()).collect();
        ids.reverse();
        let status = |id: &AgentId| {
            serde_json::json!({
                "agentId": id, "taskId": "T-1", "agentType": "worker", "runtime": "shell", "sandbox": "process",
                "state": "running", "attempt": 1, "repository": "file:///r", "branch": "main", "agentBranch": "b",
                "queuedAt": "2026-01-01T00:00:00Z", "progress": {}, "usage": {},
            })
        };
        let asked = ListPayload {
            before: Some(ids[0]),
            limit: Some(2),
            ..ListPayload::default()
        };
        for (told, more, is_one) in [
            (vec![ids[1], ids[2]], true, true),
            (vec![ids[3]], true, true),
            (vec![], false, true),
            (vec![], true, false),
            (vec![ids[0], ids[1]], true, false),
            (vec![ids[2], ids[1]], false, false),
            (vec![ids[1], ids[1]], false, false),
            (vec![ids[1], ids[2], ids[3]], false, false),
        ] {
            let agents: Vec<_> = told.iter().map(status).collect();
            let page = serde_json::json!({ "agents": agents, "more": more });
            let page: AgentPage = serde_json::from_value(page).unwrap();
            let judged = require_a_page(&page, &asked);
            assert_eq!(judged.is_ok(), is_one, "{told:?} {more}");
        }
    }
}
