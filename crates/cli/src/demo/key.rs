//! Waiting for a key press, on a terminal.

use std::{
    io::{IsTerminal, Read},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// How long to wait for it before going on without.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether somebody is there to press one.
pub(super) fn can_be_pressed() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// The moment at which Enter was pressed, or at which waiting for it ended.
pub(super) async fn pressed() -> Instant {
    let (tell, told) = oneshot::channel();
    // A thread of its own: a read that nobody ends must not keep the process from ending.
    std::thread::spawn(move || {
        let mut byte = [0];
        let read = std::io::stdin().read(&mut byte);
        let at = Instant::now();
        if read.is_ok_and(|count| count > 0) {
            // Whoever waited may have lost patience.
            let _ = tell.send(at);
        } else {
            std::thread::sleep(PATIENCE);
        }
    });
    match tokio::time::timeout(PATIENCE, told).await {
        Ok(Ok(at)) => at,
        Ok(Err(_)) | Err(_) => Instant::now(),
    }
}
