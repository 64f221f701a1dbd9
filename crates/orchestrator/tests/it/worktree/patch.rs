//! The patch, judged by the real `git am` on a fresh clone: the tree it makes is the agent's.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use mosaic_orchestrator::worktree::{PatchForm, Removal, RemovalMode, WorkResult};

use super::support::*;

/// Applies the patch on the base, with `git am`'s defaults, and compares the trees.
pub(super) fn am(world: &World, result: &WorkResult) -> std::path::PathBuf {
    let clone = world
        .dir
        .path()
        .join(format!("clone-{}", result.head_commit));
    git(
        world.dir.path(),
        &["clone", "-q", "source", clone.to_str().unwrap()],
    );
    git(&clone, &["checkout", "-q", "--detach", &result.base_commit]);
    let patch = result.patch.as_ref().unwrap();
    assert_eq!(patch.bytes, fs::metadata(&patch.path).unwrap().len());
    git(
        &clone,
        &[
            "-c",
            "user.name=C",
            "-c",
            "user.email=c@c",
            "am",
            "-q",
            patch.path.to_str().unwrap(),
        ],
    );
    let tree = git(&clone, &["rev-parse", "HEAD^{tree}"]);
    let expected = git(
        &world.mirror(),
        &["rev-parse", &format!("{}^{{tree}}", result.head_commit)],
    );
    assert_eq!(
        tree,
        expected,
        "{}",
        git(&world.mirror(), &["diff", "--stat", &tree, &expected])
    );
    clone
}

fn as_author(work: &Path, name: &str, message: &str) {
    git(work, &["add", "-A"]);
    let author = format!("{name} <a@example.org>");
    git(
        work,
        &[
            "commit",
            "-q",
            "--cleanup=verbatim",
            "--allow-empty",
            "--author",
            &author,
            "-m",
            message,
        ],
    );
}

#[tokio::test]
async fn every_kind_of_change_survives_git_am() {
    let world = World::new().await;
    let source = &world.source;
    write(source, "bin/tool", "#!/bin/sh\n");
    write(source, "gone.txt", "bye\n");
    write(source, "old name.txt", "one\ntwo\nthree\nfour\n");
    write(source, "blob.bin", [0, 1, 2, 3, 0, 255, 254].repeat(500));
    write(source, "crlf.txt", "a\r\nb\r\nc\r\n");
    write(source, "latin1.txt", b"caf\xe9\nx\ny\n");
    write(source, "to-link", "file\n");
    write(source, "no-newline", "text");
    commit_all(source, "more");
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    write(work, "README", "hello\nWORLD\n");
    write(work, "blob.bin", [0, 1, 2, 3, 0, 255, 253].repeat(600));
    write(
        work,
        "new.bin",
        (0..=255_u8).cycle().take(70_000).collect::<Vec<u8>>(),
    );
    fs::set_permissions(work.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(work.join("gone.txt")).unwrap();
    fs::rename(work.join("old name.txt"), work.join("new name.txt")).unwrap();
    as_author(
        work,
        "Zoë Müller, Dr. (äh)",
        "Grüße: äöü 漢字 and a subject that is so long that it needs to be folded over more than one encoded word, surely\n\nbody ß\n",
    );
    symlink("README", work.join("link")).unwrap();
    fs::remove_file(work.join("to-link")).unwrap();
    symlink("nowhere/at all", work.join("to-link")).unwrap();
    write(work, "crlf.txt", "a\r\nB\r\nc\r\n");
    write(work, "latin1.txt", b"caf\xe9\nX\xff\ny\n");
    write(work, "no-newline", "text\nmore");
    write(work, "empty", "");
    write(work, "dir/ümlaut \"q\"\t.txt", "u\n");
    write(work, "with space", "s\n");
    write(
        work,
        "late-nul",
        [b"x\n".repeat(9000), vec![0, b'\n']].concat(),
    );
    write(
        work,
        "looks-like-mail",
        "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: x\n---\n-- \n",
    );
    write(work, ".gitattributes", "*.txt -diff\nREADME binary\n");
    as_author(work, "A. U. Thor", "second");
    fs::write(work.join("README"), "uncommitted\n").unwrap();
    let result = world.harvest(agent).await;
    assert_eq!(result.commits.len(), 3);
    let patch = result.patch.clone().unwrap();
    assert_eq!((patch.form, patch.mails), (PatchForm::Commits, 3));
    let clone = am(&world, &result);
    assert_eq!(
        git(&clone, &["log", "-3", "--format=%an <%ae> %at"]),
        git(
            &world.mirror(),
            &["log", "-3", "--format=%an <%ae> %at", &result.head_commit]
        )
    );
    assert_eq!(
        git(&clone, &["log", "-3", "--format=%s%n%b"]),
        git(
            &world.mirror(),
            &["log", "-3", "--format=%s%n%b", &result.head_commit]
        )
    );
    assert_eq!(
        git(
            &clone,
            &["log", "-1", "--format=%ad", "--date=raw", "HEAD~1"]
        ),
        "1700000000 +0200"
    );
}

#[tokio::test]
async fn messages_that_look_like_patches_do_not_mislead_git_am() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    for (number, message) in [
        "subject\n\nbefore\n---\nafter\n",
        "subject\n\ndiff --git a/README b/README\n--- a/README\n+++ b/README\n@@ -1 +1 @@\n-hello\n+evil\n",
        "subject\n\nFrom 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: Evil <e@e>\nSubject: x\n\nx\n",
        "subject\n\nFrom: Evil <evil@example.org>\nDate: Thu, 1 Jan 1970 00:00:00 +0000\nSubject: other\n\nx\n",
        "subject\n\nIndex: README\n===\n",
        "subject\non two lines\n\nbody",
        "=?UTF-8?q?fake?= subject",
        "subject\n\n-- \nsignature\n",
        "subject\n\n  \n8< ---- >8\nscissors\n",
        "\n\nlate subject\n",
        "subject\n\n\u{1}control\u{7f}\r\n.\n",
    ]
    .iter()
    .enumerate()
    {
        write(work, "file", format!("{number}\n"));
        as_author(work, "Agent", message);
    }
    let result = world.harvest(agent).await;
    let clone = am(&world, &result);
    assert_eq!(
        git(
            &clone,
            &[
                "rev-list",
                "--count",
                &format!("{}..HEAD", result.base_commit)
            ]
        ),
        "11"
    );
    let authors = git(
        &clone,
        &[
            "log",
            "--format=%ae",
            &format!("{}..HEAD", result.base_commit),
        ],
    );
    assert!(
        authors.lines().all(|author| author == "a@example.org"),
        "{authors}"
    );
}

#[tokio::test]
async fn empty_commits_are_counted_and_left_out() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    as_author(&prepared.workdir, "Agent", "nothing");
    write(&prepared.workdir, "x", "x\n");
    as_author(&prepared.workdir, "Agent", "something");
    let result = world.harvest(agent).await;
    let patch = result.patch.clone().unwrap();
    assert_eq!(
        (
            result.commits.len(),
            patch.mails,
            patch.commits_without_changes
        ),
        (2, 1, 1)
    );
    am(&world, &result);
}

#[tokio::test]
async fn merges_are_squashed_and_said_to_be() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    git(work, &["checkout", "-q", "-b", "side"]);
    write(work, "side", "s\n");
    as_author(work, "Agent", "side");
    git(work, &["checkout", "-q", &format!("mosaic/{agent}")]);
    write(work, "main", "m\n");
    as_author(work, "Agent", "main");
    git(work, &["merge", "-q", "--no-edit", "side"]);
    let result = world.harvest(agent).await;
    assert_eq!(result.commits.len(), 3);
    let patch = result.patch.clone().unwrap();
    assert_eq!((patch.form, patch.mails), (PatchForm::Squashed, 1));
    am(&world, &result);
}

#[tokio::test]
async fn no_work_is_an_empty_patch() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let result = world.harvest(agent).await;
    assert_eq!(result.head_commit, prepared.base_commit);
    assert_eq!(result.files_changed, 0);
    assert!(result.commits.is_empty() && !result.uncommitted_committed);
    assert_eq!(result.patch.unwrap().bytes, 0);
}

#[tokio::test]
async fn line_ends_follow_the_attributes_of_the_tree() {
    let world = World::new().await;
    write(&world.source, ".gitattributes", "*.bat text eol=crlf\n");
    write(&world.source, "run.bat", "echo\n");
    commit_all(&world.source, "attributes");
    let (agent, prepared) = world.prepare().await;
    assert_eq!(
        fs::read(prepared.workdir.join("run.bat")).unwrap(),
        b"echo\r\n"
    );
    assert_eq!(git(&prepared.workdir, &["status", "--porcelain"]), "");
    assert_eq!(world.harvest(agent).await.files_changed, 0);
    write(&prepared.workdir, "run.bat", "echo 2\r\n");
    let result = world.harvest(agent).await;
    assert_eq!(
        git(
            &world.mirror(),
            &["cat-file", "-p", &format!("{}:run.bat", result.head_commit)]
        ),
        "echo 2"
    );
    am(&world, &result);
}

// More mails than anybody would apply; of its commits the branch tells.
#[tokio::test]
async fn a_history_without_end_is_one_mail() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let branch = format!("refs/heads/mosaic/{agent}");
    let mut stream = Vec::new();
    for number in 0..=100_000 {
        write!(
            stream,
            "commit {branch}\ncommitter A <a@example.org> 1700000000 +0000\ndata 1\nx\n{}M 644 inline f\ndata 1\n{}\n",
            if number == 0 { format!("from {branch}^0\n") } else { String::new() },
            number % 2
        )
        .unwrap();
    }
    let list = world.dir.path().join("stream");
    fs::write(&list, stream).unwrap();
    let script = format!("git fast-import --quiet < '{}'", list.display());
    let mut imported = Command::new("sh");
    imported.args(["-c", &script]).current_dir(work);
    assert!(imported.status().unwrap().success());
    git(work, &["reset", "-q", "--hard"]);
    let result = world.harvest(agent).await;
    assert_eq!(result.commits.len(), 100_001);
    let patch = result.patch.clone().unwrap();
    assert_eq!((patch.form, patch.mails), (PatchForm::Squashed, 1));
    am(&world, &result);
}

// A commit that is unsound comes home with the others; what cannot be compared has no patch, and is told all the same.
#[tokio::test]
async fn what_git_cannot_compare_has_no_patch_and_is_told() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let sound = git(work, &["rev-parse", "HEAD^{tree}"]);
    // A file whose content is a folder.
    let content = git2::Oid::from_str(&sound).unwrap();
    let tree = world.dir.path().join("tree");
    fs::write(
        &tree,
        [b"100644 odd\0".as_slice(), content.as_bytes()].concat(),
    )
    .unwrap();
    let tree = tree.to_str().unwrap();
    let unsound = git(
        work,
        &["hash-object", "-t", "tree", "--literally", "-w", tree],
    );
    for tree in [unsound, sound] {
        let commit = git(work, &["commit-tree", &tree, "-m", "x", "-p", "HEAD"]);
        git(work, &["update-ref", "HEAD", &commit]);
    }
    let result = world.harvest(agent).await;
    assert_eq!(result.patch, None);
    assert_eq!(result.commits.len(), 2);
    assert_eq!(
        world
            .worktrees
            .remove(&agent, RemovalMode::OnlySecured)
            .await
            .unwrap(),
        Removal::Removed
    );
}
