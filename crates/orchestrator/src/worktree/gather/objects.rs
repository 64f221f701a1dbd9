//! The agent's objects, taken by name and kind: loose ones and packs.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use git2::Odb;

use super::{
    super::{Limits, NotBroughtHome, WhyNot, error::WorktreeError},
    enterable, entries, is_hex, open_regular, packs,
};

const MAX_MISSED: usize = 1000;

/// The name of a pack without its end. `git maintenance` has another one for what was loose.
fn pack_name<'a>(file: &'a str, end: &str) -> Option<&'a str> {
    let name = file.strip_suffix(end)?;
    let hash = name
        .strip_prefix("pack-")
        .or_else(|| name.strip_prefix("loose-"))?;
    is_hex(hash, 40).then_some(name)
}

fn is_pack_file(file: &str) -> bool {
    pack_name(file, ".pack")
        .or_else(|| pack_name(file, ".idx"))
        .is_some()
}

/// Whether the pack that this index is of may be read; none for another file, and for an index alone, which git does
/// not read either.
fn is_sound_pack(index: &Path, file: &str, limits: &Limits) -> Result<Option<bool>, WorktreeError> {
    let Some(name) = pack_name(file, ".idx") else {
        return Ok(None);
    };
    let pack = index.with_file_name(format!("{name}.pack"));
    if !fs::symlink_metadata(&pack).is_ok_and(|found| found.is_file()) {
        return Ok(None);
    }
    readable(index);
    readable(&pack);
    packs::is_sound(index, &pack, limits).map(Some)
}

fn readable(file: &Path) {
    if let Ok(found) = fs::symlink_metadata(file)
        && found.is_file()
        && found.permissions().mode() & 0o400 == 0
    {
        let _ = fs::set_permissions(file, fs::Permissions::from_mode(0o400));
    }
}

/// What was taken so far.
#[derive(Default)]
struct Taken {
    bytes: u64,
    files: u64,
}

impl Taken {
    fn one_more(&mut self, bytes: u64, limits: &Limits) -> Result<(), WorktreeError> {
        self.bytes = self.bytes.saturating_add(bytes);
        self.files += 1;
        if self.bytes > limits.max_objects_bytes {
            return Err(WorktreeError::TooLarge {
                what: "bytes of objects",
                limit: limits.max_objects_bytes,
            });
        }
        if self.files > limits.max_files {
            return Err(WorktreeError::TooLarge {
                what: "number of objects",
                limit: limits.max_files,
            });
        }
        Ok(())
    }
}

/// Takes loose objects and packs, by name and kind. `info/alternates` is not among them: an agent
/// cannot name objects of another repository into its own result.
pub(super) fn take(
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
    let mut taken = Taken::default();
    for dir in entries(from) {
        let Some(name) = dir.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if !(name == "pack" || is_hex(name, 2)) || !real_dir(&dir) {
            continue;
        }
        enterable(&dir);
        let target = to.join(name);
        fs::create_dir_all(&target).map_err(WorktreeError::io("copying objects", &target))?;
        let is_wanted = match name {
            "pack" => is_pack_file,
            _ => |file: &str| is_hex(file, 38),
        };
        take_from(&dir, &target, is_wanted, limits, &mut taken, missed)?;
    }
    Ok(())
}

fn take_from(
    dir: &Path,
    target: &Path,
    is_wanted: fn(&str) -> bool,
    limits: &Limits,
    taken: &mut Taken,
    missed: &mut Vec<NotBroughtHome>,
) -> Result<(), WorktreeError> {
    let mut refused = None;
    for object in entries(dir) {
        let file = object.file_name().and_then(|file| file.to_str());
        let Some(file) = file.filter(|file| is_wanted(file)) else {
            continue;
        };
        let Ok(found) = fs::symlink_metadata(&object) else {
            continue;
        };
        if !found.is_file() {
            continue;
        }
        taken.one_more(found.len(), limits)?;
        readable(&object);
        // The index of a pack comes before it.
        if is_sound_pack(&object, file, limits)? == Some(false) {
            let pack = object.with_extension("pack");
            let name = pack.file_name().unwrap_or_default().as_bytes();
            let path = [b".git/objects/pack/", name].concat();
            if missed.len() < MAX_MISSED {
                missed.push(NotBroughtHome::new(&path, WhyNot::Unreadable));
            }
            refused = Some(pack);
        } else if refused.as_ref() != Some(&object) {
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

/// A small file may inflate to an object that does not fit into memory.
pub(super) fn check_sizes(git_dir: &Path, limits: &Limits) -> Result<(), WorktreeError> {
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
