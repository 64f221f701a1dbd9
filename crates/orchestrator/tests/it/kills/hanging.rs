//! Kills of what hangs: on a disk, in a start, or in the kernel.

use mosaic_e2e::api::eventually;
use mosaic_types::{AgentId, agent::ObservedState};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{
    rig::{FOREVER, PATIENCE, Spoke},
    sandbox::rig::write_program,
};

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
