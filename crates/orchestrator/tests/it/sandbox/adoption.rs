//! What a daemon that comes back finds, and whom it leaves alone.

use std::{fs, time::Instant};

use mosaic_orchestrator::sandbox::{
    Adopted, EngineKind, ExitStatus, Program, Sandbox, spool::Stream,
};

use rustix::{
    event::{PollFd, PollFlags},
    process::Pid,
};

use super::rig::{self, Rig, on_both_engines, sh, soon, write_program};

on_both_engines! {
    /// A6
    async fn a6_a_live_agent_is_adopted_and_its_exit_known(rig) {
        let gate = rig.work().join("gate");
        let agent = rig.run(sh(&format!("echo up; while [ ! -e {} ]; do sleep 0.01; done; echo bye; exit 5", gate.display()))).await;
        agent.wait_for("up").await;
        let dir = agent.dir.clone();
        let spool = agent.handle.spool_path();
        drop(agent);
        let adopted = rig.adopt_live(&dir).await;
        assert_eq!(adopted.spool_path(), spool);
        fs::write(&gate, "").unwrap();
        assert_eq!(adopted.wait_exit().await.unwrap().status, ExitStatus::Code(5));
        assert_eq!(rig::text(&spool, Stream::Stdout), "up\nbye\n");
    }

    async fn an_adopted_agent_is_killed_and_proven(rig) {
        let agent = rig.run(sh("echo up; exec sleep 1000")).await;
        agent.wait_for("up").await;
        let dir = agent.dir.clone();
        drop(agent);
        let adopted = rig.adopt_live(&dir).await;
        adopted.kill().unwrap();
        let death = adopted.prove_dead(soon()).await;
        assert!(death.is_proven(), "{death:?}");
    }

    /// A14: the record of an end is there before all of it has ended, as when the engine is killed while it starts.
    async fn a14_what_an_ended_agent_left_is_ended_before_it_is_told_of(rig) {
        let agent = rig.run(sh("echo up; exec sleep 1000")).await;
        agent.wait_for("up").await;
        fs::write(agent.dir.join("exit.json"), r#"{"status":"notStarted","atUnixMs":0}"#).unwrap();
        assert!(matches!(rig.sandbox.adopt(&agent.dir).await.unwrap(), Adopted::Ended(_)));
        if rig.parent().is_some() {
            // Nobody kills it from here. Its group is empty a moment before the kernel tells of its processes' ends.
            assert!(agent.handle.prove_dead(soon()).await.is_proven(), "part of it lives");
        }
        agent.handle.kill().unwrap();
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
    }

    /// A13
    async fn a13_another_boot_is_vanished_and_nobody_is_touched(rig) {
        let agent = rig.run(sh("echo up; exec sleep 1000")).await;
        agent.wait_for("up").await;
        for name in ["sandbox.json", "shim.json", "init.json"] {
            let path = agent.dir.join(name);
            let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            value["bootId"] = "another".into();
            fs::write(&path, value.to_string()).unwrap();
        }
        assert!(matches!(rig.sandbox.adopt(&agent.dir).await.unwrap(), Adopted::Vanished));
        assert!(!agent.handle.prove_dead(Instant::now()).await.is_proven(), "it still lives");
        agent.handle.kill().unwrap();
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
    }

    /// A13, A12
    async fn a13_a_pid_of_somebody_else_is_neither_adopted_nor_killed(rig) {
        let agent = rig.run(sh("true")).await;
        agent.handle.wait_exit().await.unwrap();
        fs::remove_file(agent.dir.join("exit.json")).unwrap();
        // The pid now belongs to a stranger: same number, later start.
        let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for name in ["shim.json", "init.json"] {
            let path = agent.dir.join(name);
            let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            value["pid"] = stranger.id().into();
            fs::write(&path, value.to_string()).unwrap();
        }
        assert!(matches!(rig.sandbox.adopt(&agent.dir).await.unwrap(), Adopted::Vanished));
        assert!(stranger.try_wait().unwrap().is_none(), "the stranger lives");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}

/// A shim that is slow to begin: its daemon has died, and the next one has looked and launched again.
#[tokio::test]
async fn a6_a_shim_that_begins_too_late_says_nothing_about_the_next_launch() {
    fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (slow, pid, begin) = (
        folder.path().join("slow"),
        folder.path().join("pid"),
        folder.path().join("begin"),
    );
    let shim = folder.path().join("shim");
    let script = format!(
        "#!/bin/sh\nif test -e {slow}; then echo $$ > {pid}.new; mv {pid}.new {pid}; while ! test -e {begin}; do sleep 0.01; done; fi\nexec {shim} \"$@\"\n",
        slow = slow.display(),
        pid = pid.display(),
        begin = begin.display(),
        shim = env!("CARGO_BIN_EXE_mosaic-sandbox"),
    );
    write_program(&shim, &script);
    let Some(rig) = Rig::with_program(EngineKind::Unshare, false, Program::at(shim)) else {
        return;
    };

    fs::write(&slow, "").unwrap();
    let first = rig.spawn(sh("echo never")).await;
    let late = loop {
        if let Ok(pid) = fs::read_to_string(&pid) {
            break Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        }
        tokio::task::yield_now().await;
    };
    let late = rustix::process::pidfd_open(late, rustix::process::PidfdFlags::empty()).unwrap();
    let spec = rig.spec_of(&first, sh("echo up; exec sleep 1000"));
    let dir = first.dir.clone();
    // The handle holds the daemon's end of the pipe.
    drop(first);
    assert!(matches!(
        rig.sandbox.adopt(&dir).await.unwrap(),
        Adopted::Vanished
    ));

    fs::remove_file(&slow).unwrap();
    let handle = rig
        .sandbox
        .spawn(rig.sandbox.prepare(spec).unwrap())
        .unwrap();
    let second = rig::Agent { handle, dir };
    second.handle.init_started(rig::LIMIT).await.unwrap();
    second.handle.go().unwrap();
    second.wait_for("up").await;
    let listed = fs::read(second.dir.join("shim.json")).unwrap();

    fs::write(&begin, "").unwrap();
    let mut ended = [PollFd::new(&late, PollFlags::IN)];
    rustix::event::poll(&mut ended, None).unwrap();
    assert_eq!(fs::read(second.dir.join("shim.json")).unwrap(), listed);
    assert!(
        !second.dir.join("exit.json").exists(),
        "the second still runs"
    );
    let adopted = rig.adopt_live(&second.dir).await;
    adopted.kill().unwrap();
    assert!(adopted.prove_dead(soon()).await.is_proven());
    drop(second);
    rig.finish().await;
}
