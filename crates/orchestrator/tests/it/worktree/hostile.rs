//! An agent that means harm, or wrecks its tree: nothing it wrote is run or believed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use mosaic_orchestrator::worktree::{KeptWhy, Removal, RemovalMode, WhyNot};

use super::support::*;

mod index;
mod packs;
mod trees;

fn script(path: &Path, sentinel: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(
        path,
        format!("#!/bin/sh\ntouch '{}'\ncat\n", sentinel.display()),
    )
    .unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a20_hooks_filters_and_helpers_of_the_agent_never_run() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let sentinel = world.dir.path().join("sentinel");
    let evil = work.join("evil.sh");
    script(&evil, &sentinel);
    for hook in [
        "pre-commit",
        "post-commit",
        "commit-msg",
        "prepare-commit-msg",
        "reference-transaction",
        "post-checkout",
        "post-index-change",
        "fsmonitor-watchman",
        "post-rewrite",
        "pre-auto-gc",
    ] {
        script(&work.join(".git/hooks").join(hook), &sentinel);
    }
    let run = evil.display().to_string();
    for (key, value) in [
        ("core.fsmonitor", run.as_str()),
        ("core.sshCommand", run.as_str()),
        ("core.hooksPath", work.join(".git/hooks").to_str().unwrap()),
        ("core.pager", run.as_str()),
        ("core.editor", run.as_str()),
        ("core.attributesFile", work.join("attrs").to_str().unwrap()),
        ("filter.evil.clean", run.as_str()),
        ("filter.evil.smudge", run.as_str()),
        ("filter.evil.process", run.as_str()),
        ("filter.evil.required", "true"),
        ("diff.evil.command", run.as_str()),
        ("diff.evil.textconv", run.as_str()),
        ("merge.evil.driver", run.as_str()),
        ("gpg.program", run.as_str()),
        ("commit.gpgSign", "true"),
        ("credential.helper", run.as_str()),
        ("alias.status", &format!("!{run}")),
        ("extensions.worktreeConfig", "true"),
        ("include.path", "/dev/zero"),
        ("uploadpack.packObjectsHook", run.as_str()),
    ] {
        let mut config = fs::OpenOptions::new()
            .append(true)
            .open(work.join(".git/config"))
            .unwrap();
        let (section, name) = key.rsplit_once('.').unwrap();
        let section = match section.split_once('.') {
            Some((section, sub)) => format!("{section} \"{sub}\""),
            None => section.to_owned(),
        };
        std::io::Write::write_all(
            &mut config,
            format!("[{section}]\n\t{name} = {value}\n").as_bytes(),
        )
        .unwrap();
    }
    write(
        work,
        ".gitattributes",
        "* filter=evil diff=evil merge=evil\n",
    );
    write(work, "attrs", "* filter=evil\n");
    write(work, ".git/info/attributes", "* filter=evil\n");
    write(work, "README", "touched\n");
    let result = world.harvest(agent).await;
    assert_eq!(
        git(
            &world.mirror(),
            &["show", &format!("{}:README", result.head_commit)]
        ),
        "touched"
    );
    world.salvage(agent).await;
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::OnlySecured)
            .await
            .unwrap(),
        Removal::Removed
    );
    assert!(!sentinel.exists());
    // The hook is a real one: git itself would have run it.
    script(&world.source.join(".git/hooks/pre-commit"), &sentinel);
    write(&world.source, "x", "x");
    commit_all(&world.source, "with hook");
    assert!(sentinel.exists());
}

#[tokio::test]
async fn a19_alternates_of_the_agent_do_not_leak_another_mirror() {
    let world = World::new().await;
    let secret = world.dir.path().join("secret");
    fs::create_dir(&secret).unwrap();
    git(&secret, &["init", "-q"]);
    write(&secret, "key", "top secret\n");
    let hidden = commit_all(&secret, "secret");
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let alternates = work.join(".git/objects/info/alternates");
    fs::write(
        &alternates,
        format!("{}\n", secret.join(".git/objects").display()),
    )
    .unwrap();
    write(
        work,
        ".git/objects/info/http-alternates",
        format!("file://{}\n", secret.display()),
    );
    symlink(secret.join(".git/objects"), work.join(".git/objects/zz")).unwrap();
    for entry in fs::read_dir(secret.join(".git/objects")).unwrap() {
        // As links to the other's directories of loose objects.
        let entry = entry.unwrap();
        let place = work.join(".git/objects").join(entry.file_name());
        if entry.file_name().len() == 2 && !place.exists() {
            symlink(entry.path(), place).unwrap();
        }
    }
    fs::write(work.join(".git/HEAD"), format!("{hidden}\n")).unwrap();
    fs::write(work.join(".git/refs/heads/leak"), format!("{hidden}\n")).unwrap();
    let result = world.harvest(agent).await;
    assert!(
        !git_output(&world.mirror(), &["cat-file", "-e", &hidden])
            .status
            .success()
    );
    assert_eq!(result.head_commit, prepared.base_commit);
    assert!(
        result
            .not_brought_home
            .iter()
            .any(|item| item.why == WhyNot::MissingObjects)
    );
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    assert!(matches!(
        removal,
        Removal::Kept {
            why: KeptWhy::NotBroughtHome { .. }
        }
    ));
    world.fsck();
}

#[tokio::test]
async fn a19_a_git_directory_that_is_a_siblings_is_not_followed() {
    let world = World::new().await;
    let (sibling, theirs) = world.prepare().await;
    write(&theirs.workdir, "theirs", "t\n");
    let their_commit = agent_commit(&theirs.workdir, "theirs");
    let before = git(&theirs.workdir, &["status", "--porcelain=v2", "--branch"]);
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "mine", "m\n");
    fs::remove_dir_all(work.join(".git")).unwrap();
    symlink(theirs.workdir.join(".git"), work.join(".git")).unwrap();
    symlink(&theirs.workdir, work.join("link-to-sibling")).unwrap();
    let result = world.harvest(agent).await;
    let mirror = world.mirror();
    assert_eq!(
        git(&mirror, &["show", &format!("{}:mine", result.head_commit)]),
        "m"
    );
    assert!(
        !git_output(&mirror, &["cat-file", "-e", &their_commit])
            .status
            .success()
    );
    let listed = git(
        &mirror,
        &["ls-tree", &result.head_commit, "link-to-sibling"],
    );
    assert!(listed.starts_with("120000"), "{listed}");
    assert_eq!(
        world
            .mirror_tip(&format!("refs/heads/mosaic/{sibling}"))
            .unwrap(),
        theirs.base_commit
    );
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::Discard)
            .await
            .unwrap(),
        Removal::Removed
    );
    assert_eq!(
        git(&theirs.workdir, &["status", "--porcelain=v2", "--branch"]),
        before
    );
    assert!(theirs.workdir.join("theirs").exists());

    // A `.git` file that names a directory elsewhere.
    let (agent, prepared) = world.prepare().await;
    fs::remove_dir_all(prepared.workdir.join(".git")).unwrap();
    let pointer = format!("gitdir: {}\n", theirs.workdir.join(".git").display());
    fs::write(prepared.workdir.join(".git"), pointer).unwrap();
    write(&prepared.workdir, "mine", "m2\n");
    let result = world.harvest(agent).await;
    assert_eq!(result.not_brought_home[0].why, WhyNot::NoGitDirectory);
    assert_eq!(
        git(&mirror, &["show", &format!("{}:mine", result.head_commit)]),
        "m2"
    );
}

#[tokio::test]
async fn a_common_directory_of_a_sibling_is_not_believed() {
    let world = World::new().await;
    let (_sibling, theirs) = world.prepare().await;
    write(&theirs.workdir, "theirs", "t\n");
    let their_commit = agent_commit(&theirs.workdir, "theirs");
    let (agent, prepared) = world.prepare().await;
    let git_dir = prepared.workdir.join(".git");
    fs::write(
        git_dir.join("commondir"),
        format!("{}\n", theirs.workdir.join(".git").display()),
    )
    .unwrap();
    fs::write(git_dir.join("HEAD"), format!("{their_commit}\n")).unwrap();
    fs::remove_file(git_dir.join("packed-refs")).unwrap();
    symlink(
        theirs.workdir.join(".git/packed-refs"),
        git_dir.join("packed-refs"),
    )
    .unwrap();
    let result = world.harvest(agent).await;
    assert_eq!(result.head_commit, prepared.base_commit);
    assert!(
        !git_output(&world.mirror(), &["cat-file", "-e", &their_commit])
            .status
            .success()
    );
}

#[tokio::test]
async fn objects_under_a_false_name_do_not_get_into_the_mirror() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "a", "good\n");
    let good = git(work, &["hash-object", "-w", "a"]);
    write(work, "b", "evil\n");
    let evil = git(work, &["hash-object", "-w", "b"]);
    fs::remove_file(work.join("b")).unwrap();
    git(work, &["add", "a"]);
    git(work, &["commit", "-q", "-m", "refers to good"]);
    let place = |id: &str| work.join(".git/objects").join(&id[..2]).join(&id[2..]);
    fs::remove_file(place(&good)).unwrap();
    fs::copy(place(&evil), place(&good)).unwrap();
    fs::remove_file(work.join("a")).unwrap();
    let request = mosaic_orchestrator::worktree::HarvestRequest {
        agent,
        landing: mosaic_orchestrator::worktree::Landing::Branch,
        now_secs: NOW,
    };
    let harvested = world.worktrees.harvest(&request).await;
    assert!(harvested.is_err());
    let shown = git_output(&world.mirror(), &["cat-file", "-p", &good]);
    assert!(!shown.status.success());
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    assert!(matches!(removal, Removal::Kept { .. }));
    world.fsck();
}

#[tokio::test]
async fn special_files_and_control_files_that_wait_are_harmless() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let fifo = |path: &Path| {
        assert!(
            std::process::Command::new("mkfifo")
                .arg(path)
                .status()
                .unwrap()
                .success()
        );
    };
    fs::create_dir_all(work.join("d/e")).unwrap();
    fifo(&work.join("pipe"));
    fifo(&work.join("d/.gitignore"));
    fifo(&work.join("d/.gitattributes"));
    symlink("/dev/zero", work.join("d/e/.gitignore")).unwrap();
    fs::remove_file(work.join(".git/HEAD")).unwrap();
    fifo(&work.join(".git/HEAD"));
    fs::remove_file(work.join(".git/index")).unwrap();
    fifo(&work.join(".git/index"));
    write(work, "d/e/file", "f\n");
    // A link to rules of the host would tell by what is missing what it holds.
    write(world.dir.path(), "host-rules", "told*\n");
    fs::create_dir(work.join("g")).unwrap();
    symlink(
        world.dir.path().join("host-rules"),
        work.join("g/.gitignore"),
    )
    .unwrap();
    write(work, "g/told", "t\n");
    let result = world.harvest(agent).await;
    let mirror = world.mirror();
    assert_eq!(
        git(
            &mirror,
            &["show", &format!("{}:d/e/file", result.head_commit)]
        ),
        "f"
    );
    let listed = git(
        &mirror,
        &[
            "ls-tree",
            "-r",
            "--name-only",
            &result.head_commit,
            "d",
            "pipe",
        ],
    );
    assert_eq!(listed, "d/e/.gitignore\nd/e/file");
    let told = format!("{}:g/told", result.head_commit);
    assert_eq!(git(&mirror, &["show", &told]), "t");
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::OnlySecured)
            .await
            .unwrap(),
        Removal::Removed
    );
}

#[tokio::test]
async fn removal_never_leaves_the_agents_directory() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let outside = world.dir.path().join("outside");
    write(&outside, "keep", "k\n");
    symlink(&outside, prepared.workdir.join("out")).unwrap();
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::Discard)
            .await
            .unwrap(),
        Removal::Removed
    );
    assert!(outside.join("keep").exists());
    // The tree itself, and the agent's directory, as links.
    symlink(&outside, &prepared.workdir).unwrap();
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::Discard)
            .await
            .unwrap(),
        Removal::Removed
    );
    assert!(fs::symlink_metadata(&prepared.workdir).is_err());
    let stranger = mosaic_types::AgentId::generate();
    let root = world.worktrees.workdir(&stranger);
    fs::create_dir(outside.join("work")).unwrap();
    symlink(&outside, root.parent().unwrap()).unwrap();
    world
        .worktrees
        .remove(&stranger, RemovalMode::Discard)
        .await
        .unwrap();
    assert!(outside.join("keep").exists() && outside.join("work").exists());
}

#[tokio::test]
async fn names_that_are_no_text_come_home() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    for name in [
        &b"new\nline"[..],
        b"latin\xe9",
        b"quote\"back\\slash",
        b"tab\t",
        b" lead",
        b"-dash",
    ] {
        fs::write(
            prepared.workdir.join(std::ffi::OsStr::from_bytes(name)),
            name,
        )
        .unwrap();
    }
    let result = world.harvest(agent).await;
    assert_eq!(result.files_changed, 6);
    assert!(result.not_brought_home.is_empty());
    world.fsck();
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::OnlySecured)
            .await
            .unwrap(),
        Removal::Removed
    );
}

#[tokio::test]
async fn a_very_deep_tree_is_kept_and_can_be_discarded() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    // Deeper than a path can name, and than there are file descriptors, made one step at a time.
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let (name, flags) = ("d".repeat(200), OFlags::DIRECTORY | OFlags::RDONLY);
    let mut dir = openat(CWD, &prepared.workdir, flags, Mode::empty()).unwrap();
    for _ in 0..1500 {
        mkdirat(&dir, name.as_str(), Mode::RWXU).unwrap();
        dir = openat(&dir, name.as_str(), flags, Mode::empty()).unwrap();
    }
    drop(dir);
    write(&prepared.workdir, "shallow", "s\n");
    let result = world.harvest(agent).await;
    assert_eq!(
        git(
            &world.mirror(),
            &["show", &format!("{}:shallow", result.head_commit)]
        ),
        "s"
    );
    assert!(!result.not_brought_home.is_empty());
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    assert!(matches!(removal, Removal::Kept { .. }));
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::Discard)
            .await
            .unwrap(),
        Removal::Removed
    );
    assert!(!prepared.workdir.exists());
    assert_eq!(
        world.worktrees.forget(&agent).await.unwrap(),
        Removal::Removed
    );
}
