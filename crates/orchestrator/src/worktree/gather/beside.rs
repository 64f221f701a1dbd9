//! What an agent's `.git` holds beside objects and refs: the repositories of its submodules, which stay there when
//! their directories are gone, and the contents of large files, of which commits have pointers. None of it is taken;
//! it is told, so that it does not go with the tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    super::{NotBroughtHome, WhyNot},
    enterable,
};

/// Where, in a `.git` and in what it has of a further working tree.
const PLACES: [(&str, WhyNot); 3] = [
    ("modules", WhyNot::Submodule),
    ("lfs/objects", WhyNot::LargeFiles),
    ("annex/objects", WhyNot::LargeFiles),
];
/// Directories that are looked into before it is taken for granted that a place holds something.
const MAX_DIRECTORIES: usize = 10_000;

/// Those of the places in `dir`, which is called `name`, that hold something.
pub(super) fn not_taken(dir: &Path, name: &[u8]) -> Vec<NotBroughtHome> {
    let held = PLACES.iter().filter(|(place, _)| is_held(dir, place));
    held.map(|(place, why)| NotBroughtHome::new(&[name, b"/", place.as_bytes()].concat(), *why))
        .collect()
}

fn is_held(dir: &Path, place: &str) -> bool {
    let mut path = dir.to_owned();
    for part in Path::new(place) {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            // Where a link leads is not looked at.
            Ok(found) => return found.is_symlink(),
            Err(_) => return false,
        }
    }
    holds_a_file(path)
}

/// Whether anything but directories is there, as far as can be told.
fn holds_a_file(dir: PathBuf) -> bool {
    let mut pending = vec![dir];
    let mut seen = 0;
    while let Some(dir) = pending.pop() {
        seen += 1;
        enterable(&dir);
        let Ok(entries) = fs::read_dir(&dir) else {
            return true;
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
                Ok((kind, path)) if kind.is_dir() && seen + pending.len() < MAX_DIRECTORIES => {
                    pending.push(path);
                }
                _ => return true,
            }
        }
    }
    false
}
