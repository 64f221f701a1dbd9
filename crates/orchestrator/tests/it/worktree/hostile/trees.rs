//! Trees of few objects that are more levels, or more paths, than anybody can go through.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use mosaic_orchestrator::worktree::{BundleOf, Removal, RemovalMode, WorktreeError};
use mosaic_types::AgentId;

use super::super::support::{World, commit_all, git, try_harvest, write};

const DEEP: &str = "directories within each other";
const MANY: &str = "files of a commit";

/// Trees made by git itself, each of the one before: `names` times, `levels` times over. The last holds a file.
fn nest(repository: &Path, levels: usize, names: usize) -> String {
    let blob = git(repository, &["hash-object", "-w", "/dev/null"]);
    let mut making = Command::new("git")
        .args(["mktree", "--batch"])
        .current_dir(repository)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut trees = making.stdin.take().unwrap();
    let mut made = BufReader::new(making.stdout.take().unwrap()).lines();
    let mut last = format!("100644 blob {blob}");
    for _ in 0..levels {
        let mut lines = String::new();
        for name in 0..names {
            writeln!(lines, "{last}\t{name}").unwrap();
        }
        trees.write_all(format!("{lines}\n").as_bytes()).unwrap();
        last = format!("040000 tree {}", made.next().unwrap().unwrap());
    }
    drop(trees);
    assert!(making.wait().unwrap().success());
    last.rsplit(' ').next().unwrap().to_owned()
}

/// A commit of that tree on a branch.
fn commit(repository: &Path, tree: &str, branch: &str) -> String {
    let who = ["-c", "user.name=S", "-c", "user.email=s@example.org"];
    let making = ["commit-tree", tree, "-p", "HEAD", "-m", "trees"];
    let id = git(repository, &[who.as_slice(), &making].concat());
    git(repository, &["update-ref", branch, &id]);
    id
}

fn too_large(error: &WorktreeError, says: &str) {
    assert!(
        matches!(error, WorktreeError::TooLarge { what, .. } if what.contains(says)),
        "{error}"
    );
}

#[tokio::test]
async fn trees_within_each_other_without_end_are_refused_and_kept() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let tree = nest(work, 60_000, 1);
    commit(work, &tree, "refs/heads/deep");
    too_large(&try_harvest(&world, agent).await.unwrap_err(), DEEP);
    assert!(work.join("README").exists());
    // The next try finds it as it was.
    too_large(&try_harvest(&world, agent).await.unwrap_err(), DEEP);
    world.fsck();
}

#[tokio::test]
async fn trees_of_two_thousand_levels_come_home() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let deep = commit(work, &nest(work, 2000, 1), "HEAD");
    let result = world.harvest(agent).await;
    assert_eq!(result.not_brought_home, []);
    assert!(result.commits.iter().any(|commit| commit.id == deep));
    // The bundle goes through them as well.
    let bundle = world.worktrees.bundle(&agent, BundleOf::Salvaged).await;
    assert!(bundle.unwrap().is_some());
    let again = commit(work, &nest(work, 2001, 1), "HEAD");
    assert_ne!(again, deep);
    too_large(&try_harvest(&world, agent).await.unwrap_err(), DEEP);
}

#[tokio::test]
async fn trees_that_are_more_paths_than_the_limit_are_refused_and_kept() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    // Ten thousand million files.
    let tree = nest(work, 10, 10);
    for branch in ["refs/heads/many", "HEAD"] {
        commit(work, &tree, branch);
        too_large(&try_harvest(&world, agent).await.unwrap_err(), MANY);
    }
    assert!(work.join("README").exists());
    // One of the remote's, which the mirror has already.
    let tree = nest(&world.source, 10, 10);
    commit(&world.source, &tree, "refs/heads/many");
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(work, &["update-ref", "HEAD", "refs/remotes/origin/many"]);
    // As if all of it had been left out of the tree: there is nothing to commit.
    for name in ["README", "src", ".gitignore"] {
        let _ = std::fs::remove_dir_all(work.join(name));
        let _ = std::fs::remove_file(work.join(name));
    }
    std::fs::write(work.join(".git/index"), "unreadable").unwrap();
    too_large(&try_harvest(&world, agent).await.unwrap_err(), MANY);
    // Of directories alone.
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let empty = git(work, &["mktree", "-z"]);
    let mut last = empty;
    for _ in 0..10 {
        let names = (0..10).fold(String::new(), |lines, name| {
            format!("{lines}040000 tree {last}\t{name}\n")
        });
        std::fs::write(work.join("names"), names).unwrap();
        last = git(work, &["-c", "alias.made=!git mktree < names", "made"]);
    }
    commit(work, &last, "HEAD");
    too_large(&try_harvest(&world, agent).await.unwrap_err(), MANY);
}

// Whatever brought them into the mirror, nothing that is asked of it goes through them.
#[tokio::test]
async fn trees_of_the_mirror_that_are_too_many_paths_are_neither_listed_nor_bundled() {
    let world = World::new().await;
    let (agent, _) = world.prepare().await;
    world.harvest(agent).await;
    let mirror = world.mirror();
    let tree = nest(&mirror, 10, 10);
    let who = ["-c", "user.name=S", "-c", "user.email=s@example.org"];
    let base = world.mirror_tip("refs/remotes/origin/main").unwrap();
    let making = ["commit-tree", &tree, "-p", &base, "-m", "trees"];
    let id = git(&mirror, &[who.as_slice(), &making].concat());
    let name = format!("refs/mosaic/agents/{agent}/heads/many");
    git(&mirror, &["update-ref", &name, &id]);
    too_large(&world.worktrees.salvaged(&agent).await.unwrap_err(), MANY);
    let bundle = world.worktrees.bundle(&agent, BundleOf::Salvaged).await;
    too_large(&bundle.unwrap_err(), MANY);
    let branch = format!("refs/heads/mosaic/{agent}");
    git(&mirror, &["update-ref", &branch, &id]);
    git(&mirror, &["update-ref", "-d", &name]);
    too_large(&world.worktrees.salvaged(&agent).await.unwrap_err(), MANY);
}

#[tokio::test]
async fn a_repository_of_more_paths_or_levels_than_the_limits_is_refused() {
    let world = World::new().await;
    for (branch, tree) in [
        ("many", nest(&world.source, 10, 10)),
        ("deep", nest(&world.source, 2001, 1)),
    ] {
        commit(&world.source, &tree, &format!("refs/heads/{branch}"));
        let agent = AgentId::generate();
        let error = world.try_prepare(&agent, branch).await.unwrap_err();
        let WorktreeError::RepositoryUnsound { detail, .. } = &error else {
            panic!("{error}");
        };
        assert!(detail.contains("exceeds the limit of"), "{detail}");
        assert_eq!(error.field(), Some("context.repository"));
        assert!(!world.worktrees.workdir(&agent).exists());
    }
    // What is beside many is had. What is deep cannot be passed over: a folder is fetched as a whole.
    git(&world.source, &["update-ref", "-d", "refs/heads/deep"]);
    let (agent, _) = world.prepare().await;
    let removal = world.worktrees.remove(&agent, RemovalMode::OnlySecured);
    assert_eq!(removal.await.unwrap(), Removal::Removed);
}

/// What is fetched from a folder is packed in this process, whatever branch it is of.
#[tokio::test]
async fn a_folder_with_trees_within_each_other_without_end_is_not_fetched_from() {
    let world = World::new().await;
    let tree = nest(&world.source, 2500, 1);
    commit(&world.source, &tree, "refs/heads/deep");
    let error = world
        .try_prepare(&AgentId::generate(), "main")
        .await
        .unwrap_err();
    assert!(error.to_string().contains(DEEP), "{error}");
    assert_eq!(error.field(), Some("context.repository"), "{error}");
    // Behind others, and as what a tag names alone.
    let shallow = git(&world.source, &["rev-parse", "main^{tree}"]);
    let who = ["-c", "user.name=S", "-c", "user.email=s@example.org"];
    let making = ["commit-tree", &shallow, "-p", "deep", "-m", "over it"];
    let over = git(&world.source, &[who.as_slice(), &making].concat());
    git(&world.source, &["update-ref", "-d", "refs/heads/deep"]);
    for (made, unmade) in [
        (["branch", "over", &over], ["branch", "-D", "over"]),
        (["tag", "deep", &tree], ["tag", "-d", "deep"]),
    ] {
        git(&world.source, &["repack", "-q", "-d", "-k"]);
        git(&world.source, &made);
        let error = world
            .try_prepare(&AgentId::generate(), "main")
            .await
            .unwrap_err();
        assert!(error.to_string().contains(DEEP), "{error}");
        git(&world.source, &unmade);
    }
    let agent = AgentId::generate();
    world.try_prepare(&agent, "main").await.unwrap();
    // What is there already is not gone through again, though no branch of the remote is where it was.
    git(&world.source, &["reset", "-q", "--hard", &over]);
    // By hand: git itself warns of such paths.
    let copied = Command::new("cp")
        .arg("-rn")
        .arg(world.source.join(".git/objects/."))
        .arg(world.mirror().join("objects"))
        .status();
    assert!(copied.unwrap().success());
    git(
        &world.mirror(),
        &["update-ref", "refs/remotes/origin/main", &over],
    );
    write(&world.source, "more", "more\n");
    commit_all(&world.source, "more");
    let agent = AgentId::generate();
    world.try_prepare(&agent, "main").await.unwrap();
}
