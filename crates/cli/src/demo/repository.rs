//! The repository that the tour works on: the one that was named, the one that somebody stands in, or a sample.
//! Nothing here needs git to be installed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::error::CliError;

/// A repository and a branch of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// As a URL that a spoke takes.
    pub(super) url: String,
    /// Where to start from.
    pub(super) branch: String,
    /// How it was chosen, for people.
    pub(super) how: &'static str,
}

/// Chooses. A sample, if it must be, is made below `scratch`.
pub(super) fn choose(
    named: Option<&str>,
    branch: Option<&str>,
    current_dir: &Path,
    scratch: &Path,
) -> Result<Chosen, CliError> {
    let chosen = |url, found: Option<String>, how| Chosen {
        url,
        branch: branch
            .map(str::to_owned)
            .or(found)
            .unwrap_or_else(|| "main".to_owned()),
        how,
    };
    if let Some(named) = named {
        let path = named.strip_prefix("file://").unwrap_or(named);
        let local = current_dir.join(path);
        if !local.is_dir() {
            return Ok(chosen(named.to_owned(), None, "the one that was named"));
        }
        let (root, found) = match find(&local) {
            Some(found) => (found.root, Some(found.branch)),
            None => (canonical(&local)?, None),
        };
        return Ok(chosen(file_url(&root), found, "the one that was named"));
    }
    match find(current_dir) {
        Some(found) => Ok(chosen(
            file_url(&found.root),
            Some(found.branch),
            "the one you stand in",
        )),
        None => {
            let path = scratch.join("sample");
            sample(&path).map_err(|source| CliError::File {
                action: "make",
                path: path.clone(),
                source,
            })?;
            Ok(chosen(
                file_url(&path),
                Some("main".to_owned()),
                "a sample made for this tour",
            ))
        }
    }
}

fn canonical(path: &Path) -> Result<PathBuf, CliError> {
    fs::canonicalize(path).map_err(|source| CliError::File {
        action: "find",
        path: path.to_owned(),
        source,
    })
}

fn file_url(path: &Path) -> String {
    format!("file://{}", path.display())
}

struct Found {
    root: PathBuf,
    branch: String,
}

/// The repository that `path` is in, with the branch that is checked out, if it has a commit. One without its whole
/// history cannot be cloned, so it does not count.
fn find(path: &Path) -> Option<Found> {
    let start = fs::canonicalize(path).ok()?;
    start.ancestors().find_map(|root| {
        let git_dir = git_dir(root)?;
        let common = match fs::read_to_string(git_dir.join("commondir")) {
            Ok(text) => git_dir.join(text.trim()),
            Err(_) => git_dir.clone(),
        };
        if common.join("shallow").exists() {
            return None;
        }
        let head = fs::read_to_string(git_dir.join("HEAD")).ok()?;
        let branch = head.trim().strip_prefix("ref: refs/heads/")?.to_owned();
        has_branch(&common, &branch).then(|| Found {
            root: root.to_owned(),
            branch,
        })
    })
}

/// `.git`, or where a `.git` file of a worktree points to, or the folder itself if it is bare.
fn git_dir(root: &Path) -> Option<PathBuf> {
    let dot_git = root.join(".git");
    if dot_git.is_dir() {
        return Some(dot_git);
    }
    if let Ok(text) = fs::read_to_string(&dot_git) {
        return Some(root.join(text.trim().strip_prefix("gitdir: ")?));
    }
    let bare = root.join("HEAD").is_file() && root.join("objects").is_dir();
    bare.then(|| root.to_owned())
}

fn has_branch(common: &Path, branch: &str) -> bool {
    let name = format!("refs/heads/{branch}");
    let packed = || {
        fs::read_to_string(common.join("packed-refs")).is_ok_and(|text| {
            text.lines()
                .any(|line| line.split(' ').nth(1) == Some(&name))
        })
    };
    common.join(&name).is_file() || packed()
}

const README: &str = "# A sample\n\nThis repository was made by `mosaic demo`, because there was none where it was started.\n";
const README_ID: &str = "bdb3717c22ac232deeb012facf4a487b0bb18d56";
const HELLO: &str = "#!/bin/sh\necho \"hello\"\n";
const HELLO_ID: &str = "07c90f31c8124b90db0b97facc21430b38e73d21";
const TREE_ID: &str = "bcf09a2652d7021fc5ed1b7657619b49f82d15cd";
const COMMIT_ID: &str = "68a9172a9f1eba48e24bd4668d037336fa7d1cf4";

/// Writes a repository with one commit. Its content is fixed, so its ids are known.
fn sample(path: &Path) -> io::Result<()> {
    for folder in ["refs/heads", "refs/tags", "objects/info", "objects/pack"] {
        fs::create_dir_all(path.join(folder))?;
    }
    fs::write(
        path.join("config"),
        "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
    )?;
    fs::write(path.join("HEAD"), "ref: refs/heads/main\n")?;
    object(path, README_ID, "blob", README.as_bytes())?;
    object(path, HELLO_ID, "blob", HELLO.as_bytes())?;
    let mut tree = Vec::new();
    for (name, id) in [("README.md", README_ID), ("hello.sh", HELLO_ID)] {
        tree.extend(format!("100644 {name}\0").bytes());
        tree.extend(id_bytes(id)?);
    }
    object(path, TREE_ID, "tree", &tree)?;
    let who = "Mosaic <demo@mosaic.invalid> 1767225600 +0000";
    let commit = format!("tree {TREE_ID}\nauthor {who}\ncommitter {who}\n\nA sample\n");
    object(path, COMMIT_ID, "commit", commit.as_bytes())?;
    fs::write(path.join("refs/heads/main"), format!("{COMMIT_ID}\n"))
}

fn id_bytes(id: &str) -> io::Result<Vec<u8>> {
    (0..id.len() / 2)
        .map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).map_err(io::Error::other))
        .collect()
}

/// Writes a loose object, as zlib with one block that is stored, not compressed.
fn object(repository: &Path, id: &str, kind: &str, content: &[u8]) -> io::Result<()> {
    let mut plain = format!("{kind} {}\0", content.len()).into_bytes();
    plain.extend_from_slice(content);
    let length = u16::try_from(plain.len()).map_err(io::Error::other)?;
    let mut zlib = vec![0x78, 0x01, 0x01];
    zlib.extend(length.to_le_bytes());
    zlib.extend((!length).to_le_bytes());
    zlib.extend(&plain);
    zlib.extend(adler32(&plain).to_be_bytes());
    let (folder, file) = id.split_at(2);
    let folder = repository.join("objects").join(folder);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(file), zlib)
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    (b << 16) | a
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn git(dir: &Path, args: &[&str]) -> Option<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(dir)
            .args(args)
            .output()
            .ok()?;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    fn require_git() -> bool {
        let there = Command::new("git").arg("--version").output().is_ok();
        if !there {
            assert!(
                std::env::var_os("MOSAIC_REQUIRE_ALL").is_none(),
                "git is not installed"
            );
            eprintln!("skipped: git is not installed");
        }
        there
    }

    #[test]
    fn git_takes_the_sample_for_a_repository() {
        if !require_git() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path()).unwrap();
        git(dir.path(), &["fsck", "--strict"]).unwrap();
        assert_eq!(git(dir.path(), &["rev-parse", "main"]).unwrap(), COMMIT_ID);
        assert_eq!(
            git(dir.path(), &["show", "main:README.md"]).unwrap(),
            README.trim()
        );
    }

    #[test]
    fn without_a_repository_there_is_the_sample() {
        let dir = tempfile::tempdir().unwrap();
        let chosen = choose(None, None, dir.path(), dir.path()).unwrap();
        assert_eq!(chosen.branch, "main");
        assert!(chosen.url.ends_with("/sample"), "{}", chosen.url);
        assert!(find(&dir.path().join("sample")).is_some());
    }

    #[test]
    fn the_repository_one_stands_in_is_found_with_its_branch() {
        if !require_git() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        git(&root, &["init", "-q", "-b", "trunk"]).unwrap();
        // No commit yet: nothing to work on.
        assert!(find(&root).is_none());
        let identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"];
        let commit = ["commit", "-q", "--allow-empty", "-m", "one"];
        git(&root, &[&identity[..], &commit[..]].concat()).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        let chosen = choose(None, None, &root.join("a/b"), &root).unwrap();
        assert_eq!(
            (chosen.url, chosen.branch.as_str()),
            (file_url(&root), "trunk")
        );
        // Packed, and from a worktree of it.
        git(&root, &["pack-refs", "--all"]).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let side = elsewhere.path().join("side");
        git(
            &root,
            &[
                "worktree",
                "add",
                "-q",
                "-b",
                "side",
                side.to_str().unwrap(),
            ],
        )
        .unwrap();
        assert_eq!(find(&side).unwrap().branch, "side");
        assert_eq!(find(&root).unwrap().branch, "trunk");
        // A shallow one cannot be cloned from.
        fs::write(root.join(".git/shallow"), "").unwrap();
        assert!(find(&root).is_none());
    }

    #[test]
    fn what_is_named_goes_before_where_one_stands() {
        let dir = tempfile::tempdir().unwrap();
        let chosen = choose(
            Some("https://example.com/x.git"),
            Some("dev"),
            dir.path(),
            dir.path(),
        )
        .unwrap();
        assert_eq!(
            (chosen.url.as_str(), chosen.branch.as_str()),
            ("https://example.com/x.git", "dev")
        );
    }
}
