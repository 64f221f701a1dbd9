//! A spoke that crashed and came back: what it finds, and what it must not start again.

use mosaic_types::agent::{EndReason, ObservedState};

use crate::rig::{self, FOREVER, Spoke};

#[tokio::test]
async fn a6_a13_agents_outlive_a_crash_of_the_daemon_and_are_adopted() {
    let mut spoke = Spoke::start_process().await;
    let goes_on = spoke
        .spawn("echo before; while ! test -e go; do sleep 0.05; done; echo after")
        .await;
    let ends_meanwhile = spoke
        .spawn("echo first; while ! test -e go; do sleep 0.05; done; exit 3")
        .await;
    let to_kill = spoke.spawn(FOREVER).await;
    spoke.wrote(goes_on, "before").await;
    spoke.wrote(ends_meanwhile, "first").await;
    spoke.wrote(to_kill, "at-work").await;

    spoke.crash();
    std::fs::write(
        spoke
            .data_dir()
            .join(format!("agents/{ends_meanwhile}/work/go")),
        "",
    )
    .unwrap();
    let exit_record = spoke
        .data_dir()
        .join(format!("agents/{ends_meanwhile}/run/exit.json"));
    let ended = async {
        while !exit_record.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, ended).await.unwrap();
    spoke.restart().await;

    let status = spoke.finished(ends_meanwhile).await;
    assert_eq!(
        (status.state, status.exit_code),
        (ObservedState::Failed, Some(3)),
        "{status:?}"
    );
    assert_eq!(spoke.status(goes_on).await.state, ObservedState::Running);
    assert_eq!(spoke.kill(to_kill).await["outcome"], "killed");
    std::fs::write(
        spoke.data_dir().join(format!("agents/{goes_on}/work/go")),
        "",
    )
    .unwrap();
    let status = spoke.finished(goes_on).await;
    assert_eq!(
        (status.state, status.attempt),
        (ObservedState::Completed, 1),
        "{status:?}"
    );
    let output = spoke.follow(goes_on, None, |_| false).await;
    assert_eq!(
        output.matches("\"line\":\"before\"").count(),
        1,
        "A5: it ran once: {output}"
    );
    assert!(output.contains("\"line\":\"after\""), "{output}");
    spoke.stop().await;
}

#[tokio::test]
async fn what_vanished_while_the_daemon_was_away_is_recorded_as_such() {
    let mut spoke = Spoke::start_process().await;
    let agent = spoke.spawn(FOREVER).await;
    spoke.wrote(agent, "at-work").await;
    spoke.crash();
    let parent = std::fs::read_to_string(spoke.data_dir().join("cgroup-parent")).unwrap();
    std::fs::write(format!("{}/local/cgroup.kill", parent.trim()), "1").unwrap();
    spoke.restart().await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Failed, Some(EndReason::Vanished)),
        "{status:?}"
    );
    spoke.stop().await;
}

#[tokio::test]
async fn an_agent_that_was_killed_by_word_does_not_start_again() {
    let mut spoke = Spoke::start_process_with("[limits]\nmax-running = 1\n").await;
    let running = spoke.spawn(FOREVER).await;
    spoke.wrote(running, "at-work").await;
    let queued = spoke.spawn("touch ran").await;
    let word = Spoke::kill_word();
    spoke.crash();
    // As if the daemon had answered a kill of both, and died before it could record either.
    let journal = spoke.data_dir().join("kills.jsonl");
    let lines = [running, queued].map(|agent| word.replace("AGENT", &agent.to_string()));
    std::fs::write(&journal, lines.join("\n")).unwrap();
    spoke.restart().await;
    for agent in [running, queued] {
        let status = spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Killed, "{status:?}");
        assert_eq!(status.reason, Some(EndReason::KillRequested));
    }
    assert_eq!(spoke.status(queued).await.started_at, None);
    spoke.stop().await;
}

#[tokio::test]
async fn a3_what_cannot_be_examined_is_unknown_and_can_be_killed_and_holds_up_nobody() {
    let mut spoke = Spoke::start_process().await;
    let unreadable = spoke.spawn(FOREVER).await;
    spoke.wrote(unreadable, "at-work").await;
    let other = spoke.spawn(FOREVER).await;
    spoke.wrote(other, "at-work").await;
    spoke.crash();
    let run = spoke.data_dir().join(format!("agents/{unreadable}/run"));
    std::fs::write(run.join("sandbox.json"), "").unwrap();
    spoke.restart().await;
    assert_eq!(spoke.status(unreadable).await.state, ObservedState::Unknown);
    assert_eq!(spoke.status(other).await.state, ObservedState::Running);
    let report = spoke.kill(unreadable).await;
    assert_eq!(
        (
            report["outcome"].as_str(),
            report["proof"]["method"].as_str()
        ),
        (Some("killed"), Some("cgroup"))
    );
    assert_eq!(
        spoke.finished(unreadable).await.state,
        ObservedState::Killed
    );
    spoke.stop().await;
}

#[tokio::test]
async fn a6_an_attempt_whose_shim_outlived_its_daemon_for_a_moment_does_not_count() {
    let mut spoke = Spoke::start_process().await;
    let agent = spoke
        .spawn("echo at-work; while ! test -e go; do sleep 0.05; done")
        .await;
    spoke.wrote(agent, "at-work").await;
    spoke.crash();
    let parent = std::fs::read_to_string(spoke.data_dir().join("cgroup-parent")).unwrap();
    std::fs::write(format!("{}/local/cgroup.kill", parent.trim()), "1").unwrap();
    // As if its shim were alive still, and had not been told to go.
    let mut shim = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let agent_dir = spoke.data_dir().join(format!("agents/{agent}"));
    let run = agent_dir.join("run");
    let mut sandbox: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run.join("sandbox.json")).unwrap()).unwrap();
    sandbox["cgroup"] = serde_json::Value::Null;
    std::fs::write(run.join("sandbox.json"), sandbox.to_string()).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", shim.id())).unwrap();
    let identity = serde_json::json!({
        "pid": shim.id(),
        "startTime": stat.split(' ').nth(21).unwrap().parse::<u64>().unwrap(),
        "bootId": sandbox["bootId"],
    });
    std::fs::write(run.join("shim.json"), identity.to_string()).unwrap();
    std::fs::remove_file(run.join("init.json")).unwrap();
    spoke.restart().await;
    assert_eq!(spoke.status(agent).await.state, ObservedState::Running);

    std::fs::write(agent_dir.join("work/go"), "").unwrap();
    let ended = serde_json::json!({
        "status": "notStarted", "atUnixMs": 0, "droppedBytes": 0, "detail": null,
    });
    std::fs::write(run.join("exit.json"), ended.to_string()).unwrap();
    shim.kill().unwrap();
    shim.wait().unwrap();
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.attempt),
        (ObservedState::Completed, 1),
        "{status:?}"
    );
    spoke.stop().await;
}

#[tokio::test]
async fn a28_what_may_live_keeps_its_slot_over_a_restart() {
    let mut spoke = Spoke::start_process_with("[limits]\nmax-running = 1\n").await;
    let unreadable = spoke.spawn(FOREVER).await;
    spoke.wrote(unreadable, "at-work").await;
    let waits = spoke.spawn("true").await;
    spoke.crash();
    let run = spoke.data_dir().join(format!("agents/{unreadable}/run"));
    std::fs::write(run.join("sandbox.json"), "").unwrap();
    spoke.restart().await;
    // As long as another spoke takes for the whole life of an agent.
    let sibling = Spoke::start_process().await;
    let other = sibling.spawn("true").await;
    sibling.finished(other).await;
    sibling.stop().await;
    spoke.kill(unreadable).await;
    let killed = spoke.finished(unreadable).await;
    let waited = spoke.finished(waits).await;
    assert_eq!(waited.state, ObservedState::Completed, "{waited:?}");
    assert!(
        waited.started_at.unwrap() >= killed.ended_at.unwrap(),
        "both ran at once in one slot: {killed:?}, {waited:?}"
    );
    spoke.stop().await;
}

#[tokio::test]
async fn a2_a6_what_no_record_knows_is_killed_at_start_and_nothing_else_is() {
    let mut spoke = Spoke::start_process().await;
    let mut sibling = Spoke::start_process().await;
    let orphan = spoke.spawn(FOREVER).await;
    spoke.wrote(orphan, "at-work").await;
    let others = sibling.spawn(FOREVER).await;
    sibling.wrote(others, "at-work").await;
    spoke.crash();
    sibling.crash();
    // A spoke that lost its record: what runs under its cgroup is nobody's any more.
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(spoke.data_dir().join(name));
    }
    spoke.restart().await;
    assert!(
        !spoke.runs(orphan),
        "an orphan is killed before anything is served"
    );
    sibling.restart().await;
    assert_eq!(
        sibling.status(others).await.state,
        ObservedState::Running,
        "A12: not ours"
    );
    // Its tree may hold work that is nowhere else: nobody's record says that it may go.
    let left = spoke.data_dir().join(format!("agents/{orphan}"));
    assert!(left.join("work").exists());
    std::fs::remove_dir_all(left).unwrap();
    spoke.stop().await;
    sibling.stop().await;
}
