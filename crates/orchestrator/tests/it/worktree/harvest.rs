//! Everything an agent may have done with git, and that it all comes home.

use std::fs;

use mosaic_orchestrator::worktree::{HarvestRequest, Landing, Removal, RemovalMode};

use super::support::*;

mod kept;
mod waiting;

#[tokio::test]
async fn commits_and_uncommitted_work_come_home() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "src/a.txt", "one\n2\nthree\n");
    let first = agent_commit(work, "change a");
    write(work, "README", "changed\n");
    write(work, "untracked/b.txt", "b\n");
    write(work, "debug.log", "ignored\n");
    write(work, "target/x", "ignored\n");
    let result = world.harvest(agent).await;
    assert_eq!(result.base_commit, prepared.base_commit);
    assert!(result.uncommitted_committed);
    assert_eq!(result.commits.len(), 2);
    assert_eq!(result.commits[0].id, first);
    assert_eq!(result.commits[0].subject, "change a");
    assert_eq!(
        (result.files_changed, result.insertions, result.deletions),
        (3, 3, 3)
    );
    assert!(
        result.not_brought_home.is_empty(),
        "{:?}",
        result.not_brought_home
    );
    let tip = world
        .mirror_tip(&format!("refs/heads/mosaic/{agent}"))
        .unwrap();
    assert_eq!(tip, result.head_commit);
    let names = git(&world.mirror(), &["ls-tree", "-r", "--name-only", &tip]);
    assert_eq!(names, ".gitignore\nREADME\nsrc/a.txt\nuntracked/b.txt");
    world.fsck();
    // Again, later, gives the same, and no second commit.
    let later = HarvestRequest {
        agent,
        landing: Landing::Branch,
        now_secs: NOW + 60,
    };
    assert_eq!(world.worktrees.harvest(&later).await.unwrap(), result);
    assert!(
        world
            .mirror_tip(&format!("refs/mosaic/previous/{agent}"))
            .is_none()
    );
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::OnlySecured)
            .await
            .unwrap(),
        Removal::Removed
    );
    assert!(!prepared.workdir.exists());
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
async fn a22_salvage_keeps_uncommitted_and_untracked_files() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "committed.txt", "c\n");
    let head = agent_commit(work, "done");
    write(work, "README", "half\n");
    write(work, "new/deep/file", "u\n");
    git(work, &["add", "README"]);
    write(work, "README", "half, and more\n");
    let salvage = world.salvage(agent).await;
    assert!(salvage.uncommitted_committed);
    let reference = format!("refs/mosaic/salvage/{agent}");
    assert_eq!(salvage.reference, reference);
    assert_eq!(
        world.mirror_tip(&reference).as_deref(),
        Some(salvage.head_commit.as_str())
    );
    assert_eq!(
        world
            .mirror_tip(&format!("refs/heads/mosaic/{agent}"))
            .unwrap(),
        head
    );
    assert_eq!(world.mirror_tip(&format!("{reference}^")).unwrap(), head);
    let mirror = world.mirror();
    assert_eq!(
        git(&mirror, &["show", &format!("{reference}:README")]),
        "half, and more"
    );
    assert_eq!(
        git(&mirror, &["show", &format!("{reference}:new/deep/file")]),
        "u"
    );
    // What was staged and then overwritten is work as well.
    assert_eq!(
        git(
            &mirror,
            &["show", &format!("refs/mosaic/agents/{agent}/index:README")]
        ),
        "half"
    );
    assert_eq!(world.salvage(agent).await, salvage);
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
async fn other_branches_stashes_and_unfinished_operations_come_home() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(work, &["checkout", "-q", "-b", "side/idea"]);
    write(work, "idea", "i\n");
    let idea = agent_commit(work, "idea");
    git(work, &["checkout", "-q", &format!("mosaic/{agent}")]);
    write(work, "README", "stash 1\n");
    git(work, &["stash", "-q"]);
    write(work, "README", "stash 2\n");
    git(work, &["stash", "-q"]);
    write(work, "idea", "conflict\n");
    let mine = agent_commit(work, "mine");
    assert!(!git_output(work, &["merge", "side/idea"]).status.success());
    git(
        work,
        &["worktree", "add", "-q", "--detach", "inner", "HEAD"],
    );
    write(&work.join("inner"), "in-inner", "x");
    let inner = agent_commit(&work.join("inner"), "in a linked tree");
    let result = world.harvest(agent).await;
    assert_eq!(
        world
            .mirror_tip(&format!("{}^", result.head_commit))
            .unwrap(),
        mine
    );
    assert_eq!(
        world
            .mirror_tip(&format!("refs/mosaic/agents/{agent}/heads/side/idea"))
            .unwrap(),
        idea
    );
    let mirror = world.mirror();
    let shown = git(&mirror, &["show", &format!("{}:idea", result.head_commit)]);
    assert!(
        shown.contains("<<<<<<<") && shown.contains("conflict"),
        "{shown}"
    );
    let stashes = git(
        &mirror,
        &[
            "for-each-ref",
            "--format=%(objectname)",
            &format!("refs/mosaic/agents/{agent}/"),
        ],
    );
    let readmes: Vec<String> = stashes
        .lines()
        .map(|id| git(&mirror, &["show", &format!("{id}:README")]))
        .collect();
    assert!(
        readmes.iter().any(|text| text == "stash 1")
            && readmes.iter().any(|text| text == "stash 2")
    );
    assert!(stashes.contains(&inner), "{stashes}");
    world.fsck();
}

#[tokio::test]
async fn detached_rebased_and_orphaned_heads() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "a", "1\n");
    let on_branch = agent_commit(work, "on the branch");
    git(work, &["checkout", "-q", "--detach"]);
    write(work, "a", "2\n");
    let detached = agent_commit(work, "detached");
    let result = world.harvest(agent).await;
    assert_eq!(result.head_commit, detached);
    // A history that was rewritten keeps what it replaces.
    git(
        work,
        &[
            "checkout",
            "-q",
            "-B",
            &format!("mosaic/{agent}"),
            &prepared.base_commit,
        ],
    );
    write(work, "b", "1\n");
    let rewritten = agent_commit(work, "rewritten");
    let result = world.harvest(agent).await;
    assert_eq!(result.head_commit, rewritten);
    assert_eq!(
        world
            .mirror_tip(&format!("refs/mosaic/previous/{agent}/{detached}"))
            .unwrap(),
        detached
    );
    git(
        &world.mirror(),
        &["merge-base", "--is-ancestor", &on_branch, &detached],
    );
    // Back on main, clean: what the branch holds is the work.
    git(work, &["checkout", "-q", "-b", "main", "origin/main"]);
    assert_eq!(world.harvest(agent).await.head_commit, rewritten);
    // An orphan has no history to stand on; its files are work all the same.
    git(work, &["checkout", "-q", "--orphan", "fresh"]);
    write(work, "orphan", "o\n");
    let result = world.harvest(agent).await;
    assert!(result.uncommitted_committed);
    assert_eq!(
        git(
            &world.mirror(),
            &["show", &format!("{}:orphan", result.head_commit)]
        ),
        "o"
    );
    git(work, &["add", "-A"]);
    git(work, &["commit", "-q", "-m", "root"]);
    let result = world.harvest(agent).await;
    assert_eq!(
        git(
            &world.mirror(),
            &["show", &format!("{}:orphan", result.head_commit)]
        ),
        "o"
    );
    world.fsck();
}

#[tokio::test]
async fn a_sparse_checkout_deletes_nothing() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(work, &["sparse-checkout", "set", "--no-cone", "/README"]);
    assert!(!work.join("src/a.txt").exists());
    write(work, "README", "sparse\n");
    let result = world.harvest(agent).await;
    assert_eq!(
        (result.files_changed, result.insertions, result.deletions),
        (1, 1, 2)
    );
}

#[tokio::test]
async fn submodules_stay_links() {
    let world = World::new().await;
    git(world.dir.path(), &["clone", "-q", "source", "sub"]);
    git(
        &world.source,
        &["submodule", "--quiet", "add", "../sub", "sub"],
    );
    commit_all(&world.source, "submodule");
    let (agent, prepared) = world.prepare().await;
    assert_eq!(git(&prepared.workdir, &["status", "--porcelain"]), "");
    write(&prepared.workdir, "README", "x\n");
    let result = world.harvest(agent).await;
    assert_eq!(result.files_changed, 1);
    let listed = git(&world.mirror(), &["ls-tree", &result.head_commit, "sub"]);
    assert!(listed.starts_with("160000 commit"), "{listed}");
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
async fn an_index_that_lies_hides_no_change() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(work, &["update-index", "--assume-unchanged", "README"]);
    // As if the tree had been old when it was noted: only the ctime can tell.
    let note = work.parent().unwrap().join("worktree/checked-out.index");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    let note = fs::File::options().write(true).open(note).unwrap();
    note.set_modified(later).unwrap();
    let before = fs::metadata(work.join("README")).unwrap();
    // The same size and the same mtime.
    write(work, "README", "HELLO\nWORLD\n");
    let file = fs::File::options()
        .write(true)
        .open(work.join("README"))
        .unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    let result = world.harvest(agent).await;
    assert_eq!((result.files_changed, result.insertions), (1, 2));
}
