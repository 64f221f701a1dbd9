//! Who waits for a mirror while an agent's work is brought home.

use std::{fs, io::Read, process::Command};

use super::super::support::{World, write};

#[tokio::test]
async fn a_patch_that_takes_its_time_keeps_nobody_from_the_mirror() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    // More than a pipe holds.
    let text: String = (0..100_000).map(|line| format!("line {line}\n")).collect();
    write(&prepared.workdir, "README", text);
    let notes = prepared.workdir.parent().unwrap().join("worktree");
    let patch = notes.join("result.patch.tmp");
    let made = Command::new("mkfifo").arg(&patch).status().unwrap();
    assert!(made.success());
    let reading = tokio::task::spawn_blocking(move || fs::File::open(patch).unwrap());
    let others = async {
        // It is open as soon as the patch is being written, which goes on when it is read.
        let mut pipe = reading.await.unwrap();
        world.prepare().await;
        let mut bytes = Vec::new();
        tokio::task::spawn_blocking(move || {
            pipe.read_to_end(&mut bytes).unwrap();
            bytes.len()
        })
        .await
        .unwrap()
    };
    let (result, read) = tokio::join!(world.harvest(agent), others);
    assert_eq!(result.patch.unwrap().bytes, u64::try_from(read).unwrap());
}
