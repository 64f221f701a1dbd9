//! Work of an agent that is on no branch and not in its tree: set aside by git itself, in a further working tree, under
//! a ref of another kind.

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

use mosaic_orchestrator::worktree::{KeptWhy, Removal, RemovalMode, WhyNot};
use mosaic_types::AgentId;

use super::support::*;
use crate::rig::Spoke;

mod tags;

/// A branch `other` that changes the README as the agent does, and is checked out nowhere.
fn conflict(work: &Path, agent: &AgentId) {
    git(work, &["checkout", "-q", "-b", "other"]);
    write(work, "README", "theirs\n");
    agent_commit(work, "theirs");
    git(work, &["checkout", "-q", &format!("mosaic/{agent}")]);
    write(work, "README", "mine\n");
    agent_commit(work, "mine");
}

async fn removed(world: &World, agent: AgentId) -> Removal {
    world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap()
}

fn missed(removal: Removal) -> Vec<(String, WhyNot)> {
    match removal {
        Removal::Kept {
            why: KeptWhy::NotBroughtHome { items },
        } => items
            .into_iter()
            .map(|item| (item.path, item.why))
            .collect(),
        other => panic!("{other:?}"),
    }
}

// A22: all that was not committed when a rebase or a merge began is in a commit that one file names.
#[tokio::test]
async fn a22_what_git_stashed_for_a_rebase_or_a_merge_comes_home() {
    let world = World::new().await;
    for (command, state) in [
        (["rebase", "--merge"], "rebase-merge/autostash"),
        (["rebase", "--apply"], "rebase-apply/autostash"),
        (["merge", "-q"], "MERGE_AUTOSTASH"),
    ] {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        conflict(work, &agent);
        write(work, "src/a.txt", "not committed\n");
        let stopped = git_output(work, &[command[0], command[1], "--autostash", "other"]);
        assert!(!stopped.status.success(), "{stopped:?}");
        assert!(work.join(".git").join(state).exists(), "{state}");
        world.salvage(agent).await;
        let kept = state.replace('/', "-");
        let file = format!("refs/mosaic/agents/{agent}/unfinished/{kept}:src/a.txt");
        assert_eq!(git(&world.mirror(), &["show", &file]), "not committed");
        assert_eq!(removed(&world, agent).await, Removal::Removed, "{state}");
    }

    // In a further working tree as well.
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    conflict(work, &agent);
    git(
        work,
        &["worktree", "add", "-q", "-b", "third", "inner", "HEAD"],
    );
    let inner = work.join("inner");
    write(&inner, "src/a.txt", "not committed\n");
    let stopped = git_output(&inner, &["rebase", "--autostash", "other"]);
    assert!(!stopped.status.success(), "{stopped:?}");
    let result = world.salvage(agent).await;
    let found = result.refs.iter().any(|name| {
        let file = format!("{name}:src/a.txt");
        name.contains("/unfinished/") && git(&world.mirror(), &["show", &file]) == "not committed"
    });
    assert!(found, "{:?}", result.refs);
}

#[tokio::test]
async fn a22_a_stash_of_git_that_is_not_there_keeps_the_tree() {
    let world = World::new().await;
    for (content, why) in [
        ("1".repeat(40), WhyNot::MissingObjects),
        ("nothing\n".to_owned(), WhyNot::Unreadable),
    ] {
        let (agent, prepared) = world.prepare().await;
        write(&prepared.workdir, ".git/rebase-merge/autostash", content);
        world.harvest(agent).await;
        let name = "unfinished/rebase-merge-autostash".to_owned();
        assert_eq!(missed(removed(&world, agent).await), [(name, why)]);
    }
}

// A23: git's own way to work at two things at once, in the folders where tools do it.
#[tokio::test]
async fn a23_a_further_working_tree_that_is_ignored_or_in_home_keeps_the_tree() {
    let world = World::new().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let add = |work: &Path, place: &Path| {
        let place = place.to_str().unwrap();
        git(work, &["worktree", "add", "-q", "--detach", place, "HEAD"]);
    };
    let told = |name: &str| vec![(name.to_owned(), WhyNot::NestedRepository)];

    for is_relative in [false, true] {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        let place = work.join("target/trees/x");
        add(work, &place);
        write(&place, "README", "not committed\n");
        if is_relative {
            let text = "../../../target/trees/x/.git\n";
            write(work, ".git/worktrees/x/gitdir", text);
        }
        world.harvest(agent).await;
        let removal = removed(&world, agent).await;
        assert_eq!(missed(removal), told("target/trees/x"), "{is_relative}");
        assert!(place.join("README").exists());
        // What the agent took away again is not there to be lost.
        fs::remove_dir_all(&place).unwrap();
        assert_eq!(removed(&world, agent).await, Removal::Removed);
    }

    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let home = work.parent().unwrap().join("home");
    add(work, &home.join("x"));
    add(work, &elsewhere.path().join("y"));
    world.harvest(agent).await;
    let removal = removed(&world, agent).await;
    if let Removal::Kept {
        why: KeptWhy::NotBroughtHome { items },
    } = &removal
    {
        assert!(items.iter().all(|item| item.is_in_home()), "{items:?}");
    }
    assert_eq!(missed(removal), told("~/x"));
    assert!(world.worktrees.may_need_home(&agent).await.unwrap());
    fs::remove_dir_all(home).unwrap();
    assert!(!world.worktrees.may_need_home(&agent).await.unwrap());
    assert_eq!(removed(&world, agent).await, Removal::Removed);
}

#[tokio::test]
async fn a22_refs_of_any_kind_come_home() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let mut commit = 0;
    let mut aside = || {
        commit += 1;
        let tree = git(work, &["rev-parse", "HEAD^{tree}"]);
        let message = format!("aside {commit}");
        git(work, &["commit-tree", &tree, "-m", &message, "-p", "HEAD"])
    };
    let mut named = Vec::new();
    for name in ["notes/commits", "wip/x", "mosaic/mine"] {
        let id = aside();
        git(work, &["update-ref", &format!("refs/{name}"), &id]);
        named.push((format!("refs/mosaic/agents/{agent}/{name}"), id));
    }
    // Names that are ours, that are no text, and that git refuses.
    let mut nameless = Vec::new();
    let refs = work.join(".git/refs");
    for name in [
        b"index".as_slice(),
        b"stashes/0",
        b"heads/\xff",
        b"heads/a..b",
    ] {
        let id = aside();
        let file = refs.join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("{id}\n")).unwrap();
        nameless.push(id);
    }
    let fetched = aside();
    git(work, &["update-ref", "refs/remotes/origin/new", &fetched]);
    let result = world.harvest(agent).await;
    for id in nameless {
        named.push((format!("refs/mosaic/agents/{agent}/tips/{id}"), id));
    }
    for (name, id) in &named {
        assert_eq!(world.mirror_tip(name).as_ref(), Some(id), "{name}");
    }
    assert_eq!(result.refs.len(), named.len() + 1, "{:?}", result.refs);
    assert_eq!(removed(&world, agent).await, Removal::Removed);
    world.fsck();
}

#[tokio::test]
async fn a22_commits_that_only_the_log_of_head_has_come_home() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let own = format!("mosaic/{agent}");
    write(work, "a", "1\n");
    agent_commit(work, "on the branch");
    git(work, &["checkout", "-q", "--detach"]);
    write(work, "a", "2\n");
    agent_commit(work, "detached");
    write(work, "a", "3\n");
    let detached = agent_commit(work, "detached, too");
    git(work, &["checkout", "-q", "-b", "gone", &own]);
    write(work, "b", "1\n");
    let deleted = agent_commit(work, "on a branch that goes");
    git(work, &["checkout", "-q", &own]);
    git(work, &["branch", "-q", "-D", "gone"]);
    let result = world.harvest(agent).await;
    let mut expected = vec![format!("refs/heads/{own}")];
    for id in [detached, deleted] {
        expected.push(format!("refs/mosaic/agents/{agent}/tips/{id}"));
    }
    // The last of each alone.
    let mut refs = result.refs;
    expected.sort();
    refs.sort();
    assert_eq!(refs, expected);
    assert_eq!(removed(&world, agent).await, Removal::Removed);
}

// A22: each is a line of a log, the last one at its end.
#[tokio::test]
async fn a22_the_last_of_many_stashes_comes_home_and_a_log_of_them_that_cannot_be_read_is_told() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let [old, last] = ["old", "last"].map(|text| {
        write(work, "README", text);
        let id = git(work, &["stash", "create"]);
        git(work, &["checkout", "-q", "README"]);
        id
    });
    let line = |id: &str| format!("{old} {id} A <a@example.org> 1700000000 +0000\tstash\n");
    let log = format!("{}{}", line(&old).repeat(1500), line(&last));
    write(work, ".git/logs/refs/stash", log);
    world.harvest(agent).await;
    let name = format!("refs/mosaic/agents/{agent}/stashes/1500");
    assert_eq!(world.mirror_tip(&name), Some(last));
    assert_eq!(removed(&world, agent).await, Removal::Removed);

    let (agent, prepared) = world.prepare().await;
    fs::create_dir_all(prepared.workdir.join(".git/logs/refs/stash")).unwrap();
    world.harvest(agent).await;
    let told = [(".git/logs/refs/stash".to_owned(), WhyNot::Unreadable)];
    assert_eq!(missed(removed(&world, agent).await), told);
}

#[tokio::test]
async fn a23_a_second_git_directory_by_another_spelling_keeps_the_tree() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    write(&prepared.workdir, ".GIT/work", "w\n");
    world.harvest(agent).await;
    let told = (".GIT".to_owned(), WhyNot::NameRefused);
    assert_eq!(missed(removed(&world, agent).await), [told]);
}

// A23: whoever removes HOME looks first at what the tree is kept for.
#[tokio::test]
async fn a23_home_stays_with_a_tree_that_is_kept_for_work_in_it() {
    let spoke = Spoke::start_process().await;
    for (script, is_kept) in [
        (
            "git worktree add -q --detach \"$HOME/x\" && echo work > \"$HOME/x/work\"",
            true,
        ),
        (
            "mkdir -p inner/.git \"$HOME/x\"; echo work > \"$HOME/x/work\"",
            false,
        ),
    ] {
        let agent = spoke.spawn(script).await;
        spoke.finished(agent).await;
        let place = spoke.data_dir().join(format!("agents/{agent}"));
        assert!(place.join("work").exists(), "{script}");
        assert_eq!(place.join("home/x/work").exists(), is_kept, "{script}");
        fs::remove_dir_all(place).unwrap();
    }
    spoke.stop().await;
}

// A22: what one working tree has for itself: git looks for it in `.git/worktrees`, and writes no log of it.
#[tokio::test]
async fn a22_refs_of_one_working_tree_alone_come_home() {
    let world = World::new().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let linked = elsewhere.path().join("x");
    let place = linked.to_str().unwrap();
    git(work, &["worktree", "add", "-q", "--detach", place, "HEAD"]);
    let mut ids = Vec::new();
    for dir in [work.as_path(), &linked] {
        for name in [
            "refs/worktree/x",
            "refs/bisect/bad",
            "refs/rewritten/a/b",
            "ORIG_HEAD",
            "WIP_HEAD",
        ] {
            let tree = git(dir, &["rev-parse", "HEAD^{tree}"]);
            let message = format!("{name} of {}", dir.display());
            let id = git(dir, &["commit-tree", &tree, "-m", &message, "-p", "HEAD"]);
            git(dir, &["update-ref", name, &id]);
            ids.push(id);
        }
    }
    world.harvest(agent).await;
    for id in ids {
        let refs = format!("refs/mosaic/agents/{agent}/");
        let holding = ["for-each-ref", "--contains", &id, &refs];
        assert_ne!(git(&world.mirror(), &holding), "", "{id}");
    }
    assert_eq!(removed(&world, agent).await, Removal::Removed);

    // What a ref names and is not there is told; git itself does not keep what ORIG_HEAD names.
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let place = elsewhere.path().join("y");
    let place = place.to_str().unwrap();
    git(work, &["worktree", "add", "-q", "--detach", place, "HEAD"]);
    let gone = "1".repeat(40);
    write(work, ".git/worktrees/y/ORIG_HEAD", &gone);
    write(work, ".git/worktrees/y/refs/worktree/gone", &gone);
    world.harvest(agent).await;
    let name = ".git/worktrees/y/refs/worktree/gone".to_owned();
    let told = [(name, WhyNot::MissingObjects)];
    assert_eq!(missed(removed(&world, agent).await), told);
}

// A22: a merge of several branches at once, whose names are gone.
#[tokio::test]
async fn a22_every_side_of_a_merge_that_was_broken_off_comes_home() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let mut merge = vec!["merge".to_owned(), "--no-commit".to_owned()];
    for name in ["a", "b", "c"] {
        write(work, name, name);
        git(work, &["add", name]);
        let tree = git(work, &["write-tree"]);
        git(work, &["rm", "-q", "-f", name]);
        merge.push(git(work, &["commit-tree", &tree, "-m", name, "-p", "HEAD"]));
    }
    let merge: Vec<&str> = merge.iter().map(String::as_str).collect();
    git(work, &merge);
    let lines = fs::read_to_string(work.join(".git/MERGE_HEAD")).unwrap();
    assert_eq!(lines.lines().count(), 3);
    world.salvage(agent).await;
    for (name, id) in ["", "-1", "-2"].iter().zip(&merge[2..]) {
        let name = format!("refs/mosaic/agents/{agent}/unfinished/MERGE_HEAD{name}");
        assert_eq!(world.mirror_tip(&name).as_deref(), Some(*id), "{name}");
    }
    assert_eq!(removed(&world, agent).await, Removal::Removed);
}

// A23: a commit whose submodule is not checked out any more is in no tree, and in no object of this repository.
#[tokio::test]
async fn a23_the_repository_of_a_submodule_keeps_the_tree() {
    let world = World::new().await;
    let sub = world.dir.path().join("sub");
    git(world.dir.path(), &["clone", "-q", "source", "sub"]);
    git(
        &world.source,
        &["submodule", "--quiet", "add", "../sub", "sub"],
    );
    let module = format!("file://{}", sub.display());
    let key = "submodule.sub.url";
    git(
        &world.source,
        &["config", "-f", ".gitmodules", key, &module],
    );
    commit_all(&world.source, "submodule");
    let elsewhere = tempfile::tempdir().unwrap();
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(work, &["submodule", "--quiet", "update", "--init", "sub"]);
    write(&work.join("sub"), "work", "w\n");
    let inner = commit_all(&work.join("sub"), "in the submodule");
    agent_commit(work, "a link to it");
    git(work, &["submodule", "--quiet", "deinit", "-f", "sub"]);
    assert_eq!(fs::read_dir(work.join("sub")).unwrap().count(), 0);
    let result = world.harvest(agent).await;
    assert!(!result.uncommitted_committed);
    let told = [(".git/modules".to_owned(), WhyNot::Submodule)];
    assert_eq!(missed(removed(&world, agent).await), told);
    let modules = work.join(".git/modules");
    git(&modules.join("sub"), &["cat-file", "-e", &inner]);

    // In a further working tree, which has its own.
    fs::remove_dir_all(&modules).unwrap();
    let place = elsewhere.path().join("x");
    let place = place.to_str().unwrap();
    git(
        work,
        &["worktree", "add", "-q", "--detach", place, "HEAD~1"],
    );
    let linked = std::path::PathBuf::from(place);
    git(
        &linked,
        &["submodule", "--quiet", "update", "--init", "sub"],
    );
    world.harvest(agent).await;
    let name = ".git/worktrees/x/modules".to_owned();
    let told = [(name, WhyNot::Submodule)];
    assert_eq!(missed(removed(&world, agent).await), told);
}

// A23: of a large file a commit has a pointer, and the tree has it only while that commit is checked out.
#[tokio::test]
async fn a23_contents_of_large_files_beside_the_objects_keep_the_tree() {
    let world = World::new().await;
    for (place, file) in [
        ("lfs/objects", "aa/bb/aabb"),
        ("annex/objects", "x/y/SHA256E-s2--aa/SHA256E-s2--aa"),
    ] {
        let (agent, prepared) = world.prepare().await;
        let git_dir = prepared.workdir.join(".git");
        // As an upload leaves it, and a look that found nothing.
        let object = git_dir.join(place).join(file);
        fs::create_dir_all(object.parent().unwrap()).unwrap();
        write(&git_dir, "lfs/cache/locks", "l");
        assert_eq!(world.harvest(agent).await.not_brought_home, []);
        fs::write(object, "w").unwrap();
        let told = [(format!(".git/{place}"), WhyNot::LargeFiles)];
        world.harvest(agent).await;
        assert_eq!(missed(removed(&world, agent).await), told);
        fs::remove_dir_all(git_dir.join(place)).unwrap();
        assert_eq!(removed(&world, agent).await, Removal::Removed);
    }
    // Where a link leads is not looked at, and not taken for nothing.
    let (agent, prepared) = world.prepare().await;
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), prepared.workdir.join(".git/lfs")).unwrap();
    world.harvest(agent).await;
    let told = [(".git/lfs/objects".to_owned(), WhyNot::LargeFiles)];
    assert_eq!(missed(removed(&world, agent).await), told);
}
