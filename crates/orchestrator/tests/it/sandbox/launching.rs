//! How a launch begins: what is refused, what is held back until the word, what is given along.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use mosaic_orchestrator::sandbox::{
    Bind, EngineKind, ExitStatus, LaunchSpec, Network, ProcessSandbox, Program, ResourceLimits,
    Sandbox, SandboxError, Scope, process::ProcessSandboxConfig, spool::Stream,
};

use super::rig::{self, LIMIT, Rig, on_both_engines, sh, skip_unless, soon, write_program};

on_both_engines! {
    async fn a_program_that_is_not_there_never_started(rig) {
        let agent = rig.run(|spec| spec.argv = vec!["/nonexistent/program".into()]).await;
        let record = agent.handle.wait_exit().await.unwrap();
        assert_eq!(record.status, ExitStatus::NotStarted);
        assert!(record.detail.unwrap().contains("start the program"));
    }

    async fn stdin_is_the_file_and_environment_is_exact(rig) {
        let prompt = rig.dir.path().join("prompt");
        fs::write(&prompt, "do it").unwrap();
        let agent = rig.run(|spec| {
            sh("cat; echo; /usr/bin/env")(spec);
            spec.stdin = Some(prompt.clone());
            spec.env.insert("ONLY".into(), "this".into());
        }).await;
        agent.handle.wait_exit().await.unwrap();
        let text = agent.text(Stream::Stdout);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("do it"));
        let mut names: Vec<_> = lines.filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        names.sort_unstable();
        // The last three are the shell's own.
        assert_eq!(names, ["ONLY", "PATH", "PWD"], "{text}");
    }

    async fn nothing_runs_before_go(rig) {
        let marker = rig.work().join("marker");
        let agent = rig.spawn(sh(&format!("touch {}", marker.display()))).await;
        assert!(agent.handle.go().is_err(), "not before the init is held");
        agent.handle.init_started(LIMIT).await.unwrap();
        assert!(!marker.exists());
        agent.handle.go().unwrap();
        assert_eq!(agent.handle.wait_exit().await.unwrap().status, ExitStatus::Code(0));
        assert!(marker.exists());
    }

    /// A6
    async fn a6_a_daemon_that_dies_before_go_leaves_nothing(rig) {
        let agent = rig.spawn(sh("echo ran")).await;
        agent.handle.init_started(LIMIT).await.unwrap();
        let dir = agent.dir.clone();
        let watch = rig.adopt_live(&dir).await;
        // The handle holds the daemon's end of the pipe.
        drop(agent);
        assert_eq!(watch.wait_exit().await.unwrap().status, ExitStatus::NotStarted);
        assert!(rig.nobody_left());
    }

    async fn a_live_agent_is_not_launched_again_and_a_dead_one_is(rig) {
        let agent = rig.run(sh("echo up; exec sleep 1000")).await;
        agent.wait_for("up").await;
        let again = rig.spec_of(&agent, sh("echo second"));
        assert!(matches!(rig.sandbox.prepare(again.clone()), Err(SandboxError::AlreadyRunning(_))));
        agent.handle.kill().unwrap();
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
        let second = rig.sandbox.spawn(rig.sandbox.prepare(again).unwrap()).unwrap();
        second.init_started(LIMIT).await.unwrap();
        second.go().unwrap();
        assert_eq!(second.wait_exit().await.unwrap().status, ExitStatus::Code(0));
        assert_eq!(agent.text(Stream::Stdout), "up\nsecond\n");
        // What the second left does not speak for the third.
        let third = rig.spec_of(&agent, sh("exec sleep 1000"));
        let third = rig.sandbox.spawn(rig.sandbox.prepare(third).unwrap()).unwrap();
        third.init_started(LIMIT).await.unwrap();
        third.kill().unwrap();
        assert_eq!(third.wait_exit().await.unwrap().status, ExitStatus::Lost);
    }

    async fn limits_are_enforced_or_refused(rig) {
        let limits = rig.sandbox.containment().limits;
        let wanted = ResourceLimits { pids: Some(20), ..Default::default() };
        if limits.pids {
            let agent = rig.run(|spec| {
                sh("i=0; while [ $i -lt 50 ]; do sleep 5 & i=$((i+1)); done; exit 0")(spec);
                spec.limits = wanted;
            }).await;
            let record = agent.handle.wait_exit().await.unwrap();
            assert_ne!(record.status, ExitStatus::Code(0));
            assert!(agent.text(Stream::Stderr).to_lowercase().contains("fork"));
        } else {
            let spec = rig.spec(|spec| spec.limits = wanted);
            assert!(matches!(rig.sandbox.prepare(spec), Err(SandboxError::InvalidLaunch { .. })));
        }
    }

    async fn what_cannot_be_launched_is_refused(rig) {
        for bend in [
            (|spec| spec.argv.clear()) as fn(&mut LaunchSpec),
            |spec| spec.cwd = "relative".into(),
            |spec| spec.argv.push("a\0b".into()),
            |spec| { spec.env.insert("A=B".into(), "c".into()); },
            |spec| spec.binds.push(Bind::writable("/")),
            |spec| spec.binds.push(Bind::writable("/sys/fs/cgroup")),
        ] {
            assert!(matches!(rig.sandbox.prepare(rig.spec(bend)), Err(SandboxError::InvalidLaunch { .. })));
        }
        let agent = rig.spawn(|spec| spec.cwd = "/nonexistent".into()).await;
        let error = agent.handle.init_started(LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("working directory"), "{error}");
        assert_eq!(agent.handle.wait_exit().await.unwrap().status, ExitStatus::NotStarted);
    }

    async fn a_failed_start_repeats_nothing_of_an_earlier_launch(rig) {
        let agent = rig.run(sh("echo private")).await;
        agent.handle.wait_exit().await.unwrap();
        let again = rig.spec_of(&agent, |spec| spec.cwd = "/nonexistent".into());
        let second = rig.sandbox.spawn(rig.sandbox.prepare(again).unwrap()).unwrap();
        let error = second.init_started(LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("working directory"), "{error}");
        assert!(!error.to_string().contains("private"), "{error}");
        second.wait_exit().await.unwrap();
    }
}

#[test]
fn no_engine_is_an_error_that_says_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let config = ProcessSandboxConfig {
        data_dir: dir.path().to_owned(),
        instance: "test-none".into(),
        engine: None,
        without_cgroup: true,
        // Not a shim: whatever the engine, nothing comes up.
        program: Program::at("/bin/false".into()),
    };
    let error = ProcessSandbox::detect(&config).unwrap_err();
    assert!(
        matches!(error, SandboxError::NoContainment { .. }),
        "{error}"
    );
}

/// The shim by itself, with this engine, told to go at once; what its agent said to standard error, and its exit record.
fn run_shim(kind: EngineKind, engine: &Path, script: &str) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let launch = LaunchSpec {
        agent_id: mosaic_types::AgentId::generate(),
        scope: Scope::Local,
        agent_dir: dir.path().to_owned(),
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: [].into(),
        cwd: "/".into(),
        stdin: None,
        binds: Vec::new(),
        masked: Vec::new(),
        network: Network::Host,
        limits: ResourceLimits::default(),
        spool_max_bytes: 65_536,
        warm: None,
        masks: Vec::new(),
    };
    let plan = serde_json::json!({
        "launch": launch,
        "starter": { "engine": { "kind": kind, "path": engine } },
        "cgroup": null,
        "shimCgroup": null,
        "limitGroups": [],
    });
    let mut shim = Command::new(env!("CARGO_BIN_EXE_mosaic-sandbox"))
        .arg("sandbox-shim")
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Held open: its end would mean that the daemon is gone.
    let mut control = shim.stdin.take().unwrap();
    control
        .write_all(format!("{plan}\ngo\n").as_bytes())
        .unwrap();
    shim.wait().unwrap();
    drop(control);
    let said = rig::text(&dir.path().join("spool"), Stream::Stderr);
    let exit = fs::read_to_string(dir.path().join("exit.json")).unwrap_or_default();
    (said, exit)
}

#[test]
fn what_a_failing_engine_says_is_in_the_spool() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, starts) = (dir.path().join("engine"), dir.path().join("starts"));
    let script = format!(
        "#!/bin/sh\necho start >> {starts}\necho start $(wc -l < {starts}) came to nothing >&2\n",
        starts = starts.display()
    );
    write_program(&engine, &script);
    let (said, exit) = run_shim(EngineKind::Unshare, &engine, "true");
    assert_eq!(said, "start 5 came to nothing\n", "the last word; {exit}");
}

/// As bubblewrap does when a mount of the host goes away under it.
#[test]
fn an_engine_that_ends_before_there_is_a_namespace_is_started_again() {
    if !skip_unless(Path::new("/usr/bin/bwrap").is_file(), "bubblewrap") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (engine, starts) = (dir.path().join("engine"), dir.path().join("starts"));
    let script = format!(
        "#!/bin/sh\necho start >> {starts}\nif test $(wc -l < {starts}) -lt 4; then echo a mount is gone >&2; exit 1; fi\nexec /usr/bin/bwrap \"$@\"\n",
        starts = starts.display()
    );
    write_program(&engine, &script);
    let (said, exit) = run_shim(EngineKind::Bubblewrap, &engine, "echo once >&2; exit 7");
    assert_eq!(fs::read_to_string(&starts).unwrap().lines().count(), 4);
    assert!(exit.contains("{\"code\":7}"), "{exit}");
    assert_eq!(said, "once\n", "nothing is told of what came right");
}
