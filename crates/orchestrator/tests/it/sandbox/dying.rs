//! How an agent ends, by itself or by a kill, and that nothing is left of it.

use std::{fs, time::Instant};

use mosaic_orchestrator::sandbox::{
    Adopted, CgroupSupport, Death, EngineKind, ExitStatus, ProofMethod, ResourceLimits, Sandbox,
    SandboxError, Scope, kill_parent_offline, spool::Stream,
};

use super::rig::{self, LIMIT, Rig, on_both_engines, sh, soon};

on_both_engines! {
    async fn a_signal_is_recorded_as_one(rig) {
        let agent = rig.run(sh("kill -TERM $$")).await;
        assert_eq!(agent.handle.wait_exit().await.unwrap().status, ExitStatus::Signal(15));
    }

    /// A14
    async fn a14_grandchildren_die_with_a_natural_exit(rig) {
        let agent = rig.run(sh("setsid sleep 1000 & setsid sh -c '(sleep 1000 &)'; exit 3")).await;
        let record = agent.handle.wait_exit().await.unwrap();
        assert_eq!(record.status, ExitStatus::Code(3));
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
        assert!(rig.nobody_left());
    }

    /// A14, A15
    async fn a14_grandchildren_die_with_a_kill(rig) {
        let agent = rig.run(sh("setsid sh -c '(sleep 1000 &); exec sleep 1000' & echo up; exec sleep 1000")).await;
        agent.wait_for("up").await;
        agent.handle.kill().unwrap();
        let death = agent.handle.prove_dead(soon()).await;
        assert!(death.is_proven(), "{death:?}");
        assert_eq!(agent.handle.wait_exit().await.unwrap().status, ExitStatus::Lost);
        // Idempotent in death.
        agent.handle.kill().unwrap();
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
        assert!(matches!(rig.sandbox.adopt(&agent.dir).await.unwrap(), Adopted::Vanished));
    }

    /// A11
    async fn a11_a_fast_forker_dies(rig) {
        let agent = rig.run(|spec| {
            sh("echo up; f() { sleep 0.01 & f & wait; }; f")(spec);
            if rig.sandbox.containment().limits.pids {
                spec.limits = ResourceLimits { pids: Some(200), ..Default::default() };
            } else {
                sh("echo up; while :; do sleep 0.01 & done")(spec);
            }
        }).await;
        agent.wait_for("up").await;
        agent.handle.kill().unwrap();
        let death = agent.handle.prove_dead(soon()).await;
        assert!(death.is_proven(), "{death:?}");
    }

    /// A9, A32
    async fn a9_a_kill_in_any_phase_of_the_launch_wins(rig) {
        // Right after the spawn.
        let agent = rig.spawn(sh("echo ran")).await;
        agent.handle.kill().unwrap();
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
        assert!(agent.handle.init_started(LIMIT).await.is_err());
        assert!(matches!(agent.handle.go(), Err(SandboxError::Killed)));
        assert_eq!(agent.text(Stream::Stdout), "");
        // When the namespace waits for the word.
        let agent = rig.spawn(sh("echo ran")).await;
        agent.handle.init_started(LIMIT).await.unwrap();
        agent.handle.kill().unwrap();
        assert!(matches!(agent.handle.go(), Err(SandboxError::Killed)));
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
        assert_eq!(agent.text(Stream::Stdout), "");
        // Somewhere in between, while somebody waits for it.
        let agent = rig.spawn(sh("echo ran")).await;
        let (started, ()) = tokio::join!(agent.handle.init_started(LIMIT), async {
            tokio::task::yield_now().await;
            agent.handle.kill().unwrap();
        });
        assert!(started.is_err());
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
    }

    async fn a_shim_that_is_killed_takes_its_agent_along(rig) {
        let agent = rig.run(sh("echo up; exec sleep 1000")).await;
        agent.wait_for("up").await;
        let shim: serde_json::Value = serde_json::from_slice(&fs::read(agent.dir.join("shim.json")).unwrap()).unwrap();
        rig::kill_pid(&shim["pid"]);
        let record = agent.handle.wait_exit().await.unwrap();
        assert_eq!(record.status, ExitStatus::Lost);
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
        assert!(matches!(rig.sandbox.adopt(&agent.dir).await.unwrap(), Adopted::Vanished));
    }

    async fn a_shim_that_is_killed_before_go_lets_nothing_run(rig) {
        let marker = rig.work().join("marker");
        let agent = rig.spawn(sh(&format!("touch {}", marker.display()))).await;
        agent.handle.init_started(LIMIT).await.unwrap();
        let shim: serde_json::Value = serde_json::from_slice(&fs::read(agent.dir.join("shim.json")).unwrap()).unwrap();
        rig::kill_pid(&shim["pid"]);
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
        assert!(!marker.exists());
    }

    /// A34
    async fn a34_a_frozen_agent_dies(rig) {
        let Some(parent) = rig.parent() else { return };
        let agent = rig.run(sh("echo up; exec sleep 1000")).await;
        agent.wait_for("up").await;
        let group = parent.join("local").join(agent.handle.agent_id().to_string());
        fs::write(group.join("cgroup.freeze"), "1").unwrap();
        agent.handle.kill().unwrap();
        let death = agent.handle.prove_dead(soon()).await;
        assert!(death.is_proven(), "{death:?}");
    }

    async fn a_scope_dies_by_one_write_and_others_live(rig) {
        if rig.parent().is_none() { return }
        let scope = Scope::Connection(mosaic_types::ConnectionId::generate());
        let mut theirs = Vec::new();
        for _ in 0..3 {
            theirs.push(rig.run(|spec| { sh("echo up; exec sleep 1000")(spec); spec.scope = scope; }).await);
        }
        let mine = rig.run(sh("echo up; exec sleep 1000")).await;
        rig.sandbox.kill_scope(scope).unwrap();
        for agent in &theirs {
            assert!(agent.handle.prove_dead(soon()).await.is_proven());
        }
        assert!(!mine.handle.prove_dead(Instant::now()).await.is_proven());
        assert_eq!(rig.sandbox.list().unwrap().iter().filter(|c| c.populated).count(), 1);
        rig.sandbox.kill_everything().unwrap();
        assert!(mine.handle.prove_dead(soon()).await.is_proven());
    }

    async fn offline_kill_needs_only_the_data_folder(rig) {
        if rig.parent().is_none() { return }
        let agent = rig.run(sh("echo up; exec sleep 1000")).await;
        agent.wait_for("up").await;
        let killed = kill_parent_offline(rig.dir.path(), soon()).unwrap().unwrap();
        assert_eq!(killed.len(), 1);
        assert_eq!(killed[0].agent_id, agent.handle.agent_id());
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
    }
}

#[tokio::test]
async fn without_a_cgroup_death_is_still_proven() {
    for engine in [EngineKind::Bubblewrap, EngineKind::Unshare] {
        let Some(rig) = Rig::new(engine, true) else {
            continue;
        };
        assert_eq!(rig.sandbox.containment().cgroup, CgroupSupport::None);
        let agent = rig
            .run(sh("setsid sleep 1000 & echo up; exec sleep 1000"))
            .await;
        agent.wait_for("up").await;
        let dir = agent.dir.clone();
        drop(agent);
        let adopted = rig.adopt_live(&dir).await;
        adopted.kill().unwrap();
        match adopted.prove_dead(soon()).await {
            Death::Proven(proof) => {
                assert_eq!(proof.method, ProofMethod::Pidfd);
                assert!(proof.init_pid.is_some());
            }
            other => panic!("{other:?}"),
        }
        let agent = rig.spawn(sh("echo ran")).await;
        agent.handle.kill().unwrap();
        assert!(agent.handle.prove_dead(soon()).await.is_proven());
        assert_eq!(agent.text(Stream::Stdout), "");
        rig.finish().await;
    }
}
