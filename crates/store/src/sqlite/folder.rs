//! The data folder: made if missing, locked for one process, readable by its owner only.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::StoreError;

/// Name of the database in the data folder.
pub const DATABASE_FILE: &str = "store.db";
const LOCK_FILE: &str = "store.lock";

/// A data folder that is ours as long as this lives.
#[derive(Debug)]
pub(super) struct Folder {
    /// The database file, which exists.
    pub(super) database: PathBuf,
    // The kernel lets go of the lock when the last descriptor closes, however the process ends.
    _lock: File,
}

impl Folder {
    pub(super) fn take(folder: &Path) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(prepare(folder))?;
        let lock_path = folder.join(LOCK_FILE);
        let lock = private_file(&lock_path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => StoreError::InUse {
                folder: folder.to_owned(),
            },
            other => prepare(&lock_path)(other.into()),
        })?;
        let database = folder.join(DATABASE_FILE);
        private_file(&database)?;
        File::open(folder)
            .and_then(|handle| handle.sync_all())
            .map_err(prepare(folder))?;
        Ok(Self {
            database,
            _lock: lock,
        })
    }
}

/// Opens a file that only its owner can read. SQLite gives its side files the mode of the database.
fn private_file(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(prepare(path))?;
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(prepare(path))?;
    Ok(file)
}

fn prepare(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Prepare {
        path: path.clone(),
        source: Arc::new(source),
    }
}
