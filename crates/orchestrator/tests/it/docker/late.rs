//! Containers that an engine starts when their launch is over, and another of the same agent is under way.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
};

use mosaic_e2e::{api::eventually, engine::private::IMAGE};
use mosaic_types::agent::ObservedState;

use super::{
    engine,
    meddler::{Meddler, Meddling},
};
use crate::rig::Spoke;

/// Whether a shim listens in this folder.
fn somebody_listens(folder: &Path) -> bool {
    let Ok(held) = File::open(folder) else {
        return false;
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| {
        // Its whole path may be longer than an address has room for.
        let short = format!("/proc/self/fd/{}", held.as_raw_fd());
        UnixStream::connect(Path::new(&short).join(name)).is_ok()
    })
}

/// A4, A32: its start was asked for by a daemon that crashed, and comes true when the next one has asked what is there.
#[tokio::test]
async fn a4_a_container_of_an_earlier_launch_is_let_in_by_no_later_one() {
    let Some(engine) = engine::start().await else {
        return;
    };
    let meddler = Meddler::before(&engine.socket());
    let settings = format!(
        "[limits]\nreconcile-secs = 1\n[sandbox]\ndefault = \"docker\"\n[sandbox.docker]\nimage = {IMAGE:?}\n\
         socket = {:?}\nnetwork = \"none\"\ncall-timeout-secs = 60\n",
        meddler.socket()
    );
    let mut spoke = Spoke::start_process_with(&settings).await;
    meddler.meddle("POST", "/start", 1, Meddling::Held);
    let agent = spoke
        .spawn("echo at-work; until [ -e go ]; do sleep 0.05; done")
        .await;
    meddler.until_asked("/start").await;
    spoke.crash();
    meddler.meddle("GET", "/containers/mosaic-", 1, Meddling::Held);
    spoke.restart().await;
    let name = format!("mosaic-{agent}");
    meddler.until_asked(&format!("{name}/json")).await;
    let folder = spoke.data_dir().join(format!("agents/{agent}/run/link"));
    eventually("a shim that listens", async || {
        somebody_listens(&folder).then_some(())
    })
    .await;
    meddler.release_those("/start");
    let ended = eventually("an end of the first container's init", async || {
        let is_its_own = spoke.status(agent).await.state == ObservedState::Running;
        let state = engine.docker(&["inspect", "-f", "{{.State.Status}}", &name]);
        (is_its_own || state == "exited").then_some(!is_its_own)
    })
    .await;
    assert!(ended, "the init of an earlier launch was let in");
    meddler.release();
    spoke.wrote(agent, "at-work").await;
    fs::write(spoke.data_dir().join(format!("agents/{agent}/work/go")), "").unwrap();
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    let story = spoke.follow(agent, None, |_| false).await;
    assert_eq!(story.matches("\"line\":\"at-work\"").count(), 1, "{story}");
    engine.until_empty().await;
    spoke.stop().await;
}
