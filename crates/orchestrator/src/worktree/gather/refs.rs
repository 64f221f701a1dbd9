//! What an agent's `.git` points to: read as text, name by name, and checked against the objects that were taken.
//!
//! Every ref is work but those of `refs/remotes`, those of one further working tree alone as well, and so is what
//! `ORIG_HEAD`, another name beside HEAD or a log of HEAD alone still has: a commit that was made off every branch, or
//! whose branch was deleted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use git2::{Odb, OdbLookupFlags, Oid, Reference, Repository, Sort};

use super::{
    super::{
        NotBroughtHome, WhyNot,
        error::WorktreeError,
        mirror,
        tags::{self, Followed},
    },
    Gathered, MAX_SMALL_FILE_BYTES, beside, enterable, entries, is_hex, read_small,
};

const MAX_REF_DEPTH: usize = 16;
/// Loose refs of one directory that are read.
const MAX_LOOSE_REFS: usize = 100_000;
const MAX_MISSED: usize = 1000;
/// Further working trees that are looked at.
const MAX_LINKED: usize = 1000;
/// A larger log of HEAD is not read.
const MAX_LOG_BYTES: u64 = 4 << 20;
/// Lines of all of them that are read, the last ones first; and stashes.
const MAX_LOG_LINES: usize = 10_000;

/// A larger file that names commits, one a line, is not read.
const MAX_NAMING_BYTES: u64 = 1 << 20;

/// What an operation that was broken off is to come back to, a commit on each line. An autostash is the uncommitted
/// work of its start, and is named nowhere else.
const UNFINISHED: [&str; 7] = [
    "MERGE_HEAD",
    "CHERRY_PICK_HEAD",
    "rebase-merge/orig-head",
    "rebase-apply/orig-head",
    "rebase-merge/autostash",
    "rebase-apply/autostash",
    "MERGE_AUTOSTASH",
];

/// Names that are ours below the place of an agent's refs.
const RESERVED: [&str; 5] = ["index", "stashes", "tips", "unfinished", "worktrees"];

fn parse_id(text: &[u8]) -> Option<Oid> {
    let text = std::str::from_utf8(text).ok()?.trim_end();
    if is_hex(text, 40) {
        Oid::from_str(text).ok()
    } else {
        None
    }
}

fn loose_id(path: &Path) -> Option<Oid> {
    parse_id(&read_small(path, 4096)?)
}

fn ids_by_line(path: &Path) -> Option<Vec<Oid>> {
    let bytes = read_small(path, MAX_NAMING_BYTES)?;
    let lines = bytes.split(|byte| *byte == b'\n');
    Some(lines.filter_map(parse_id).collect())
}

/// Whether git takes a file of this name beside HEAD for a ref. What was fetched last is no work, as `refs/remotes` is
/// none.
fn is_beside_head(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let letters = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    name.ends_with("_HEAD") && name.bytes().all(letters) && name != "FETCH_HEAD"
}

/// The name to keep a ref under; none for one that cannot be kept by name.
fn kept_as(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    let rest = name.strip_prefix("refs/")?;
    let reserved = RESERVED.contains(&rest.split('/').next().unwrap_or(rest));
    (!reserved && Reference::is_valid_name(name)).then_some(rest)
}

/// What is found before it is looked up.
#[derive(Default)]
struct Found {
    refs: BTreeMap<Vec<u8>, Oid>,
    /// By the name to keep them under.
    tips: Vec<(String, Oid)>,
    /// Without one, or with one that cannot be kept, which is told if the commit is not there.
    nameless: Vec<(Oid, Option<Vec<u8>>)>,
    log_lines: usize,
    missed: Vec<NotBroughtHome>,
}

impl Found {
    fn miss(&mut self, path: &[u8], why: WhyNot) {
        if self.missed.len() < MAX_MISSED {
            self.missed.push(NotBroughtHome::new(path, why));
        }
    }

    fn packed_refs(&mut self, theirs: &Path) {
        let packed = theirs.join("packed-refs");
        match read_small(&packed, MAX_SMALL_FILE_BYTES) {
            Some(bytes) => {
                for line in bytes.split(|byte| *byte == b'\n') {
                    if let Some((id, name)) = line.split_at_checked(40)
                        && let Some(id) = parse_id(id)
                        && let Some(name) = name.strip_prefix(b" ")
                    {
                        self.refs.insert(name.to_owned(), id);
                    }
                }
            }
            None if fs::symlink_metadata(&packed).is_ok() => {
                self.miss(b".git/packed-refs", WhyNot::Unreadable);
            }
            None => {}
        }
    }

    /// The older ones are in the log alone.
    fn stashes(&mut self, theirs: &Path) {
        let log = theirs.join("logs/refs/stash");
        match read_small(&log, MAX_SMALL_FILE_BYTES) {
            Some(bytes) => {
                let lines = bytes.split(|byte| *byte == b'\n');
                let ids = lines.filter_map(|line| line.get(41..81).and_then(parse_id));
                for (number, id) in ids.enumerate() {
                    if number >= MAX_LOG_LINES {
                        return self.miss(b".git/logs/refs/stash", WhyNot::TooMany);
                    }
                    self.tips.push((format!("stashes/{number}"), id));
                }
            }
            None if fs::symlink_metadata(&log).is_ok() => {
                self.miss(b".git/logs/refs/stash", WhyNot::Unreadable);
            }
            None => {}
        }
    }

    /// What one working tree has of its own, `name` telling which.
    fn of_tree(&mut self, dir: &Path, name: &str) {
        for unfinished in UNFINISHED {
            let flat = unfinished.replace('/', "-");
            self.unfinished(&dir.join(unfinished), &format!("unfinished/{name}{flat}"));
        }
        // Git itself keeps no commit for the sake of these, so that it may be gone.
        let beside_head = entries(dir).into_iter().filter(|path| is_beside_head(path));
        let ids = beside_head.filter_map(|path| loose_id(&path));
        self.nameless.extend(ids.map(|id| (id, None)));
        self.log_of_head(dir, name);
    }

    fn unfinished(&mut self, file: &Path, kept: &str) {
        if !file.parent().is_some_and(is_directory) {
            return;
        }
        let is_stash = kept.to_ascii_lowercase().ends_with("autostash");
        match ids_by_line(file) {
            Some(ids) if !(ids.is_empty() && is_stash) => {
                for (number, id) in ids.into_iter().enumerate() {
                    // A merge of several branches has a line for each.
                    let kept = match number {
                        0 => kept.to_owned(),
                        number => format!("{kept}-{number}"),
                    };
                    self.tips.push((kept, id));
                }
            }
            _ if fs::symlink_metadata(file).is_ok() => {
                self.miss(kept.as_bytes(), WhyNot::Unreadable);
            }
            _ => {}
        }
    }

    /// What `.git/worktrees` has of a further working tree, and where that is.
    fn of_linked(&mut self, dir: &Path, number: usize) -> Option<PathBuf> {
        enterable(dir);
        if let Some(id) = loose_id(&dir.join("HEAD")) {
            self.tips.push((format!("worktrees/{number}"), id));
        }
        self.of_tree(dir, &format!("worktrees-{number}-"));
        let name = dir.file_name().unwrap_or_default().as_bytes();
        let name = [b".git/worktrees/", name].concat();
        let mut refs = BTreeMap::new();
        let own = [&name, b"/refs".as_slice()].concat();
        if !loose_refs(&dir.join("refs"), &own, 0, &mut refs) {
            self.miss(&own, WhyNot::TooMany);
        }
        let refs = refs.into_iter().map(|(name, id)| (id, Some(name)));
        self.nameless.extend(refs);
        for missed in beside::not_taken(dir, &name) {
            self.miss(missed.path.as_bytes(), missed.why);
        }
        let place = dir.join("gitdir");
        let told = read_small(&place, 4096 * 2);
        if told.is_none() && fs::symlink_metadata(&place).is_ok() {
            self.miss(b".git/worktrees", WhyNot::Unreadable);
        }
        // The file `.git` of it; from here, if it is told so.
        let file = dir.join(OsStr::from_bytes(told?.trim_ascii_end()));
        file.parent().map(Path::to_owned)
    }

    fn log_of_head(&mut self, dir: &Path, name: &str) {
        let logs = dir.join("logs");
        if !is_directory(&logs) {
            return;
        }
        enterable(&logs);
        let log = logs.join("HEAD");
        match read_small(&log, MAX_LOG_BYTES) {
            Some(bytes) => {
                let lines = bytes.rsplit(|byte| *byte == b'\n');
                for line in lines.filter(|line| !line.is_empty()) {
                    if self.log_lines >= MAX_LOG_LINES {
                        return self.miss(format!("{name}logs/HEAD").as_bytes(), WhyNot::TooMany);
                    }
                    self.log_lines += 1;
                    if let Some(id) = line.get(41..81).and_then(parse_id) {
                        self.nameless.push((id, None));
                    }
                }
            }
            None if fs::symlink_metadata(&log).is_ok() => {
                self.miss(format!("{name}logs/HEAD").as_bytes(), WhyNot::Unreadable);
            }
            None => {}
        }
    }

    /// What leads to a commit, once all is found.
    fn sorted(
        &mut self,
        follow: &mut impl FnMut(Oid) -> Option<Followed>,
        of_mirror: &Odb<'_>,
    ) -> Sorted {
        let mut sorted = Sorted::default();
        for (name, id) in std::mem::take(&mut self.tips) {
            match follow(id) {
                Some(followed) => {
                    if !followed.tags.is_empty() {
                        sorted.tags.insert(name.clone(), id);
                    }
                    sorted.tips.insert(name, followed.commit);
                }
                // A tag may be of anything, and that of what is no commit is as safe where it came from.
                None if name.starts_with("tags/")
                    && of_mirror.exists_ext(id, OdbLookupFlags::NO_REFRESH) => {}
                None => self.miss(name.as_bytes(), WhyNot::MissingObjects),
            }
        }
        for (id, name) in std::mem::take(&mut self.nameless) {
            match (follow(id), name) {
                (Some(followed), name) => {
                    if name.is_some() && !followed.tags.is_empty() {
                        sorted.tags.insert(format!("tips/{id}"), id);
                    }
                    sorted.nameless.insert(followed.commit);
                }
                (None, Some(name)) => self.miss(&name, WhyNot::MissingObjects),
                // Cleared away by the agent's own git.
                (None, None) => {}
            }
        }
        sorted
    }
}

/// What was found and looked up.
#[derive(Default)]
struct Sorted {
    tips: BTreeMap<String, Oid>,
    tags: BTreeMap<String, Oid>,
    nameless: BTreeSet<Oid>,
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

pub(super) fn read(
    theirs: &Path,
    mirror: &Path,
    gathered: &mut Gathered,
) -> Result<(), WorktreeError> {
    let mut found = Found::default();
    found.packed_refs(theirs);
    if !loose_refs(&theirs.join("refs"), b"refs", 0, &mut found.refs) {
        found.miss(b".git/refs", WhyNot::TooMany);
    }
    if theirs.join("reftable").is_dir() {
        found.miss(b".git/reftable", WhyNot::Unreadable);
    }

    let repository = &gathered.repository;
    // There may be as many as fit into the file, of one commit.
    let mut known: HashMap<Oid, Option<Followed>> = HashMap::new();
    let mut follow = |id| {
        let known = known.entry(id);
        known
            .or_insert_with(|| tags::follow(repository, id))
            .clone()
    };
    let head = read_small(&theirs.join("HEAD"), 4096).and_then(|bytes| {
        if let Some(name) = bytes.strip_prefix(b"ref: ") {
            found.refs.get(name.trim_ascii_end()).copied()
        } else {
            parse_id(&bytes)
        }
    });
    gathered.head = head.and_then(&mut follow).map(|head| head.commit);
    if head.is_some() && gathered.head.is_none() {
        found.miss(b".git/HEAD", WhyNot::MissingObjects);
    }

    for (name, id) in std::mem::take(&mut found.refs) {
        if name.starts_with(b"refs/remotes/") {
            continue;
        }
        match kept_as(&name) {
            Some(kept) => found.tips.push((kept.to_owned(), id)),
            None => found.nameless.push((id, Some(name))),
        }
    }
    found.stashes(theirs);
    found.of_tree(theirs, "");
    let linked = theirs.join("worktrees");
    let linked = if is_directory(&linked) {
        enterable(&linked);
        entries(&linked)
    } else {
        Vec::new()
    };
    if linked.len() > MAX_LINKED {
        found.miss(b".git/worktrees", WhyNot::TooMany);
    }
    for (number, linked) in linked.into_iter().enumerate().take(MAX_LINKED) {
        if is_directory(&linked) {
            gathered.linked.extend(found.of_linked(&linked, number));
        }
    }

    let Sorted {
        mut tips,
        tags,
        nameless,
    } = found.sorted(&mut follow, &objects_of(mirror)?);
    let named: HashSet<Oid> = tips.values().copied().chain(gathered.head).collect();
    match not_reached(repository, &nameless, &named) {
        Ok(own) => tips.extend(own.into_iter().map(|id| (format!("tips/{id}"), id))),
        Err(_) => found.miss(b".git/logs/HEAD", WhyNot::MissingObjects),
    }
    gathered.tips = tips;
    gathered.tags = tags;
    gathered.missed.append(&mut found.missed);
    Ok(())
}

/// What the mirror has itself, without what the agent made.
fn objects_of(mirror: &Path) -> Result<Odb<'static>, WorktreeError> {
    let failed = || WorktreeError::git("reading the mirror's objects");
    let objects = Odb::new().map_err(failed())?;
    objects
        .add_disk_alternate(&mirror::objects_dir(mirror).to_string_lossy())
        .map_err(failed())?;
    Ok(objects)
}

/// Those of the commits that neither the holders nor another of them has in its history.
fn not_reached(
    repository: &Repository,
    commits: &BTreeSet<Oid>,
    holders: &HashSet<Oid>,
) -> Result<Vec<Oid>, git2::Error> {
    let mut walk = repository.revwalk()?;
    walk.set_sorting(Sort::TOPOLOGICAL)?;
    let mut any = false;
    for commit in commits.iter().filter(|id| !holders.contains(*id)) {
        walk.push(*commit)?;
        any = true;
    }
    if !any {
        return Ok(Vec::new());
    }
    for holder in holders {
        walk.hide(*holder)?;
    }
    let mut reached = HashSet::new();
    let mut own = Vec::new();
    for id in walk {
        let id = id?;
        if !reached.remove(&id) {
            own.push(id);
        }
        reached.extend(repository.find_commit(id)?.parent_ids());
    }
    Ok(own)
}

/// `false` if there are more than are looked at.
fn loose_refs(dir: &Path, name: &[u8], depth: usize, refs: &mut BTreeMap<Vec<u8>, Oid>) -> bool {
    if !is_directory(dir) {
        return true;
    }
    if depth > MAX_REF_DEPTH {
        return false;
    }
    enterable(dir);
    let limit = refs.len().saturating_add(MAX_LOOSE_REFS);
    for path in entries(dir) {
        let Some(file) = path.file_name() else {
            continue;
        };
        if refs.len() >= limit {
            return false;
        }
        let name = [name, b"/", file.as_bytes()].concat();
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() && !loose_refs(&path, &name, depth + 1, refs) => {
                return false;
            }
            Ok(found) if found.is_file() => {
                if let Some(id) = loose_id(&path) {
                    refs.insert(name, id);
                }
            }
            _ => {}
        }
    }
    true
}
