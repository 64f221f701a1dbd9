//! An engine, or an agent, whose time stands still.

use std::fs;

use mosaic_orchestrator::sandbox::spool::SpoolReader;
use mosaic_types::{
    AgentId,
    agent::{EndReason, ObservedState},
};
use reqwest::Method;
use serde_json::json;

use super::{engine::Troubled, meddler::Meddling};
use crate::rig::FOREVER;

/// Says something, waits for a word, and says more.
const WAITS: &str = "echo at-work; until [ -e go ]; do sleep 0.05; done";

/// How long each line is that an agent wrote, its end included, in bytes.
fn lines(troubled: &Troubled, agent: AgentId) -> Vec<usize> {
    let spool = troubled
        .spoke
        .data_dir()
        .join(format!("agents/{agent}/run/spool"));
    let mut reader = SpoolReader::open(&spool, 0).unwrap();
    let mut written = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        written.extend(record.payload);
    }
    let lines = written.split_inclusive(|byte| *byte == b'\n');
    lines.map(<[u8]>::len).collect()
}

#[tokio::test]
async fn a29_a31_a_frozen_engine_delays_no_kill_no_answer_and_no_output() {
    // Whoever waited for the engine would wait longer than a proof may take.
    let Some(troubled) = Troubled::start(30).await else {
        return;
    };
    let one = troubled.started(FOREVER).await;
    // A line of one mebibyte, end included: zeros are written as `^@`, and `^` once more.
    let script = format!(
        "{WAITS}; head -c 524287 /dev/zero | cat -v; echo ^; echo all-said; exec sleep 1000"
    );
    let talks = troubled.started(&script).await;
    for _ in 0..4 {
        troubled.started(FOREVER).await;
    }
    troubled.engine.freeze();
    troubled.kill(one).await;
    troubled.touch(talks, "go");
    troubled.spoke.wrote(talks, "all-said").await;
    assert!(lines(&troubled, talks).contains(&(1 << 20)));
    let (_, agents) = troubled.spoke.call(Method::GET, "/agents", None).await;
    assert_eq!(agents["agents"].as_array().unwrap().len(), 6, "{agents}");
    let running = troubled.spoke.status(talks).await;
    assert_eq!(running.state, ObservedState::Running);
    let (_, report) = troubled
        .spoke
        .call(Method::POST, "/agents/kill-all", None)
        .await;
    assert_eq!(
        (report["killed"].as_u64(), report["unverified"].as_u64()),
        (Some(5), Some(0)),
        "{report}"
    );
    troubled.spoke.becomes(one, ObservedState::Killed).await;
    // Six clean-ups wait for the engine now, and nobody else does.
    let process = json!({"sandbox": "process"});
    let (status, _) = troubled.run("echo done", process).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    troubled.engine.thaw();
    troubled.stop().await;
}

#[tokio::test]
async fn a29_a_spawn_that_meets_a_frozen_engine_fails_in_time_and_leaves_nothing() {
    let Some((troubled, meddler)) = Troubled::meddled(1).await else {
        return;
    };
    meddler.meddle("POST", "/containers/create", 1, Meddling::Held);
    let agent = troubled.spoke.spawn("echo ran").await;
    meddler.until_asked("/containers/create").await;
    troubled.engine.freeze();
    meddler.release();
    troubled.spoke.becomes(agent, ObservedState::Failed).await;
    let status = troubled.spoke.status(agent).await;
    assert_eq!(status.reason, Some(EndReason::SpawnFailed), "{status:#?}");
    let detail = status.detail.unwrap();
    assert!(detail.contains("the engine took longer than"), "{detail}");
    troubled.engine.thaw();
    // It wakes up and does what it was asked, however long ago.
    meddler.until_answered("/containers/create").await;
    troubled.engine.until_empty().await;
    let told = troubled.spoke.follow(agent, None, |_| false).await;
    assert!(!told.contains("\"line\":\"ran\""), "{told}");
    troubled.stop().await;
}

#[tokio::test]
async fn a32_a4_a_kill_while_a_frozen_engine_makes_or_starts_wins() {
    for call in ["/containers/create", "/start"] {
        let Some((troubled, meddler)) = Troubled::meddled(30).await else {
            return;
        };
        meddler.meddle("POST", call, 1, Meddling::Held);
        let agent = troubled.spoke.spawn("echo ran; touch ran").await;
        meddler.until_asked(call).await;
        troubled.engine.freeze();
        meddler.release();
        troubled.kill(agent).await;
        troubled.spoke.becomes(agent, ObservedState::Killed).await;
        troubled.engine.thaw();
        meddler.until_answered(call).await;
        let told = troubled.spoke.follow(agent, None, |_| false).await;
        assert!(!told.contains("\"line\":\"ran\""), "{told}");
        let status = troubled.spoke.status(agent).await;
        assert_eq!(
            (status.started_at, status.attempt),
            (None, 1),
            "{status:#?}"
        );
        assert_eq!(status.work.map(|work| work.files_changed).unwrap_or(0), 0);
        assert_eq!(meddler.asked("/containers/create"), 1);
        troubled.stop().await;
    }
}

#[tokio::test]
async fn a34_paused_and_frozen_agents_die_whoever_held_them() {
    let Some(mut troubled) = Troubled::start_process(&[]).await else {
        return;
    };
    let paused = troubled.started(FOREVER).await;
    let frozen = troubled.started(FOREVER).await;
    let adopted = troubled.started(FOREVER).await;
    let unseen = troubled.started(FOREVER).await;
    for agent in [paused, adopted, unseen] {
        let _ = troubled
            .engine
            .docker(&["pause", &format!("mosaic-{agent}")]);
    }
    let parent = fs::read_to_string(troubled.spoke.data_dir().join("cgroup-parent")).unwrap();
    let group = format!("{}/local/{frozen}", parent.trim());
    fs::write(format!("{group}/cgroup.freeze"), "1").unwrap();
    troubled.kill(paused).await;
    troubled.kill(frozen).await;
    troubled.spoke.crash();
    let run = troubled
        .spoke
        .data_dir()
        .join(format!("agents/{unseen}/run"));
    fs::write(run.join("sandbox.json"), "").unwrap();
    troubled.spoke.restart().await;
    let state = troubled.spoke.status(unseen).await.state;
    assert_eq!(state, ObservedState::Unknown, "nobody knows");
    troubled.kill(unseen).await;
    troubled.kill(adopted).await;
    for agent in [paused, frozen, adopted, unseen] {
        let status = troubled.spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Killed, "{status:#?}");
    }
    troubled.stop().await;
}
