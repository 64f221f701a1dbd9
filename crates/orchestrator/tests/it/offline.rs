//! `kill-all --offline`: by the real executable, with the daemon dead, hung, healthy, or without its store, its disk or
//! its cgroup; and what the daemon makes of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use mosaic_types::{
    AgentId,
    agent::{AgentStatus, EndReason, ObservedState},
};
use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    docker::rig::Docked,
    rig::{self, FOREVER, Spoke, git, lives},
    sandbox::rig::skip_unless,
};

mod ended;

const AT_WORK: &str = "echo precious > half-done; echo at-work; exec sleep 1000";

fn kill_all(data_dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mosaic-orchestrator"))
        .args(["kill-all", "--offline", "--json", "--data-dir"])
        .arg(data_dir)
        .args(more)
        .env_remove("MOSAIC_ORCHESTRATOR_CONFIG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Kills, and says what the report says.
pub(crate) fn killed_all(data_dir: &Path, more: &[&str]) -> Value {
    let output = kill_all(data_dir, more);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn agents_of(report: &Value) -> Vec<&str> {
    let agents = report["agents"].as_array().unwrap();
    agents
        .iter()
        .map(|agent| {
            assert_eq!(agent["outcome"], "killed", "{report:#}");
            agent["agentId"].as_str().unwrap()
        })
        .collect()
}

/// Killed on record, with its work salvaged.
fn is_killed_and_salvaged(spoke: &Spoke, agent: AgentId, status: &AgentStatus) {
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Killed, Some(EndReason::KillAll)),
        "{status:#?}"
    );
    let salvaged = format!("refs/mosaic/salvage/{agent}:half-done");
    assert_eq!(
        git(&spoke.mirror(), &["show", &salvaged]),
        "precious",
        "A22"
    );
}

/// The entries that a kill without a daemon left on the trail.
async fn told(spoke: &Spoke) -> Vec<Value> {
    let (_, page) = spoke
        .call(Method::GET, "/api/v1/audit?limit=1000", None)
        .await;
    let entries = page["entries"].as_array().unwrap().iter();
    let told = entries
        .map(|entry| serde_json::from_str::<Value>(entry["eventJson"].as_str().unwrap()).unwrap());
    told.filter(|event| event["action"] == "killswitch.kill-all")
        .collect()
}

fn pid(spoke: &Spoke) -> Pid {
    Pid::from_raw(spoke.pid().cast_signed()).unwrap()
}

#[tokio::test]
async fn a_kill_without_a_daemon_is_proven_and_recorded_by_the_next_and_nothing_starts() {
    let mut spoke = Spoke::start_process_with("[limits]\nmax-running = 2\n").await;
    let running = [spoke.spawn(AT_WORK).await, spoke.spawn(AT_WORK).await];
    for agent in running {
        spoke.wrote(agent, "at-work").await;
    }
    let queued = spoke.spawn("touch ran").await;
    spoke.crash();

    let report = killed_all(spoke.data_dir(), &["--hold"]);
    let mut named = running.map(|agent| agent.to_string());
    named.sort();
    assert_eq!(agents_of(&report), named, "{report:#}");
    assert_eq!(
        (
            &report["killed"],
            &report["hold"],
            &report["word"],
            &report["told"]
        ),
        (&json!(2), &json!(true), &json!(true), &json!(true)),
        "{report:#}"
    );
    for agent in running {
        assert!(!spoke.runs(agent));
    }
    // Once more is no harm, and says that there was nothing.
    let again = killed_all(spoke.data_dir(), &[]);
    assert_eq!(again["agents"], json!([]), "{again:#}");

    spoke.restart().await;
    for agent in running {
        is_killed_and_salvaged(&spoke, agent, &spoke.finished(agent).await);
    }
    let status = spoke.finished(queued).await;
    assert_eq!(status.state, ObservedState::Killed, "{status:#?}");
    assert_eq!(status.started_at, None, "it never ran");
    let body = spoke.spawn_body(AgentId::generate(), "true");
    let (status, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::CONFLICT, &json!("held"))
    );

    let told = told(&spoke).await;
    assert_eq!(told.len(), 2, "{told:#?}");
    assert_eq!(
        told[0]["actor"],
        json!({"kind": "operator", "token": "offline"})
    );
    assert_eq!(told[0]["detail"]["told"]["killed"], 2);
    let (_, verdict) = spoke.call(Method::GET, "/api/v1/audit/verify", None).await;
    assert_eq!(verdict["valid"], true, "{verdict}");

    let (status, _) = spoke.call(Method::POST, "/hold/release", None).await;
    assert_eq!(status, StatusCode::OK);
    // What comes after the kill is not meant by it, also after another start.
    let after = spoke.spawn(FOREVER).await;
    spoke.wrote(after, "at-work").await;
    spoke.crash();
    spoke.restart().await;
    assert_eq!(spoke.status(after).await.state, ObservedState::Running);
    spoke.stop().await;
}

#[tokio::test]
async fn a_daemon_that_hung_through_a_kill_without_it_records_it_when_it_goes_on() {
    let settings = "[limits]\nmax-running = 1\nreconcile-secs = 1\n";
    let spoke = Spoke::start_process_with(settings).await;
    let running = spoke.spawn(AT_WORK).await;
    spoke.wrote(running, "at-work").await;
    let queued = spoke.spawn("touch ran").await;
    mosaic_e2e::standstill::stop(&[pid(&spoke)]).unwrap();
    let report = killed_all(spoke.data_dir(), &[]);
    assert_eq!(agents_of(&report), [running.to_string()]);
    kill_process(pid(&spoke), Signal::CONT).unwrap();
    is_killed_and_salvaged(&spoke, running, &spoke.finished(running).await);
    let status = spoke.finished(queued).await;
    assert_eq!(
        (status.state, status.started_at),
        (ObservedState::Killed, None),
        "{status:#?}"
    );
    let on_trail = async {
        while told(&spoke).await.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, on_trail).await.unwrap();
    // Without a hold it goes on with what comes next.
    let next = spoke.spawn("true").await;
    assert_eq!(spoke.finished(next).await.state, ObservedState::Completed);
    spoke.stop().await;
}

#[tokio::test]
async fn a_healthy_daemon_copes_with_a_kill_past_it() {
    let spoke = Spoke::start_process().await;
    let ended = spoke.spawn("true").await;
    assert_eq!(spoke.finished(ended).await.state, ObservedState::Completed);
    let agents = [spoke.spawn(AT_WORK).await, spoke.spawn(AT_WORK).await];
    for agent in agents {
        spoke.wrote(agent, "at-work").await;
    }
    let report = killed_all(spoke.data_dir(), &[]);
    assert_eq!(report["killed"], 2, "{report:#}");
    for agent in agents {
        is_killed_and_salvaged(&spoke, agent, &spoke.finished(agent).await);
    }
    let state = spoke.status(ended).await.state;
    assert_eq!(state, ObservedState::Completed, "it had ended before");
    spoke.stop().await;
}

#[tokio::test]
async fn who_comes_after_a_kill_past_an_idle_daemon_is_not_meant_by_it() {
    let mut spoke = Spoke::start_process().await;
    let report = killed_all(spoke.data_dir(), &[]);
    assert_eq!(report["agents"], json!([]), "{report:#}");
    let after = spoke.spawn(FOREVER).await;
    spoke.wrote(after, "at-work").await;
    // It is not meant after a crash either, before which nothing else was put in order.
    let journal = fs::read_to_string(spoke.data_dir().join("kills.jsonl")).unwrap();
    assert!(!journal.contains("everything"), "{journal}");
    assert!(journal.contains("told"), "{journal}");
    spoke.crash();
    spoke.restart().await;
    assert_eq!(spoke.status(after).await.state, ObservedState::Running);
    spoke.stop().await;
}

#[tokio::test]
async fn a_kill_without_a_daemon_needs_no_store() {
    let mut spoke = Spoke::start_process().await;
    let store = spoke.data_dir().join("store.db");
    for case in ["locked", "absent", "corrupt"] {
        let agent = spoke.spawn(AT_WORK).await;
        spoke.wrote(agent, "at-work").await;
        spoke.crash();
        let away = spoke.data_dir().join("away");
        let files = ["store.db", "store.db-wal", "store.db-shm"];
        let mut lock = None;
        match case {
            "locked" => {
                // As another process would: the store's own lock file, and the database's.
                let held = fs::File::open(&store).unwrap();
                rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
                lock = Some(held);
            }
            _ => {
                fs::create_dir_all(&away).unwrap();
                for file in files {
                    let _ = fs::rename(spoke.data_dir().join(file), away.join(file));
                }
            }
        }
        if case == "corrupt" {
            fs::write(&store, "no database").unwrap();
        }
        let report = killed_all(spoke.data_dir(), &[]);
        assert_eq!(agents_of(&report), [agent.to_string()], "{case}");
        assert!(!spoke.runs(agent), "{case}");
        drop(lock);
        for file in files {
            let _ = fs::rename(away.join(file), spoke.data_dir().join(file));
        }
        spoke.restart().await;
        is_killed_and_salvaged(&spoke, agent, &spoke.finished(agent).await);
    }
    spoke.stop().await;
}

#[tokio::test]
async fn a13_a_kill_without_a_daemon_or_a_cgroup_takes_agents_and_nobody_else() {
    let mut spoke = Spoke::start_process_with("[sandbox]\nwithout-cgroup = true\n").await;
    let agent = spoke.spawn(AT_WORK).await;
    spoke.wrote(agent, "at-work").await;
    spoke.crash();
    // Strangers: one whose number an old record names, and one that a record names by all it has.
    let mut strangers = [0, 1].map(|_| {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).spawn().unwrap()
    });
    let own = fs::read(run_dir(&spoke, agent).join("shim.json")).unwrap();
    let own: Value = serde_json::from_slice(&own).unwrap();
    let reused =
        json!({"pid": strangers[0].id(), "startTime": own["startTime"], "bootId": own["bootId"]});
    let stat = fs::read_to_string(format!("/proc/{}/stat", strangers[1].id())).unwrap();
    let start_time: u64 = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(19)
        .unwrap()
        .parse()
        .unwrap();
    let exact = json!({"pid": strangers[1].id(), "startTime": start_time, "bootId": own["bootId"]});
    for identity in [reused, exact] {
        let run_dir = run_dir(&spoke, AgentId::generate());
        fs::create_dir_all(&run_dir).unwrap();
        for name in ["shim.json", "init.json"] {
            fs::write(run_dir.join(name), identity.to_string()).unwrap();
        }
    }
    let report = killed_all(spoke.data_dir(), &[]);
    assert_eq!(agents_of(&report), [agent.to_string()], "{report:#}");
    assert_eq!(report["agents"][0]["proof"]["method"], "pidfd");
    let roles = report["agents"][0]["processes"].as_array().unwrap();
    assert_eq!(roles.len(), 2, "its shim and its init: {report:#}");
    for stranger in &mut strangers {
        assert!(
            stranger.try_wait().unwrap().is_none(),
            "a stranger was killed"
        );
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
    spoke.restart().await;
    is_killed_and_salvaged(&spoke, agent, &spoke.finished(agent).await);
    spoke.stop().await;
}

fn run_dir(spoke: &Spoke, agent: AgentId) -> PathBuf {
    spoke.data_dir().join(format!("agents/{agent}/run"))
}

/// A12: a folder that remembers a group which cannot be ours names nobody.
#[tokio::test]
async fn a12_a_parent_that_is_not_ours_is_not_struck_and_records_of_agents_lead_to_ours() {
    let mut spoke = Spoke::start_process().await;
    let agent = spoke.spawn(AT_WORK).await;
    spoke.wrote(agent, "at-work").await;
    spoke.crash();
    let remembered = spoke.data_dir().join("cgroup-parent");
    let parent = fs::read_to_string(&remembered).unwrap();
    let root = Path::new(parent.trim()).parent().unwrap();
    let mut theirs = Command::new("cat");
    let mut theirs = theirs.stdin(Stdio::piped()).spawn().unwrap();
    let group = root.join(format!("others-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    fs::write(group.join("cgroup.procs"), theirs.id().to_string()).unwrap();
    fs::write(&remembered, group.to_str().unwrap()).unwrap();
    let report = killed_all(spoke.data_dir(), &[]);
    assert_eq!(agents_of(&report), [agent.to_string()], "{report:#}");
    assert!(
        theirs.try_wait().unwrap().is_none(),
        "a stranger was killed"
    );
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    fs::remove_dir(&group).unwrap();
    fs::write(&remembered, parent).unwrap();
    spoke.restart().await;
    is_killed_and_salvaged(&spoke, agent, &spoke.finished(agent).await);
    spoke.stop().await;
}

#[tokio::test]
async fn a_kill_without_a_daemon_takes_containers() {
    let Some(mut docked) = Docked::start_process().await else {
        return;
    };
    let agent = docked.spoke.spawn(AT_WORK).await;
    docked.spoke.wrote(agent, "at-work").await;
    let pid = docked.inspect(agent)["State"]["Pid"].as_u64().unwrap();
    docked.spoke.crash();
    let report = killed_all(docked.spoke.data_dir(), &[]);
    assert_eq!(agents_of(&report), [agent.to_string()], "{report:#}");
    assert!(report["agents"][0]["container"].is_string(), "{report:#}");
    assert!(!lives(pid));
    docked.spoke.restart().await;
    let status = docked.spoke.finished(agent).await;
    is_killed_and_salvaged(&docked.spoke, agent, &status);
    docked.stop().await;
}

/// A26: word of a kill finds room where there is none.
#[tokio::test]
async fn a26_a_kill_without_a_daemon_on_a_full_disk_is_recorded_as_one() {
    let disk = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64m,mode=0700", "mosaic-test"])
        .arg(disk.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !skip_unless(mounted, "a mount of tmpfs (root)") {
        return;
    }
    let unmount = Unmount(disk.path().to_owned());
    let mut spoke = Spoke::start_process_at(
        disk.path().join("spoke"),
        "[limits]\nmin-free-disk-mb = 0\n",
    )
    .await;
    let agent = spoke.spawn(AT_WORK).await;
    spoke.wrote(agent, "at-work").await;
    spoke.crash();
    let ballast = disk.path().join("ballast");
    let mut last = fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut last, &[0; 4096]).is_ok() {}
    let output = kill_all(spoke.data_dir(), &[]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "all are dead: {report:#}");
    assert_eq!(agents_of(&report), [agent.to_string()]);
    drop(last);
    fs::remove_file(&ballast).unwrap();
    spoke.restart().await;
    is_killed_and_salvaged(&spoke, agent, &spoke.finished(agent).await);
    spoke.stop().await;
    drop(unmount);
}

/// A folder that cannot be written keeps nobody alive, and what could not be left there is said.
#[tokio::test]
async fn a_kill_without_a_daemon_works_in_a_folder_that_cannot_be_written() {
    let script =
        "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && shift && exec \"$@\"";
    let read_only = |data_dir: &Path, command: &[&str]| {
        Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(data_dir)
            .args(command)
            .output()
    };
    let world = tempfile::tempdir().unwrap();
    let possible = read_only(world.path(), &["true"]).is_ok_and(|output| output.status.success());
    if !skip_unless(possible, "a mount namespace (root)") {
        return;
    }
    let mut spoke = Spoke::start_process().await;
    let agent = spoke.spawn(AT_WORK).await;
    spoke.wrote(agent, "at-work").await;
    spoke.crash();
    let data_dir = spoke.data_dir().to_str().unwrap();
    let tool = env!("CARGO_BIN_EXE_mosaic-orchestrator");
    let kill = [
        tool,
        "kill-all",
        "--offline",
        "--json",
        "--data-dir",
        data_dir,
    ];
    let output = read_only(spoke.data_dir(), &kill).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(agents_of(&report), [agent.to_string()]);
    assert_eq!(
        (&report["word"], &report["told"]),
        (&json!(false), &json!(false)),
        "{report:#}"
    );
    assert!(!spoke.runs(agent));
    spoke.restart().await;
    let status = spoke.finished(agent).await;
    assert_eq!(status.reason, Some(EndReason::Vanished), "nobody left word");
    spoke.stop().await;
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_hold_that_was_asked_for_and_is_not_on_disk_is_a_failure() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("hold"), "in the way").unwrap();
    let output = kill_all(data.path(), &["--hold"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &report["hold"]),
        (Some(1), &json!(false))
    );
    assert_eq!(kill_all(data.path(), &[]).status.code(), Some(0));
    let nowhere = kill_all(&data.path().join("nowhere"), &[]);
    assert_eq!(nowhere.status.code(), Some(1));
}
