//! An engine whose time stands still.

use anyhow::Context as _;
use mosaic_e2e::standstill;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;

const SOCKET: &str = "/var/run/docker.sock";

/// An engine that was stopped by SIGSTOP. Dropping it lets it go on.
#[derive(Debug)]
pub(super) struct Frozen(Pid);

impl Frozen {
    /// Stops the process that answers at the engine's socket, which must be one that this user may stop.
    pub(super) async fn engine() -> anyhow::Result<Self> {
        let socket = UnixStream::connect(SOCKET).await?;
        let pid = socket.peer_cred()?.pid().and_then(Pid::from_raw);
        let engine = Self(pid.context("the engine has no pid")?);
        standstill::stop(&[engine.0]).context("failed to stop the engine")?;
        Ok(engine)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = kill_process(self.0, Signal::CONT) {
            eprintln!("bench: the engine is left stopped: {error}");
        }
    }
}
