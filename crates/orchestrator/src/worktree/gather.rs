//! The agent's repository as evidence, not as a repository: what it holds is copied by name and kind
//! into a repository of the host, and only that one is ever opened.
//!
//! So no configuration, hook, filter, attribute, alternate, `commondir`, worktree or lock that an
//! agent wrote is read by git code of the host (A19–A21), and the agent's tree stays as it was left.
//!
//! What is copied is still the agent's, and libgit2 takes much of it at its word. So packs and the index are read by our
//! own code first, and trees are measured before anything goes through them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use git2::{Index, Oid, Repository, RepositoryInitOptions};
use rustix::fs::OFlags;

use super::{Limits, NotBroughtHome, WhyNot, error::WorktreeError, mirror, removal};

mod beside;
mod index;
mod objects;
mod packs;
mod refs;

pub(super) use index::LeftOut;

const MAX_SMALL_FILE_BYTES: u64 = 64 << 20;

const CONFIG: &str = "\
[core]
\trepositoryformatversion = 0
\tbare = true
\thooksPath = /dev/null
\tattributesFile = /dev/null
\texcludesFile = /dev/null
";

/// What an agent's `.git` said, taken into a repository of the host.
pub(super) struct Gathered {
    /// The host's repository: the agent's objects, borrowing the mirror's.
    pub(super) repository: Repository,
    /// An empty working tree, for the ignore and attribute files that are looked at.
    pub(super) shadow: PathBuf,
    /// The commit that was checked out.
    pub(super) head: Option<Oid>,
    /// Other tips, by the name to keep them under.
    pub(super) tips: BTreeMap<String, Oid>,
    /// Annotated tags that lead to some of them, by the same names.
    pub(super) tags: BTreeMap<String, Oid>,
    /// Where further working trees of this repository are, as git has it.
    pub(super) linked: Vec<PathBuf>,
    /// Tracked paths that are not in the tree although nobody deleted them.
    pub(super) left_out: LeftOut,
    /// What the agent had staged, as a tree.
    pub(super) staged: Option<Oid>,
    /// What could not be taken.
    pub(super) missed: Vec<NotBroughtHome>,
}

/// Opens a file of the agent's only if it is a regular one, and without waiting for a FIFO.
pub(super) fn open_regular(path: &Path) -> std::io::Result<fs::File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::Error::from(std::io::ErrorKind::InvalidInput))
    }
}

pub(super) fn read_small(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let file = open_regular(path).ok()?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).ok()?;
    (u64::try_from(bytes.len()).unwrap_or(u64::MAX) <= limit).then_some(bytes)
}

/// Takes what is in `<work>/.git` into a fresh repository at `into`. The index is a copy of the agent's.
pub(super) fn gather(
    work: &Path,
    into: &Path,
    mirror: &Path,
    limits: &Limits,
) -> Result<(Gathered, Option<Index>), WorktreeError> {
    removal::remove_tree(into)?;
    let git_dir = into.join("git");
    let shadow = into.join("shadow");
    fs::create_dir_all(&shadow).map_err(WorktreeError::io("making the harvest", &shadow))?;
    let mut options = RepositoryInitOptions::new();
    options.bare(true).mkpath(true).external_template(false);
    drop(
        Repository::init_opts(&git_dir, &options)
            .map_err(WorktreeError::git("making the harvest"))?,
    );
    let write = |name: &str, bytes: &[u8]| {
        let path = git_dir.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&git_dir))
            .and_then(|()| fs::write(&path, bytes))
            .map_err(WorktreeError::io("making the harvest", &path))
    };
    write("config", CONFIG.as_bytes())?;
    let mut alternates = mirror::objects_dir(mirror)
        .into_os_string()
        .into_encoded_bytes();
    alternates.push(b'\n');
    write("objects/info/alternates", &alternates)?;

    let mut missed = Vec::new();
    let theirs = work.join(".git");
    let is_directory = fs::symlink_metadata(&theirs).is_ok_and(|found| found.is_dir());
    if is_directory {
        enterable(&theirs);
        objects::take(
            &theirs.join("objects"),
            &git_dir.join("objects"),
            limits,
            &mut missed,
        )?;
        missed.extend(beside::not_taken(&theirs, b".git"));
    } else {
        missed.push(NotBroughtHome::new(b".git", WhyNot::NoGitDirectory));
    }

    let repository = mirror::open_own(&git_dir)?;
    repository
        .set_workdir(&shadow, false)
        .map_err(WorktreeError::git("making the harvest"))?;
    objects::check_sizes(&git_dir, limits)?;

    let mut gathered = Gathered {
        repository,
        shadow,
        head: None,
        tips: BTreeMap::new(),
        tags: BTreeMap::new(),
        linked: Vec::new(),
        left_out: LeftOut::These(BTreeSet::new()),
        staged: None,
        missed,
    };
    let mut index = None;
    if is_directory {
        refs::read(&theirs, mirror, &mut gathered)?;
        index = index::read(&theirs, into, &mut gathered, limits)?;
    }
    Ok((gathered, index))
}

/// Gives the owner, us, what the agent may have taken away; failures show when reading.
pub(super) fn enterable(dir: &Path) {
    if let Ok(found) = fs::symlink_metadata(dir)
        && found.is_dir()
        && found.permissions().mode() & 0o700 != 0o700
    {
        let mode = found.permissions().mode() | 0o700;
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(mode));
    }
}

fn is_hex(name: &str, digits: usize) -> bool {
    name.len() == digits
        && name
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// A number as git writes one where every byte but the last has its high bit set, and how many bytes it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value = value.checked_mul(128)?.checked_add(u64::from(byte & 127))?;
        if byte & 128 == 0 {
            return Some((value, index + 1));
        }
        value = value.checked_add(1)?;
    }
    None
}

#[cfg(test)]
mod tests;
