//! Kills and holds of a whole spoke: what is answered, what is on record, what is left.

use std::{os::unix::process::ExitStatusExt as _, process::Command, time::Duration};

use mosaic_types::{
    AgentId,
    agent::{AgentState, EndReason, ObservedState, ProofMethod},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    rig::{FOREVER, PATIENCE, Spoke, git},
    sandbox::rig::skip_unless,
};

mod busy;
mod hanging;

/// Longer than any test.
const FOR_GOOD: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a22_a_killed_agents_uncommitted_work_is_salvaged() {
    let spoke = Spoke::start().await;
    let agent = spoke
        .spawn("echo precious > half-done; echo written; exec sleep 1000")
        .await;
    spoke.wrote(agent, "written").await;
    let report = spoke.kill(agent).await;
    assert_eq!(report["outcome"], "killed");
    assert!(
        ["cgroup", "pidfd"].contains(&report["proof"]["method"].as_str().unwrap()),
        "{report}"
    );
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Killed);
    assert_eq!(status.reason, Some(EndReason::KillRequested));
    assert_eq!(
        status.summary, None,
        "A16: what a killed agent said is no answer"
    );
    let work = status.work.as_ref().unwrap();
    assert_eq!(work.git_ref, format!("refs/mosaic/salvage/{agent}"));
    assert_eq!(
        git(
            &spoke.mirror(),
            &["show", &format!("{}:half-done", work.git_ref)]
        ),
        "precious"
    );
    assert!(
        status.cleanup.iter().all(|step| step.ok),
        "{:?}",
        status.cleanup
    );
    // Idempotent, and honest about it.
    assert_eq!(spoke.kill(agent).await["outcome"], "already-ended");
    spoke.stop().await;
}

/// A11: what is in the agent's group, and in nothing else of the agent's, is struck by the group and waited for.
#[tokio::test]
async fn a11_who_is_in_the_agents_group_alone_dies_with_it() {
    let spoke = Spoke::start().await;
    let agent = spoke.spawn(FOREVER).await;
    spoke.wrote(agent, "at-work").await;
    let mut member = Command::new("sleep").arg("1000").spawn().unwrap();
    let has_group = spoke.takes_in(agent, member.id());
    if skip_unless(has_group, "cgroup v2") {
        let report = spoke.kill(agent).await;
        assert_eq!(report["outcome"], "killed", "{report}");
    }
    let _ = member.kill();
    let ended = member.wait().unwrap();
    assert_eq!(ended.signal(), Some(9));
    spoke.stop().await;
}

#[tokio::test]
async fn kill_all_takes_the_running_and_the_queued_and_leaves_the_ended() {
    let spoke = Spoke::start_with(|config| config.limits.max_running = 2).await;
    let ended = spoke.spawn("true").await;
    assert_eq!(spoke.finished(ended).await.state, ObservedState::Completed);
    let mut running = Vec::new();
    for _ in 0..2 {
        let agent = spoke.spawn(FOREVER).await;
        spoke.wrote(agent, "at-work").await;
        running.push(agent);
    }
    let queued = spoke.spawn(FOREVER).await;
    assert_eq!(spoke.status(queued).await.state, ObservedState::Queued);
    let (code, report) = spoke
        .call(Method::POST, "/agents/kill-all", Some(json!({})))
        .await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(
        (report["killed"].as_u64(), report["unverified"].as_u64()),
        (Some(3), Some(0))
    );
    let of = |agent: AgentId| {
        let agents = report["agents"].as_array().unwrap();
        agents
            .iter()
            .find(|entry| entry["agentId"] == agent.to_string())
            .cloned()
    };
    assert_eq!(of(queued).unwrap()["proof"]["method"], "never-started");
    assert_eq!(of(ended), None, "an ended agent is not taken");
    let status = spoke.finished(queued).await;
    assert_eq!(status.death.unwrap().method, ProofMethod::NeverStarted);
    for agent in running {
        assert_eq!(spoke.finished(agent).await.reason, Some(EndReason::KillAll));
    }
    spoke.stop().await;
}

#[tokio::test]
async fn a_hold_refuses_spawns_until_it_is_released() {
    let spoke = Spoke::start().await;
    let body = Some(json!({"hold": true}));
    let (_, report) = spoke.call(Method::POST, "/agents/kill-all", body).await;
    assert_eq!(report["held"], true);
    let agent = AgentId::generate();
    let body = spoke.spawn_body(agent, "true");
    let (code, problem) = spoke
        .call(Method::POST, "/agents/spawn", Some(body.clone()))
        .await;
    assert_eq!(
        (code, problem["code"].as_str()),
        (StatusCode::CONFLICT, Some("held"))
    );
    let (code, _) = spoke
        .call(Method::GET, &format!("/agents/{agent}/status"), None)
        .await;
    assert_eq!(
        code,
        StatusCode::NOT_FOUND,
        "a refused agent does not exist"
    );
    let (_, hold) = spoke.call(Method::POST, "/hold/release", None).await;
    assert_eq!(hold, json!({"all": false, "connections": []}));
    let (code, _) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(code, StatusCode::ACCEPTED);
    assert_eq!(spoke.finished(agent).await.state, ObservedState::Completed);
    spoke.stop().await;
}

#[tokio::test]
async fn the_trail_tells_each_move_and_is_sound() {
    let spoke = Spoke::start().await;
    let agent = spoke.spawn(FOREVER).await;
    spoke.wrote(agent, "at-work").await;
    spoke.kill(agent).await;
    spoke.finished(agent).await;
    let (code, page) = spoke
        .call(Method::GET, "/api/v1/audit?limit=100", None)
        .await;
    assert_eq!(code, StatusCode::OK, "{page}");
    let actions: Vec<String> = page["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            serde_json::from_str::<serde_json::Value>(entry["eventJson"].as_str().unwrap()).unwrap()
        })
        .filter(|event| event["subject"] == agent.to_string())
        .map(|event| event["action"].as_str().unwrap().to_owned())
        .collect();
    let moves = [
        AgentState::Spawning,
        AgentState::Running,
        AgentState::Killing,
        AgentState::Killed,
    ];
    let mut expected = vec!["agent.spawn".to_owned()];
    expected.extend(moves.map(|state| format!("agent.{state}")));
    let (kills, moves): (Vec<_>, Vec<_>) = actions
        .into_iter()
        .partition(|action| action.starts_with("killswitch."));
    assert_eq!(moves, expected);
    assert_eq!(kills, ["killswitch.kill"]);
    let (_, verdict) = spoke.call(Method::GET, "/api/v1/audit/verify", None).await;
    assert_eq!(verdict["valid"], true, "{verdict}");
    spoke.stop().await;
}

#[tokio::test]
async fn a9_a_kill_while_it_spawns_does_not_wait_and_nothing_starts_later() {
    let spoke = Spoke::start().await;
    spoke.finished(spoke.spawn("true").await).await;
    // Whoever holds the mirror's lock holds up the making of the tree.
    let lock = std::fs::File::open(spoke.mirror().with_extension("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let agent = spoke.spawn("touch ran").await;
    spoke.becomes(agent, ObservedState::Spawning).await;
    let report = spoke.kill(agent).await;
    assert_eq!(report["outcome"], "killed");
    assert_eq!(report["proof"]["method"], "never-started");
    assert_eq!(
        spoke.kill(agent).await["outcome"],
        "already-ended",
        "one kill takes it"
    );
    drop(lock);
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.started_at),
        (ObservedState::Killed, None),
        "{status:?}"
    );
    spoke.stop().await;
}

#[tokio::test]
async fn word_of_a_kill_is_on_disk_before_it_is_answered() {
    let spoke = Spoke::start_with(|config| config.limits.max_running = 1).await;
    let journal = || std::fs::read_to_string(spoke.data_dir().join("kills.jsonl")).unwrap();
    let running = spoke.spawn(FOREVER).await;
    spoke.wrote(running, "at-work").await;
    let queued = spoke.spawn("true").await;
    spoke.kill(queued).await;
    assert!(journal().contains(&queued.to_string()));
    spoke.call(Method::POST, "/agents/kill-all", None).await;
    assert!(journal().contains(&running.to_string()));
    spoke.stop().await;
}

#[tokio::test]
async fn held_agents_wait_and_are_not_killed_for_waiting() {
    let spoke = Spoke::start_with(|config| config.limits.max_running = 1).await;
    let running = spoke.spawn(FOREVER).await;
    spoke.wrote(running, "at-work").await;
    let waiting = spoke.spawn("echo ran").await;
    let body = Some(json!({"taskId": "no-such-task", "hold": true}));
    let (_, report) = spoke.call(Method::POST, "/agents/kill-all", body).await;
    assert_eq!(
        (report["killed"].as_u64(), report["holdDurable"].as_bool()),
        (Some(0), Some(true))
    );
    spoke.kill(running).await;
    spoke.finished(running).await;
    assert_eq!(spoke.status(waiting).await.state, ObservedState::Queued);
    spoke.call(Method::POST, "/hold/release", None).await;
    assert_eq!(
        spoke.finished(waiting).await.state,
        ObservedState::Completed
    );
    spoke.stop().await;
}

// A24: a tree goes from under nobody. When it is gone the death is on record, with its proof.
#[tokio::test]
async fn a24_the_tree_goes_after_the_death_is_on_record() {
    let spoke = Spoke::start().await;
    let tree = |agent: AgentId| spoke.data_dir().join(format!("agents/{agent}/work"));
    let gone = async |agent: AgentId| {
        while tree(agent).exists() {
            tokio::task::yield_now().await;
        }
        // Asked for after it was seen to be gone.
        let status = spoke.status(agent).await;
        assert!(status.death.is_some(), "{status:?}");
        assert!(status.state.known().unwrap().is_terminal(), "{status:?}");
    };
    let killed = spoke.spawn(FOREVER).await;
    spoke.wrote(killed, "at-work").await;
    assert!(tree(killed).exists());
    let both = async { tokio::join!(gone(killed), spoke.kill(killed)) };
    let (_, report) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    assert_eq!(report["outcome"], "killed");
    let ended = spoke.spawn("echo at-work").await;
    spoke.wrote(ended, "at-work").await;
    tokio::time::timeout(PATIENCE, gone(ended)).await.unwrap();
    spoke.finished(ended).await;
    spoke.stop().await;
}

/// A8: a kill was answered while the agent's record was being tried, and the daemon died before it was there.
#[tokio::test]
async fn a8_an_agent_that_was_told_dead_before_it_was_on_record_does_not_come_back() {
    let mut spoke = Spoke::start_process().await;
    let agent = AgentId::generate();
    spoke.crash();
    let word = Spoke::kill_word()
        .replace("AGENT", &agent.to_string())
        .replace(
            "2026-11-23T09:30:00Z",
            &mosaic_types::Timestamp::now().to_string(),
        );
    std::fs::write(spoke.data_dir().join("kills.jsonl"), format!("{word}\n")).unwrap();
    for _ in 0..2 {
        spoke.restart().await;
        let body = spoke.spawn_body(agent, "true");
        let (status, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
        assert_eq!(status, StatusCode::CONFLICT, "{answer}");
        assert_eq!(answer["field"], "agentId");
        spoke.crash();
    }
    spoke.restart().await;
    let another = spoke.spawn("true").await;
    assert_eq!(
        spoke.finished(another).await.state,
        ObservedState::Completed
    );
    spoke.stop().await;
}
