//! An index whose counts and names are larger than anything they could be of.

use std::{fs, path::Path};

use mosaic_orchestrator::worktree::{NotBroughtHome, Removal, RemovalMode, WhyNot};

use super::super::support::{World, git, write};

/// Of this version, with these paths and what follows them.
fn index(version: u32, count: u32, paths: &[&[u8]], more: &[u8]) -> Vec<u8> {
    let mut bytes = b"DIRC".to_vec();
    bytes.extend(version.to_be_bytes());
    bytes.extend(count.to_be_bytes());
    let mut before = 0;
    for path in paths {
        let start = bytes.len();
        bytes.extend([0; 24]);
        bytes.extend(0o100_644_u32.to_be_bytes());
        bytes.extend([0; 12]);
        bytes.extend([0x11; 20]);
        let told = u16::try_from(path.len()).unwrap_or(u16::MAX).min(0x0fff);
        bytes.extend(told.to_be_bytes());
        if version == 4 {
            // Nothing of the path before is left.
            if let Some(more) = u8::try_from(before >> 7).unwrap().checked_sub(1) {
                bytes.push(0x80 | more);
            }
            bytes.push(u8::try_from(before & 0x7f).unwrap());
            bytes.extend(*path);
            bytes.push(0);
            before = path.len();
        } else {
            bytes.extend(*path);
            bytes.resize(start + (bytes.len() - start + 8) / 8 * 8, 0);
        }
    }
    bytes.extend(more);
    bytes.extend([0; 20]);
    bytes
}

/// Puts this behind the entries of git's own index.
fn extend(work: &Path, more: &[u8]) {
    let path = work.join(".git/index");
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 20);
    bytes.extend(more);
    bytes.extend([0; 20]);
    fs::write(path, bytes).unwrap();
}

fn extension(name: &[u8], content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [name, &length, content].concat()
}

#[tokio::test]
async fn what_follows_the_entries_of_an_index_is_not_read() {
    let children = extension(b"TREE", b"\x001 2000000000\nxxxxxxxxxxxxxxxxxxxx");
    let mut nested = Vec::new();
    for _ in 0..200_000 {
        nested.extend(b"a\x00-1 1\n");
    }
    let nested = extension(b"TREE", &nested);
    let names = extension(b"REUC", &[b'a'; 4096]);
    let world = World::new().await;
    for (what, more) in [("children", children), ("nested", nested), ("names", names)] {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        write(work, "README", "staged\n");
        git(work, &["add", "README"]);
        write(work, "README", "hello\nworld\n");
        extend(work, &more);
        // What was staged comes home all the same.
        let result = world.harvest(agent).await;
        assert_eq!(result.not_brought_home, [], "{what}");
        let staged = format!("refs/mosaic/agents/{agent}/index:README");
        assert_eq!(git(&world.mirror(), &["show", &staged]), "staged", "{what}");
        let removal = world.worktrees.remove(&agent, RemovalMode::OnlySecured);
        assert_eq!(removal.await.unwrap(), Removal::Removed, "{what}");
    }
}

#[tokio::test]
async fn an_index_of_counts_and_paths_without_end_is_unreadable() {
    let deep = b"a/".repeat(100_000);
    let long = vec![b'x'; 4097];
    // To libgit2 it goes on to the end, and so do all that follow.
    let mut open = index(2, 1, &[b"name"], b"");
    open.truncate(12 + 62 + 4);
    open.extend([b'y'; 1000]);
    open.extend([0; 28]);
    let unreadable = [
        ("count", index(2, u32::MAX, &[b"a"], b"")),
        ("deep", index(2, 1, &[&deep], b"")),
        ("deep, version 4", index(4, 1, &[&deep], b"")),
        ("long", index(2, 1, &[&long], b"")),
        ("long, version 4", index(4, 1, &[&long], b"")),
        ("no end", open),
        ("version", index(5, 1, &[b"a"], b"")),
        ("rest", index(2, 1, &[b"a"], b"rest")),
        ("required", index(2, 1, &[b"a"], &extension(b"xtra", b""))),
        ("beyond", index(2, 1, &[b"a"], b"TREE\x7f\0\0\0")),
        ("empty", Vec::new()),
    ];
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    for (what, bytes) in unreadable {
        fs::write(prepared.workdir.join(".git/index"), bytes).unwrap();
        let result = world.harvest(agent).await;
        let told = NotBroughtHome {
            path: ".git/index".to_owned(),
            why: WhyNot::Unreadable,
        };
        assert_eq!(result.not_brought_home, [told], "{what}");
        assert_eq!(result.files_changed, 0, "{what}");
    }
    // As these are written, git writes them.
    for version in [2, 4] {
        let bytes = index(version, 1, &[b"a"], &extension(b"XTRA", b"more"));
        fs::write(prepared.workdir.join(".git/index"), bytes).unwrap();
        assert_eq!(world.harvest(agent).await.not_brought_home, []);
    }
}

// A tree for each directory, within each other as far as trees may be.
#[tokio::test]
async fn a_deep_path_that_is_staged_comes_home() {
    let world = World::new().await;
    let (agent, prepared) = world.prepare().await;
    let work = &prepared.workdir;
    let blob = git(work, &["rev-parse", "HEAD:README"]);
    let path = format!("{}f", "d/".repeat(1990));
    let mut bytes = index(2, 1, &[path.as_bytes()], b"");
    let id = (0..20).map(|at| u8::from_str_radix(&blob[at * 2..at * 2 + 2], 16).unwrap());
    bytes.splice(12 + 40..12 + 60, id);
    write(work, ".git/index", bytes);
    let result = world.harvest(agent).await;
    assert_eq!(result.not_brought_home, []);
    let staged = format!("refs/mosaic/agents/{agent}/index:{path}");
    let shown = git(&world.mirror(), &["show", &staged]);
    assert_eq!(shown, "hello\nworld");
}

// An index may be a small file whose paths, written out, are not; and each of their directories would become a tree.
#[tokio::test]
async fn an_index_that_grows_when_it_is_read_is_unreadable() {
    let world = World::with(|config| config.limits.max_files = 10_000).await;
    let (agent, prepared) = world.prepare().await;
    let paths: Vec<Vec<u8>> = (0..100)
        .map(|number| [format!("{number:03}/").as_bytes(), &b"a/".repeat(200), b"f"].concat())
        .collect();
    let paths: Vec<&[u8]> = paths.iter().map(Vec::as_slice).collect();
    let bytes = index(4, 100, &paths, b"");
    fs::write(prepared.workdir.join(".git/index"), bytes).unwrap();
    let result = world.harvest(agent).await;
    assert_eq!(result.not_brought_home[0].why, WhyNot::Unreadable);
}

#[tokio::test]
async fn every_version_of_an_index_that_git_writes_is_read() {
    let world = World::new().await;
    for version in ["2", "3", "4"] {
        let (agent, prepared) = world.prepare().await;
        let work = &prepared.workdir;
        git(work, &["update-index", "--index-version", version]);
        for name in ["new", "src/b.txt", "src/deep/er/b.txt", "z"] {
            write(work, name, format!("{name}\n"));
        }
        git(work, &["add", "src", "z"]);
        // A flag that only version 3 and later have.
        git(work, &["add", "-N", "new"]);
        git(work, &["update-index", "--untracked-cache"]);
        git(work, &["status", "--porcelain"]);
        write(work, "z", "later\n");
        let written = git(work, &["-c", "core.commitGraph=false", "ls-files", "-s"]);
        assert_eq!(written.lines().count(), 7);
        let result = world.harvest(agent).await;
        assert_eq!(result.not_brought_home, [], "{version}");
        assert_eq!(result.files_changed, 4, "{version}");
        let staged = format!("refs/mosaic/agents/{agent}/index:z");
        assert_eq!(git(&world.mirror(), &["show", &staged]), "z", "{version}");
        let removal = world.worktrees.remove(&agent, RemovalMode::OnlySecured);
        assert_eq!(removal.await.unwrap(), Removal::Removed, "{version}");
    }
}
