//! Files that nobody changed or deleted, though it may look so: of a sparse checkout whose index cannot be read, and
//! with line ends that git leaves as they are.

use std::{fs, path::Path};

use mosaic_orchestrator::worktree::{NotBroughtHome, Removal, RemovalMode, WhyNot};

use super::super::support::{World, commit_all, git, write};

fn index_is(why: WhyNot) -> [NotBroughtHome; 1] {
    let path = ".git/index".to_owned();
    [NotBroughtHome { path, why }]
}

async fn with_docs() -> World {
    let world = World::new().await;
    write(&world.source, "docs/deep/er/a.md", "a\n");
    write(&world.source, "docs/b.md", "b\n");
    commit_all(&world.source, "docs");
    world
}

#[tokio::test]
async fn a23_a_sparse_checkout_with_an_index_that_cannot_be_read_deletes_nothing() {
    let world = with_docs().await;
    let sparse = ["sparse-checkout", "set", "--cone", "--sparse-index", "src"];
    let split: [&[&str]; 2] = [
        &["sparse-checkout", "set", "--no-cone", "/src/"],
        &["update-index", "--split-index"],
    ];
    let ways: [(&str, Vec<&[&str]>, WhyNot); 3] = [
        ("sparse", vec![&sparse], WhyNot::Unreadable),
        ("split", split.to_vec(), WhyNot::Unreadable),
        ("large", vec![split[0]], WhyNot::TooLarge),
    ];
    for (what, commands, why) in ways {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        for command in commands {
            git(work, command);
        }
        if what == "large" {
            let index = work.join(".git/index");
            let index = fs::File::options().write(true).open(index).unwrap();
            index.set_len((256 << 20) + 1).unwrap();
        }
        assert!(!work.join("docs").exists());
        write(work, "src/a.txt", "changed\n");
        let result = world.harvest(agent).await;
        assert_eq!((result.files_changed, result.insertions), (1, 1), "{what}");
        assert_eq!(result.not_brought_home, index_is(why), "{what}");
        let listed = git(
            &world.mirror(),
            &["ls-tree", "-r", "--name-only", &result.head_commit],
        );
        assert!(listed.contains("docs/deep/er/a.md"), "{what}: {listed}");
        let removal = world.worktrees.remove(&agent, RemovalMode::OnlySecured);
        assert!(matches!(removal.await.unwrap(), Removal::Kept { .. }));
    }
    // Of a whole checkout, what the agent deleted is deleted; and so it is without an index.
    for without in [false, true] {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        fs::remove_dir_all(work.join("docs")).unwrap();
        if without {
            fs::remove_file(work.join(".git/index")).unwrap();
        }
        let result = world.harvest(agent).await;
        assert_eq!((result.files_changed, result.deletions), (2, 2));
    }
}

#[tokio::test]
async fn a_sparse_checkout_keeps_what_it_left_out_and_no_more() {
    let world = with_docs().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(
        work,
        &["sparse-checkout", "set", "--no-cone", "/*", "!/docs/deep"],
    );
    assert!(!work.join("docs/deep").exists());
    fs::remove_file(work.join("docs/b.md")).unwrap();
    fs::remove_file(work.join("src/a.txt")).unwrap();
    let result = world.harvest(agent).await;
    assert_eq!(result.not_brought_home, []);
    let listed = git(
        &world.mirror(),
        &["ls-tree", "-r", "--name-only", &result.head_commit],
    );
    assert_eq!(listed, ".gitignore\nREADME\ndocs/deep/er/a.md");
}

/// What `git add -A` makes of a tree.
fn added(work: &Path, into: &Path) -> String {
    let mut copy = std::process::Command::new("cp");
    let copied = copy.arg("-a").arg(work).arg(into).status();
    assert!(copied.unwrap().success());
    git(into, &["add", "-A"]);
    git(into, &["write-tree"])
}

#[tokio::test]
async fn line_ends_of_files_that_git_leaves_alone_stay() {
    let world = World::new().await;
    let lines = |text: &str| {
        (0..50)
            .map(|line| format!("{text} {line}\r\n"))
            .collect::<String>()
    };
    for name in [
        "dos.txt",
        "edited.txt",
        "src/other.txt",
        "src/.gitattributes",
    ] {
        write(&world.source, name, lines("*.none"));
    }
    commit_all(&world.source, "line ends");
    write(&world.source, ".gitattributes", "* text=auto\n");
    git(&world.source, &["add", ".gitattributes"]);
    let who = ["-c", "user.name=S", "-c", "user.email=s@example.org"];
    git(
        &world.source,
        &[who.as_slice(), &["commit", "-q", "-m", "attributes"]].concat(),
    );
    for index in ["its own", "none", "unreadable", "split"] {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        let mut edited = lines("*.none");
        edited.push_str("one more\r\n");
        write(work, "edited.txt", &edited);
        // As they were, but written.
        for name in ["dos.txt", "src/other.txt", "src/.gitattributes"] {
            write(work, name, lines("*.none"));
        }
        write(work, "new.txt", "new\r\n");
        let expected = added(work, &world.dir.path().join(format!("added {index}")));
        match index {
            "none" => fs::remove_file(work.join(".git/index")).unwrap(),
            "unreadable" => write(work, ".git/index", "x"),
            "split" => drop(git(work, &["update-index", "--split-index"])),
            _ => {}
        }
        let result = world.harvest(agent).await;
        let mirror = world.mirror();
        let head = format!("{}^{{tree}}", result.head_commit);
        if index == "its own" {
            assert_eq!(git(&mirror, &["rev-parse", &head]), expected);
        }
        let against = |name: &str| {
            let range = [&result.base_commit, &result.head_commit];
            let counts = git(
                &mirror,
                &["diff", "--numstat", range[0], range[1], "--", name],
            );
            counts
                .split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        };
        for (name, counts) in [
            ("dos.txt", ""),
            ("edited.txt", "1 0"),
            ("src/other.txt", ""),
            ("src/.gitattributes", ""),
            ("new.txt", "1 0"),
        ] {
            assert_eq!(against(name), counts, "{index}: {name}");
        }
        let new = format!("{}:new.txt", result.head_commit);
        assert_eq!(git(&mirror, &["cat-file", "-s", &new]), "4", "{index}");
        super::super::patch::am(&world, &result);
    }
}

#[tokio::test]
async fn line_ends_in_a_conflict_are_those_of_our_side() {
    let world = World::new().await;
    write(&world.source, "dos.txt", "one\r\ntwo\r\n");
    commit_all(&world.source, "line ends");
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, ".gitattributes", "dos.txt text=auto\n");
    git(work, &["add", ".gitattributes"]);
    git(work, &["commit", "-q", "-m", "attributes"]);
    let commit = |text: &str| {
        write(work, "dos.txt", text);
        git(work, &["commit", "-q", "-a", "-m", text.trim_end()]);
    };
    git(work, &["branch", "other"]);
    commit("ours\r\ntwo\r\n");
    git(work, &["checkout", "-q", "other"]);
    commit("theirs\r\ntwo\r\n");
    let _ = super::super::support::git_output(work, &["merge", "-q", &format!("mosaic/{agent}")]);
    assert!(git(work, &["ls-files", "-u"]).contains("dos.txt"));
    write(work, "dos.txt", "both\r\ntwo\r\n");
    let result = world.harvest(agent).await;
    let shown = format!("{}:dos.txt", result.head_commit);
    assert_eq!(git(&world.mirror(), &["cat-file", "-s", &shown]), "11");
}

// Where a sparse checkout left the attributes out, git reads those that are tracked.
#[tokio::test]
async fn attributes_that_a_sparse_checkout_left_out_hold() {
    let world = World::new().await;
    write(&world.source, ".gitattributes", "*.bat text eol=crlf\n");
    write(&world.source, "src/run.bat", "echo\n");
    write(&world.source, "src/other.bat", "echo\n");
    commit_all(&world.source, "attributes");
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(work, &["sparse-checkout", "set", "--no-cone", "/src/"]);
    assert!(!work.join(".gitattributes").exists());
    write(work, "src/run.bat", "echo 2\r\n");
    write(work, "src/other.bat", "echo\r\n");
    let expected = added(work, &world.dir.path().join("added"));
    let result = world.harvest(agent).await;
    let head = format!("{}^{{tree}}", result.head_commit);
    assert_eq!(git(&world.mirror(), &["rev-parse", &head]), expected);
    assert_eq!(result.files_changed, 1);
}

// Attributes of the index hold where the working tree has none of its own, and there alone.
#[tokio::test]
async fn attributes_that_the_agent_took_away_do_not_hold() {
    let world = World::new().await;
    write(&world.source, ".gitattributes", "*.txt text\n");
    write(&world.source, "a.txt", "one\n");
    commit_all(&world.source, "attributes");
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, ".gitattributes", "*.none text\n");
    write(work, "a.txt", "one\r\n");
    let expected = added(work, &world.dir.path().join("added"));
    let result = world.harvest(agent).await;
    let head = format!("{}^{{tree}}", result.head_commit);
    assert_eq!(git(&world.mirror(), &["rev-parse", &head]), expected);
    let shown = format!("{}:a.txt", result.head_commit);
    assert_eq!(git(&world.mirror(), &["cat-file", "-s", &shown]), "5");
}
