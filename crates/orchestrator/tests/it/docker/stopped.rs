//! An engine that is stopped, started again, without its image, or without room.

use std::{fs, path::Path, process::Command, time::Duration};

use mosaic_types::agent::{EndReason, ObservedState};
use reqwest::Method;
use serde_json::json;

use super::{
    engine::{self, Troubled},
    meddler::{Meddler, Meddling},
    warm::pool,
};
use crate::rig::{FOREVER, PATIENCE};

const WAITS: &str = "echo at-work; until [ -e go ]; do sleep 0.05; done; echo after";

#[tokio::test]
async fn a3_a29_a_spoke_starts_adopts_and_kills_without_its_engine() {
    let Some(mut troubled) = Troubled::start_process(&[]).await else {
        return;
    };
    let goes_on = troubled.started(WAITS).await;
    let first = troubled.started(FOREVER).await;
    let second = troubled.started(FOREVER).await;
    let unreadable = troubled.started(FOREVER).await;
    troubled.spoke.crash();
    troubled.engine.freeze();
    troubled.spoke.restart().await;
    troubled.kill(first).await;
    troubled.spoke.crash();
    let run = troubled
        .spoke
        .data_dir()
        .join(format!("agents/{unreadable}/run"));
    fs::write(run.join("sandbox.json"), "").unwrap();
    troubled.engine.crash();
    troubled.spoke.restart().await;
    let running = troubled.spoke.status(goes_on).await;
    assert_eq!(running.state, ObservedState::Running, "{running:#?}");
    let unknown = troubled.spoke.status(unreadable).await;
    assert_eq!(unknown.state, ObservedState::Unknown, "{unknown:#?}");
    troubled.kill(second).await;
    troubled.kill(unreadable).await;
    troubled.touch(goes_on, "go");
    troubled
        .spoke
        .becomes(goes_on, ObservedState::Completed)
        .await;
    // Every try of the clean-ups has come to nothing by the time that these stories end.
    for (agent, state) in [
        (goes_on, ObservedState::Completed),
        (first, ObservedState::Killed),
        (second, ObservedState::Killed),
        (unreadable, ObservedState::Killed),
    ] {
        let status = troubled.spoke.finished(agent).await;
        assert_eq!((status.state, status.attempt), (state, 1), "{status:#?}");
        assert!(status.cleanup.iter().any(|step| !step.ok), "{status:#?}");
    }
    troubled.engine.restart().await;
    troubled.engine.until_empty().await;
    troubled.stop().await;
}

#[tokio::test]
async fn a3_a33_an_engine_that_stops_ends_its_containers_and_nothing_revives_them() {
    let Some(mut troubled) = Troubled::start_process(&[]).await else {
        return;
    };
    let agent = troubled.started(FOREVER).await;
    troubled.engine.stop().await;
    troubled.spoke.becomes(agent, ObservedState::Failed).await;
    let status = troubled.spoke.status(agent).await;
    assert_eq!(
        (status.reason, status.attempt),
        (Some(EndReason::Signalled), 1),
        "{status:#?}"
    );
    assert!(!troubled.spoke.runs(agent));
    troubled.engine.restart().await;
    troubled.engine.until_empty().await;
    let status = troubled.spoke.finished(agent).await;
    assert_eq!((status.state, status.attempt), (ObservedState::Failed, 1));
    troubled.stop().await;
}

#[tokio::test]
async fn a3_a33_with_live_restore_agents_outlive_their_engine_and_the_dead_stay_dead() {
    let Some(mut troubled) = Troubled::start_process(&["--live-restore"]).await else {
        return;
    };
    let lives = troubled.started(WAITS).await;
    let dies = troubled.started(FOREVER).await;
    let crashed = troubled.started(WAITS).await;
    troubled.engine.stop().await;
    troubled.kill(dies).await;
    troubled.engine.restart().await;
    assert!(!troubled.spoke.runs(dies), "nothing revives it");
    troubled.engine.crash();
    troubled.engine.restart().await;
    for agent in [lives, crashed] {
        let running = troubled.spoke.status(agent).await;
        assert_eq!(running.state, ObservedState::Running, "{running:#?}");
        troubled.touch(agent, "go");
        let status = troubled.spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    }
    let status = troubled.spoke.finished(dies).await;
    assert_eq!((status.state, status.attempt), (ObservedState::Killed, 1));
    troubled.stop().await;
}

#[tokio::test]
async fn an_image_that_is_not_there_is_named_once_and_nothing_is_left() {
    let Some(engine) = engine::start().await else {
        return;
    };
    let image = "no-such-image:7".to_owned();
    let troubled = Troubled::on(engine, 5, |settings| settings.image = image.clone()).await;
    let (status, _) = troubled.run("echo ran", json!({"maxRetries": 3})).await;
    assert_eq!(
        (status.state, status.reason, status.attempt),
        (ObservedState::Failed, Some(EndReason::SpawnFailed), 1),
        "what cannot go otherwise is not tried again: {status:#?}"
    );
    assert!(status.detail.unwrap().contains(&image));
    troubled.stop().await;
}

/// Room for the image and a container or two.
fn mount_small(data: &Path) {
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"])
        .arg(data)
        .status();
    assert!(mounted.unwrap().success());
}

#[tokio::test]
async fn a_full_disk_of_the_engine_fails_spawns_clearly_and_hinders_no_kill() {
    let Some(engine) = engine::start_with(&[], mount_small).await else {
        return;
    };
    let filler = engine.socket().with_file_name("data").join("filler");
    let troubled = Troubled::on(engine, 5, |_| {}).await;
    let agent = troubled.started(FOREVER).await;
    let filled = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", filler.display()))
        .output();
    assert!(!filled.unwrap().status.success(), "it is full");
    let (status, _) = troubled.run("echo ran", json!({"maxRetries": 0})).await;
    assert_eq!(status.reason, Some(EndReason::SpawnFailed), "{status:#?}");
    let detail = status.detail.unwrap();
    assert!(detail.contains("no space left on device"), "{detail}");
    troubled.kill(agent).await;
    fs::remove_file(filler).unwrap();
    troubled.stop().await;
}

#[tokio::test]
async fn an_engine_that_was_away_leaves_no_trail_of_waiting_containers() {
    let Some(engine) = engine::start().await else {
        return;
    };
    let mut troubled = Troubled::on(engine, 5, |settings| settings.warm = pool(2)).await;
    let slots = |troubled: &Troubled| {
        let folders = fs::read_dir(troubled.spoke.data_dir().join("warm"));
        folders.into_iter().flatten().count()
    };
    troubled.filled(2).await;
    troubled.engine.crash();
    let path = "/agents/kill-all";
    troubled.spoke.call(Method::POST, path, None).await;
    let noticed = async {
        while slots(&troubled) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed)
        .await
        .expect("the engine is not waited for");
    troubled.engine.restart().await;
    troubled.filled(2).await;
    let settled = async {
        while troubled.engine.containers().len() > 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    assert_eq!(slots(&troubled), 2);
    troubled.stop().await;
}

/// A29: what waited is dead after a kill-all, and an engine that hangs is asked to remove it, one by one.
#[tokio::test]
async fn a29_a_stop_waits_for_no_engine_that_is_to_remove_what_waited() {
    let Some(engine) = engine::start().await else {
        return;
    };
    let meddler = Meddler::before(&engine.socket());
    let socket = meddler.socket();
    // So long that whoever waited for it would be ended by the tests' time limit.
    let troubled = Troubled::on(engine, 300, |settings| {
        settings.socket = socket;
        settings.warm = pool(2);
    })
    .await;
    troubled.filled(2).await;
    meddler.meddle("DELETE", "/containers/", usize::MAX, Meddling::Held);
    let path = "/agents/kill-all";
    let held = Some(json!({"hold": true}));
    troubled.spoke.call(Method::POST, path, held).await;
    meddler.until_asked("DELETE").await;
    let Troubled { engine, spoke } = troubled;
    spoke.stop_with(|| meddler.release()).await;
    engine.until_empty().await;
}

/// A3, A8: an engine may put its containers elsewhere than below the agent's group, as with the cgroup driver `systemd`:
/// that the group is empty then says nothing of them.
#[tokio::test]
async fn a8_the_group_of_an_agent_whose_container_is_elsewhere_proves_nothing() {
    let Some(mut troubled) = Troubled::start_process(&[]).await else {
        return;
    };
    let agent = troubled.started(FOREVER).await;
    troubled.spoke.crash();
    let run = troubled
        .spoke
        .data_dir()
        .join(format!("agents/{agent}/run"));
    let [sandbox, group] = ["sandbox.json", "init-group.json"].map(|name| run.join(name));
    let readable = fs::read(&sandbox).unwrap();
    fs::write(&sandbox, "").unwrap();
    fs::write(&group, "\"/sys/fs/cgroup/unified/elsewhere\"").unwrap();
    troubled.spoke.restart().await;
    let report = troubled.spoke.kill(agent).await;
    assert_eq!(report["outcome"], "unverified", "{report}");
    assert_eq!(report["proof"], json!(null), "{report}");
    fs::write(&sandbox, readable).unwrap();
    let status = troubled.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Killed, "{status:#?}");
    troubled.stop().await;
}
