//! Which trees go, and which are kept for what is in them alone.

use std::{fs, os::unix::fs::PermissionsExt};

use mosaic_orchestrator::worktree::{KeptWhy, Limits, Removal, RemovalMode, WhyNot};

use super::support::*;

#[tokio::test]
async fn a23_a_dirty_tree_is_not_removed() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "precious", "110 minutes\n");
    let kept = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    assert_eq!(
        kept,
        Removal::Kept {
            why: KeptWhy::Uncommitted
        }
    );
    world.harvest(agent).await;
    // A commit after the harvest is as precious.
    git(work, &["checkout", "-q", "-b", "late"]);
    agent_commit(work, "late");
    write(work, "precious", "111 minutes\n");
    agent_commit(work, "later");
    git(work, &["checkout", "-q", &format!("mosaic/{agent}")]);
    let kept = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    assert_eq!(
        kept,
        Removal::Kept {
            why: KeptWhy::Unreferenced {
                what: "heads/late".to_owned()
            }
        }
    );
    assert!(work.is_dir());
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::Discard)
            .await
            .unwrap(),
        Removal::Removed
    );
    assert!(!work.exists());
}

#[tokio::test]
async fn nested_repositories_are_taken_as_files_and_keep_the_tree() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let nested = prepared.workdir.join("vendor/lib");
    fs::create_dir_all(&nested).unwrap();
    git(&nested, &["init", "-q"]);
    write(&nested, "lib.rs", "fn lib() {}\n");
    commit_all(&nested, "nested");
    let result = world.harvest(agent).await;
    assert_eq!(
        git(
            &world.mirror(),
            &[
                "ls-tree",
                "-r",
                "--name-only",
                &result.head_commit,
                "vendor"
            ]
        ),
        "vendor/lib/lib.rs"
    );
    assert_eq!(result.not_brought_home[0].why, WhyNot::NestedRepository);
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    assert!(
        matches!(
            removal,
            Removal::Kept {
                why: KeptWhy::NotBroughtHome { .. }
            }
        ),
        "{removal:?}"
    );
}

#[tokio::test]
async fn large_files_are_reported_and_the_tree_kept() {
    let world = World::with(|config| {
        config.limits = Limits {
            max_file_bytes: 1000,
            ..Limits::default()
        };
    })
    .await;
    let (agent, prepared) = world.prepare().await;
    write(&prepared.workdir, "big", vec![b'x'; 1001]);
    write(&prepared.workdir, "README", vec![b'x'; 2000]);
    write(&prepared.workdir, "small", "s");
    let result = world.harvest(agent).await;
    let names: Vec<_> = result
        .not_brought_home
        .iter()
        .map(|item| (item.path.as_str(), item.why))
        .collect();
    assert_eq!(
        names,
        [("README", WhyNot::TooLarge), ("big", WhyNot::TooLarge)]
    );
    let mirror = world.mirror();
    assert_eq!(
        git(
            &mirror,
            &["show", &format!("{}:README", result.head_commit)]
        ),
        "hello\nworld"
    );
    assert_eq!(
        git(&mirror, &["show", &format!("{}:small", result.head_commit)]),
        "s"
    );
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    assert!(matches!(removal, Removal::Kept { .. }));
}

#[tokio::test]
async fn a25_directories_without_permissions_are_read_and_removed() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    write(&prepared.workdir, "locked/file", "l\n");
    let closed = fs::Permissions::from_mode(0o000);
    fs::set_permissions(prepared.workdir.join("locked/file"), closed.clone()).unwrap();
    fs::set_permissions(prepared.workdir.join("locked"), closed).unwrap();
    let result = world.harvest(agent).await;
    assert_eq!(
        git(
            &world.mirror(),
            &["show", &format!("{}:locked/file", result.head_commit)]
        ),
        "l"
    );
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::OnlySecured)
            .await
            .unwrap(),
        Removal::Removed
    );
}
