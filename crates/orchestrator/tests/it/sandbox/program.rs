//! Which executable is an agent's shim and init.

use std::{fs, path::Path};

use mosaic_orchestrator::sandbox::{EngineKind, ExitStatus, Program};

use super::rig::{Rig, sh, write_program};

const SMALL: &str = env!("CARGO_BIN_EXE_mosaic-sandbox");

#[test]
fn what_is_beside_the_daemon_is_used_if_it_is_of_the_same_build() {
    let own = Path::new("/proc/self/exe");
    for (path, why) in [
        ("/nonexistent", "there is none"),
        ("/etc/hostname", "it does not start"),
        ("/bin/true", "it says nothing"),
        (
            "/bin/echo",
            "it says something else, as another build's would",
        ),
        ("/usr/bin/yes", "it does not come to an end"),
    ] {
        assert_eq!(Program::beside(Path::new(path)).path(), own, "{why}");
    }
    assert_ne!(Program::beside(Path::new(SMALL)).path(), own);
}

#[tokio::test]
async fn a_daemon_that_is_deployed_alone_holds_its_agents_by_its_own_executable() {
    for engine in [EngineKind::Bubblewrap, EngineKind::Unshare] {
        let daemon = Program::at(env!("CARGO_BIN_EXE_mosaic-orchestrator").into());
        let Some(rig) = Rig::with_program(engine, false, daemon) else {
            continue;
        };
        let agent = rig.run(sh("exit 7")).await;
        let record = agent.handle.wait_exit().await.unwrap();
        assert_eq!(record.status, ExitStatus::Code(7));
        rig.finish().await;
    }
}

#[tokio::test]
async fn what_was_found_is_used_whatever_takes_its_place() {
    fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (beside, next) = (dir.path().join("mosaic-sandbox"), dir.path().join("next"));
    fs::hard_link(SMALL, &beside).unwrap();
    let program = Program::beside(&beside);
    write_program(&next, "#!/bin/sh\nexit 1\n");
    fs::rename(&next, &beside).unwrap();
    for engine in [EngineKind::Bubblewrap, EngineKind::Unshare] {
        let Some(rig) = Rig::with_program(engine, false, program.clone()) else {
            continue;
        };
        let agent = rig.run(sh("exit 7")).await;
        let record = agent.handle.wait_exit().await.unwrap();
        assert_eq!(record.status, ExitStatus::Code(7));
        rig.finish().await;
    }
}
