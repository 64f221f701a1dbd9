//! Whom a kill-all asks, and who is in its scope and cannot be asked.

use std::sync::Arc;

use mosaic_store::RemoteAgent;
use mosaic_types::{
    ErrorCode, Refusal,
    api::{KillAllRequest, SpokeKillAll},
    command::KillAllPayload,
    connection::{Connection, NodeRole},
    label::Label,
};

use super::{
    Routing, STORE_LIMIT,
    kill::{KILLABLE, require_killable},
    observe::last_status,
};

/// Agents looked at to learn whether a task has any at a connection that cannot be asked.
const SCOPE_PAGE: u32 = 500;

impl Routing {
    /// Whom a kill-all asks, and who cannot be asked although agents that were not seen to end are there: nobody is
    /// left out silently. A connection that has ended cannot be asked, but its spoke can if another leads there, and then
    /// it is: what came by the one before is taken as well.
    #[expect(clippy::type_complexity, reason = "two lists of the same")]
    pub(super) fn reach(
        &self,
        request: &KillAllRequest,
    ) -> Result<(Vec<Arc<Connection>>, Vec<Arc<Connection>>), Refusal> {
        if let Some(Err(fault)) = request.label.as_ref().map(Label::check) {
            let why = fault.to_string();
            return Err(Refusal::field(ErrorCode::InvalidRequest, "label", why));
        }
        if let Some(id) = request.connection_id {
            let connection = self.connection(id)?;
            require_killable(&connection)?;
            return Ok((vec![connection], Vec::new()));
        }
        let unended = self.inner.whereabouts.unended();
        let mut connections = self.node().connections().list();
        let is_asked = |connection: &Connection| {
            connection.role == NodeRole::Orchestrator && KILLABLE.contains(&connection.state)
        };
        connections.retain(|connection| {
            is_asked(connection)
                || unended.contains(&connection.connection_id)
                    && !self.way_to(connection).is_ok_and(|way| is_asked(&way))
        });
        Ok(connections
            .into_iter()
            .partition(|connection| KILLABLE.contains(&connection.state)))
    }

    /// Of connections that cannot be asked, those that count: with a task in scope only those that have agents of
    /// it, or may have them because the store does not say in time.
    pub(super) async fn still_in_scope(
        &self,
        connections: Vec<Arc<Connection>>,
        scope: &KillAllPayload,
    ) -> Vec<SpokeKillAll> {
        let (task, label) = (scope.task_id.as_ref(), scope.label.as_ref());
        let looked_at = connections.iter().map(|connection| async move {
            if task.is_none() && label.is_none() {
                return true;
            }
            let id = connection.connection_id;
            let store = self.node().store();
            let page = store.remote_agents(Some(id), task.cloned(), None, SCOPE_PAGE);
            let counts = |agent: &RemoteAgent| {
                let selected = |label: &Label| {
                    last_status(agent).is_none_or(|status| label.is_among(&status.labels))
                };
                !agent.terminal && label.is_none_or(selected)
            };
            match tokio::time::timeout(STORE_LIMIT, page).await {
                Ok(Ok(agents)) => agents.len() >= SCOPE_PAGE as usize || agents.iter().any(counts),
                _ => true,
            }
        });
        let counts = futures_util::future::join_all(looked_at).await;
        connections
            .iter()
            .zip(counts)
            .filter(|(_, counts)| *counts)
            .map(|(connection, _)| SpokeKillAll {
                connection_id: connection.connection_id,
                name: connection.name.clone(),
                report: None,
                error: require_killable(connection).err(),
                pending: None,
            })
            .collect()
    }
}
