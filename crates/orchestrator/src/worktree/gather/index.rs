//! The agent's index: it tells what is staged, what is tracked and what a sparse checkout leaves out; never what is
//! unchanged.
//!
//! It is made plain before libgit2 reads it. What git keeps behind the entries is left away: counts in there become
//! memory, and names become calls within calls, as many as the agent wrote
//! ([format](https://git-scm.com/docs/index-format)).

use std::{collections::BTreeSet, fs, path::Path};

use git2::Index;

use super::{
    super::{Limits, NotBroughtHome, WhyNot, error::WorktreeError},
    Gathered, MAX_SMALL_FILE_BYTES, read_small, varint,
};

const SKIP_WORKTREE: u16 = 1 << 14;
/// A larger one is not read; nor one whose paths are larger, written out.
const MAX_INDEX_BYTES: u64 = MAX_SMALL_FILE_BYTES * 4;
/// As Linux has it.
const MAX_PATH_BYTES: usize = 4096;

const HEADER_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 20;
/// What an entry has before its flags: times, ids, mode, size and object.
const BEFORE_FLAGS: usize = 60;
const EXTENDED: u16 = 0x4000;
const NAME_LENGTH: u16 = 0x0fff;
/// Since this version a path is told by how it differs from the one before.
const COMPRESSED: u32 = 4;

/// Tracked files that are not in the tree although nobody deleted them.
pub(in super::super) enum LeftOut {
    /// By a sparse checkout.
    These(BTreeSet<Vec<u8>>),
    /// The index that would tell cannot be read: it may be any of them.
    Unknown,
}

/// What the index tells goes into `gathered`.
pub(super) fn read(
    theirs: &Path,
    into: &Path,
    gathered: &mut Gathered,
    limits: &Limits,
) -> Result<Option<Index>, WorktreeError> {
    let mut unusable = |why| {
        gathered.left_out = LeftOut::Unknown;
        gathered
            .missed
            .push(NotBroughtHome::new(b".git/index", why));
        Ok(None)
    };
    let path = theirs.join("index");
    // What is no file tells nothing, like one that is gone.
    let Some(found) = fs::symlink_metadata(&path)
        .ok()
        .filter(fs::Metadata::is_file)
    else {
        return Ok(None);
    };
    if found.len() > MAX_INDEX_BYTES {
        return unusable(WhyNot::TooLarge);
    }
    let bytes = read_small(&path, MAX_INDEX_BYTES);
    let Some(bytes) = bytes.and_then(|bytes| plain(bytes, limits.max_files)) else {
        return unusable(WhyNot::Unreadable);
    };
    let copy = into.join("index");
    // A disk that is full is no fault of the agent's: what is not copied now is tried again.
    fs::write(&copy, bytes).map_err(WorktreeError::io("copying the index", &copy))?;
    let Ok(mut index) = Index::open(&copy) else {
        return unusable(WhyNot::Unreadable);
    };
    let left_out = index
        .iter()
        .filter(|entry| entry.flags_extended & SKIP_WORKTREE != 0);
    gathered.left_out = LeftOut::These(left_out.map(|entry| entry.path).collect());
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

/// Header and entries alone, if that is all it takes to understand it. A checksum of zeros is none, to git as to
/// libgit2; git does not look at the one that was there either.
fn plain(mut bytes: Vec<u8>, max_directories: u64) -> Option<Vec<u8>> {
    let body = bytes.get(..bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
    let mut entries = Entries::of(body)?;
    for _ in 0..entries.count {
        entries.next()?;
        if entries.directories > max_directories || entries.path_bytes > MAX_INDEX_BYTES {
            return None;
        }
    }
    may_be_left_away(entries.rest)?;
    let end = body.len() - entries.rest.len();
    bytes.truncate(end);
    bytes.resize(end + CHECKSUM_BYTES, 0);
    Some(bytes)
}

/// Whether what follows the entries only makes git faster, or tells how conflicts were resolved. Of an index that is
/// split or sparse, the entries are a part.
fn may_be_left_away(mut rest: &[u8]) -> Option<()> {
    while !rest.is_empty() {
        let (head, behind) = rest.split_at_checked(8)?;
        if !head.first()?.is_ascii_uppercase() {
            return None;
        }
        rest = behind.get(usize::try_from(u32_at(head, 4)?).ok()?..)?;
    }
    Some(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// The entries, gone through to find their end.
struct Entries<'a> {
    version: u32,
    count: u32,
    rest: &'a [u8],
    /// The path of the one before.
    path: Vec<u8>,
    /// Of all paths so far, written out.
    path_bytes: u64,
    /// That they lie in: each becomes a tree.
    directories: u64,
}

impl<'a> Entries<'a> {
    fn of(body: &'a [u8]) -> Option<Self> {
        let (header, rest) = body.split_at_checked(HEADER_BYTES)?;
        let version = u32_at(header, 4)?;
        (header.starts_with(b"DIRC") && (2..=COMPRESSED).contains(&version)).then_some(Self {
            version,
            count: u32_at(header, 8)?,
            rest,
            path: Vec::new(),
            path_bytes: 0,
            directories: 0,
        })
    }

    fn next(&mut self) -> Option<()> {
        let flags = u16::from_be_bytes(*self.rest.get(BEFORE_FLAGS..)?.first_chunk()?);
        let start = BEFORE_FLAGS + if flags & EXTENDED == 0 { 2 } else { 4 };
        let behind = self.rest.get(start..)?;
        let size = if self.version == COMPRESSED {
            let (cut, cut_bytes) = varint(behind)?;
            let kept = self.path.len().checked_sub(usize::try_from(cut).ok()?)?;
            let added = text(behind.get(cut_bytes..)?)?;
            self.enter(kept, added)?;
            start + cut_bytes + added.len() + 1
        } else {
            let path = text(behind)?;
            let told = usize::from(flags & NAME_LENGTH);
            // To libgit2 the path goes on to its NUL, and the entry as far as is told here.
            if told != path.len() && told != usize::from(NAME_LENGTH) {
                return None;
            }
            self.enter(0, path)?;
            (start + path.len() + 8) & !7
        };
        self.rest = self.rest.get(size..)?;
        Some(())
    }

    /// Goes on to the path that begins as the one before, so many bytes, and ends like this.
    fn enter(&mut self, kept: usize, added: &[u8]) -> Option<()> {
        let begins = self.path.get(..kept)?;
        let differs = self.path.get(kept..)?.iter().zip(added);
        let same = differs.take_while(|(old, new)| old == new).count();
        let slashes = added.get(same..)?.iter().filter(|byte| **byte == b'/');
        let directories = slashes.count();
        if begins.len() + added.len() > MAX_PATH_BYTES {
            return None;
        }
        self.path.truncate(kept);
        self.path.extend_from_slice(added);
        self.directories += u64::try_from(directories).ok()?;
        self.path_bytes += u64::try_from(self.path.len()).ok()?;
        Some(())
    }
}

/// Up to its NUL, unless that is too far.
fn text(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes
        .iter()
        .take(MAX_PATH_BYTES + 1)
        .position(|byte| *byte == 0)?;
    bytes.get(..length)
}

#[cfg(test)]
mod tests;
