//! A spoke of root's whose umask lets nobody else read what it makes, as `deploy/mosaic-orchestrator.service` has it: its
//! agents are somebody else.

use std::{
    fs,
    process::{Command, Stdio},
};

use mosaic_e2e::api::eventually;
use mosaic_types::agent::ObservedState;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::rig::Docked;
use crate::{
    rig::git,
    sandbox::{
        egress::{CLIENT, Server},
        rig::skip_unless,
    },
};

const POOL: &str = "[[sandbox.docker.warm]]\nruntime = \"reader\"\nsize = 1\nnetwork = \"none\"\n";

/// A runtime that runs this script.
fn runtime(script: &str) -> String {
    format!(
        "[[runtimes]]\nname = \"reader\"\nprogram = \"bash\"\nprompt = \"stdin\"\nargs = [\"-c\", '''\n{script}''']\n"
    )
}

/// The same command, under a strict umask.
fn strict(command: &mut Command) {
    let mut strict = Command::new("sh");
    strict
        .args(["-c", "umask 0077 && exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .env("RUST_LOG", "mosaic_orchestrator=info")
        .stdin(Stdio::null());
    *command = strict;
}

#[tokio::test]
async fn under_a_strict_umask_agents_of_every_container_get_to_what_is_theirs() {
    let is_root = rustix::process::geteuid().is_root();
    if !skip_unless(is_root, "root, whose agents are another user") {
        return;
    }
    let server = Server::start();
    let at = format!("127.0.0.1:{}", server.port);
    for pool in ["", POOL] {
        // It opens its input anew, as many programs do.
        let script = format!(
            "{CLIENT}\ngrep -c T-1 /dev/stdin; id -u; git log --format=%s; echo made > made-here\n\
             echo kept > ~/kept && cat ~/kept; ask 'GET http://{at}/'\n\
             echo at-work; until [ -e go ]; do sleep 0.05; done\n"
        );
        let runtime = runtime(&script);
        let more = format!("{pool}{runtime}[egress]\nprivate-hosts = [\"{at}\"]\n");
        let log = NamedTempFile::new().unwrap();
        let docked = Docked::start_process_as(&more, |command| {
            strict(command);
            command.stderr(log.reopen().unwrap());
        })
        .await;
        let Some(docked) = docked else { return };
        if !pool.is_empty() {
            eventually("a container that waits", async || {
                let said = fs::read_to_string(log.path()).unwrap();
                said.contains("a container waits").then_some(())
            })
            .await;
        }
        let agent = docked
            .spawn_of("reader", "do it", json!({"network": {"allow": [at]}}))
            .await;
        docked.spoke.wrote(agent, "at-work").await;
        let run = docked.spoke.data_dir().join(format!("agents/{agent}/run"));
        let record = fs::read(run.join("container.json")).unwrap_or_default();
        let record: Value = serde_json::from_slice(&record).unwrap_or_default();
        assert_eq!(record["slot"].is_string(), !pool.is_empty(), "{record}");
        let tree = docked.spoke.data_dir().join(format!("agents/{agent}/work"));
        fs::write(tree.join("go"), "").unwrap();
        let status = docked.spoke.finished(agent).await;
        let story = docked.spoke.follow(agent, None, |_| false).await;
        assert_eq!(status.state, ObservedState::Completed, "{story}");
        for line in ["10001", "first", "kept"] {
            assert!(story.contains(&format!("\"line\":\"{line}\"")), "{story}");
        }
        let served = format!("GET http://{at}/: HTTP/1.1 200 OK");
        assert!(story.contains(&served), "{story}");
        for failure in ["denied", "\"line\":\"0\""] {
            assert!(!story.contains(failure), "{failure}: {story}");
        }
        let made = git(
            &docked.spoke.mirror(),
            &["show", &format!("mosaic/{agent}:made-here")],
        );
        assert_eq!(made, "made");
        docked.stop().await;
    }
}
