//! The daemon dies at every step of spawn, retry, end, clean-up, kill, hold and take-over, and the next start makes the best
//! of it: one outcome, work kept, nothing run twice, the slot free, nothing left. Here of agents that are processes; of
//! those in containers, which have some steps more, in `containers`.

mod containers;
mod home;

use std::{collections::BTreeSet, os::unix::process::ExitStatusExt, process::Command};

use mosaic_orchestrator::crash_points::POINTS;
use mosaic_types::{
    AgentId,
    agent::{AgentStatus, EndReason, ObservedState},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::rig::{Spoke, git};
use home::Home;

/// Notes that it runs, writes, and ends.
const WRITES: &str = "echo ran >> runs; echo precious > work; echo under way";

const SPAWN: &[&str] = &[
    "spawn.recorded",
    "spawn.tree-ready",
    "spawn.prepared",
    "spawn.launched",
    "spawn.init-started",
    "spawn.running-stored",
    "spawn.let-go",
];
const RETRY: &[&str] = &[
    "retry.over",
    "retry.cleaned",
    "retry.requeued",
    "retry.pausing",
];
const END: &[&str] = &[
    "end.told",
    "end.work-home",
    "end.stored",
    "clean-up.sandbox-gone",
    "clean-up.tree-aside",
    "clean-up.tree-gone",
    "clean-up.stored",
];
/// Up to here word of the kill is not on disk, or perhaps: nobody was answered.
const KILL_UNHEARD: &[&str] = &[
    "kill.shut",
    "kill.struck",
    "kill.proven",
    "kill.before-word",
];
const KILL: &[&str] = &[
    "kill.word-left",
    "kill.recording",
    "kill.killing-stored",
    "kill.killed-stored",
    "clean-up.salvaged",
    "clean-up.salvage-stored",
    "clean-up.sandbox-gone",
    "clean-up.tree-aside",
    "clean-up.tree-gone",
    "clean-up.stored",
];
/// As above, of a kill-all with hold.
const HOLD_UNHEARD: &[&str] = &["hold.set", "hold.before-durable"];
const HOLD: &[&str] = &["hold.durable"];
const TAKE_OVER: &[&str] = &[
    "take-over.listed",
    "take-over.read",
    "take-over.examined",
    "take-over.handed-on",
];

#[test]
fn every_crash_point_is_crashed_at() {
    let tables = [
        SPAWN,
        RETRY,
        END,
        KILL_UNHEARD,
        KILL,
        HOLD_UNHEARD,
        HOLD,
        TAKE_OVER,
        containers::OWN,
    ];
    let crashed: BTreeSet<&str> = tables.concat().into_iter().collect();
    assert_eq!(crashed, POINTS.iter().copied().collect());
}

fn arm(command: &mut Command, point: &str) {
    command.env("MOSAIC_CRASH_AT", point);
}

/// Waits for the crash and starts the daemon again, without one.
async fn crashed(spoke: &mut Spoke, point: &str) {
    let status = spoke.died().await;
    let killed = status.signal() == Some(9);
    assert!(killed, "{point}: the daemon ended by itself: {status:?}");
    spoke.restart().await;
}

/// Asks for an agent. The answer may be lost with the daemon.
async fn ask_for(spoke: &Spoke, script: &str, options: Value) -> AgentId {
    let agent = AgentId::generate();
    let mut body = spoke.spawn_body(agent, script);
    body["options"] = options;
    if let Ok((status, answer)) = spoke
        .try_call(Method::POST, "/agents/spawn", Some(body))
        .await
    {
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    }
    agent
}

/// How often the agent ran, by what it wrote, and that what it wrote is there.
fn runs(spoke: &Spoke, agent: AgentId, point: &str) -> usize {
    let mirror = spoke.mirror();
    let refs = git(&mirror, &["for-each-ref", "--format=%(refname)"]);
    let salvage = format!("refs/mosaic/salvage/{agent}");
    let home = if refs.lines().any(|name| name == salvage) {
        salvage
    } else {
        format!("refs/heads/mosaic/{agent}")
    };
    assert_eq!(
        git(&mirror, &["show", &format!("{home}:work")]),
        "precious",
        "{point}"
    );
    git(&mirror, &["show", &format!("{home}:runs")])
        .lines()
        .count()
}

/// The agent ended once, as `state`, its slot is free, and nothing is left.
async fn sound(
    home: &Home<'_>,
    spoke: Spoke,
    agent: AgentId,
    state: ObservedState,
    point: &str,
) -> AgentStatus {
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, state, "{point}: {status:#?}");
    assert!(status.death.is_some(), "{point}: {status:#?}");
    assert!(
        status.cleanup.iter().all(|step| step.ok),
        "{point}: {status:#?}"
    );
    let (_, page) = spoke
        .call(Method::GET, "/api/v1/audit?limit=1000", None)
        .await;
    let ends: Vec<Value> = page["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| serde_json::from_str(entry["eventJson"].as_str().unwrap()).unwrap())
        .filter(|event: &Value| event["subject"] == json!(agent))
        .filter(|event| {
            ["agent.completed", "agent.failed", "agent.killed"]
                .iter()
                .any(|action| event["action"] == *action)
        })
        .collect();
    assert_eq!(ends.len(), 1, "{point}: {ends:#?}");
    let (_, verdict) = spoke.call(Method::GET, "/api/v1/audit/verify", None).await;
    assert!(
        verdict["faults"].as_array().is_none_or(Vec::is_empty),
        "{point}: {verdict}"
    );
    let fresh = ask_for(&spoke, "true", json!({"sandbox": "process"})).await;
    let last = spoke.finished(fresh).await;
    assert_eq!(
        last.state,
        ObservedState::Completed,
        "{point}: the slot: {last:?}"
    );
    home.stop(spoke).await;
    status
}

/// A1, A5, A6: what was never let go has not run; what was, runs once.
async fn in_a_spawn(home: &Home<'_>, points: &[&str]) {
    for point in points {
        let mut spoke = home.armed(point).await;
        let agent = ask_for(&spoke, WRITES, json!({})).await;
        crashed(&mut spoke, point).await;
        spoke.finished(agent).await;
        assert_eq!(runs(&spoke, agent, point), 1, "{point}");
        let status = sound(home, spoke, agent, ObservedState::Completed, point).await;
        assert_eq!(status.attempt, 1, "{point}: {status:#?}");
    }
}

/// A9, A27: a kill that comes after such a crash wins, whatever the crash left.
async fn in_a_spawn_then_killed(home: &Home<'_>, points: &[&str]) {
    for point in points {
        let mut spoke = home.armed(point).await;
        let script = format!("{WRITES}; exec sleep 100000");
        let agent = ask_for(&spoke, &script, json!({})).await;
        crashed(&mut spoke, point).await;
        assert_eq!(spoke.kill(agent).await["outcome"], "killed", "{point}");
        assert!(!spoke.runs(agent), "{point}");
        sound(home, spoke, agent, ObservedState::Killed, point).await;
    }
}

/// A5: an attempt that failed is followed by one other, in the same tree.
async fn in_a_retry(home: &Home<'_>, points: &[&str]) {
    let script = format!("{WRITES}; test $(wc -l < runs) -ge 2 || exit 3");
    for point in points {
        let mut spoke = home.armed(point).await;
        let agent = ask_for(&spoke, &script, json!({"maxRetries": 2})).await;
        crashed(&mut spoke, point).await;
        spoke.finished(agent).await;
        assert_eq!(runs(&spoke, agent, point), 2, "{point}");
        let status = sound(home, spoke, agent, ObservedState::Completed, point).await;
        assert_eq!(status.attempt, 2, "{point}: {status:#?}");
    }
}

/// A22, A23: the work comes home once, and what is left is removed after it.
async fn in_an_end(home: &Home<'_>, points: &[&str]) {
    for point in points {
        let mut spoke = home.armed(point).await;
        let agent = ask_for(&spoke, WRITES, json!({})).await;
        crashed(&mut spoke, point).await;
        spoke.finished(agent).await;
        assert_eq!(runs(&spoke, agent, point), 1, "{point}");
        let status = sound(home, spoke, agent, ObservedState::Completed, point).await;
        assert!(status.work.is_some(), "{point}: {status:#?}");
    }
}

/// Drives a daemon to its death in a kill or kill-all of an agent that runs. The answer, if there was one.
async fn killed_while_running(
    home: &Home<'_>,
    point: &str,
    path: &str,
    body: Option<Value>,
) -> (Spoke, AgentId, Option<Value>) {
    let mut spoke = home.armed(point).await;
    let script = format!("{WRITES}; (setsid sleep 100000 &); exec sleep 100000");
    let agent = spoke.spawn(&script).await;
    spoke.wrote(agent, "under way").await;
    let path = path.replace("AGENT", &agent.to_string());
    let answer = spoke.try_call(Method::POST, &path, body).await.ok();
    crashed(&mut spoke, point).await;
    (spoke, agent, answer.map(|(_, answer)| answer))
}

/// A8, A27: nobody was told that it is dead. It goes on and can be killed, or it is dead and on record as that.
async fn in_a_kill_unheard(home: &Home<'_>, points: &[&str]) {
    for point in points {
        let (spoke, agent, answer) =
            killed_while_running(home, point, "/agents/AGENT/kill", None).await;
        assert_eq!(answer, None, "{point}");
        let report = spoke.kill(agent).await;
        assert!(
            ["killed", "already-ended"]
                .iter()
                .any(|outcome| report["outcome"] == *outcome),
            "{point}: {report}"
        );
        assert!(!spoke.runs(agent), "{point}");
        let status = spoke.finished(agent).await;
        let ended = match report["outcome"].as_str() {
            Some("killed") => ObservedState::Killed,
            // It was struck, and nobody knows by whom; or word of it is there all the same.
            _ if status.reason == Some(EndReason::Vanished) => ObservedState::Failed,
            _ => ObservedState::Killed,
        };
        assert_eq!(runs(&spoke, agent, point), 1, "{point}");
        sound(home, spoke, agent, ended, point).await;
    }
}

/// A8, A22: whether the answer arrived or not, it is killed, and its work is salvaged.
async fn in_a_kill(home: &Home<'_>, points: &[&str]) {
    for point in points {
        let (spoke, agent, answer) =
            killed_while_running(home, point, "/agents/AGENT/kill", None).await;
        assert!(
            answer.is_none_or(|answer| answer["outcome"] == "killed"),
            "{point}"
        );
        assert!(!spoke.runs(agent), "{point}: alive after the restart");
        spoke.finished(agent).await;
        assert_eq!(runs(&spoke, agent, point), 1, "{point}");
        let status = sound(home, spoke, agent, ObservedState::Killed, point).await;
        assert_eq!(status.reason, Some(EndReason::KillRequested), "{point}");
        assert!(status.work.is_some(), "{point}: {status:#?}");
    }
}

fn hold() -> Option<Value> {
    Some(json!({"hold": true}))
}

async fn is_held(spoke: &Spoke) -> bool {
    spoke.call(Method::GET, "/hold", None).await.1["all"] == true
}

/// A9: with a hold that was never answered, and with one that was perhaps, the next kill-all holds.
async fn in_a_hold(home: &Home<'_>, points: &[&str]) {
    for point in points {
        let (spoke, agent, answer) =
            killed_while_running(home, point, "/agents/kill-all", hold()).await;
        assert_eq!(answer, None, "{point}");
        if HOLD.contains(point) {
            assert!(is_held(&spoke).await, "{point}: it was on disk");
        }
        let (_, report) = spoke.call(Method::POST, "/agents/kill-all", hold()).await;
        assert_eq!(
            (&report["held"], &report["unverified"]),
            (&json!(true), &json!(0)),
            "{point}"
        );
        assert!(!spoke.runs(agent), "{point}");
        let (status, _) = spoke
            .call(
                Method::POST,
                "/agents/spawn",
                Some(spoke.spawn_body(AgentId::generate(), "true")),
            )
            .await;
        assert_eq!(status, StatusCode::CONFLICT, "{point}: it holds");
        let status = spoke.finished(agent).await;
        assert_eq!(runs(&spoke, agent, point), 1, "{point}");
        spoke.call(Method::POST, "/hold/release", None).await;
        // It may have been struck before word of it was left.
        let ended = match status.reason {
            Some(EndReason::Vanished) => ObservedState::Failed,
            _ => ObservedState::Killed,
        };
        sound(home, spoke, agent, ended, point).await;
    }
}

/// A5, A7: a start that breaks off is followed by one that finds everything as it was.
async fn in_a_take_over(home: &Home<'_>, points: &[&str]) {
    for point in points {
        let mut spoke = home.start().await;
        let script = format!("{WRITES}; while ! test -e go; do sleep 0.05; done");
        let agent = spoke.spawn(&script).await;
        spoke.wrote(agent, "under way").await;
        let waits = spoke.spawn(WRITES).await;
        spoke.crash();
        spoke.start_again(|command| arm(command, point));
        crashed(&mut spoke, point).await;
        assert!(spoke.runs(agent), "{point}");
        assert_eq!(
            spoke.status(waits).await.state,
            ObservedState::Queued,
            "{point}"
        );
        std::fs::write(spoke.data_dir().join(format!("agents/{agent}/work/go")), "").unwrap();
        for agent in [agent, waits] {
            let status = spoke.finished(agent).await;
            assert_eq!(
                status.state,
                ObservedState::Completed,
                "{point}: {status:?}"
            );
            assert_eq!(
                (runs(&spoke, agent, point), status.attempt),
                (1, 1),
                "{point}"
            );
        }
        sound(home, spoke, agent, ObservedState::Completed, point).await;
    }
}

#[tokio::test]
async fn a6_a_crash_at_any_step_of_a_spawn_is_one_agent_that_runs_once() {
    in_a_spawn(&Home::Processes, SPAWN).await;
}

#[tokio::test]
async fn a27_what_a_crash_in_a_spawn_left_can_be_killed_at_once() {
    in_a_spawn_then_killed(&Home::Processes, SPAWN).await;
}

#[tokio::test]
async fn a5_a_crash_at_any_step_of_a_retry_is_one_attempt_more() {
    in_a_retry(&Home::Processes, RETRY).await;
}

#[tokio::test]
async fn a23_a_crash_at_any_step_of_an_end_loses_no_work_and_leaves_nothing() {
    in_an_end(&Home::Processes, END).await;
}

#[tokio::test]
async fn a8_a_crash_before_word_of_a_kill_is_left_promises_nothing_and_hides_nothing() {
    in_a_kill_unheard(&Home::Processes, KILL_UNHEARD).await;
}

#[tokio::test]
async fn a22_a_crash_after_word_of_a_kill_is_left_is_a_kill_that_loses_no_work() {
    in_a_kill(&Home::Processes, KILL).await;
}

#[tokio::test]
async fn a9_a_crash_while_a_hold_is_set_leaves_it_or_leaves_none() {
    in_a_hold(&Home::Processes, &[HOLD_UNHEARD, HOLD].concat()).await;
}

#[tokio::test]
async fn a7_a_crash_at_any_step_of_a_take_over_is_made_good_by_the_next() {
    in_a_take_over(&Home::Processes, TAKE_OVER).await;
}
