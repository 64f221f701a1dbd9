//! What an agent's `.git` points to: read as text, name by name, and checked against the objects that were taken.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use git2::{Oid, Reference};

use super::{
    super::{NotBroughtHome, WhyNot},
    Gathered, MAX_SMALL_FILE_BYTES, enterable, entries, is_hex, read_small,
};

const MAX_REF_DEPTH: usize = 16;
/// Loose refs of one directory that are read.
const MAX_LOOSE_REFS: usize = 100_000;
const MAX_MISSED: usize = 1000;

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

pub(super) fn read(theirs: &Path, gathered: &mut Gathered) {
    let mut refs: BTreeMap<String, Oid> = BTreeMap::new();
    let packed = theirs.join("packed-refs");
    match read_small(&packed, MAX_SMALL_FILE_BYTES) {
        Some(bytes) => {
            for line in bytes.split(|byte| *byte == b'\n') {
                if let Some((id, name)) = line.split_at_checked(40)
                    && let Some(id) = parse_id(id)
                    && let Some(name) = name
                        .strip_prefix(b" ")
                        .and_then(|name| std::str::from_utf8(name).ok())
                {
                    refs.insert(name.to_owned(), id);
                }
            }
        }
        None if fs::symlink_metadata(&packed).is_ok() => {
            gathered
                .missed
                .push(NotBroughtHome::new(b".git/packed-refs", WhyNot::Unreadable));
        }
        None => {}
    }
    if !loose_refs(&theirs.join("refs"), "refs", 0, &mut refs) {
        gathered
            .missed
            .push(NotBroughtHome::new(b".git/refs", WhyNot::TooMany));
    }
    if theirs.join("reftable").is_dir() {
        gathered
            .missed
            .push(NotBroughtHome::new(b".git/reftable", WhyNot::Unreadable));
    }

    let commit = |id: Oid| {
        let object = gathered.repository.find_object(id, None).ok()?;
        Some(object.peel_to_commit().ok()?.id())
    };
    let head = read_small(&theirs.join("HEAD"), 4096).and_then(|bytes| {
        if let Some(name) = bytes.strip_prefix(b"ref: ") {
            let name = std::str::from_utf8(name).ok()?.trim_end();
            refs.get(name).copied()
        } else {
            parse_id(&bytes)
        }
    });
    gathered.head = head.and_then(commit);
    let broken_head = head.is_some() && gathered.head.is_none();

    let mut tips: Vec<(String, Oid)> = Vec::new();
    for (name, id) in &refs {
        let ours = name.starts_with("refs/heads/")
            || name.starts_with("refs/tags/")
            || name == "refs/stash";
        if ours && Reference::is_valid_name(name) {
            tips.push((name.trim_start_matches("refs/").to_owned(), *id));
        }
    }
    // The older stashes are in the log alone.
    if let Some(log) = read_small(&theirs.join("logs/refs/stash"), MAX_SMALL_FILE_BYTES) {
        for (number, line) in log.split(|byte| *byte == b'\n').enumerate().take(1000) {
            if let Some(id) = line.get(41..81).and_then(parse_id) {
                tips.push((format!("stashes/{number}"), id));
            }
        }
    }
    for name in [
        "MERGE_HEAD",
        "CHERRY_PICK_HEAD",
        "rebase-merge/orig-head",
        "rebase-apply/orig-head",
    ] {
        if let Some(id) = loose_id(&theirs.join(name)) {
            tips.push((format!("unfinished/{}", name.replace('/', "-")), id));
        }
    }
    for (number, linked) in entries(&theirs.join("worktrees"))
        .into_iter()
        .enumerate()
        .take(1000)
    {
        if let Some(id) = loose_id(&linked.join("HEAD")) {
            tips.push((format!("worktrees/{number}"), id));
        }
    }
    let mut missed = Vec::new();
    if broken_head {
        missed.push(NotBroughtHome::new(b".git/HEAD", WhyNot::MissingObjects));
    }
    let mut found = BTreeMap::new();
    // There may be as many as fit into the file, of one commit.
    let mut known: HashMap<Oid, Option<Oid>> = HashMap::new();
    for (name, id) in tips {
        match *known.entry(id).or_insert_with(|| commit(id)) {
            Some(commit) => {
                found.insert(name, commit);
            }
            None if missed.len() < MAX_MISSED
                && (name.starts_with("heads/") || name.starts_with("stash")) =>
            {
                missed.push(NotBroughtHome::new(name.as_bytes(), WhyNot::MissingObjects));
            }
            None => {}
        }
    }
    gathered.tips = found;
    gathered.missed.extend(missed);
}

/// `false` if there are more than are looked at.
fn loose_refs(dir: &Path, name: &str, depth: usize, refs: &mut BTreeMap<String, Oid>) -> bool {
    if depth > MAX_REF_DEPTH || !fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir()) {
        return true;
    }
    enterable(dir);
    let limit = refs.len().saturating_add(MAX_LOOSE_REFS);
    for path in entries(dir) {
        let Some(file) = path.file_name().and_then(|file| file.to_str()) else {
            continue;
        };
        if refs.len() >= limit {
            return false;
        }
        let name = format!("{name}/{file}");
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
