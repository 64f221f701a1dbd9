//! Records what was asked of spokes and what they said, behind the caller's back: no answer waits for it.

use mosaic_node::Node;
use mosaic_types::{AgentId, Timestamp, agent::AgentStatus, api::CommandRecord};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Most records that wait for the store. What is above is dropped with a warning; the audit trail has its own,
/// durable, queue.
const QUEUE: usize = 4096;

/// Something to write down.
#[derive(Debug)]
enum Record {
    Command(Box<CommandRecord>),
    Seen {
        status: Box<AgentStatus>,
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
                    tracing::warn!(error = %crate::app::report(&error), "a command's outcome is not recorded");
                }
            }
            Some(Record::Seen { status, at }) => {
                observe(&node, status.agent_id, &status, at).await;
            }
            None => return,
        }
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
        tracing::debug!(error = %crate::app::report(&error), %agent, "a status is not recorded");
    }
}
