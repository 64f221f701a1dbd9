//! From a source to a tree: what an agent finds, who may try again, which sources are refused.

use std::{fs, path::Path};

use mosaic_orchestrator::worktree::{BranchName, RemovalMode, RepositoryUrl, WorktreeError};
use mosaic_types::{AgentId, ErrorCode};

use super::support::*;

#[tokio::test]
async fn an_agent_finds_an_ordinary_clone() {
    let world = World::new().await;
    git(&world.source, &["branch", "other"]);
    git(&world.source, &["tag", "v1"]);
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    assert_eq!(git(work, &["status", "--porcelain=v2"]), "");
    assert_eq!(
        git(work, &["branch", "--show-current"]),
        format!("mosaic/{agent}")
    );
    assert_eq!(
        git(work, &["rev-parse", "origin/main"]),
        prepared.base_commit
    );
    assert_eq!(
        git(work, &["rev-parse", "origin/other"]),
        prepared.base_commit
    );
    assert_eq!(
        git(work, &["config", "user.name"]),
        format!("Mosaic agent {agent}")
    );
    write(work, "new.txt", "new\n");
    agent_commit(work, "mine");
    assert_eq!(
        git(work, &["diff", "--name-only", "origin/main"]),
        "new.txt"
    );
    assert_eq!(git(work, &["log", "--format=%s"]), "mine\nfirst");
    git(work, &["fsck", "--strict"]);
}

#[tokio::test]
async fn a18_eight_prepares_of_one_repository_at_once() {
    let world = World::new().await;
    let agents: Vec<AgentId> = (0..8).map(|_| AgentId::generate()).collect();
    let prepared =
        futures_util::future::join_all(agents.iter().map(|agent| world.try_prepare(agent, "main")))
            .await;
    for (agent, prepared) in agents.iter().zip(prepared) {
        let prepared = prepared.unwrap();
        assert_eq!(git(&prepared.workdir, &["status", "--porcelain"]), "");
        assert!(
            world
                .mirror_tip(&format!("refs/heads/mosaic/{agent}"))
                .is_some()
        );
    }
    world.fsck();
}

#[tokio::test]
async fn a_retry_continues_in_its_own_tree() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    write(&prepared.workdir, "half", "h\n");
    write(&world.source, "README", "moved on\n");
    commit_all(&world.source, "upstream");
    assert_eq!(world.try_prepare(&agent, "main").await.unwrap(), prepared);
    assert!(prepared.workdir.join("half").exists());
    git(&world.source, &["branch", "other"]);
    let error = world.try_prepare(&agent, "other").await.unwrap_err();
    assert!(
        matches!(error, WorktreeError::PreparedOtherwise { .. }),
        "{error}"
    );
    // Removed and prepared again: the base stays, the commits are there.
    let result = world.harvest(agent).await;
    world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    let again = world.try_prepare(&agent, "main").await.unwrap();
    assert_eq!(again.base_commit, prepared.base_commit);
    assert_eq!(
        git(&again.workdir, &["rev-parse", "HEAD"]),
        result.head_commit
    );
    assert!(again.workdir.join("half").exists());
}

#[tokio::test]
async fn a_crash_in_the_middle_of_preparing_leaves_nothing_in_the_way() {
    let world = World::new().await;
    let agent = AgentId::generate();
    let work = world.worktrees.workdir(&agent);
    write(work.parent().unwrap(), "work.preparing/.git/index.lock", "");
    let prepared = world.try_prepare(&agent, "main").await.unwrap();
    assert_eq!(git(&prepared.workdir, &["status", "--porcelain"]), "");
    assert!(!work.parent().unwrap().join("work.preparing").exists());
}

#[tokio::test]
async fn a21_stale_locks_of_the_mirror_are_swept() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let mirror = world.mirror();
    for lock in ["config.lock", "packed-refs.lock", "HEAD.lock"] {
        fs::write(mirror.join(lock), "").unwrap();
    }
    fs::write(mirror.join(format!("refs/heads/mosaic/{agent}.lock")), "").unwrap();
    for lock in ["index.lock", "HEAD.lock", "config.lock"] {
        fs::write(prepared.workdir.join(".git").join(lock), "").unwrap();
    }
    write(&prepared.workdir, "x", "x");
    let result = world.harvest(agent).await;
    assert_eq!(
        world
            .mirror_tip(&format!("refs/heads/mosaic/{agent}"))
            .unwrap(),
        result.head_commit
    );
    assert!(!mirror.join("config.lock").exists());
    world.prepare().await;
}

#[tokio::test]
async fn upstream_moves_and_renames_its_branches() {
    let world = World::new().await;
    git(&world.source, &["branch", "topic"]);
    world.prepare().await;
    git(&world.source, &["branch", "-m", "topic", "topic/one"]);
    write(&world.source, "README", "rewritten\n");
    git(&world.source, &["add", "-A"]);
    git(
        &world.source,
        &[
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@x",
            "commit",
            "-q",
            "--amend",
            "-m",
            "forced",
        ],
    );
    let tip = git(&world.source, &["rev-parse", "HEAD"]);
    let prepared = world
        .try_prepare(&AgentId::generate(), "main")
        .await
        .unwrap();
    assert_eq!(prepared.base_commit, tip);
    let prepared = world
        .try_prepare(&AgentId::generate(), "topic/one")
        .await
        .unwrap();
    assert_ne!(prepared.base_commit, tip);
    let error = world
        .try_prepare(&AgentId::generate(), "topic")
        .await
        .unwrap_err();
    assert!(
        matches!(error, WorktreeError::BranchNotFound { .. }),
        "{error}"
    );
    let default = world
        .try_prepare(&AgentId::generate(), "HEAD")
        .await
        .unwrap();
    assert_eq!(default.base_commit, tip);
    world.fsck();
}

async fn refusal(world: &World, path: &Path, branch: &str) -> WorktreeError {
    let url = RepositoryUrl::parse(&format!("file://{}", path.display())).unwrap();
    let agent = AgentId::generate();
    let error = world
        .worktrees
        .prepare(&agent, &url, &BranchName::parse(branch).unwrap(), || {})
        .await
        .unwrap_err();
    assert!(!world.worktrees.workdir(&agent).exists());
    error
}

#[tokio::test]
async fn bad_sources_are_told_apart() {
    let world = World::new().await;
    let dir = world.dir.path();
    let error = refusal(&world, &world.source, "nope").await;
    assert_eq!(
        (error.code(), error.field()),
        (ErrorCode::UnknownBranch, Some("context.branch"))
    );
    let error = refusal(&world, &dir.join("missing"), "main").await;
    assert_eq!(
        (error.code(), error.field()),
        (ErrorCode::UnknownRepository, Some("context.repository"))
    );
    fs::create_dir(dir.join("plain")).unwrap();
    assert_eq!(
        refusal(&world, &dir.join("plain"), "main").await.code(),
        ErrorCode::UnknownRepository
    );
    // A directory inside a repository is not that repository.
    assert_eq!(
        refusal(&world, &world.source.join("src"), "main")
            .await
            .code(),
        ErrorCode::UnknownRepository
    );
    assert_eq!(
        refusal(&world, &world.source.join("README"), "main")
            .await
            .code(),
        ErrorCode::UnknownRepository
    );
    std::os::unix::fs::symlink(dir.join("loop"), dir.join("loop")).unwrap();
    assert_eq!(
        refusal(&world, &dir.join("loop"), "main").await.code(),
        ErrorCode::UnknownRepository
    );
    fs::create_dir(dir.join("empty")).unwrap();
    git(&dir.join("empty"), &["init", "-q"]);
    assert_eq!(
        refusal(&world, &dir.join("empty"), "HEAD").await.code(),
        ErrorCode::UnknownRepository
    );
    assert_eq!(
        refusal(&world, &dir.join("empty"), "main").await.code(),
        ErrorCode::UnknownRepository
    );
    if rustix::process::geteuid().is_root() {
        let foreign = dir.join("foreign");
        git(dir, &["clone", "-q", "--bare", "source", "foreign"]);
        std::os::unix::fs::chown(&foreign, Some(12345), Some(12345)).unwrap();
        assert_eq!(
            refusal(&world, &foreign, "main").await.code(),
            ErrorCode::UnknownRepository
        );
    }
}
