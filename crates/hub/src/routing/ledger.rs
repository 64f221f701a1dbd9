//! Records what was asked of spokes and what they said, behind the caller's back: no answer waits for it.

use mosaic_node::Node;
use mosaic_types::{
    AgentId, ConnectionId, Timestamp,
    agent::{AgentStatus, DeathProof, ObservedState},
    api::CommandRecord,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::observe::last_status;

/// Most records that wait for the store. What is above is dropped with a warning; the audit trail has its own,
/// durable, queue.
const QUEUE: usize = 4096;

/// A death that was proven by the answer to a kill.
#[derive(Debug)]
pub(super) struct Death {
    pub(super) agent: AgentId,
    /// The connection that it is remembered at.
    pub(super) connection: ConnectionId,
    pub(super) proof: DeathProof,
}

/// Something to write down.
#[derive(Debug)]
enum Record {
    Command(Box<CommandRecord>),
    Seen {
        status: Box<AgentStatus>,
        at: Timestamp,
    },
    Died {
        deaths: Vec<Death>,
        at: Timestamp,
    },
}

/// A handle to the task that writes.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    queue: mpsc::Sender<Record>,
}

impl Ledger {
    /// The handle, and the task to run. After `shutdown` the task writes what is queued and ends.
    pub(super) fn new(
        node: Node,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, records) = mpsc::channel(QUEUE);
        (Self { queue }, write(node, records, shutdown))
    }

    /// Records a command and how it came out.
    pub(super) fn command(&self, record: CommandRecord) {
        self.put(Record::Command(Box::new(record)));
    }

    /// Keeps the status that a spoke gave.
    pub(super) fn seen(&self, status: AgentStatus, at: Timestamp) {
        self.put(Record::Seen {
            status: Box::new(status),
            at,
        });
    }

    /// Keeps that agents are proven dead, until a status says more of it.
    pub(super) fn died(&self, deaths: Vec<Death>, at: Timestamp) {
        self.put(Record::Died { deaths, at });
    }

    fn put(&self, record: Record) {
        if let Err(refused) = self.queue.try_send(record) {
            tracing::warn!(%refused, "a record was dropped: the store is too slow");
        }
    }
}

async fn write(node: Node, mut records: mpsc::Receiver<Record>, shutdown: CancellationToken) {
    loop {
        let record = tokio::select! {
            record = records.recv() => record,
            () = shutdown.cancelled() => {
                records.close();
                records.recv().await
            }
        };
        match record {
            Some(Record::Command(command)) => {
                if let Err(error) = node.store().save_command(*command).await {
                    tracing::warn!(error = %mosaic_node::with_causes(&error), "a command's outcome is not recorded");
                }
            }
            Some(Record::Seen { status, at }) => {
                observe(&node, status.agent_id, &status, at).await;
            }
            Some(Record::Died { deaths, at }) => {
                for death in deaths {
                    bury(&node, death, at).await;
                }
            }
            None => return,
        }
    }
}

/// Keeps a death with what was last seen of the agent. An end that is on record says more.
async fn bury(node: &Node, death: Death, at: Timestamp) {
    let Death {
        agent,
        connection,
        proof,
    } = death;
    let remote = match node.store().remote_agent(agent).await {
        Ok(remote) => remote,
        Err(error) => {
            tracing::warn!(error = %mosaic_node::with_causes(&error), %agent, "a death is not recorded");
            return;
        }
    };
    let alive = remote.filter(|remote| !remote.terminal && remote.connection_id == connection);
    if let Some(status) = alive.as_ref().and_then(last_status) {
        let status = AgentStatus {
            state: ObservedState::Killed,
            death: Some(proof),
            ..status
        };
        observe(node, agent, &status, at).await;
    }
}

async fn observe(node: &Node, agent: AgentId, status: &AgentStatus, at: Timestamp) {
    let terminal = status
        .state
        .known()
        .is_some_and(|state| state.is_terminal());
    let json = match serde_json::to_string(status) {
        Ok(json) => json,
        Err(error) => {
            tracing::error!(%error, "a status cannot be written as JSON");
            return;
        }
    };
    let observed = node
        .store()
        .observe_remote_agent(agent, json, terminal, at)
        .await;
    if let Err(error) = observed {
        // An agent of a peer's making that this hub never spawned is not on record, and need not be.
        tracing::debug!(error = %mosaic_node::with_causes(&error), %agent, "a status is not recorded");
    }
}
