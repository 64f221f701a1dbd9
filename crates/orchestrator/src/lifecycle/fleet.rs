//! The agents that have not ended, in memory: what a kill needs, and what a status is read from.
//!
//! Ended agents are on record in the store only, so that ten thousand of them cost no memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use mosaic_store::AgentRecord;
use mosaic_types::{AgentId, ConnectionId, TaskId, Timestamp, agent::DeathProof};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    gate::{Gate, KillOrder, KillTarget},
    lease::Lease,
    publisher::Publisher,
};
use crate::sandbox::Scope;

/// One agent that has not ended.
#[derive(Debug)]
pub struct Cell {
    /// The agent.
    pub agent_id: AgentId,
    /// The connection it came by.
    pub connection_id: Option<ConnectionId>,
    /// The caller's task.
    pub task_id: TaskId,
    /// The labels that it was spawned with.
    pub labels: BTreeMap<String, String>,
    /// When it was asked for: by the clock of the peer that signed the spawn, or by ours if none did.
    pub asked_at: Timestamp,
    /// The lease that it lives by.
    pub lease: Option<Lease>,
    /// The door to its processes.
    pub gate: Gate,
    /// What others see of it.
    pub publisher: Publisher,
    /// Whether the agent came on record; `None` while that is being tried.
    pub on_record: watch::Sender<Option<bool>>,
    /// Cancelled once a kill was answered: the driver's turn.
    pub kill_answered: CancellationToken,
}

impl Cell {
    /// A cell for a record. It is not in a fleet yet.
    #[must_use]
    pub fn new(record: &Arc<AgentRecord>, lease: Option<Lease>) -> Self {
        Self {
            agent_id: record.agent_id,
            connection_id: record.connection_id,
            task_id: record.request.task_id.clone(),
            labels: record.request.labels.clone(),
            asked_at: record.issued_at.unwrap_or(record.status.queued_at),
            lease,
            gate: Gate::default(),
            publisher: Publisher::new(Arc::clone(record)),
            on_record: watch::Sender::new(None),
            kill_answered: CancellationToken::new(),
        }
    }

    /// With whom it is killed.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.connection_id.map_or(Scope::Local, Scope::Connection)
    }

    /// Shuts its gate by a kill order, and says what that meets.
    pub fn order(&self, order: KillOrder) -> KillTarget {
        self.is_ordered(self.gate.order(order))
    }

    /// The same, unless the agent is being started right now.
    pub fn try_order(&self, order: KillOrder) -> Option<KillTarget> {
        let target = self.gate.try_order(order)?;
        Some(self.is_ordered(target))
    }

    fn is_ordered(&self, target: KillTarget) -> KillTarget {
        if !matches!(target, KillTarget::Ended(_)) {
            self.publisher.killing();
        }
        target
    }

    /// Orders a kill for which nobody waits: it was answered elsewhere, or before this process began.
    pub fn order_answered(&self, order: KillOrder) -> KillTarget {
        let target = self.order(order);
        self.kill_answered.cancel();
        target
    }

    /// The same, of an agent whose attempt had ended before: that keeps its result, and nothing follows it.
    pub fn order_answered_after(&self, order: KillOrder) {
        if self.gate.order_after(order) {
            self.publisher.killing();
            self.kill_answered.cancel();
        }
    }

    /// The attempt is proven dead; another may be launched, unless a kill was ordered.
    pub fn attempt_over(&self, proof: DeathProof) {
        if self.gate.attempt_over(proof) {
            self.publisher.killing();
            self.kill_answered.cancel();
        }
    }
}

/// Why an agent cannot enter.
#[derive(Debug)]
pub enum NotEntered {
    /// Its id is taken by this one.
    Taken(Arc<Cell>),
    /// As many agents as there may be have not ended.
    Full,
    /// As many agents of its connection as there may be have not ended.
    ConnectionFull,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Fleet {
    /// Told when an agent enters.
    pub entered: Notify,
    capacity: usize,
    cells: RwLock<HashMap<AgentId, Arc<Cell>>>,
}

impl Fleet {
    /// An empty fleet of at most `capacity` agents, queued ones included.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            entered: Notify::new(),
            capacity,
            cells: RwLock::default(),
        }
    }

    /// Enters an agent, if its connection has fewer than `connection_max`. From here on kills find it.
    ///
    /// # Errors
    /// [`NotEntered`].
    pub fn enter(&self, cell: Arc<Cell>, connection_max: Option<u32>) -> Result<(), NotEntered> {
        let mut cells = self.cells.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = cells.get(&cell.agent_id) {
            return Err(NotEntered::Taken(Arc::clone(taken)));
        }
        if let (Some(id), Some(max)) = (cell.connection_id, connection_max)
            && active(&cells, id) >= max as usize
        {
            return Err(NotEntered::ConnectionFull);
        }
        if cells.len() >= self.capacity {
            return Err(NotEntered::Full);
        }
        cells.insert(cell.agent_id, cell);
        drop(cells);
        self.entered.notify_one();
        Ok(())
    }

    /// Enters an agent that was there before a restart, whatever the capacity is now.
    pub fn readmit(&self, cell: Arc<Cell>) {
        self.cells
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(cell.agent_id, cell);
    }

    /// Removes an agent whose story is over.
    pub fn leave(&self, agent_id: AgentId) {
        self.cells
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&agent_id);
    }

    /// One agent.
    #[must_use]
    pub fn get(&self, agent_id: AgentId) -> Option<Arc<Cell>> {
        self.cells
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&agent_id)
            .cloned()
    }

    /// The agents that satisfy `wanted`.
    #[must_use]
    pub fn select(&self, wanted: impl Fn(&Cell) -> bool) -> Vec<Arc<Cell>> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        cells
            .values()
            .filter(|cell| wanted(cell))
            .cloned()
            .collect()
    }

    /// How many agents of a connection have not ended.
    #[must_use]
    pub fn active_of(&self, connection_id: ConnectionId) -> usize {
        active(
            &self.cells.read().unwrap_or_else(PoisonError::into_inner),
            connection_id,
        )
    }
}

fn active(cells: &HashMap<AgentId, Arc<Cell>>, connection_id: ConnectionId) -> usize {
    cells
        .values()
        .filter(|cell| cell.connection_id == Some(connection_id))
        .filter(|cell| !cell.publisher.has_ended())
        .count()
}
