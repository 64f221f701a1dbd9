//! `mosaic dev` and `mosaic demo` with containers.

use mosaic_e2e::{
    engine::{self, Engine},
    system::{FOREVER, World},
};
use serde_json::json;

use super::rig::has_test_image;

#[tokio::test]
async fn dev_runs_agents_in_containers_and_leaves_none() {
    if !has_test_image() {
        return;
    }
    let mut world = World::new();
    let image = engine::test_image();
    let (hub, spokes) = world
        .dev_with(1, &["--sandbox", "docker", "--image", &image])
        .await;
    let connection = &spokes[0].1;
    let agent = world
        .spawn(&hub, connection, "echo hello > hello.txt")
        .await;
    let status = hub.finished(agent).await;
    assert_eq!(
        (&status["state"], &status["sandbox"]),
        (&json!("completed"), &json!("docker")),
        "{status:#}"
    );
    // A spawn may ask for the other kind.
    let url = world.repository_url();
    let spawn = [
        "--json",
        "spawn",
        "--repository",
        &url,
        "--runtime",
        "shell",
        "--instructions",
        "true",
        "--sandbox",
        "process",
    ];
    let spawned = world.cli(&spawn).await.expect(0).json();
    let process = spawned["agentId"].as_str().unwrap().parse().unwrap();
    assert_eq!(hub.finished(process).await["sandbox"], "process");
    // An orderly stop kills what runs, and waits until its container is gone.
    let running = world.spawn(&hub, connection, FOREVER).await;
    hub.wrote(running, "at-work").await;
    assert_eq!(
        Engine::of_the_machine().containers_of(&world.marker()),
        [format!("mosaic-{running}")]
    );
    world.shut_down(rustix::process::Signal::TERM).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn the_tour_in_containers_proves_itself() {
    if !has_test_image() {
        return;
    }
    let world = World::new();
    let image = engine::test_image();
    let demo = [
        "--json",
        "demo",
        "--yes",
        "--sandbox",
        "docker",
        "--image",
        &image,
    ];
    let figures = world.cli(&demo).await.expect(0).json();
    assert_eq!(figures["killAllAgents"], 5, "{figures}");
    assert_eq!(
        Engine::of_the_machine().containers_of(&world.marker()),
        Vec::<String>::new()
    );
    world.nothing_is_left().await;
}
