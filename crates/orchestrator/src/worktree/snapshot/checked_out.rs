//! What the host noted when it checked a tree out: which files nobody has changed since.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt, path::Path};

use git2::{Index, IndexEntry, Oid};

/// Files as the host checked them out, by path. Only the host wrote it, so it may be believed where
/// an agent's index may not; and a ctime cannot be set back by whoever changes a file.
#[derive(Default)]
pub(in super::super) struct CheckedOut {
    entries: HashMap<Vec<u8>, IndexEntry>,
    /// When that was noted, Unix seconds and nanoseconds. What changed afterwards has a ctime from
    /// then on, so an older ctime that is still the same proves that nothing did.
    noted: (i64, i64),
}

impl CheckedOut {
    /// A cache: when it cannot be read, every file is.
    pub(in super::super) fn read(path: &Path) -> Self {
        let Ok(noted) = fs::metadata(path) else {
            return Self::default();
        };
        let Ok(index) = Index::open(path) else {
            return Self::default();
        };
        let entries = index.iter().map(|entry| (entry.path.clone(), entry));
        Self {
            entries: entries.collect(),
            noted: (noted.mtime(), noted.mtime_nsec()),
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the index keeps the low 32 bits of these"
    )]
    pub(super) fn unchanged(&self, path: &[u8], found: &fs::Metadata) -> Option<Oid> {
        let entry = self.entries.get(path)?;
        let same = entry.ino == found.ino() as u32
            && entry.file_size == found.size() as u32
            && found.size() < u64::from(u32::MAX)
            && entry.ctime.seconds() == found.ctime() as i32
            && i64::from(entry.ctime.nanoseconds()) == found.ctime_nsec()
            && entry.mtime.seconds() == found.mtime() as i32
            && i64::from(entry.mtime.nanoseconds()) == found.mtime_nsec()
            && (found.ctime(), found.ctime_nsec()) < self.noted;
        same.then_some(entry.id)
    }
}
