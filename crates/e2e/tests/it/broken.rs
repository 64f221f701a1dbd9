//! A kill with everything else broken: the store, the data folder, the disk, the hub, the spoke.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use mosaic_e2e::{
    api::{Node, eventually},
    system::{FOREVER, World, processes_with},
};
use mosaic_types::AgentId;
use serde_json::json;

use crate::support;

fn processes_of(spoke: &Node, agent: AgentId) -> Vec<u32> {
    processes_with(&format!("{}/agents/{agent}", spoke.data_dir.display()))
}

/// A hub, a spoke, and agents that run at it.
async fn running(world: &mut World, count: usize) -> (Node, Node, String, Vec<AgentId>) {
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let mut agents = Vec::new();
    for _ in 0..count {
        let agent = world.spawn(&hub, &connection, FOREVER).await;
        hub.wrote(agent, "at-work").await;
        assert!(!processes_of(&spoke, agent).is_empty());
        agents.push(agent);
    }
    (hub, spoke, connection, agents)
}

#[tokio::test]
async fn kills_work_while_another_process_holds_the_spokes_store() {
    let mut world = World::new();
    for expected in [
        "store failed",
        "the store failed",
        "SQLITE",
        "is not recorded",
        "failed to",
    ] {
        world.expect_log(expected);
    }
    let (hub, spoke, connection, agents) = running(&mut world, 3).await;
    let lock = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    lock.busy_timeout(mosaic_e2e::api::PATIENCE).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();

    // By the hub, by the spoke's own operator, and all that are left.
    let report = hub.kill(agents[0]).await.ok();
    assert_eq!(report["outcome"], "killed", "{report:#}");
    assert_eq!(processes_of(&spoke, agents[0]), Vec::<u32>::new());
    let report = spoke.kill(agents[1]).await.ok();
    assert_eq!(report["outcome"], "killed", "{report:#}");
    assert_eq!(processes_of(&spoke, agents[1]), Vec::<u32>::new());
    let report = hub.kill_all(json!({})).await;
    assert_eq!(report["complete"], true, "{report:#}");
    assert_eq!(processes_of(&spoke, agents[2]), Vec::<u32>::new());
    // What needs the store is refused, and leaves nothing.
    let refused = AgentId::generate();
    let body = world.spawn_body(Some(&connection), refused, "true");
    let answer = hub.spawn(&body).await;
    assert!(answer.status >= 500, "{}", answer.body);
    assert!(!spoke.data_dir.join(format!("agents/{refused}")).exists());

    drop(lock);
    // And when it is free again the end of each is on record.
    for agent in agents {
        let status = spoke.finished(agent).await;
        assert_eq!(status["state"], "killed", "{status:#}");
    }
    let again = world.spawn(&hub, &connection, "true").await;
    assert_eq!(hub.finished(again).await["state"], "completed");
    world.stop().await;
}

/// What the store did not take holds at once, can be asked for again, and then outlives a restart.
#[tokio::test]
async fn f15_a_suspension_that_was_not_stored_is_stored_when_it_is_asked_for_again() {
    let mut world = World::new();
    world.expect_log("failed");
    let (hub, spoke) = (world.hub("hub").await, world.spoke("spoke", "").await);
    world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let list = "/api/v1/federation/connections";
    let known = async || spoke.call("GET", list, None).await.ok();
    let id = known().await["connections"][0]["connectionId"].clone();
    let id = id.as_str().unwrap();
    let suspend = format!("{list}/{id}/suspend");
    let file = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    file.execute_batch(
        "CREATE TRIGGER fails BEFORE UPDATE ON connections
         BEGIN SELECT RAISE(ABORT, 'no room'); END",
    )
    .unwrap();
    let answer = spoke.call("POST", &suspend, None).await;
    assert!(answer.status >= 500, "{}", answer.body);
    assert_eq!(known().await["connections"][0]["state"], "suspended");
    file.execute_batch("DROP TRIGGER fails").unwrap();
    drop(file);
    let suspended = spoke.call("POST", &suspend, None).await.ok();
    assert_eq!(suspended["state"], "suspended");
    world.crash("spoke");
    world.restart(&spoke).await;
    assert_eq!(known().await["connections"][0]["state"], "suspended");
    // What is on record is no move any more.
    let again = spoke.call("POST", &suspend, None).await;
    again.problem(409, "connection-not-active");
    world.stop().await;
}

#[tokio::test]
async fn kills_work_with_the_spokes_store_and_agents_on_disk_gone() {
    let mut world = World::new();
    let (hub, spoke, _, agents) = running(&mut world, 2).await;
    let away = world.path("away");
    fs::create_dir(&away).unwrap();
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        fs::rename(spoke.data_dir.join(file), away.join(file)).unwrap();
    }
    let report = spoke.kill(agents[0]).await.ok();
    assert_eq!(report["outcome"], "killed", "{report:#}");
    assert_eq!(processes_of(&spoke, agents[0]), Vec::<u32>::new());
    let report = hub.kill_all(json!({})).await;
    assert_eq!(
        (&report["complete"], &report["unverified"]),
        (&json!(true), &json!(0)),
        "{report:#}"
    );
    assert_eq!(processes_of(&spoke, agents[1]), Vec::<u32>::new());
    for agent in agents {
        spoke.finished(agent).await;
    }
    for file in ["store.db", "store.db-wal", "store.db-shm"] {
        fs::rename(away.join(file), spoke.data_dir.join(file)).unwrap();
    }
    world.stop().await;
}

#[tokio::test]
async fn a_spoke_kills_with_its_hub_gone_and_a_hub_that_returns_knows_its_agents() {
    let mut world = World::new();
    let (hub, spoke, _, agents) = running(&mut world, 2).await;
    world.crash("hub");
    let report = world
        .cli_at(&spoke, &["--json", "kill", &agents[0].to_string()])
        .await;
    assert_eq!(report.expect(0).json()["outcome"], "killed");
    assert_eq!(processes_of(&spoke, agents[0]), Vec::<u32>::new());
    world.restart(&hub).await;
    assert_eq!(hub.agents().await.len(), 2);
    assert_eq!(hub.finished(agents[0]).await["state"], "killed");
    assert_eq!(hub.status(agents[1]).await["state"], "running");
    assert_eq!(hub.kill(agents[1]).await.ok()["outcome"], "killed");
    assert_eq!(processes_of(&spoke, agents[1]), Vec::<u32>::new());
    world.stop().await;
}

/// A file system of its own, of so many MiB; `None` if this user may not mount.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={mib}m,nr_inodes=4000,mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "mosaic-e2e"])
            .arg(at)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            support::skip("a mount of tmpfs (root)");
        }
        mounted.then(|| Self(at.to_owned()))
    }
}

/// Makes empty files until there can be no more.
fn use_up_inodes(disk: &Path) -> PathBuf {
    let folder = disk.join("ballast");
    fs::create_dir(&folder).unwrap();
    let mut number = 0;
    while fs::File::create(folder.join(format!("{number}"))).is_ok() {
        number += 1;
    }
    folder
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon of a failed test may still be there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A26: a full disk refuses what is new, and never a kill.
#[tokio::test]
async fn a26_a_full_disk_refuses_spawns_and_kills_all_the_same() {
    let mut world = World::new();
    for expected in [
        "disk",
        "space",
        "store failed",
        "the store failed",
        "full",
        "failed to",
        "its work is not home yet",
    ] {
        world.expect_log(expected);
    }
    let Some(disk) = SmallDisk::mount(&world.path("spoke"), 64) else {
        return;
    };
    world.keep(disk);
    let hub = world.hub("hub").await;
    let spoke = world
        .spoke("spoke", "[limits]\nmin-free-disk-mb = 16")
        .await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let mut agents = Vec::new();
    for _ in 0..2 {
        let agent = world.spawn(&hub, &connection, FOREVER).await;
        hub.wrote(agent, "at-work").await;
        agents.push(agent);
    }

    // Below the watermark: refused by name, nothing half done.
    let ballast = spoke.data_dir.join("ballast");
    fs::write(&ballast, vec![0; 50 << 20]).unwrap();
    let refused = AgentId::generate();
    let body = world.spawn_body(Some(&connection), refused, "true");
    hub.spawn(&body).await.problem(507, "disk-full");
    assert!(!spoke.data_dir.join(format!("agents/{refused}")).exists());
    assert_eq!(spoke.agents().await.len(), 2);
    let path = format!("/agents/{refused}/status");
    spoke
        .call("GET", &path, None)
        .await
        .problem(404, "unknown-agent");
    let report = hub.kill(agents[0]).await.ok();
    assert_eq!(report["outcome"], "killed", "{report:#}");

    // And with not a byte left.
    let mut last = fs::File::create(spoke.data_dir.join("last")).unwrap();
    while std::io::Write::write_all(&mut last, &[0; 4096]).is_ok() {}
    let report = hub.kill_all(json!({"hold": true})).await;
    assert_eq!(
        (&report["complete"], &report["unverified"]),
        (&json!(true), &json!(0)),
        "{report:#}"
    );
    assert_eq!(processes_of(&spoke, agents[1]), Vec::<u32>::new());
    // It holds though it could not be written.
    let body = world.spawn_body(Some(&connection), AgentId::generate(), "true");
    assert!(hub.spawn(&body).await.status >= 400);

    drop(last);
    fs::remove_file(spoke.data_dir.join("last")).unwrap();
    fs::remove_file(&ballast).unwrap();
    for agent in agents {
        assert_eq!(spoke.finished(agent).await["state"], "killed");
        // What failed for want of room is tried again.
        let tree = spoke.data_dir.join(format!("agents/{agent}/work"));
        eventually("the removal of a working tree", async || {
            (!tree.exists()).then_some(())
        })
        .await;
    }
    spoke.call("POST", "/hold/release", None).await.ok();
    // The very spawn that was refused.
    let body = world.spawn_body(Some(&connection), refused, "true");
    hub.spawn(&body).await.ok();
    assert_eq!(hub.finished(refused).await["state"], "completed");
    world.stop().await;
}

#[tokio::test]
async fn a_data_folder_that_takes_no_new_file_keeps_no_kill_from_its_end() {
    let mut world = World::new();
    for expected in [
        "No space left on device",
        "disk is full",
        "the disk is full",
        "its work is not home yet",
    ] {
        world.expect_log(expected);
    }
    let Some(disk) = SmallDisk::mount(&world.path("spoke"), 64) else {
        return;
    };
    world.keep(disk);
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "[limits]\nmin-free-disk-mb = 1").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let script = "echo precious > half-done; echo at-work; exec sleep 100000";
    let agent = world.spawn(&hub, &connection, script).await;
    hub.wrote(agent, "at-work").await;
    let before = fs::read_dir(spoke.data_dir.join("agents")).unwrap().count();
    let ballast = use_up_inodes(&spoke.data_dir);
    let refused = AgentId::generate();
    let body = world.spawn_body(Some(&connection), refused, "true");
    let answer = hub.spawn(&body).await;
    if answer.status == 202 {
        // Accepted, since the store could be written; it fails for what it could not make, and says so.
        let status = eventually("the end of what cannot be made", async || {
            let status = hub.status(refused).await;
            (status["state"] == "failed").then_some(status)
        })
        .await;
        assert_eq!(status["reason"], "spawn-failed", "{status:#}");
        assert_eq!(processes_of(&spoke, refused), Vec::<u32>::new());
    } else {
        assert!(answer.status >= 500, "{}", answer.body);
    }
    assert_eq!(
        fs::read_dir(spoke.data_dir.join("agents")).unwrap().count(),
        before
    );
    let report = hub.kill(agent).await.ok();
    assert_eq!(report["outcome"], "killed", "{report:#}");
    assert_eq!(processes_of(&spoke, agent), Vec::<u32>::new());
    // A22, A23: what could not be saved stays where it is, and that is said.
    let status = eventually("the kill, on record", async || {
        let status = spoke.status(agent).await;
        (status["state"] == "killed").then_some(status)
    })
    .await;
    let saved = status["cleanup"].as_array().is_some_and(|steps| {
        steps
            .iter()
            .any(|step| step["step"] == "salvage" && step["ok"] == true)
    });
    let tree = spoke
        .data_dir
        .join(format!("agents/{agent}/work/half-done"));
    assert!(
        saved || tree.exists(),
        "the work is neither saved nor left: {status:#}"
    );
    fs::remove_dir_all(ballast).unwrap();
    // The next start goes on with what could not be done.
    world.signal("spoke", rustix::process::Signal::TERM);
    assert_eq!(world.ended("spoke").await, Some(0));
    world.restart(&spoke).await;
    let status = eventually("the clean-up, made up for", async || {
        let status = spoke.finished(agent).await;
        (!tree.exists() && status["work"]["gitRef"].is_string()).then_some(status)
    })
    .await;
    let path = format!("/agents/{agent}/result");
    let result = spoke.call("GET", &path, None).await.ok();
    assert!(
        result["patch"]["content"]
            .as_str()
            .unwrap()
            .contains("+precious"),
        "{status:#}"
    );
    world.stop().await;
}

/// A file system on a disk that can fail: from then on the kernel lets nobody write to it, not even who has a file open.
struct FailingDisk {
    at: PathBuf,
    image: PathBuf,
}

impl FailingDisk {
    /// `None` if this user may not mount.
    fn mount(at: &Path, image: &Path) -> Option<Self> {
        let disk = Self {
            at: at.to_owned(),
            image: image.to_owned(),
        };
        fs::create_dir_all(at).unwrap();
        fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
        let mounted = run("mkfs.ext4", &["-q".as_ref(), image]) && disk.attach();
        if !mounted {
            support::skip("a loop mount of ext4 (root)");
            return None;
        }
        fs::set_permissions(at, fs::Permissions::from_mode(0o700)).unwrap();
        Some(disk)
    }

    fn attach(&self) -> bool {
        let options = "loop,errors=remount-ro".as_ref();
        run("mount", &["-o".as_ref(), options, &self.image, &self.at])
    }

    /// Fails it as the kernel does on an error of the device. What was written before is on the disk.
    fn fail(&self) {
        assert!(run("sync", &["-f".as_ref(), &self.at]));
        let told = Command::new("findmnt")
            .args(["-n", "-o", "SOURCE"])
            .arg(&self.at)
            .output();
        let device = String::from_utf8(told.unwrap().stdout).unwrap();
        let device = device.trim().trim_start_matches("/dev/").to_owned();
        // The write fails, since the file system does.
        let _ = fs::write(
            format!("/sys/fs/ext4/{device}/trigger_fs_error"),
            "as tested",
        );
        let refused = fs::write(self.at.join("refused"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }

    /// Mends it, once nobody uses it any more: the namespaces of the dead go a moment after them.
    async fn mend(&self) {
        assert!(run("umount", &[&self.at]));
        eventually("a disk that nobody uses", async || {
            let users = Command::new("losetup").arg("-j").arg(&self.image).output();
            users.unwrap().stdout.is_empty().then_some(())
        })
        .await;
        // It tells by its exit code that it mended something.
        run("e2fsck", &["-f".as_ref(), "-y".as_ref(), &self.image]);
        assert!(self.attach());
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        run("umount", &["-l".as_ref(), &self.at]);
    }
}

fn run(program: &str, arguments: &[&Path]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

/// A26: a disk that turns read-only under a spoke that runs.
#[tokio::test]
async fn a26_a_data_folder_that_turns_read_only_keeps_no_kill_from_its_end() {
    let mut world = World::new();
    for expected in [
        "ead-only",
        "store failed",
        "failed to",
        "on disk",
        "cannot be written",
    ] {
        world.expect_log(expected);
    }
    let Some(disk) = FailingDisk::mount(&world.path("spoke"), &world.path("image")) else {
        return;
    };
    let disk = std::sync::Arc::new(disk);
    world.keep(std::sync::Arc::clone(&disk));
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "[limits]\nmin-free-disk-mb = 0").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let mut agents = Vec::new();
    for _ in 0..3 {
        let agent = world.spawn(&hub, &connection, FOREVER).await;
        hub.wrote(agent, "at-work").await;
        assert!(!processes_of(&spoke, agent).is_empty());
        agents.push(agent);
    }
    disk.fail();

    let report = hub.kill(agents[0]).await.ok();
    assert_eq!(report["outcome"], "killed", "{report:#}");
    assert_eq!(processes_of(&spoke, agents[0]), Vec::<u32>::new());
    let report = spoke.kill(agents[1]).await.ok();
    assert_eq!(report["outcome"], "killed", "{report:#}");
    assert_eq!(processes_of(&spoke, agents[1]), Vec::<u32>::new());
    let report = spoke.kill_all(json!({"hold": true})).await;
    assert_eq!(processes_of(&spoke, agents[2]), Vec::<u32>::new());
    // It holds, but not beyond the daemon, and that is said.
    assert_eq!(
        (
            &report["unverified"],
            &report["held"],
            &report["holdDurable"]
        ),
        (&json!(0), &json!(true), &json!(false)),
        "{report:#}"
    );
    for agent in &agents {
        let state = spoke.status(*agent).await["state"].clone();
        assert!(
            ["killing", "killed"].contains(&state.as_str().unwrap()),
            "{state}"
        );
    }
    // Nothing new begins, and its refusal says why.
    let body = world.spawn_body(None, AgentId::generate(), "true");
    spoke.spawn(&body).await.problem(409, "held");
    let body = world.spawn_body(Some(&connection), AgentId::generate(), "true");
    hub.spawn(&body).await.problem(503, "store-unavailable");
    let report = hub.kill_all(json!({})).await;
    assert_eq!(
        (&report["complete"], &report["unverified"]),
        (&json!(true), &json!(0)),
        "{report:#}"
    );

    // With a disk that is mended it goes on; who was killed does not.
    world.crash("spoke");
    disk.mend().await;
    // From here on it is the world's alone, and goes before its folder.
    drop(disk);
    world.restart(&spoke).await;
    for agent in agents {
        let status = spoke.finished(agent).await;
        let state = status["state"].as_str().unwrap();
        assert!(["killed", "failed"].contains(&state), "{status:#}");
        assert_eq!(processes_of(&spoke, agent), Vec::<u32>::new());
    }
    let after = world.spawn(&hub, &connection, "true").await;
    assert_eq!(hub.finished(after).await["state"], "completed");
    world.stop().await;
}
