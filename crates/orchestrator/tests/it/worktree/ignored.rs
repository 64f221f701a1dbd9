//! What is ignored goes with the tree: exactly what git ignores, and nothing that git would show.

use std::collections::BTreeSet;

use mosaic_orchestrator::worktree::{Removal, RemovalMode};

use super::support::*;

fn lines(text: &str) -> BTreeSet<String> {
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// Rules by file, and files that are made besides them.
type Case = (
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

const CASES: [Case; 17] = [
    // Taken back by a file further in, and only there.
    (
        &[
            (".gitignore", "*.log\n"),
            ("docs/.gitignore", "!keep.log\n"),
        ],
        &["docs/keep.log", "docs/other.log", "keep.log"],
    ),
    // Taken back without being what the first rule says, letter by letter.
    (
        &[(".gitignore", "[Bb]in/\n!tools/bin/\n")],
        &["tools/bin/new.sh", "bin/x", "Bin/x", "other/bin/x"],
    ),
    (
        &[(".gitignore", "build*/\n!src/build-tools/\n")],
        &["src/build-tools/a", "build/a", "src/build-x/a", "buildfile"],
    ),
    // In a directory that is ignored, nothing is taken back.
    (
        &[
            (".gitignore", "out/\n!out/keep\n"),
            ("out/.gitignore", "!*\n"),
        ],
        &["out/keep", "x/out/keep"],
    ),
    // But in one whose content is.
    (
        &[(".gitignore", "out/*\n!out/keep\n")],
        &["out/keep", "out/other", "x/out/other"],
    ),
    (
        &[(
            ".gitignore",
            "**/gen\na/**/z\nlogs/**\n!logs/**/\n!logs/**/keep\n",
        )],
        &[
            "gen",
            "q/gen/x",
            "a/z",
            "a/b/c/z",
            "logs/x",
            "logs/d/e/keep",
            "logs/d/x",
        ],
    ),
    (
        &[(".gitignore", "/top\nsub/only\n/d/\n")],
        &["top", "x/top", "sub/only", "x/sub/only", "d/f", "x/d/f"],
    ),
    // Spaces at the end are none, unless they are escaped.
    (
        &[(".gitignore", "one  \ntwo\\ \nth ree\n")],
        &["one", "one  ", "two", "two ", "th ree"],
    ),
    (
        &[(".gitignore", "\\!bang\n\\#hash\n#comment\n!\n\\\\slash\n")],
        &["!bang", "bang", "#hash", "#comment", "hash", "\\slash"],
    ),
    (
        &[(".gitignore", "*.tmp\r\n!keep.tmp\r\ndir/\r\nlast\r")],
        &["a.tmp", "keep.tmp", "dir/x", "last", "last\r"],
    ),
    (
        &[(".gitignore", "only/\n")],
        &["a/only", "b/only/x", "only/y"],
    ),
    (
        &[
            (".gitignore", "*.o\n"),
            ("a/.gitignore", "!*.o\nx\n"),
            ("a/b/.gitignore", "*.o\n!x\n"),
        ],
        &[
            "1.o", "a/1.o", "a/x", "a/b/1.o", "a/b/x", "a/c/1.o", "a/c/x",
        ],
    ),
    (
        &[(
            ".gitignore",
            "*.{js,ts}\n[!a].c\n[^b].h\n?.d\n[[:digit:]].e\n",
        )],
        &[
            "a.js",
            "x.{js,ts}",
            "a.c",
            "b.c",
            "a.h",
            "b.h",
            "x.d",
            "xx.d",
            "1.e",
            "a.e",
        ],
    ),
    // The first bytes of a file may say how it is written.
    (
        &[(".gitignore", "\u{feff}first\nsecond\n")],
        &["first", "second"],
    ),
    (
        &[(".gitignore", "*\n!*/\n!*.rs\n!.gitignore\n")],
        &["a.rs", "a.c", "s/t/b.rs", "s/t/b.c"],
    ),
    (
        &[(".gitignore", "$precious\nCase\n[unclosed\n")],
        &["precious", "$precious", "case", "Case", "[unclosed"],
    ),
    (
        &[(".gitignore", "a/b/\n!a/b/c\nfoo/bar\n")],
        &["a/b/c", "x/a/b/c", "foo/bar", "x/foo/bar", "foo/bard"],
    ),
];

#[tokio::test]
async fn a22_exactly_what_git_ignores_is_ignored() {
    let world = World::new().await;
    for (rules, files) in CASES {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        for file in files {
            write(work, file, "f\n");
        }
        for (file, text) in rules {
            write(work, file, text);
        }
        let shown = git(work, &["ls-files", "-co", "-z", "--exclude-standard"]);
        let result = world.harvest(agent).await;
        let tree = &result.head_commit;
        let taken = git(
            &world.mirror(),
            &["ls-tree", "-r", "-z", "--name-only", tree],
        );
        assert_eq!(lines(&taken), lines(&shown), "{rules:?}");
        assert_eq!(result.not_brought_home, [], "{rules:?}");
    }
}

// A22: what git was told to track is work, whatever the rules say.
#[tokio::test]
async fn a22_ignored_files_that_were_added_by_force_come_home() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    for name in ["forced.log", "target/deep/forced", "target/not"] {
        write(work, name, "first\n");
    }
    git(work, &["add", "-f", "forced.log", "target/deep/forced"]);
    write(work, "forced.log", "edited\n");
    write(work, "target/deep/forced", "edited\n");
    let result = world.salvage(agent).await;
    let mirror = world.mirror();
    for name in ["forced.log", "target/deep/forced"] {
        let file = format!("{}:{name}", result.head_commit);
        assert_eq!(git(&mirror, &["show", &file]), "edited", "{name}");
    }
    let not = format!("{}:target/not", result.head_commit);
    assert!(!git_output(&mirror, &["show", &not]).status.success());
    let removal = world
        .worktrees
        .remove(&agent, RemovalMode::OnlySecured)
        .await;
    assert_eq!(removal.unwrap(), Removal::Removed);
}
