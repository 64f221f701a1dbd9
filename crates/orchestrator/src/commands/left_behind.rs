//! What a peer left behind: agents that came by a connection which an operator here has ended since. It is the same peer,
//! by its verified key; that it may still kill what it has started is no more than it could before. It reaches them with
//! kills and nothing else.

use futures_util::future::join_all;
use mosaic_types::{
    AgentId, ConnectionId, InstanceId, Refusal, command::KillAllReport, connection::ConnectionState,
};

use super::Commands;
use crate::{
    killswitch::{KillScope, Reach},
    lifecycle::KillOrder,
};

impl Commands {
    /// The reach of a peer's kill of this agent.
    pub(super) fn reach_of_kill(
        &self,
        peer: &InstanceId,
        now: ConnectionId,
        agent_id: AgentId,
    ) -> Reach {
        let came_by = self.agents.connection_of(agent_id);
        let left_behind = came_by.filter(|id| self.is_left_behind(peer, *id));
        Reach::Connection(left_behind.unwrap_or(now))
    }

    /// A peer's kill-all: of what came by its connection, and of what it left behind that has not ended.
    pub(super) async fn kill_all(
        &self,
        peer: &InstanceId,
        scope: KillScope,
        order: KillOrder,
        hold: bool,
    ) -> Result<KillAllReport, Refusal> {
        let connections = self.agents.connections().into_iter();
        let left_behind = connections.filter(|id| self.is_left_behind(peer, *id));
        let others = left_behind.map(|id| {
            let scope = KillScope {
                reach: Reach::Connection(id),
                ..scope.clone()
            };
            // The hold is on what it may spawn: by a connection that is ended it is nothing.
            self.killswitch.kill_all(scope, order.clone(), false)
        });
        let others = join_all(others.collect::<Vec<_>>());
        let own = self.killswitch.kill_all(scope, order, hold);
        let (report, others) = tokio::join!(own, others);
        others
            .into_iter()
            .try_fold(report?, |report, other| Ok(sum(report, other?)))
    }

    fn is_left_behind(&self, peer: &InstanceId, id: ConnectionId) -> bool {
        let connection = self.node.connections().get(id);
        connection.is_some_and(|connection| {
            connection.peer == *peer && connection.state == ConnectionState::Disconnected
        })
    }
}

/// Two kill-alls as one.
fn sum(report: KillAllReport, other: KillAllReport) -> KillAllReport {
    let mut agents = report.agents;
    agents.extend(other.agents);
    KillAllReport {
        killed: report.killed + other.killed,
        unverified: report.unverified + other.unverified,
        elapsed_micros: report.elapsed_micros.max(other.elapsed_micros),
        completed_at: report.completed_at.max(other.completed_at),
        agents,
        held: report.held,
        hold_durable: report.hold_durable,
    }
}
