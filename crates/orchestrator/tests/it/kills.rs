//! Kills and holds of a whole spoke: what is answered, what is on record, what is left.

use std::{os::unix::process::ExitStatusExt as _, process::Command, time::Duration};

use futures_util::FutureExt as _;
use mosaic_e2e::api::eventually;
use mosaic_types::{
    AgentId,
    agent::{AgentState, EndReason, ObservedState, ProofMethod},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    rig::{FOREVER, PATIENCE, Spoke, git},
    sandbox::rig::{skip_unless, write_program},
};

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

/// A file system of its own for the agents of a spoke, which can be frozen: who writes to it then cannot be killed.
struct Freezer(std::path::PathBuf);

impl Freezer {
    fn mount(at: &std::path::Path, image: &std::path::Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        std::fs::File::create(image)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
            let output = std::process::Command::new(program).args(arguments).output();
            output.is_ok_and(|output| output.status.success())
        };
        let mounted = run("mkfs.ext4", &["-q".as_ref(), image.as_os_str()])
            && run(
                "mount",
                &[
                    "-o".as_ref(),
                    "loop".as_ref(),
                    image.as_os_str(),
                    at.as_os_str(),
                ],
            );
        crate::sandbox::rig::skip_unless(mounted, "a loop mount of ext4 (root)")
            .then(|| Self(at.to_owned()))
    }

    fn set(&self, flag: &str) {
        let status = std::process::Command::new("fsfreeze")
            .arg(flag)
            .arg(&self.0)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::process::Command::new("fsfreeze")
            .arg("-u")
            .arg(&self.0)
            .output();
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[tokio::test]
async fn a8_what_cannot_be_proven_dead_is_unverified_and_keeps_its_slot_until_it_is() {
    let world = tempfile::tempdir().unwrap();
    let data_dir = world.path().join("spoke");
    let Some(freezer) = Freezer::mount(&data_dir.join("agents"), &world.path().join("image"))
    else {
        return;
    };
    let settings = "[limits]\nmax-running = 1\nmin-free-disk-mb = 0\n";
    let spoke = Spoke::start_process_at(data_dir, settings).await;
    let agent = spoke
        .spawn("echo precious > half-done; echo at-work; while :; do date > ticks; done")
        .await;
    spoke.wrote(agent, "at-work").await;
    let next = spoke.spawn("true").await;
    freezer.set("-f");
    // Until somebody of it waits for the disk, where no signal reaches.
    let stuck = async {
        while !spoke.has_stuck(agent) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, stuck).await.unwrap();
    let report = spoke.kill(agent).await;
    assert_eq!(report["outcome"], "unverified", "{report}");
    assert_eq!(report["proof"], json!(null), "{report}");
    assert!(
        report["detail"].as_str().unwrap().contains("processes ["),
        "{report}"
    );
    assert_eq!(spoke.status(agent).await.state, ObservedState::Killing);
    assert_eq!(
        spoke.status(next).await.state,
        ObservedState::Queued,
        "A8: its slot"
    );
    // Without the daemon it is no other.
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mosaic-orchestrator"))
        .args([
            "kill-all",
            "--offline",
            "--json",
            "--within",
            "1",
            "--data-dir",
        ])
        .arg(spoke.data_dir())
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &told["unverified"]),
        (Some(5), &json!(1)),
        "{told:#}"
    );
    assert!(
        !told["agents"][0]["survivors"]
            .as_array()
            .unwrap()
            .is_empty(),
        "{told:#}"
    );
    assert_eq!(spoke.status(agent).await.state, ObservedState::Killing);
    freezer.set("-u");
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Killed, "{status:#?}");
    assert!(status.death.is_some());
    assert!(status.cleanup.iter().all(|step| step.ok), "{status:#?}");
    // The offline kill was of everything that had been accepted.
    assert_eq!(spoke.finished(next).await.state, ObservedState::Killed);
    spoke.stop().await;
    drop(freezer);
}

/// Shims that hang take up every turn to start: who waits for one has no process, and is killed as fast as any.
#[tokio::test]
async fn a30_agents_come_up_a_few_at_a_time_and_a_kill_waits_for_none() {
    let folder = tempfile::tempdir().unwrap();
    let (hang, begun) = (folder.path().join("hang"), folder.path().join("begun"));
    let shim = folder.path().join("shim");
    let script = format!(
        "#!/bin/sh\nif test -e {hang}; then echo $2 >> {begun}; exec sleep 1000; fi\nexec {real} \"$@\"\n",
        hang = hang.display(),
        begun = begun.display(),
        real = env!("CARGO_BIN_EXE_mosaic-sandbox"),
    );
    write_program(&shim, &script);
    let spoke = Spoke::start_with(|config| config.sandbox.program = Some(shim)).await;
    std::fs::write(&hang, "").unwrap();
    let turns = std::thread::available_parallelism().unwrap().get();
    let mut agents = Vec::new();
    for _ in 0..turns + 1 {
        agents.push(spoke.spawn(FOREVER).await);
    }
    let home = |agent: &AgentId| spoke.data_dir().join(format!("agents/{agent}/home"));
    let started = || std::fs::read_to_string(&begun).unwrap_or_default();
    let ready = async {
        while started().lines().count() < turns || !agents.iter().all(|agent| home(agent).exists())
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
    let begun = started();
    let waits = agents
        .iter()
        .find(|agent| !begun.contains(&agent.to_string()));
    let waits = *waits.expect("one for whom there is no turn");
    let report = spoke.kill(waits).await;
    assert_eq!(report["proof"]["method"], "never-started", "{report}");
    let status = spoke.finished(waits).await;
    assert_eq!(status.state, ObservedState::Killed, "{status:#?}");
    // It has not waited until those that hang were given up.
    let (status, report) = spoke.call(Method::POST, "/agents/kill-all", None).await;
    assert_eq!(status, StatusCode::OK, "{report}");
    assert_eq!(report["killed"], turns, "{report}");
    std::fs::remove_file(&hang).unwrap();
    for agent in agents {
        let status = spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Killed, "{status:#?}");
    }
    let after = spoke.spawn("true").await;
    let status = spoke.finished(after).await;
    assert_eq!(status.state, ObservedState::Completed, "no turn is lost");
    spoke.stop().await;
}

/// A8: a start that hangs, as on a disk that does, is told as not proven, and keeps nobody else alive.
#[tokio::test]
async fn a8_a_start_that_hangs_keeps_nobody_else_alive() {
    let spoke = Spoke::start_process().await;
    let other = spoke.spawn(FOREVER).await;
    spoke.wrote(other, "at-work").await;
    let hanging = AgentId::generate();
    let run = spoke.data_dir().join(format!("agents/{hanging}/run"));
    std::fs::create_dir_all(&run).unwrap();
    // To open it waits for somebody who reads.
    let log = run.join("shim.log");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &log, mode).unwrap();
    let body = spoke.spawn_body(hanging, FOREVER);
    spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    spoke.becomes(hanging, ObservedState::Spawning).await;
    // Where the kernel has it wait: a moment earlier a kill would still come first.
    let threads = format!("/proc/{}/task", spoke.pid());
    eventually("a start that hangs", async || {
        let mut threads = std::fs::read_dir(&threads).unwrap().flatten();
        let waits_in =
            |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("wchan"));
        threads
            .any(|thread| waits_in(thread).is_ok_and(|place| place == "wait_for_partner"))
            .then_some(())
    })
    .await;

    let answered = spoke.call(Method::POST, "/agents/kill-all", Some(json!({})));
    let (_, report) = tokio::time::timeout(PATIENCE, answered).await.unwrap();
    let outcome_of = |agent: AgentId| {
        let agents = report["agents"].as_array().unwrap();
        let found = agents
            .iter()
            .find(|told| told["agentId"] == json!(agent))
            .unwrap();
        found["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(outcome_of(other), "killed", "{report}");
    assert_eq!(outcome_of(hanging), "unverified", "{report}");
    let alone = spoke.kill(hanging).await;
    assert_eq!(alone["outcome"], "unverified", "{alone}");

    let _reader = std::fs::File::open(&log).unwrap();
    for agent in [other, hanging] {
        let status = spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Killed, "{status:#?}");
    }
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
