//! How a runtime in a container ends that does not end by itself, played by a script; and what a test may not leave.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use mosaic_e2e::{
    engine::{self, Engine},
    system::{World, processes_with},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

use super::rig::{Docked, claude_runtime, has_test_image};

const INIT: &str = r#"{"type":"system","subtype":"init","session_id":"s-1","model":"none"}"#;
const WORDS: &str = r#"{"type":"assistant","message":{"id":"m-1","content":[{"type":"text","text":"Half way"}],"usage":{"input_tokens":10,"output_tokens":5}}}"#;
const RESULT: &str =
    r#"{"type":"result","subtype":"success","is_error":false,"result":"All of it"}"#;

/// What an agent came to whose runtime says these lines and then stays, with a grandchild in a session of its own. The
/// limits are of silence and of grace.
async fn stays_after(lines: &[&str], limits: (u64, u64)) -> Option<Value> {
    if !has_test_image() {
        return None;
    }
    let mark = format!("mosaic-e2e-grandchild-{}", AgentId::generate());
    let world = World::new();
    let program = world.path("fake-claude");
    let said: String = lines
        .iter()
        .map(|line| format!("echo '{line}'\n"))
        .collect();
    let script = format!(
        "#!/bin/sh\ncat >prompt.txt\n\
         (setsid sh -c 'trap \"\" TERM HUP INT; touch ready; while :; do sleep 1000; done; : {mark}' &)\n\
         until test -e ready; do sleep 0.05; done\n{said}exec sleep 100000\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let runtime = claude_runtime(&program, limits.0, limits.1);
    let docked = Docked::start(world, &engine::test_image(), &runtime).await;
    let agent = docked.spawn().await;
    let status = docked.hub.finished(agent).await;
    assert_eq!(processes_with(&mark), Vec::<u32>::new());
    assert_eq!(docked.containers(), Vec::<String>::new());
    docked.world.stop().await;
    Some(status)
}

#[tokio::test]
async fn a15_a_container_that_stays_after_its_result_is_ended_and_has_completed() {
    let Some(status) = stays_after(&[INIT, WORDS, RESULT], (900, 1)).await else {
        return;
    };
    assert_eq!(
        (&status["state"], &status["summary"]),
        (&json!("completed"), &json!("All of it")),
        "{status:#}"
    );
}

#[tokio::test]
async fn a15_a_container_that_goes_silent_is_ended_and_has_failed() {
    let Some(status) = stays_after(&[INIT, WORDS], (2, 10)).await else {
        return;
    };
    assert_eq!(
        (&status["state"], &status["reason"]),
        (&json!("failed"), &json!("silent")),
        "{status:#}"
    );
    assert_eq!(status.get("summary"), None, "A16: {status:#}");
}

#[tokio::test]
async fn a_program_that_the_image_lacks_is_told() {
    if !has_test_image() {
        return;
    }
    let runtime = claude_runtime(Path::new("no-such-program"), 900, 10);
    let docked = Docked::start(World::new(), &engine::test_image(), &runtime).await;
    let agent = docked.spawn().await;
    let status = docked.hub.finished(agent).await;
    assert_eq!(
        (&status["state"], &status["reason"]),
        (&json!("failed"), &json!("spawn-failed")),
        "{status:#}"
    );
    let detail = status["detail"].as_str().unwrap();
    assert!(detail.contains("could not start the program"), "{detail}");
    docked.world.stop().await;
}

#[tokio::test]
async fn what_a_world_leaves_at_the_engine_is_found() {
    if !has_test_image() {
        return;
    }
    let docked = Docked::start(World::new(), &engine::test_image(), "").await;
    let told = docked
        .spoke
        .call("GET", "/api/v1/instance", None)
        .await
        .ok();
    let instance = told["instanceId"].as_str().unwrap();
    let label = format!("{}={instance}", engine::LABEL_INSTANCE);
    docked.world.nothing_is_left_at_the_engine();
    let home = docked.world.path("home");
    let mount = format!("type=bind,source={},target=/mnt", home.display());
    let image = engine::test_image();
    let container = Engine::of_the_machine().docker(&[
        "create", "--label", &label, "--mount", &mount, &image, "true",
    ]);
    assert_eq!(docked.containers().len(), 1);
    // A container of another world is none of ours, and neither is one without the label.
    let others = [
        Engine::of_the_machine().docker(&[
            "create",
            "--label",
            "dev.mosaic.instance=x",
            &image,
            "true",
        ]),
        Engine::of_the_machine().docker(&["create", "--mount", &mount, &image, "true"]),
    ];
    assert_eq!(docked.containers().len(), 1);
    Engine::of_the_machine().remove_containers(&[container]);
    Engine::of_the_machine().remove_containers(&others);
    let volume = Engine::of_the_machine().docker(&["volume", "create", "--label", &label]);
    assert_eq!(
        Engine::of_the_machine().networks_and_volumes_of(instance),
        [format!("volume {volume}")]
    );
    let _ = Engine::of_the_machine().docker(&["volume", "rm", &volume]);
    docked.world.stop().await;
}
