//! Answers of an engine that are late, lost or wrong: what it says is a hint, never a proof.

use std::time::Duration;

use mosaic_e2e::engine::private::IMAGE;
use mosaic_types::{
    AgentId,
    agent::{EndReason, ObservedState},
};
use reqwest::Method;
use serde_json::json;

use super::{engine::Troubled, meddler::Meddling};
use crate::rig::FOREVER;

#[tokio::test]
async fn a1_a_container_whose_making_was_not_answered_is_taken_up() {
    let Some((troubled, meddler)) = Troubled::meddled(1).await else {
        return;
    };
    for (nth, meddling) in [Meddling::Lost, Meddling::Unanswered, Meddling::DoneBut(500)]
        .into_iter()
        .enumerate()
    {
        meddler.meddle("POST", "/containers/create", 1, meddling);
        let (status, told) = troubled.run("echo ran", json!({"maxRetries": 0})).await;
        assert_eq!(
            status.state,
            ObservedState::Completed,
            "{meddling:?}: {status:#?}"
        );
        assert_eq!(told.matches("\"line\":\"ran\"").count(), 1, "{told}");
        assert_eq!(
            meddler.asked("/containers/create"),
            nth + 1,
            "one container"
        );
    }
    troubled.stop().await;
}

#[tokio::test]
async fn a1_a_start_whose_answer_is_late_lost_or_wrong_makes_one_agent() {
    let Some((troubled, meddler)) = Troubled::meddled(1).await else {
        return;
    };
    for meddling in [Meddling::Unanswered, Meddling::Lost, Meddling::DoneBut(500)] {
        meddler.meddle("POST", "/start", 1, meddling);
        // Whether the init or the error is heard first, is chance: what was given up is tried again.
        let (status, told) = troubled.run("echo ran", json!({"maxRetries": 1})).await;
        assert_eq!(
            status.state,
            ObservedState::Completed,
            "{meddling:?}: {status:#?}"
        );
        assert_eq!(told.matches("\"line\":\"ran\"").count(), 1, "{told}");
    }
    troubled.stop().await;
}

#[tokio::test]
async fn a1_a4_a_container_that_comes_after_its_launch_was_given_up_is_removed() {
    let Some((troubled, meddler)) = Troubled::meddled(1).await else {
        return;
    };
    meddler.meddle("POST", "/containers/create", 1, Meddling::Held);
    let (status, told) = troubled.run("echo ran", json!({"maxRetries": 0})).await;
    assert_eq!(status.reason, Some(EndReason::SpawnFailed), "{status:#?}");
    assert!(!told.contains("\"line\":\"ran\""), "{told}");
    meddler.release();
    meddler.until_answered("/containers/create").await;
    troubled.engine.until_empty().await;
    troubled.stop().await;
}

/// A4, A32: an attempt that was given up finds another of the same agent at work under its name.
#[tokio::test]
async fn a4_a_container_that_is_made_late_takes_no_later_attempt_away() {
    // Longer than an attempt may take to come up.
    let Some((troubled, meddler)) = Troubled::meddled(30).await else {
        return;
    };
    meddler.meddle("POST", "/containers/create", 1, Meddling::Held);
    let agent = AgentId::generate();
    let script = "echo at-work; until [ -e go ]; do sleep 0.05; done; echo after";
    let mut body = troubled.spoke.spawn_body(agent, script);
    body["options"] = json!({"maxRetries": 1});
    troubled
        .spoke
        .call(Method::POST, "/agents/spawn", Some(body))
        .await;
    troubled.spoke.wrote(agent, "at-work").await;
    let inspected = meddler.answered(&format!("GET /v1.41/containers/mosaic-{agent}"));
    meddler.release();
    meddler
        .until_answered_times(&format!("/containers/create?name=mosaic-{agent}"), 2)
        .await;
    meddler
        .until_answered_times(&format!("/containers/mosaic-{agent}/json"), inspected + 1)
        .await;
    troubled.touch(agent, "go");
    let status = troubled.spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.attempt),
        (ObservedState::Completed, 2),
        "{status:#?}"
    );
    troubled.engine.until_empty().await;
    troubled.stop().await;
}

/// A12: another spoke of the engine has an agent of the same id.
#[tokio::test]
async fn a12_a_container_of_another_spoke_is_left_alone_whatever_its_name() {
    let Some(troubled) = Troubled::start(5).await else {
        return;
    };
    let agent = AgentId::generate();
    let name = format!("mosaic-{agent}");
    let theirs = troubled.engine.docker(&[
        "create",
        "--name",
        &name,
        "--label",
        "dev.mosaic.instance=another",
        IMAGE,
        "true",
    ]);
    let mut body = troubled.spoke.spawn_body(agent, "echo ran");
    body["options"] = json!({"maxRetries": 0});
    troubled
        .spoke
        .call(Method::POST, "/agents/spawn", Some(body))
        .await;
    let status = troubled.spoke.finished(agent).await;
    assert_eq!(status.reason, Some(EndReason::SpawnFailed), "{status:#?}");
    assert!(
        status.detail.unwrap().contains(&name),
        "the conflict is told"
    );
    let there = troubled.engine.docker(&["inspect", "-f", "{{.Id}}", &name]);
    assert_eq!(there, theirs);
    let _ = troubled.engine.docker(&["rm", &name]);
    troubled.stop().await;
}

/// An engine that is asked for hundreds at once would come to most of them when their time is over.
#[tokio::test]
async fn a29_containers_are_made_a_few_at_a_time_and_who_waits_for_a_turn_can_be_killed() {
    const AT_A_TIME: usize = 8;
    let Some((troubled, meddler)) = Troubled::meddled(30).await else {
        return;
    };
    meddler.meddle("POST", "/containers/create", AT_A_TIME + 2, Meddling::Held);
    let mut agents = Vec::new();
    for _ in 0..AT_A_TIME {
        agents.push(troubled.spoke.spawn("echo ran").await);
    }
    meddler
        .until_asked_times("/containers/create", AT_A_TIME)
        .await;
    let killed = troubled.spoke.spawn("echo never").await;
    let waits = troubled.spoke.spawn("echo ran").await;
    troubled
        .spoke
        .becomes(killed, ObservedState::Spawning)
        .await;
    troubled.spoke.becomes(waits, ObservedState::Spawning).await;
    // Whoever waits for no engine overtakes them: long before, another would have been asked for.
    let (status, _) = troubled
        .run("echo ran", json!({"sandbox": "process"}))
        .await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    assert_eq!(meddler.asked("/containers/create"), AT_A_TIME);
    let report = troubled.spoke.kill(killed).await;
    assert_eq!(report["outcome"], "killed", "{report}");
    troubled.spoke.becomes(killed, ObservedState::Killed).await;
    meddler.release();
    for agent in agents.into_iter().chain([waits]) {
        let status = troubled.spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    }
    let asked = meddler.asked("/containers/create");
    assert_eq!(asked, AT_A_TIME + 1, "none for who was killed");
    troubled.engine.until_empty().await;
    troubled.stop().await;
}

#[tokio::test]
async fn a30_wrong_answers_to_kills_and_removals_change_no_kill_and_are_tried_again() {
    let Some((troubled, meddler)) = Troubled::meddled(1).await else {
        return;
    };
    for status in [404, 409, 500] {
        let agent = troubled.started(FOREVER).await;
        meddler.meddle("POST", "/kill", 9, Meddling::Instead(status));
        meddler.meddle("DELETE", "/containers/", 2, Meddling::Instead(status));
        troubled.kill(agent).await;
        let told = troubled.spoke.finished(agent).await;
        assert_eq!(told.state, ObservedState::Killed, "{told:#?}");
        troubled.engine.until_empty().await;
    }
    troubled.stop().await;
}

/// `userns-remap` and rootless engines: what an agent writes would be somebody else's. Said at once, and not tried again.
#[tokio::test]
async fn an_engine_that_maps_users_is_refused_by_name() {
    const INFO: &str = r#"{"ServerVersion": "28.5.2", "CgroupDriver": "cgroupfs",
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=userns"]}"#;
    let meddled = Troubled::meddled_from_the_start(5, |meddler| {
        meddler.meddle("GET", "/info", usize::MAX, Meddling::Says(INFO));
    });
    let Some((troubled, meddler)) = meddled.await else {
        return;
    };
    let (status, told) = troubled.run("echo ran", json!({"maxRetries": 3})).await;
    assert_eq!(status.reason, Some(EndReason::SpawnFailed), "{status:#?}");
    let detail = status.detail.unwrap();
    assert!(detail.contains("maps users (`userns`)"), "{detail}");
    assert_eq!(status.attempt, 1);
    assert!(!told.contains("\"line\":\"ran\""), "{told}");
    assert_eq!(meddler.asked("/containers/create"), 0);
    troubled.stop().await;
}

#[tokio::test]
async fn a29_a_slow_engine_slows_no_kill() {
    let Some((troubled, meddler)) = Troubled::meddled(10).await else {
        return;
    };
    let agent = troubled.started(FOREVER).await;
    let other = troubled.started(FOREVER).await;
    for method in ["GET", "POST", "DELETE"] {
        meddler.meddle(
            method,
            "/",
            usize::MAX,
            Meddling::Late(Duration::from_secs(3)),
        );
    }
    let late = troubled.spoke.spawn("echo ran").await;
    meddler.until_asked("/containers/create").await;
    troubled.kill(agent).await;
    troubled.kill(other).await;
    let answered = meddler.answered("DELETE") + meddler.answered("/kill");
    assert_eq!(answered, 0, "no answer of the engine was waited for");
    let status = troubled.spoke.finished(late).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    troubled.stop().await;
}

/// After a kill-all an engine is asked for so many removals that it would come to none of them in time.
#[tokio::test]
async fn a29_containers_are_removed_a_few_at_a_time_and_hold_up_no_spawn() {
    const AT_A_TIME: usize = 8;
    let Some((troubled, meddler)) = Troubled::meddled(30).await else {
        return;
    };
    for _ in 0..=AT_A_TIME {
        troubled.started(FOREVER).await;
    }
    meddler.meddle("DELETE", "/containers/", AT_A_TIME + 1, Meddling::Held);
    let kill_all = async || {
        troubled
            .spoke
            .call(Method::POST, "/agents/kill-all", None)
            .await
    };
    let (_, report) = kill_all().await;
    assert_eq!(report["killed"], AT_A_TIME + 1, "{report}");
    meddler.until_asked_times("DELETE", AT_A_TIME).await;
    // One more would have been asked for long before this agent has come up.
    troubled.started(FOREVER).await;
    assert_eq!(meddler.asked("DELETE"), AT_A_TIME);
    meddler.release();
    kill_all().await;
    troubled.engine.until_empty().await;
    troubled.stop().await;
}
