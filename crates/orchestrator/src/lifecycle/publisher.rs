//! What others see of an agent: its record as last stored, what its output has told since, and whether a kill
//! is under way. Reading never waits for the driver.

use std::sync::Arc;

use mosaic_store::AgentRecord;
use mosaic_types::agent::{AgentStatus, ObservedState, Progress, Usage};
use tokio::sync::watch;

/// What changes while an agent runs, between two moves.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Live {
    /// How far it is.
    pub progress: Progress,
    /// What it has used.
    pub usage: Usage,
}

/// A view of an agent at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// As last stored.
    pub record: Arc<AgentRecord>,
    /// What was read from its output since.
    pub live: Option<Arc<Live>>,
    /// A kill was ordered and is not on record yet.
    pub killing: bool,
    /// Counts the times at which its output grew; says nothing of how much.
    pub output_ticks: u64,
    /// Nobody can tell where it is: it could not be examined, or its record could not be kept.
    pub lost: bool,
    /// Whether its story is over: ended, cleaned up, and nothing more will come.
    pub finished: bool,
}

impl View {
    /// The status to tell.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        let mut status = self.record.status.clone();
        if let Some(live) = self
            .live
            .as_deref()
            .filter(|_| !self.record.state.is_terminal())
        {
            status.progress = live.progress.clone();
            status.usage = live.usage;
        }
        if !self.record.state.is_terminal() {
            if self.lost {
                status.state = ObservedState::Unknown;
            } else if self.killing {
                status.state = ObservedState::Killing;
            }
        }
        status
    }
}

/// The driver's end.
#[derive(Debug)]
pub struct Publisher(watch::Sender<View>);

impl Publisher {
    /// Starts with a record that is stored.
    #[must_use]
    pub fn new(record: Arc<AgentRecord>) -> Self {
        let view = View {
            record,
            live: None,
            killing: false,
            lost: false,
            output_ticks: 0,
            finished: false,
        };
        Self(watch::Sender::new(view))
    }

    /// The view now.
    #[must_use]
    pub fn view(&self) -> View {
        self.0.borrow().clone()
    }

    /// Whether the end is on record.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.borrow().record.state.is_terminal()
    }

    /// Follows the views. A slow follower misses some, never the last.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<View> {
        self.0.subscribe()
    }

    /// A move was stored.
    pub fn stored(&self, record: Arc<AgentRecord>) {
        self.0.send_modify(|view| view.record = record);
    }

    /// The output told something.
    pub fn live(&self, live: Live) {
        self.0.send_modify(|view| view.live = Some(Arc::new(live)));
    }

    /// The output grew.
    pub fn output_grew(&self) {
        self.0
            .send_modify(|view| view.output_ticks = view.output_ticks.wrapping_add(1));
    }

    /// A kill was ordered.
    pub fn killing(&self) {
        self.0.send_modify(|view| view.killing = true);
    }

    /// Nobody can tell where it is, or (`false`) somebody can again.
    pub fn lost(&self, lost: bool) {
        self.0.send_modify(|view| view.lost = lost);
    }

    /// Nothing more will come.
    pub fn finished(&self) {
        self.0.send_modify(|view| view.finished = true);
    }
}
