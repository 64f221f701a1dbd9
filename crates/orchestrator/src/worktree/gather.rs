//! The agent's repository as evidence, not as a repository: what it holds is copied by name and kind
//! into a repository of the host, and only that one is ever opened.
//!
//! So no configuration, hook, filter, attribute, alternate, `commondir`, worktree or lock that an
//! agent wrote is read by git code of the host (A19–A21), and the agent's tree stays as it was left.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use git2::{Index, Odb, Oid, Repository, RepositoryInitOptions};
use rustix::fs::OFlags;

use super::{Limits, NotBroughtHome, WhyNot, error::WorktreeError, mirror, removal};

mod beside;
mod refs;

const MAX_SMALL_FILE_BYTES: u64 = 64 << 20;
const SKIP_WORKTREE: u16 = 1 << 14;

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
    /// Where further working trees of this repository are, as git has it.
    pub(super) linked: Vec<PathBuf>,
    /// Tracked paths that a sparse checkout leaves out of the tree.
    pub(super) left_out: BTreeSet<Vec<u8>>,
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
        take_objects(
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
    check_sizes(&git_dir, limits)?;

    let mut gathered = Gathered {
        repository,
        shadow,
        head: None,
        tips: BTreeMap::new(),
        linked: Vec::new(),
        left_out: BTreeSet::new(),
        staged: None,
        missed,
    };
    let mut index = None;
    if is_directory {
        refs::read(&theirs, &mut gathered);
        index = read_index(&theirs, into, &mut gathered)?;
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

fn is_pack_file(name: &str) -> bool {
    name.strip_prefix("pack-")
        .and_then(|rest| {
            rest.strip_suffix(".pack")
                .or_else(|| rest.strip_suffix(".idx"))
        })
        .is_some_and(|hash| is_hex(hash, 40))
}

/// Takes loose objects and packs, by name and kind. `info/alternates` is not among them: an agent
/// cannot name objects of another repository into its own result.
fn take_objects(
    from: &Path,
    to: &Path,
    limits: &Limits,
    missed: &mut Vec<NotBroughtHome>,
) -> Result<(), WorktreeError> {
    let real_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if !real_dir(from) {
        missed.push(NotBroughtHome::new(b".git/objects", WhyNot::NoGitDirectory));
        return Ok(());
    }
    enterable(from);
    let mut bytes = 0_u64;
    let mut count = 0_u64;
    for fanout in entries(from) {
        let Some(name) = fanout.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if !(name == "pack" || is_hex(name, 2)) || !real_dir(&fanout) {
            continue;
        }
        enterable(&fanout);
        let target = to.join(name);
        fs::create_dir_all(&target).map_err(WorktreeError::io("copying objects", &target))?;
        for object in entries(&fanout) {
            let Some(file) = object.file_name().and_then(|file| file.to_str()) else {
                continue;
            };
            let wanted = if name == "pack" {
                is_pack_file(file)
            } else {
                is_hex(file, 38)
            };
            let Ok(found) = fs::symlink_metadata(&object) else {
                continue;
            };
            if !wanted || !found.is_file() {
                continue;
            }
            bytes = bytes.saturating_add(found.len());
            count += 1;
            if bytes > limits.max_objects_bytes {
                return Err(WorktreeError::TooLarge {
                    what: "bytes of objects",
                    limit: limits.max_objects_bytes,
                });
            }
            if count > limits.max_files {
                return Err(WorktreeError::TooLarge {
                    what: "number of objects",
                    limit: limits.max_files,
                });
            }
            if found.permissions().mode() & 0o400 == 0 {
                let _ = fs::set_permissions(&object, fs::Permissions::from_mode(0o400));
            }
            let place = target.join(file);
            if fs::hard_link(&object, &place).is_err() {
                copy(&object, &place)?;
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), WorktreeError> {
    let mut source =
        open_regular(from).map_err(WorktreeError::io("reading an agent's object", from))?;
    let mut target = fs::File::create(to).map_err(WorktreeError::io("copying objects", to))?;
    std::io::copy(&mut source, &mut target)
        .map(drop)
        .map_err(WorktreeError::io("copying objects", to))
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

/// A small file may inflate to an object that does not fit into memory.
fn check_sizes(git_dir: &Path, limits: &Limits) -> Result<(), WorktreeError> {
    let failed = || WorktreeError::git("measuring the agent's objects");
    let odb = Odb::new().map_err(failed())?;
    // Without the mirror's objects: a copy of the list of alternates is what is left out here.
    let objects = git_dir.join("objects");
    let alternates = objects.join("info/alternates");
    let aside = objects.join("info/alternates.aside");
    fs::rename(&alternates, &aside).map_err(WorktreeError::io(
        "measuring the agent's objects",
        &alternates,
    ))?;
    let added = odb.add_disk_alternate(&objects.to_string_lossy());
    fs::rename(&aside, &alternates).map_err(WorktreeError::io(
        "measuring the agent's objects",
        &alternates,
    ))?;
    added.map_err(failed())?;
    let mut too_large = false;
    let limit = usize::try_from(limits.max_file_bytes).unwrap_or(usize::MAX);
    let walked = odb.foreach(|id| {
        too_large = odb.read_header(*id).is_ok_and(|(size, _)| size > limit);
        !too_large
    });
    if too_large {
        return Err(WorktreeError::TooLarge {
            what: "bytes of one object",
            limit: limits.max_file_bytes,
        });
    }
    walked.map_err(failed())
}

/// The index tells what is staged, what is tracked and what a sparse checkout leaves out; never what is unchanged.
fn read_index(
    theirs: &Path,
    into: &Path,
    gathered: &mut Gathered,
) -> Result<Option<Index>, WorktreeError> {
    let Some(bytes) = read_small(&theirs.join("index"), MAX_SMALL_FILE_BYTES * 4) else {
        return Ok(None);
    };
    let copy = into.join("index");
    // A disk that is full is no fault of the agent's: what is not copied now is tried again.
    fs::write(&copy, bytes).map_err(WorktreeError::io("copying the index", &copy))?;
    let Ok(mut index) = Index::open(&copy) else {
        gathered
            .missed
            .push(NotBroughtHome::new(b".git/index", WhyNot::Unreadable));
        return Ok(None);
    };
    for entry in index.iter() {
        if entry.flags_extended & SKIP_WORKTREE != 0 {
            gathered.left_out.insert(entry.path);
        }
    }
    if !index.has_conflicts() {
        gathered.staged = match index.write_tree_to(&gathered.repository) {
            Ok(tree) => Some(tree),
            Err(error) if error.class() == git2::ErrorClass::Os => {
                return Err(WorktreeError::git("copying what was staged")(error));
            }
            // The agent's own: it names objects that are not there.
            Err(_) => None,
        };
    }
    Ok(Some(index))
}

#[cfg(test)]
mod tests;
