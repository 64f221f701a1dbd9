//! What an agent can do to its own `.git`: it costs the agent, and nobody else.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use mosaic_orchestrator::worktree::{
    HarvestRequest, KeptWhy, Landing, Removal, RemovalMode, WhyNot, WorktreeError,
};

use super::support::*;

/// Every file below a directory, with its content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap();
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

// A21: an attempt that was killed leaves its locks. The next one finds a repository that works.
#[tokio::test]
async fn a21_a_retry_finds_no_lock_of_the_attempt_before() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let git_dir = prepared.workdir.join(".git");
    let own = format!("refs/heads/mosaic/{agent}.lock");
    let locks = [
        "index.lock",
        "HEAD.lock",
        "config.lock",
        "packed-refs.lock",
        &own,
    ];
    for lock in locks {
        fs::write(git_dir.join(lock), "").unwrap();
    }
    write(&prepared.workdir, "x", "x\n");
    let stuck = git_output(&prepared.workdir, &["add", "x"]);
    assert!(!stuck.status.success(), "git itself is stuck");
    // What looks like a lock elsewhere is not ours to remove.
    let outside = world.dir.path().join("outside");
    write(&outside, "precious.lock", "p\n");
    symlink(&outside, git_dir.join("refs/heads/out")).unwrap();
    write(&prepared.workdir, "Cargo.lock", "c\n");
    world.try_prepare(&agent, "main").await.unwrap();
    for lock in locks {
        assert!(!git_dir.join(lock).exists(), "{lock}");
    }
    assert!(outside.join("precious.lock").exists());
    assert!(prepared.workdir.join("Cargo.lock").exists());
    fs::remove_file(git_dir.join("refs/heads/out")).unwrap();
    agent_commit(&prepared.workdir, "works");

    // Nor where `.git` or its refs lead elsewhere.
    for name in ["refs", ""] {
        let place = git_dir.join(name);
        fs::remove_dir_all(&place).unwrap();
        let place = place.to_str().unwrap().trim_end_matches('/').to_owned();
        symlink(&outside, &place).unwrap();
        for lock in ["index.lock", "heads/x.lock"] {
            write(&outside, lock, "l\n");
        }
        world.try_prepare(&agent, "main").await.unwrap();
        assert!(outside.join("heads/x.lock").exists(), "{name}");
        assert!(outside.join("index.lock").exists(), "{name}");
        if name == "refs" {
            fs::remove_file(place).unwrap();
            fs::create_dir(git_dir.join("refs")).unwrap();
        }
    }
}

// A19: the mirror is whose work everybody's is. A `.git` that is the mirror's is not written through.
#[tokio::test]
async fn a19_a_git_directory_that_is_the_mirror_is_not_written_through() {
    let world = World::new().await;
    let mirror = world.mirror();
    let (_, _) = world.prepare().await;
    for way in ["link", "file", "objects", "refs"] {
        let (agent, prepared) = world.prepare().await;
        let git_dir = prepared.workdir.join(".git");
        match way {
            "link" => {
                fs::remove_dir_all(&git_dir).unwrap();
                symlink(&mirror, &git_dir).unwrap();
            }
            "file" => {
                fs::remove_dir_all(&git_dir).unwrap();
                fs::write(&git_dir, format!("gitdir: {}\n", mirror.display())).unwrap();
            }
            part => {
                fs::remove_dir_all(git_dir.join(part)).unwrap();
                symlink(mirror.join(part), git_dir.join(part)).unwrap();
            }
        }
        write(&prepared.workdir, "mine", way);
        let before = files(&mirror);
        let retried = world.try_prepare(&agent, "main").await;
        assert_eq!(retried.unwrap(), prepared);
        assert_eq!(files(&mirror), before, "{way}");
        let result = world.harvest(agent).await;
        let mine = format!("{}:mine", result.head_commit);
        assert_eq!(git(&mirror, &["show", &mine]), way);
        assert_eq!(
            world
                .worktrees
                .remove(&agent, RemovalMode::Discard)
                .await
                .unwrap(),
            Removal::Removed
        );
        let after = files(&mirror);
        for (path, content) in before {
            let own = path.ends_with(format!("refs/heads/mosaic/{agent}"));
            assert!(own || after.get(&path) == Some(&content), "{way}: {path:?}");
        }
        world.fsck();
    }
}

#[tokio::test]
async fn refs_that_lead_out_of_their_folder_are_no_refs() {
    let world = World::new().await;
    let (sibling, _) = world.prepare().await;
    let (agent, prepared) = world.prepare().await;
    let git_dir = prepared.workdir.join(".git");
    write(&prepared.workdir, "w", "w\n");
    let tip = agent_commit(&prepared.workdir, "work");
    git(&prepared.workdir, &["reset", "-q", "--hard", "HEAD~1"]);
    let mut packed = fs::read_to_string(git_dir.join("packed-refs")).unwrap();
    let names = [
        format!("refs/heads/../../../heads/mosaic/{sibling}"),
        format!("refs/heads/x/../../mosaic/{sibling}"),
        "refs/heads/../../config".to_owned(),
        "refs/heads//double".to_owned(),
        "refs/heads/a..b".to_owned(),
        "refs/heads/.hidden".to_owned(),
        "refs/heads/x.lock".to_owned(),
        "refs/heads/sp ace".to_owned(),
        "refs/heads/@{1}".to_owned(),
        "refs/heads/nul\0".to_owned(),
        format!("refs/heads/{}", "long/".repeat(2000)),
        "refs/heads/fine".to_owned(),
    ];
    for name in &names {
        packed.push_str(&format!("{tip} {name}\n"));
    }
    fs::write(git_dir.join("packed-refs"), packed).unwrap();
    fs::write(git_dir.join("refs/heads/a..c"), format!("{tip}\n")).unwrap();
    let config = fs::read(world.mirror().join("config")).unwrap();
    let before = world.mirror_tip(&format!("refs/heads/mosaic/{sibling}"));
    let result = world.harvest(agent).await;
    let mirror = world.mirror();
    assert_eq!(
        world.mirror_tip(&format!("refs/heads/mosaic/{sibling}")),
        before
    );
    assert_eq!(fs::read(mirror.join("config")).unwrap(), config);
    let refs = git(&mirror, &["for-each-ref", "--format=%(refname)"]);
    let expected = [
        format!("refs/heads/mosaic/{agent}"),
        format!("refs/heads/mosaic/{sibling}"),
        format!("refs/mosaic/agents/{agent}/heads/fine"),
        "refs/remotes/origin/main".to_owned(),
    ];
    let mut refs: Vec<_> = refs.lines().collect();
    refs.sort_unstable();
    let mut expected: Vec<_> = expected.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(refs, expected);
    assert!(result.refs.iter().all(|name| !name.contains("..")));
    world.fsck();
}

// Each ref that is made is a file of the mirror for good, and was a walk through its history.
#[tokio::test]
async fn refs_without_end_are_neither_made_nor_waited_for() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let git_dir = prepared.workdir.join(".git");
    write(&prepared.workdir, "w", "w\n");
    let aside = agent_commit(&prepared.workdir, "aside");
    git(&prepared.workdir, &["reset", "-q", "--hard", "HEAD~1"]);
    write(&prepared.workdir, "work", "w\n");
    let tip = agent_commit(&prepared.workdir, "work");
    let start = fs::read_to_string(git_dir.join("packed-refs")).unwrap();
    let many: String = (0..100_000)
        .map(|n| format!("{aside} refs/heads/b{n:06}\n"))
        .collect();
    fs::write(git_dir.join("packed-refs"), format!("{start}{many}")).unwrap();
    let result = world.harvest(agent).await;
    assert_eq!(result.head_commit, tip);
    assert!(result.refs.len() <= 1001, "{}", result.refs.len());
    assert_eq!(result.not_brought_home[0].why, WhyNot::TooMany);
    // All of one commit: nothing is lost, and the tree may go.
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await;
    assert_eq!(removal.unwrap(), Removal::Removed);
    let (held, more) = world.worktrees.salvaged(&agent).await.unwrap();
    assert_eq!((held.len(), more), (200, true));

    // A file that is too large to read is said to be so, and keeps the tree.
    let (agent, prepared) = world.prepare().await;
    write(&prepared.workdir, "work", "w\n");
    let tip = agent_commit(&prepared.workdir, "work");
    let packed = fs::OpenOptions::new()
        .write(true)
        .open(prepared.workdir.join(".git/packed-refs"))
        .unwrap();
    packed.set_len(65 << 20).unwrap();
    let result = world.harvest(agent).await;
    assert_eq!(result.head_commit, tip);
    assert_eq!(result.not_brought_home[0].path, ".git/packed-refs");
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await;
    assert!(matches!(
        removal.unwrap(),
        Removal::Kept {
            why: KeptWhy::NotBroughtHome { .. }
        }
    ));
}

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m,mode=0700", "mosaic-it"])
            .arg(at)
            .output()
            .is_ok_and(|output| output.status.success());
        let there = crate::sandbox::rig::skip_unless(mounted, "a mount of tmpfs (root)");
        there.then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// All that a spoke keeps, on that disk.
async fn world_on(disk: &Path) -> World {
    World::with(|config| {
        config.mirrors_dir = disk.join("mirrors");
        config.agents_dir = disk.join("agents");
    })
    .await
}

/// Leaves so many bytes free.
fn fill(disk: &Path, room: u64) -> PathBuf {
    let ballast = disk.join("ballast");
    let free = rustix::fs::statvfs(disk).unwrap();
    let free = free.f_bavail * free.f_frsize;
    fs::write(&ballast, vec![0; usize::try_from(free - room).unwrap()]).unwrap();
    ballast
}

// A26, A22: a disk that is full for a while costs nothing but another try.
#[tokio::test]
async fn a26_work_that_a_full_disk_kept_from_home_comes_at_the_next_try() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let Some(_disk) = SmallDisk::mount(&data) else {
        return;
    };
    let world = world_on(&data).await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "staged", "s\n");
    let blob = git(work, &["hash-object", "-w", "staged"]);
    let long = "n".repeat(200);
    let many: String = (0..20_000)
        .map(|n| format!("100644 {blob}\tstaged/{long}/{n}\n"))
        .collect();
    fs::remove_file(work.join("staged")).unwrap();
    let list = world.dir.path().join("list");
    fs::write(&list, many).unwrap();
    let script = format!("git update-index --index-info < '{}'", list.display());
    let mut indexed = Command::new("sh");
    indexed.args(["-c", &script]).current_dir(work);
    assert!(indexed.status().unwrap().success());
    let index = fs::metadata(work.join(".git/index")).unwrap().len();
    assert!(index > 4 << 20, "{index}");
    let ballast = fill(&data, 2 << 20);
    let request = HarvestRequest {
        agent,
        landing: Landing::Branch,
        now_secs: NOW,
    };
    let harvested = world.worktrees.harvest(&request).await;
    assert!(
        matches!(harvested, Err(WorktreeError::DiskFull { .. })),
        "{harvested:?}"
    );
    fs::remove_file(&ballast).unwrap();
    let result = world.harvest(agent).await;
    assert_eq!(result.not_brought_home, []);
    let staged = format!("refs/mosaic/agents/{agent}/index");
    assert!(result.refs.contains(&staged), "{:?}", result.refs);
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await;
    assert_eq!(removal.unwrap(), Removal::Removed);
}

// A26: what fits into the mirror may not fit into a patch; the start of one would take what others need to go on.
#[tokio::test]
async fn a26_a_patch_that_a_full_disk_broke_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let Some(_disk) = SmallDisk::mount(&data) else {
        return;
    };
    let world = world_on(&data).await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "large", "the same line again\n".repeat(400_000));
    agent_commit(work, "large");
    fs::remove_file(work.join("large")).unwrap();
    agent_commit(work, "and gone");
    let ballast = fill(&data, 4 << 20);
    let request = HarvestRequest {
        agent,
        landing: Landing::Branch,
        now_secs: NOW,
    };
    let harvested = world.worktrees.harvest(&request).await;
    assert!(
        matches!(harvested, Err(WorktreeError::DiskFull { .. })),
        "{harvested:?}"
    );
    let tip = world.mirror_tip(&format!("refs/heads/mosaic/{agent}"));
    assert_ne!(tip, Some(prepared.base_commit), "its commits are home");
    let patch = world.worktrees.patch_path(&agent);
    let notes = fs::read_dir(patch.parent().unwrap()).unwrap();
    let left: Vec<_> = notes.map(|note| note.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_str().unwrap().starts_with("result")),
        "{left:?}"
    );
    fs::remove_file(&ballast).unwrap();
    assert!(world.harvest(agent).await.patch.is_some());
}
