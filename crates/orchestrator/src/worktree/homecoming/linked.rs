//! Further working trees that an agent made of its repository (`git worktree add`), where the walk does not go: in a
//! folder that is ignored, in its HOME. Their commits come home with the others; of their files, it is told that they
//! did not. One that is elsewhere died with what the agent saw as its file system.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::{AgentDirs, NotBroughtHome, WhyNot};

/// Those that still lie in the tree or in HOME and are not among what is told already. Their paths are the agent's
/// words: nothing is opened there.
pub(super) fn not_walked(
    linked: &[PathBuf],
    dirs: &AgentDirs,
    told: &[NotBroughtHome],
) -> Vec<NotBroughtHome> {
    let places = [(dirs.work(), ""), (dirs.home(), "~/")];
    let mut found = Vec::new();
    for path in linked.iter().map(|path| without_dots(path)) {
        let inside = places.iter().find_map(|(place, prefix)| {
            // An agent's git may have looked through the links that lead to the data folder.
            let real = fs::canonicalize(place).unwrap_or_else(|_| place.clone());
            let rest = path
                .strip_prefix(place)
                .or_else(|_| path.strip_prefix(real))
                .ok()?;
            let name = [prefix.as_bytes(), rest.as_os_str().as_bytes()].concat();
            let is_there = fs::symlink_metadata(place.join(rest)).is_ok();
            (is_there && !rest.as_os_str().is_empty()).then_some(name)
        });
        let missed = inside.map(|name| NotBroughtHome::new(&name, WhyNot::NestedRepository));
        found.extend(missed.filter(|missed| !told.contains(missed)));
    }
    found
}

/// The path by its letters alone, `..` taken for the folder above.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}
