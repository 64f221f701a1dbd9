//! The file of events that the store did not take: one a line, as JSON.
//!
//! A write can be cut off anywhere, by a full disk or a crash. What it leaves is at most one line that is no event,
//! which is passed over; the lines before and after it are read.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use mosaic_types::audit::AuditEvent;

/// Adds events at the end, durably. If that fails the file is as before, as far as the disk allows.
pub(super) fn append(path: &Path, events: &[Arc<AuditEvent>]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let before = file.metadata()?.len();
    let mut lines = Vec::new();
    if before > 0 && !ends_with_a_line(path)? {
        lines.push(b'\n');
    }
    for event in events {
        serde_json::to_writer(&mut lines, event.as_ref())?;
        lines.push(b'\n');
    }
    let written = file.write_all(&lines).and_then(|()| file.sync_data());
    if written.is_err() {
        // These events will be written again.
        let _ = file.set_len(before);
    }
    written
}

fn ends_with_a_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Reads at most `limit` lines.
pub(super) fn read(path: &Path, limit: usize) -> io::Result<VecDeque<Arc<AuditEvent>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(VecDeque::new()),
        opened => opened?,
    };
    let mut events = VecDeque::new();
    // Bytes, not text: a line can be cut off within a character.
    for line in BufReader::new(file).split(b'\n').take(limit) {
        match serde_json::from_slice(&line?) {
            Ok(event) => events.push_back(Arc::new(event)),
            Err(error) => tracing::warn!(%error, "a line of the audit spill file is not an event"),
        }
    }
    Ok(events)
}
