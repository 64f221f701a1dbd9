//! What files hold, as git would store it: line ends as `.gitattributes` say, no other filter.
//!
//! libgit2 asks the repository for two things beside the file. For attributes it reads the `.gitattributes` of the
//! working tree and those of the index as well; git reads those of the index only where the working tree has none. For
//! the line ends of a file that is text by its looks alone (`text=auto`) both ask the index for the file as it is
//! tracked: if that has a CR, the file stays as it is. So the repository is shown a shadow of the working tree, with
//! attribute files alone, and an index of one entry, the file at hand.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use git2::{IndexEntry, IndexTime, Oid, Tree};

use super::{
    super::{
        error::WorktreeError,
        gather::{open_regular, read_small},
    },
    EXECUTABLE, REGULAR, Walk,
};

const MAX_CONTROL_FILE_BYTES: u64 = 1 << 20;
const ATTRIBUTES: &str = ".gitattributes";
/// The side of a conflict that was there before.
const OURS: i32 = 2;

impl Walk<'_> {
    /// Attribute files are looked at as copies, so that libgit2 opens no path of the agent's: one may be a FIFO, or
    /// a link into the host. One that a sparse checkout left out holds as git has it.
    pub(super) fn take_attributes(
        &self,
        dir: &Path,
        path: &[u8],
        head: Option<&Tree<'_>>,
    ) -> Result<(), WorktreeError> {
        let file = dir.join(ATTRIBUTES);
        let bytes = match fs::symlink_metadata(&file) {
            Ok(_) => read_small(&file, MAX_CONTROL_FILE_BYTES),
            Err(_) => self.attributes_left_out(path, head),
        };
        if let Some(bytes) = bytes {
            let shadow = self.shadow.join(OsStr::from_bytes(path));
            fs::create_dir_all(&shadow)
                .and_then(|()| fs::write(shadow.join(ATTRIBUTES), bytes))
                .map_err(WorktreeError::io("copying attributes", shadow))?;
        }
        Ok(())
    }

    fn attributes_left_out(&self, path: &[u8], head: Option<&Tree<'_>>) -> Option<Vec<u8>> {
        let entry = head?.get_name(ATTRIBUTES)?;
        let child = super::join(path, ATTRIBUTES.as_bytes());
        if !self.is_left_out(&child) || !is_file(entry.filemode()) {
            return None;
        }
        let blob = self.repository.find_blob(entry.id()).ok()?;
        let fits = u64::try_from(blob.size()).is_ok_and(|size| size <= MAX_CONTROL_FILE_BYTES);
        fits.then(|| blob.content().to_vec())
    }

    /// The file's content as git would store it.
    pub(super) fn blob(
        &mut self,
        file: &Path,
        path: &[u8],
        tracked: Option<(Oid, i32)>,
        found: &fs::Metadata,
    ) -> Result<Option<Oid>, WorktreeError> {
        if let Some(id) = self.checked_out.unchanged(path, found) {
            return Ok(Some(id));
        }
        if found.mode() & 0o400 == 0 {
            let _ = fs::set_permissions(file, fs::Permissions::from_mode(found.mode() | 0o400));
        }
        let Ok(mut source) = open_regular(file) else {
            return Ok(None);
        };
        let name = PathBuf::from(OsStr::from_bytes(path));
        let tracked = self.as_tracked(&name, tracked);
        let failed = || WorktreeError::git("writing a file's content");
        self.at_hand.clear().map_err(failed())?;
        let mut hint = Some(name.as_path());
        if let Some(tracked) = tracked {
            if name.file_name() == Some(OsStr::new(ATTRIBUTES)) {
                // In the index it would be read as attributes, beside the one of the working tree.
                hint = hint.filter(|_| !self.has_cr(tracked.id));
            } else {
                // One that is not there has no CR.
                let _ = self.at_hand.add(&tracked);
            }
        }
        let mut writer = self.repository.blob_writer(hint).map_err(failed())?;
        io::copy(&mut source, &mut writer)
            .map_err(WorktreeError::io("reading a file's content", file))?;
        writer.commit().map(Some).map_err(failed())
    }

    /// What git would compare the file with: the index has it, or without one that can be read, HEAD.
    fn as_tracked(&self, path: &Path, in_head: Option<(Oid, i32)>) -> Option<IndexEntry> {
        let (id, mode) = match self.index {
            Some(index) => {
                let entry = index.get_path(path, 0);
                let entry = entry.or_else(|| index.get_path(path, OURS))?;
                (entry.id, i32::try_from(entry.mode).ok()?)
            }
            None => in_head?,
        };
        is_file(mode).then(|| plain_entry(path, id))
    }

    fn has_cr(&self, id: Oid) -> bool {
        let blob = self.repository.find_blob(id);
        blob.is_ok_and(|blob| blob.content().contains(&b'\r'))
    }
}

fn is_file(mode: i32) -> bool {
    matches!(mode, REGULAR | EXECUTABLE)
}

fn plain_entry(path: &Path, id: Oid) -> IndexEntry {
    IndexEntry {
        ctime: IndexTime::new(0, 0),
        mtime: IndexTime::new(0, 0),
        dev: 0,
        ino: 0,
        mode: 0o100_644,
        uid: 0,
        gid: 0,
        file_size: 0,
        id,
        flags: 0,
        flags_extended: 0,
        path: path.as_os_str().as_bytes().to_vec(),
    }
}
