//! Pushing: where the configuration says so, never over what is there, and with no hook of this machine.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use mosaic_orchestrator::worktree::{
    BranchName, HarvestRequest, Landing, PushResult, PushRule, RepositoryUrl, WorktreeConfig,
    WorktreeError, Worktrees,
};
use mosaic_types::AgentId;

use super::support::*;

fn rule(repositories: &str) -> PushRule {
    PushRule {
        repositories: repositories.to_owned(),
        branch_prefix: "agents/".to_owned(),
        timeout_secs: 30,
    }
}

/// Hooks that tell that they ran, and refuse.
fn hooks(dir: &Path, ran: &Path) {
    fs::create_dir_all(dir).unwrap();
    for name in [
        "pre-push",
        "reference-transaction",
        "pre-receive",
        "update",
        "post-receive",
        "post-update",
    ] {
        let hook = dir.join(name);
        let text = format!("#!/bin/sh\ntouch '{}'\nexit 1\n", ran.display());
        fs::write(&hook, text).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

async fn with_work(worktrees: &Worktrees, url: &RepositoryUrl, text: &str) -> (AgentId, String) {
    let agent = AgentId::generate();
    let branch = BranchName::parse("main").unwrap();
    let prepared = worktrees
        .prepare(&agent, url, &branch, || {})
        .await
        .unwrap();
    write(&prepared.workdir, "work", text);
    agent_commit(&prepared.workdir, "work");
    let request = HarvestRequest {
        agent,
        now_secs: NOW,
        landing: Landing::Branch,
    };
    let result = worktrees.harvest(&request).await.unwrap();
    (agent, result.head_commit)
}

/// Pushes to `there`, as `url` names it, whatever may come in the way.
async fn pushes(worktrees: &Worktrees, url: &RepositoryUrl, there: &Path, ran: &Path) {
    assert!(worktrees.pushes_to(url));
    let (agent, commit) = with_work(worktrees, url, "first\n").await;
    hooks(&worktrees.mirror_path(url).join("hooks"), ran);
    let reference = format!("refs/heads/agents/{agent}");
    let expected = PushResult {
        reference: reference.clone(),
        commit: commit.clone(),
        why_not: None,
    };
    // Twice is as good as once.
    for _ in 0..2 {
        let pushed = worktrees.push(&agent).await.unwrap();
        assert_eq!(pushed.as_ref(), Some(&expected));
    }
    assert_eq!(git(there, &["rev-parse", &reference]), commit);

    // What somebody else put there stays.
    let (agent, _) = with_work(worktrees, url, "second\n").await;
    let reference = format!("refs/heads/agents/{agent}");
    git(there, &["update-ref", &reference, &commit]);
    let pushed = worktrees.push(&agent).await.unwrap().unwrap();
    assert!(pushed.why_not.is_some(), "{pushed:?}");
    assert_eq!(git(there, &["rev-parse", &reference]), commit);
    assert!(!ran.exists(), "a hook ran");
}

// A20: what runs on this machine when something is pushed is git, and nothing that it was told to run.
#[tokio::test]
async fn a20_a_branch_is_pushed_to_a_folder_without_its_hooks() {
    let world = World::new().await;
    let bare = world.dir.path().join("bare.git");
    let ran = world.dir.path().join("ran");
    git(
        world.dir.path(),
        &["clone", "-q", "--bare", "source", "bare.git"],
    );
    hooks(&bare.join("hooks"), &ran);
    hooks(&world.dir.path().join("evil"), &ran);
    let mut config = WorktreeConfig::new(&world.dir.path().join("push-data"));
    config.pushes = vec![rule(&format!(
        "file://{}/*.git",
        world.dir.path().display()
    ))];
    let worktrees = Worktrees::open(config).await.unwrap();
    let url = RepositoryUrl::parse(&format!("file://{}", bare.display())).unwrap();
    // `git` of this test is stopped by the hooks, libgit2 is not asked by them.
    let refused = git_output(&bare, &["update-ref", "refs/heads/x", "main"]);
    assert!(!refused.status.success() && ran.exists());
    fs::remove_file(&ran).unwrap();
    fs::remove_file(bare.join("hooks/reference-transaction")).unwrap();
    pushes(&worktrees, &url, &bare, &ran).await;

    // `*` stops at `/`, and what no rule names is not pushed to.
    for path in ["deep/x.git", "source"] {
        let url = format!("file://{}/{path}", world.dir.path().display());
        assert!(!worktrees.pushes_to(&RepositoryUrl::parse(&url).unwrap()));
    }
    // A working tree of somebody's is not written.
    let mut config = WorktreeConfig::new(&world.dir.path().join("other-data"));
    config.pushes = vec![rule("file:///**")];
    let worktrees = Worktrees::open(config).await.unwrap();
    let (agent, _) = with_work(&worktrees, &world.url(), "x\n").await;
    let pushed = worktrees.push(&agent).await.unwrap().unwrap();
    assert!(pushed.why_not.is_some(), "{pushed:?}");
    assert_eq!(git(&world.source, &["branch", "--list", "agents/*"]), "");
}

#[tokio::test]
async fn a20_a_branch_is_pushed_over_ssh_without_hooks_of_this_machine() {
    let world = World::new().await;
    let ran = world.dir.path().join("ran");
    let mut config = WorktreeConfig::new(&world.dir.path().join("ssh-data"));
    config.ssh_program = super::remotes::local_ssh(world.dir.path());
    config.pushes = vec![rule("ssh://git@host.example/**")];
    let worktrees = Worktrees::open(config).await.unwrap();
    let url = format!("ssh://git@host.example{}", world.source.display());
    let url = RepositoryUrl::parse(&url).unwrap();
    pushes(&worktrees, &url, &world.source, &ran).await;

    // A repository that is gone is told of; the work stays in the mirror.
    let (agent, commit) = with_work(&worktrees, &url, "third\n").await;
    fs::rename(&world.source, world.dir.path().join("moved")).unwrap();
    let pushed = worktrees.push(&agent).await.unwrap().unwrap();
    assert!(pushed.why_not.is_some(), "{pushed:?}");
    let branch = format!("refs/heads/mosaic/{agent}");
    let mirror = worktrees.mirror_path(&url);
    assert_eq!(git(&mirror, &["rev-parse", &branch]), commit);
}

#[tokio::test]
async fn rules_that_are_none_are_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    for (repositories, branch_prefix, timeout_secs) in [
        ("[", "mosaic/", 30),
        ("**", "../", 30),
        ("**", "-x/", 30),
        ("**", "mosaic/", 0),
    ] {
        let mut config = WorktreeConfig::new(dir.path());
        config.pushes = vec![PushRule {
            repositories: repositories.to_owned(),
            branch_prefix: branch_prefix.to_owned(),
            timeout_secs,
        }];
        let opened = Worktrees::open(config).await;
        let error = opened.map(|_| ()).unwrap_err();
        assert!(matches!(error, WorktreeError::PushRule { .. }), "{error}");
    }
}
