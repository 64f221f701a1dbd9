//! The tasks in which agents are driven.

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where drivers run. They are let go at shutdown: what they had not stored, the next start finds out.
#[derive(Debug, Clone)]
pub struct Drivers {
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Drivers {
    /// Drivers among `tasks`, until `shutdown`.
    #[must_use]
    pub fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { tasks, shutdown }
    }

    /// Runs a driver until it ends, or until shutdown.
    pub fn spawn(&self, driver: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = driver => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}
