//! An agent's life in a container: its work comes home, its end is told, a kill ends all of it.

use mosaic_types::agent::{EndReason, ObservedState};
use serde_json::json;

use super::rig::{Docked, docker};
use crate::rig::{FOREVER, git, lives};

#[tokio::test]
async fn an_agents_work_comes_home_from_its_container() {
    let Some(docked) = Docked::start().await else {
        return;
    };
    let agent = docked.spoke.spawn("echo hello > made-here; git -c user.name=A -c user.email=a@example.invalid commit -q --allow-empty -m 'from inside'; id -u; cat /etc/os-release | head -1").await;
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    assert_eq!(status.sandbox.to_string(), "docker");
    let work = status.work.unwrap();
    assert_eq!(work.commits.len(), 2, "{work:#?}");
    let mirror = docked.spoke.mirror();
    let made = git(&mirror, &["show", &format!("mosaic/{agent}:made-here")]);
    assert_eq!(made, "hello");
    docked.stop().await;
}

#[tokio::test]
async fn a_failing_agent_says_how_it_ended() {
    let Some(docked) = Docked::start().await else {
        return;
    };
    let agent = docked.spoke.spawn("echo no; exit 3").await;
    let status = docked.spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.exit_code),
        (ObservedState::Failed, Some(3))
    );
    let gone = docked.spoke.spawn("kill -9 $$").await;
    let status = docked.spoke.finished(gone).await;
    assert_eq!(status.reason, Some(EndReason::Signalled), "{status:#?}");
    docked.stop().await;
}

#[tokio::test]
async fn a11_a14_a_kill_ends_everything_in_the_container() {
    let Some(docked) = Docked::start().await else {
        return;
    };
    let script = "echo precious > half-done; (setsid sh -c 'while :; do sleep 1000 & wait; done' &) ; echo at-work; exec sleep 1000";
    let agent = docked.spoke.spawn(script).await;
    docked.spoke.wrote(agent, "at-work").await;
    let pid = docked.inspect(agent)["State"]["Pid"].as_u64().unwrap();
    assert!(lives(pid));
    let report = docked.spoke.kill(agent).await;
    assert_eq!(report["outcome"], "killed", "{report}");
    assert!(!lives(pid));
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Killed);
    let salvaged = git(
        &docked.spoke.mirror(),
        &["show", &format!("refs/mosaic/salvage/{agent}:half-done")],
    );
    assert_eq!(salvaged, "precious", "A22");
    docked.stop().await;
}

#[tokio::test]
async fn a13_an_agent_in_a_container_outlives_its_daemon_and_is_adopted() {
    let Some(mut docked) = Docked::start_process().await else {
        return;
    };
    let agent = docked
        .spoke
        .spawn("echo at-work; until [ -e go-on ]; do sleep 0.05; done; echo done > after")
        .await;
    let killed = docked.spoke.spawn(FOREVER).await;
    docked.spoke.wrote(agent, "at-work").await;
    docked.spoke.wrote(killed, "at-work").await;
    docked.spoke.crash();
    docked.spoke.restart().await;
    let report = docked.spoke.kill(killed).await;
    assert_eq!(report["outcome"], "killed", "{report}");
    std::fs::write(
        docked
            .spoke
            .data_dir()
            .join(format!("agents/{agent}/work/go-on")),
        "",
    )
    .unwrap();
    let status = docked.spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    docked.stop().await;
}

#[tokio::test]
async fn a1_a_container_that_no_record_knows_is_removed_and_others_are_left_alone() {
    let Some(docked) = Docked::start().await else {
        return;
    };
    let image = super::rig::image();
    let other = docker(&[
        "create",
        "--label",
        "dev.mosaic.instance=mi1somebodyelse",
        &image,
        "true",
    ]);
    let unlabelled = docker(&["create", &image, "true"]);
    let agent = docked.spawn_with(FOREVER, json!({"network": "none"})).await;
    docked.spoke.wrote(agent, "at-work").await;
    docked.spoke.kill(agent).await;
    docked.spoke.finished(agent).await;
    assert_eq!(docked.containers(), Vec::<String>::new());
    for id in [other, unlabelled] {
        docker(&["rm", &id]);
    }
    docked.stop().await;
}
