//! A daemon that is told to stop while something of it works in its data folder.

use std::{fs, path::Path};

use mosaic_types::agent::ObservedState;
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal, kill_process},
};

use crate::rig::{PATIENCE, Spoke};

fn has_open(pid: u32, path: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    open.flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

/// The lock of the data folder is given up at the end: whatever still works there then must end with it.
#[tokio::test]
async fn a18_a_daemon_that_stops_leaves_nothing_at_work_in_its_folder() {
    let mut spoke = Spoke::start_process().await;
    let first = spoke.spawn("true").await;
    spoke.finished(first).await;
    let path = spoke.mirror().with_extension("lock");
    let lock = fs::File::open(&path).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let waits = spoke.spawn("true").await;
    let waiting = async {
        while !has_open(spoke.pid(), &path) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    let pid = Pid::from_raw(spoke.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(spoke.died().await.success());
    drop(lock);
    spoke.restart().await;
    let status = spoke.finished(waits).await;
    assert_eq!(
        (status.state, status.attempt),
        (ObservedState::Completed, 1),
        "{status:#?}"
    );
    spoke.stop().await;
}
