//! Repositories that are unlike most: without a head, with submodules or pointers, with names of every kind, huge.

use std::{
    fs,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Stdio},
};

use mosaic_orchestrator::worktree::{
    BranchName, KeptWhy, Removal, RemovalMode, RepositoryUrl, WhyNot, WorktreeError,
};
use mosaic_types::{AgentId, ErrorCode};

use super::support::*;

fn url(path: &Path) -> RepositoryUrl {
    RepositoryUrl::parse(&format!("file://{}", path.display())).unwrap()
}

/// What the look before an agent exists says, and what making its tree says.
async fn refusals(world: &World, path: &Path, branch: &str) -> [WorktreeError; 2] {
    let branch = BranchName::parse(branch).unwrap();
    let looked = world.worktrees.check(&url(path), &branch).await;
    let agent = AgentId::generate();
    let made = world
        .worktrees
        .prepare(&agent, &url(path), &branch, || {})
        .await;
    [looked.unwrap_err(), made.unwrap_err()]
}

/// What is cut off there is missing for good: the agent's own history could not be walked, nor brought home.
#[tokio::test]
async fn a_shallow_clone_is_refused_and_told_so() {
    let world = World::new().await;
    write(&world.source, "more", "more\n");
    commit_all(&world.source, "more");
    let source = format!("file://{}", world.source.display());
    let clone = ["clone", "-q", "--depth=1", &source, "shallow"];
    git(world.dir.path(), &clone);
    for error in refusals(&world, &world.dir.path().join("shallow"), "main").await {
        assert!(error.to_string().contains("shallow clone"), "{error}");
        assert_eq!(error.field(), Some("context.repository"), "{error}");
    }
}

#[tokio::test]
async fn a_repository_whose_head_points_nowhere_is_had_by_a_branchs_name() {
    let world = World::new().await;
    let bare = world.dir.path().join("bare.git");
    git(
        world.dir.path(),
        &["clone", "-q", "--bare", "source", "bare.git"],
    );
    let tip = git(&bare, &["rev-parse", "main"]);
    fs::write(bare.join("HEAD"), "ref: refs/heads/gone\n").unwrap();
    let branch = BranchName::parse("main").unwrap();
    world.worktrees.check(&url(&bare), &branch).await.unwrap();
    let agent = AgentId::generate();
    let prepared = world
        .worktrees
        .prepare(&agent, &url(&bare), &branch, || {})
        .await;
    assert_eq!(prepared.unwrap().base_commit, tip);
    for error in refusals(&world, &bare, "HEAD").await {
        let told = (error.code(), error.field());
        let expected = (ErrorCode::UnknownBranch, Some("context.branch"));
        assert_eq!(told, expected, "{error}");
    }
    // Without one, or with one that names nothing, it is no repository to git either.
    let lost = format!("{}\n", "1".repeat(40));
    for head in [None, Some("garbage\n"), Some(""), Some(&lost)] {
        match head {
            Some(head) => fs::write(bare.join("HEAD"), head).unwrap(),
            None => fs::remove_file(bare.join("HEAD")).unwrap(),
        }
        for error in refusals(&world, &bare, "main").await {
            let told = (error.code(), error.field());
            let expected = (ErrorCode::UnknownRepository, Some("context.repository"));
            assert_eq!(told, expected, "{head:?}: {error}");
        }
    }
}

// A20: where a submodule comes from is the repository's to say, and nobody here asks there.
#[tokio::test]
async fn a20_submodules_are_links_and_nothing_is_fetched_for_them() {
    let world = World::new().await;
    let sentinel = world.dir.path().join("sentinel");
    git(world.dir.path(), &["clone", "-q", "source", "sub"]);
    git(
        &world.source,
        &["submodule", "--quiet", "add", "../sub", "sub"],
    );
    let run = format!("touch {}", sentinel.display());
    let set = |key: &str, value: &str| {
        let key = format!("submodule.sub.{key}");
        git(&world.source, &["config", "-f", ".gitmodules", &key, value]);
    };
    set("url", &format!("ext::sh -c {run}"));
    commit_all(&world.source, "submodule");
    git(&world.source, &["branch", "good"]);
    // What would be run by `git submodule update` is refused by git itself.
    set("update", &format!("!{run}"));
    commit_all(&world.source, "a program");
    git(&world.source, &["branch", "program"]);
    fs::write(world.source.join(".gitmodules"), "[submodule \"x\n").unwrap();
    commit_all(&world.source, "no configuration");
    for branch in ["program", "main"] {
        let agent = AgentId::generate();
        let error = world.try_prepare(&agent, branch).await.unwrap_err();
        let told = (error.code(), error.field());
        let expected = (ErrorCode::UnknownRepository, Some("context.repository"));
        assert_eq!(told, expected, "{branch}: {error}");
        assert!(error.to_string().contains(".gitmodules"), "{error}");
    }
    let agent = AgentId::generate();
    let prepared = world.try_prepare(&agent, "good").await.unwrap();
    let sub = prepared.workdir.join("sub");
    assert_eq!(fs::read_dir(&sub).unwrap().count(), 0);
    assert!(!sentinel.exists());

    // What an agent does in one is not lost in silence, and what it writes about them is only text.
    let rules = format!("[submodule \"sub\"]\n\tpath = sub\n\tupdate = !{run}\n[");
    write(&prepared.workdir, ".gitmodules", rules);
    write(&sub, "work", "w\n");
    let result = world.harvest(agent).await;
    assert_eq!(result.not_brought_home[0].path, "sub");
    assert_eq!(result.not_brought_home[0].why, WhyNot::Submodule);
    git(&sub, &["init", "-q"]);
    commit_all(&sub, "in the submodule");
    let result = world.harvest(agent).await;
    assert_eq!(result.not_brought_home[0].why, WhyNot::Submodule);
    let listed = git(&world.mirror(), &["ls-tree", &result.head_commit, "sub"]);
    assert!(listed.starts_with("160000 commit"), "{listed}");
    let kept = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await
        .unwrap();
    assert!(matches!(
        kept,
        Removal::Kept {
            why: KeptWhy::NotBroughtHome { .. }
        }
    ));
    assert!(!sentinel.exists());
}

// A20: a filter is a program. Large files stay the pointers that the repository has.
#[tokio::test]
async fn a20_pointers_of_large_files_stay_pointers() {
    let world = World::new().await;
    let sentinel = world.dir.path().join("sentinel");
    let pointer = |n: u32| {
        format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {n}\n",
            "a".repeat(64)
        )
    };
    let attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n";
    write(&world.source, ".gitattributes", attributes);
    write(
        &world.source,
        ".lfsconfig",
        "[lfs]\n\turl = http://127.0.0.1:1/\n",
    );
    write(&world.source, "large.bin", pointer(1));
    commit_all(&world.source, "pointers");
    let filter = |dir: &Path| {
        for kind in ["clean", "smudge", "process"] {
            let run = format!("touch {}; cat", sentinel.display());
            git(dir, &["config", &format!("filter.lfs.{kind}"), &run]);
        }
        git(dir, &["config", "filter.lfs.required", "true"]);
    };
    filter(&world.source);
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let read = |name: &str| fs::read_to_string(work.join(name)).unwrap();
    assert_eq!(read("large.bin"), pointer(1));
    filter(work);
    write(work, "large.bin", pointer(2));
    write(work, "new.bin", "not a pointer\n");
    let result = world.harvest(agent).await;
    let show = |name: &str| {
        let file = format!("{}:{name}", result.head_commit);
        git(&world.mirror(), &["cat-file", "blob", &file])
    };
    assert_eq!(show("large.bin"), pointer(2).trim_end());
    assert_eq!(show("new.bin"), "not a pointer");
    assert_eq!(result.files_changed, 2);
    assert!(!sentinel.exists());
}

#[tokio::test]
async fn branches_that_differ_by_case_are_two() {
    let world = World::new().await;
    let lower = git(&world.source, &["rev-parse", "main"]);
    git(&world.source, &["branch", "topic"]);
    write(&world.source, "upper", "u\n");
    let upper = commit_all(&world.source, "upper");
    git(&world.source, &["branch", "Topic"]);
    for (branch, tip) in [("topic", &lower), ("Topic", &upper)] {
        let agent = AgentId::generate();
        let prepared = world.try_prepare(&agent, branch).await.unwrap();
        assert_eq!(&prepared.base_commit, tip, "{branch}");
    }
    let error = world.try_prepare(&AgentId::generate(), "TOPIC").await;
    assert_eq!(error.unwrap_err().code(), ErrorCode::UnknownBranch);
    // An agent's own, with work on each.
    let (agent, prepared) = world.prepare().await;
    let mut tips = Vec::new();
    for branch in ["work", "Work"] {
        git(
            &prepared.workdir,
            &["checkout", "-q", "-b", branch, "origin/main"],
        );
        write(&prepared.workdir, "which", branch);
        tips.push(agent_commit(&prepared.workdir, branch));
    }
    git(
        &prepared.workdir,
        &["checkout", "-q", &format!("mosaic/{agent}")],
    );
    world.harvest(agent).await;
    for (branch, tip) in ["work", "Work"].iter().zip(tips) {
        let name = format!("refs/mosaic/agents/{agent}/heads/{branch}");
        assert_eq!(world.mirror_tip(&name), Some(tip));
    }
}

/// A repository of so many files, by `git fast-import`.
fn many_files(source: &Path, dirs: u32, files: u32) {
    let mut import = Command::new("git")
        .args(["fast-import", "--quiet", "--force"])
        .current_dir(source)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stream = b"commit refs/heads/many\n\
        committer Someone <s@example.org> 1700000000 +0000\ndata 4\nmany\n"
        .to_vec();
    for dir in 0..dirs {
        for file in 0..files {
            let text = format!("{}\n", file % 10);
            stream.extend(format!("M 644 inline d{dir}/f{file}\ndata {}\n", text.len()).bytes());
            stream.extend(text.bytes());
        }
    }
    import.stdin.take().unwrap().write_all(&stream).unwrap();
    assert!(import.wait().unwrap().success());
}

#[tokio::test]
async fn a_hundred_thousand_files_come_and_go() {
    let world = World::new().await;
    many_files(&world.source, 100, 1000);
    let agent = AgentId::generate();
    let prepared = world.try_prepare(&agent, "many").await.unwrap();
    let work = &prepared.workdir;
    assert!(work.join("d99/f999").exists());
    write(work, "d50/f500", "changed\n");
    fs::remove_file(work.join("d0/f0")).unwrap();
    write(work, "d100/new", "n\n");
    let result = world.harvest(agent).await;
    assert_eq!(result.files_changed, 3);
    let bytes = result.patch.unwrap().bytes;
    assert!(bytes < 4096, "{bytes}");
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await;
    assert_eq!(removal.unwrap(), Removal::Removed);
    assert!(!work.exists());
}

#[tokio::test]
async fn more_files_than_the_limit_are_refused_and_kept() {
    let world = World::with(|config| config.limits.max_files = 500).await;
    many_files(&world.source, 2, 200);
    let agent = AgentId::generate();
    let prepared = world.try_prepare(&agent, "many").await.unwrap();
    for file in 0..200 {
        write(&prepared.workdir, &format!("d2/f{file}"), "more\n");
    }
    let request = mosaic_orchestrator::worktree::HarvestRequest {
        agent,
        landing: mosaic_orchestrator::worktree::Landing::Branch,
        now_secs: NOW,
    };
    let harvested = world.worktrees.harvest(&request).await;
    assert!(matches!(harvested, Err(WorktreeError::TooLarge { .. })));
    assert!(prepared.workdir.join("d2/f199").exists());
}

#[tokio::test]
async fn names_of_the_repository_that_are_no_text_are_checked_out() {
    let world = World::new().await;
    let names: [&[u8]; 8] = [
        b"new\nline",
        b"latin\xe9",
        b"quote\"back\\slash",
        b"-rf",
        b"--exec=x",
        b":(glob)*",
        b" space ",
        b"$(touch x)`touch y`",
    ];
    let path = |dir: &Path, name: &[u8]| dir.join(std::ffi::OsStr::from_bytes(name));
    for name in names {
        fs::write(path(&world.source, name), name).unwrap();
    }
    commit_all(&world.source, "names");
    let (agent, prepared) = world.prepare().await;
    for name in names {
        let file = path(&prepared.workdir, name);
        assert_eq!(fs::read(&file).unwrap(), name);
        fs::write(&file, [name, b"\nmore\n"].concat()).unwrap();
    }
    let result = world.harvest(agent).await;
    assert_eq!(result.files_changed, names.len());
    super::patch::am(&world, &result);
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::OnlySecured)
            .await
            .unwrap(),
        Removal::Removed
    );
}
