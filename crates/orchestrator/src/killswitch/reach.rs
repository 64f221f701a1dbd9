//! Whose agents somebody sees and kills.

use mosaic_types::{ConnectionId, TaskId, Timestamp, label::Label};

use crate::lifecycle::Cell;

/// Whose agents somebody may see and kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The spoke's own operator: every agent.
    Everything,
    /// A peer: those that came by its connection.
    Connection(ConnectionId),
}

impl Reach {
    /// Whether an agent that came by `connection` is within.
    #[must_use]
    pub fn includes(self, connection: Option<ConnectionId>) -> bool {
        match self {
            Self::Everything => true,
            Self::Connection(id) => connection == Some(id),
        }
    }
}

/// Which agents a kill-all takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillScope {
    /// The caller's reach, or less.
    pub reach: Reach,
    /// Only agents of this task.
    pub task: Option<TaskId>,
    /// Only agents with this label.
    pub label: Option<Label>,
    /// Only agents that were asked for until then, by the clock of whoever asked: an order that comes late takes
    /// nobody who was asked for after it.
    pub before: Option<Timestamp>,
}

impl KillScope {
    /// Whether it takes the agent.
    #[must_use]
    pub fn includes(&self, cell: &Cell) -> bool {
        self.reach.includes(cell.connection_id)
            && self.task.as_ref().is_none_or(|task| *task == cell.task_id)
            && self
                .label
                .as_ref()
                .is_none_or(|label| label.is_among(&cell.labels))
            && self.before.is_none_or(|before| cell.asked_at <= before)
    }

    /// Whether it takes all within its reach, so that one write for all of them is right.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.task.is_none() && self.label.is_none() && self.before.is_none()
    }
}
