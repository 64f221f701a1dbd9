//! Writing to the journal while a daemon may be writing to it, too, or may hang with its lock held.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{JournalError, NAME, Step, Words, append_to, line, reached};

/// How long a writer waits for another who rewrites the file. Whoever holds the lock longer hangs.
const LOCK_WITHIN: Duration = Duration::from_millis(250);

/// Adds these words to the journal of a data folder, whoever else has it open; durable when it answers.
///
/// # Errors
/// [`JournalError`] if the disk did not take them.
pub fn leave(data_dir: &Path, words: Words) -> Result<(), JournalError> {
    let path = data_dir.join(NAME);
    let leave = || -> io::Result<()> {
        let lines = line::after_any(words.into_lines())?;
        loop {
            let file = append_to(&path)?;
            let is_in_place = || {
                let now = fs::metadata(&path);
                now.is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino()))
            };
            // One that hangs with the lock held keeps no kill from its word.
            let _alone = lock(&file);
            if !is_in_place() {
                continue;
            }
            (&file).write_all(&lines)?;
            file.sync_data()?;
            reached(Step::Left)?;
            // Without the lock another may have taken its place meanwhile. Whoever puts it there looks into this one
            // afterwards, so that what is in place now is read; twice said does no harm.
            if is_in_place() {
                return Ok(());
            }
        }
    };
    leave().map_err(|source| JournalError {
        operation: "append to",
        path: path.clone(),
        source,
    })
}

/// The lock of a file, until this is dropped.
pub(super) struct Locked<'a>(std::os::fd::BorrowedFd<'a>);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

/// Takes the lock by which those who add and the one who rewrites keep out of each other's way.
pub(super) fn lock(file: &File) -> io::Result<Locked<'_>> {
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Locked(file.as_fd())),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
