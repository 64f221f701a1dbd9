//! Kills beside others who want what there is of descriptors and processors.

use futures_util::FutureExt as _;
use mosaic_e2e::api::eventually;
use mosaic_types::agent::ObservedState;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::FOR_GOOD;
use crate::rig::{FOREVER, Spoke};

/// Descriptors of a process that are in use.
fn open_files(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count() as u64
}

fn limit_files(pid: u32, limit: u64) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed());
    let limit = rustix::process::Rlimit {
        current: Some(limit),
        maximum: Some(20_000),
    };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
}

#[tokio::test]
async fn kills_are_served_with_every_file_descriptor_in_use() {
    let mut spoke = Spoke::start_process().await;
    let mut agents = Vec::new();
    for _ in 0..4 {
        let agent = spoke.spawn(FOREVER).await;
        spoke.wrote(agent, "at-work").await;
        agents.push(agent);
    }
    let pid = spoke.pid();
    // Strangers hold as many connections open as the daemon may have descriptors.
    let limit = open_files(pid) + 80;
    limit_files(pid, limit);
    let address = spoke.url.trim_start_matches("http://").to_owned();
    let mut strangers = Vec::new();
    for _ in 0..limit {
        strangers.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    spoke.forget_connections();
    assert_eq!(spoke.kill(agents[0]).await["outcome"], "killed");
    assert!(!spoke.runs(agents[0]));
    spoke.finished(agents[0]).await;

    // Not one is left, and the request comes by a connection that is there.
    limit_files(pid, 3);
    let report = spoke.kill(agents[1]).await;
    assert_eq!(report["outcome"], "killed", "{report}");
    assert!(!spoke.runs(agents[1]));
    let (status, report) = spoke.call(Method::POST, "/agents/kill-all", None).await;
    assert_eq!(status, StatusCode::OK, "{report}");
    assert_eq!(
        (&report["killed"], &report["unverified"]),
        (&json!(2), &json!(0)),
        "{report}"
    );
    for agent in &agents {
        assert!(!spoke.runs(*agent));
    }
    limit_files(pid, 20_000);
    for agent in agents {
        assert_eq!(spoke.finished(agent).await.state, ObservedState::Killed);
    }
    drop(strangers);
    spoke.stop().await;
}

/// A30: what the operator asks goes by turns once there was a kill; kills need none.
#[tokio::test]
async fn a30_whoever_does_not_kill_waits_for_a_turn_after_a_kill() {
    for whom in ["one", "all"] {
        let spoke = Spoke::start_with(|config| {
            config.http.turns = 1;
            config.http.turn_hold = FOR_GOOD;
            config.http.by_turns = FOR_GOOD;
        })
        .await;
        let agent = spoke.spawn(FOREVER).await;
        spoke.becomes(agent, ObservedState::Running).await;
        let kill = match whom {
            "one" => format!("/agents/{agent}/kill"),
            _ => "/agents/kill-all".to_owned(),
        };
        let (code, answer) = spoke.call(Method::POST, &kill, None).await;
        assert_eq!(code, StatusCode::OK, "{answer}");
        // Somebody has the one turn there is.
        let mut turn = Box::pin(
            spoke
                .node()
                .priority()
                .in_turn(std::future::pending::<()>()),
        );
        assert!(turn.as_mut().now_or_never().is_none());
        let asking = spoke.call(Method::GET, "/agents", None);
        let kills = async {
            // While these come and go, so could the question.
            for _ in 0..8 {
                for path in [&kill, "/agents/kill-all"] {
                    let (code, answer) = spoke.call(Method::POST, path, None).await;
                    assert_eq!(code, StatusCode::OK, "{answer}");
                }
            }
        };
        tokio::select! {
            biased;
            answer = asking => panic!("{whom}: {answer:?}"),
            () = kills => {}
        }
        drop(turn);
        spoke.stop().await;
    }
}

/// A30: no process comes up while a kill is under way.
#[tokio::test]
async fn a30_an_agent_comes_up_once_a_kill_is_over() {
    let spoke = Spoke::start_with(|config| {
        config.limits.max_running = 1;
        config.http.kill_permit_hold = FOR_GOOD;
        config.http.stand_aside = FOR_GOOD;
    })
    .await;
    let first = spoke.spawn(FOREVER).await;
    spoke.becomes(first, ObservedState::Running).await;
    let next = spoke.spawn(FOREVER).await;
    let (end, ending) = tokio::sync::oneshot::channel::<()>();
    let priority = spoke.node().priority().clone();
    let killing = tokio::spawn(async move { priority.first(ending).await });
    // Its slot is free, and its tree is made.
    spoke.kill(first).await;
    let tree = spoke.data_dir().join(format!("agents/{next}/work"));
    eventually("the next one's tree", async || {
        tree.join("README").exists().then_some(())
    })
    .await;
    // Longer than it takes to come up.
    for _ in 0..200 {
        spoke.kill(first).await;
    }
    assert!(!spoke.runs(next));
    end.send(()).unwrap();
    killing.await.unwrap().unwrap();
    spoke.becomes(next, ObservedState::Running).await;
    spoke.stop().await;
}
