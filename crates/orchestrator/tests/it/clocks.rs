//! The wall clock was set back while agents waited or ran: their records have times that are yet to come. No limit grows by
//! that, and no kill passes anybody by.

use std::time::Duration;

use mosaic_store::{AgentMove, AgentRecord, Limits, Store as _, sqlite::SqliteStore};
use mosaic_types::{
    AgentId, Timestamp,
    agent::{EndReason, ObservedState},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    offline::killed_all,
    rig::{FOREVER, Spoke},
};

const DAY: Duration = Duration::from_secs(86_400);

/// Changes the record of an agent. Wants a daemon that is gone.
async fn on_record(spoke: &Spoke, agent: AgentId, change: impl FnOnce(&mut AgentRecord)) {
    let store = SqliteStore::open(spoke.data_dir(), Limits::default()).unwrap();
    let mut record = store.agent(agent).await.unwrap().unwrap();
    record.version += 1;
    change(&mut record);
    let change = AgentMove {
        record,
        audit: None,
    };
    store.move_agent(change).await.unwrap();
    store.close().await;
}

fn to_tomorrow(time: &mut Timestamp) {
    *time = time.saturating_add(DAY);
}

async fn spawn(spoke: &Spoke, script: &str, options: Value) -> AgentId {
    let agent = AgentId::generate();
    let mut body = spoke.spawn_body(agent, script);
    body["options"] = options;
    let (status, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    agent
}

#[tokio::test]
async fn a7_a_clock_that_was_set_back_does_not_lengthen_a_time_limit() {
    let mut spoke = Spoke::start_process().await;
    let agent = spawn(&spoke, FOREVER, json!({"timeoutSecs": 5})).await;
    spoke.wrote(agent, "at-work").await;
    spoke.crash();
    on_record(&spoke, agent, |record| {
        to_tomorrow(&mut record.attempt_start.as_mut().unwrap().at);
    })
    .await;
    spoke.restart().await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Failed, Some(EndReason::TimedOut)),
        "{status:#?}"
    );
    spoke.stop().await;
}

#[cfg(debug_assertions)]
#[tokio::test]
async fn a7_a_clock_that_was_set_back_does_not_lengthen_the_pause_before_a_retry() {
    let mut spoke = Spoke::start_process_as("", |command| {
        command.env("MOSAIC_CRASH_AT", "retry.pausing");
    })
    .await;
    let script = "test -e again || { touch again; exit 3; }";
    let agent = spawn(&spoke, script, json!({"maxRetries": 1})).await;
    spoke.died().await;
    on_record(&spoke, agent, |record| {
        to_tomorrow(record.not_before.as_mut().unwrap());
    })
    .await;
    spoke.restart().await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.attempt),
        (ObservedState::Completed, 2),
        "{status:#?}"
    );
    spoke.stop().await;
}

/// Who waits was accepted before the kill, whatever the clock says of it.
#[tokio::test]
async fn a9_a_kill_without_a_daemon_takes_who_waits_though_the_clock_was_set_back() {
    let mut spoke = Spoke::start_process_with("[limits]\nmax-running = 1\n").await;
    for is_alive in [true, false] {
        let running = spoke.spawn(FOREVER).await;
        spoke.wrote(running, "at-work").await;
        let waits = spoke.spawn("touch ran").await;
        spoke.crash();
        for agent in [running, waits] {
            on_record(&spoke, agent, |record| {
                to_tomorrow(&mut record.status.queued_at);
            })
            .await;
        }
        if is_alive {
            spoke.restart().await;
        }
        let report = killed_all(spoke.data_dir(), &[]);
        assert_eq!(report["killed"], 1, "{report:#}");
        if !is_alive {
            spoke.restart().await;
        }
        for agent in [running, waits] {
            let status = spoke.finished(agent).await;
            assert_eq!(
                (status.state, status.reason),
                (ObservedState::Killed, Some(EndReason::KillAll)),
                "{status:#?}"
            );
        }
        assert_eq!(spoke.status(waits).await.started_at, None);
    }
    spoke.stop().await;
}
