//! Agents whose attempt had ended when they were killed without a daemon, and whose end was on no record yet: a result is
//! kept, and no attempt follows.

use std::path::PathBuf;

use mosaic_types::{
    AgentId,
    agent::{EndReason, ObservedState},
};
use reqwest::{Method, StatusCode};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use super::{AT_WORK, agents_of, is_killed_and_salvaged, killed_all, pid, run_dir};
use crate::rig::{self, Spoke};

/// Ends with this code when it is told to, and has one more attempt.
fn until_told(code: u8) -> String {
    format!(
        "{}; while ! test -e go; do sleep 0.05; done; exit {code}",
        AT_WORK.replace("; exec sleep 1000", "")
    )
}

async fn spawn(spoke: &Spoke, script: &str, max_retries: u32) -> AgentId {
    let agent = AgentId::generate();
    let mut body = spoke.spawn_body(agent, script);
    body["options"] = json!({"maxRetries": max_retries});
    let (status, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    agent
}

/// Waits until the agent's shim has written down how it ended, and says how.
async fn exit_of(spoke: &Spoke, agent: AgentId) -> Value {
    let path = run_dir(spoke, agent).join("exit.json");
    let written = async {
        loop {
            if let Ok(text) = std::fs::read(&path)
                && let Ok(exit) = serde_json::from_slice(&text)
            {
                return exit;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, written)
        .await
        .expect("an exit record")
}

fn in_tree(spoke: &Spoke, agent: AgentId, name: &str) -> PathBuf {
    spoke.data_dir().join(format!("agents/{agent}/work/{name}"))
}

/// Ends these agents while nobody sees it.
async fn told_to_end(spoke: &Spoke, agents: &[AgentId]) {
    for agent in agents {
        std::fs::write(in_tree(spoke, *agent, "go"), "").unwrap();
        exit_of(spoke, *agent).await;
    }
}

/// One that would be tried again, one that has completed, one that has failed for good: all under way.
async fn three(spoke: &Spoke) -> [AgentId; 3] {
    let agents = [
        spawn(spoke, &until_told(1), 1).await,
        spawn(spoke, &until_told(0), 1).await,
        spawn(spoke, &until_told(1), 0).await,
    ];
    for agent in agents {
        spoke.wrote(agent, "at-work").await;
    }
    agents
}

/// The first is killed after its one attempt, the others have the ends that they had.
async fn are_spared_or_killed(spoke: &Spoke, [again, done, failed]: [AgentId; 3]) {
    let status = spoke.finished(again).await;
    is_killed_and_salvaged(spoke, again, &status);
    assert_eq!(status.attempt, 1, "{status:#?}");
    let status = spoke.finished(done).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:#?}");
    let status = spoke.finished(failed).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Failed, Some(EndReason::ExitStatus)),
        "{status:#?}"
    );
}

#[tokio::test]
async fn a9_nothing_follows_an_attempt_that_ended_before_a_kill_without_a_daemon() {
    let mut spoke = Spoke::start_process().await;
    let agents = three(&spoke).await;
    spoke.crash();
    told_to_end(&spoke, &agents).await;
    let report = killed_all(spoke.data_dir(), &[]);
    assert_eq!(agents_of(&report), Vec::<&str>::new(), "{report:#}");
    spoke.restart().await;
    are_spared_or_killed(&spoke, agents).await;
    spoke.stop().await;
}

/// Whichever of the drivers finds the word, it is for all of them.
#[tokio::test]
async fn a9_nothing_follows_an_attempt_that_ended_while_its_daemon_hung_through_a_kill() {
    let spoke = Spoke::start_process().await;
    let agents = three(&spoke).await;
    let alive = spoke.spawn(AT_WORK).await;
    spoke.wrote(alive, "at-work").await;
    mosaic_e2e::standstill::stop(&[pid(&spoke)]).unwrap();
    told_to_end(&spoke, &agents).await;
    let report = killed_all(spoke.data_dir(), &[]);
    assert_eq!(agents_of(&report), [alive.to_string()]);
    kill_process(pid(&spoke), Signal::CONT).unwrap();
    are_spared_or_killed(&spoke, agents).await;
    is_killed_and_salvaged(&spoke, alive, &spoke.finished(alive).await);
    spoke.stop().await;
}

/// The word outlives a daemon that has read it and dies before it has stored what follows from it.
#[cfg(debug_assertions)]
#[tokio::test]
async fn a9_what_follows_from_a_kill_without_a_daemon_outlives_the_next_one() {
    for (code, point, ended) in [
        (1, "retry.over", ObservedState::Killed),
        (1, "kill.recording", ObservedState::Killed),
        (0, "end.work-home", ObservedState::Completed),
    ] {
        let mut spoke = Spoke::start_process().await;
        let agent = spawn(&spoke, &until_told(code), 1).await;
        spoke.wrote(agent, "at-work").await;
        spoke.crash();
        told_to_end(&spoke, &[agent]).await;
        killed_all(spoke.data_dir(), &[]);
        spoke.start_again(|command| {
            command.env("MOSAIC_CRASH_AT", point);
        });
        spoke.died().await;
        spoke.restart().await;
        let status = spoke.finished(agent).await;
        assert_eq!(
            (status.state, status.attempt),
            (ended, 1),
            "{point}: {status:#?}"
        );
        spoke.stop().await;
    }
}

/// Its shim saw that the daemon was gone, and noted that nothing ran: that is no result to spare.
#[cfg(debug_assertions)]
#[tokio::test]
async fn a9_what_never_ran_does_not_run_after_a_kill_without_a_daemon() {
    let mut spoke = Spoke::start_process_as("", |command| {
        command.env("MOSAIC_CRASH_AT", "spawn.running-stored");
    })
    .await;
    let agent = AgentId::generate();
    let body = spoke.spawn_body(agent, "echo ran");
    // The answer may be lost with the daemon.
    let _ = spoke
        .try_call(Method::POST, "/agents/spawn", Some(body))
        .await;
    spoke.died().await;
    exit_of(&spoke, agent).await;
    let report = killed_all(spoke.data_dir(), &[]);
    assert_eq!(agents_of(&report), Vec::<&str>::new(), "{report:#}");
    spoke.restart().await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Killed, Some(EndReason::KillAll)),
        "{status:#?}"
    );
    let output = spoke.follow(agent, None, |_| false).await;
    assert!(!output.contains("\"line\":\"ran\""), "it ran: {output}");
    spoke.stop().await;
}
