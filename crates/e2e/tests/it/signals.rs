//! Ctrl-C, whenever it comes.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use mosaic_e2e::{
    api::{eventually, soon},
    binaries::Binary,
    system::{FOREVER, World, processes_with},
};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test]
async fn ctrl_c_of_dev_kills_every_agent_before_it_ends() {
    let mut world = World::new();
    let (hub, spokes) = world.dev(2).await;
    for (_, connection) in &spokes {
        for _ in 0..2 {
            let agent = world.spawn(&hub, connection, FOREVER).await;
            hub.wrote(agent, "at-work").await;
        }
        // And one that may be anywhere on its way.
        world.spawn(&hub, connection, FOREVER).await;
    }
    world.shut_down(Signal::INT).await;
    let left = processes_with(&world.marker());
    assert!(left.is_empty(), "alive: {left:?}");
    assert!(!world.path("dev/ready.json").exists());
    // What was not cleaned up then is when it comes back, and nothing runs.
    let again = world.again_dev().await;
    for spoke in &again {
        for agent in spoke.agents().await {
            let status = spoke
                .finished(agent["agentId"].as_str().unwrap().parse().unwrap())
                .await;
            assert_eq!(status["state"], "killed", "{status:#}");
        }
    }
    world.stop().await;
}

/// What the demo, or `dev`, has said when the signal comes.
async fn interrupted(world: &World, args: &[&str], when: &str) -> (Option<i32>, String) {
    interrupted_at(&Binary::Cli.path(), world, args, when).await
}

async fn interrupted_at(
    program: &Path,
    world: &World,
    args: &[&str],
    when: &str,
) -> (Option<i32>, String) {
    let name = when
        .split_ascii_whitespace()
        .next()
        .unwrap_or("at-once")
        .to_owned();
    let [out, err] = ["out", "err"].map(|end| world.path(&format!("signal-{name}.{end}")));
    let mut child = Command::new(program)
        .args(args)
        .current_dir(world.repository())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", world.path("home"))
        .env("TMPDIR", world.path("tmp"))
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let said = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    eventually(&format!("`{when}`, or the end"), async || {
        let ended = child.try_wait().unwrap().is_some();
        (ended || said(&out).contains(when) || said(&err).contains(when)).then_some(())
    })
    .await;
    if child.try_wait().unwrap().is_none() {
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    }
    let status = soon(
        "the end",
        tokio::task::spawn_blocking(move || child.wait().unwrap()),
    );
    let code = status.await.unwrap().code();
    (code, said(&out) + &said(&err))
}

#[tokio::test]
async fn ctrl_c_of_the_demo_leaves_nothing_at_any_moment() {
    let world = World::new();
    let (code, said) = interrupted(&world, &["demo", "--yes"], "never said").await;
    assert_eq!(code, Some(0), "the whole tour: {said}");
    // Each of its steps begins with a line of its own, after an empty one.
    let steps: Vec<&str> = said
        .lines()
        .zip(said.lines().skip(1))
        .filter(|(before, _)| before.is_empty())
        .map(|(_, line)| line)
        .filter(|line| !line.starts_with(' '))
        .collect();
    assert!(steps.len() >= 4, "{said}");
    for step in &steps[..steps.len() - 1] {
        let (code, said) = interrupted(&world, &["demo", "--yes"], step).await;
        // 130, unless it was over before the signal came.
        assert!(
            [Some(130), Some(0)].contains(&code),
            "{code:?} at {step}: {said}"
        );
        let left = processes_with(&world.marker());
        assert!(left.is_empty(), "alive after {step}: {left:?}\n{said}");
        assert_eq!(
            std::fs::read_dir(world.path("tmp")).unwrap().count(),
            0,
            "{step}: {said}"
        );
    }
    world.nothing_is_left().await;
}

/// As `cargo run -- demo` leaves it on a fresh machine: `mosaic`, and nothing beside it.
#[tokio::test]
async fn the_demo_needs_no_executable_but_its_own() {
    let world = World::new();
    std::fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let alone = folder.path().join("mosaic");
    std::fs::hard_link(Binary::Cli.path(), &alone).unwrap();
    let (code, said) = interrupted_at(&alone, &world, &["demo", "--yes"], "never said").await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Every step proved itself"), "{said}");
    world.nothing_is_left().await;
}
