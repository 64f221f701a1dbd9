//! The spool: what an agent wrote, in the order in which it was read, in one append-only file.
//!
//! ```text
//! record = magic "MSP1" | stream u8 | flags u8 | 0 u16 | unix ms u64 | length u32 | payload
//!          (integers little-endian; 20 bytes of header)
//! ```
//!
//! A payload is one line with its newline, byte for byte, as long as the line is at most
//! [`CUT_BYTES`]; longer lines, and lines that paused in the middle, come in several records,
//! all but the last flagged as unfinished ([`LineJoiner`] puts them together again). Nothing but
//! the size limit and a disk that takes nothing drop anything, and both leave a [`Notice`].
//!
//! A reader needs no lock: it takes whole records only, and an unfinished one at the end is simply
//! not there yet. A writer that was killed may leave such a torn record for good; the next one
//! closes it with what did arrive. To wait for growth, watch the file (inotify `MODIFY`) and read
//! until [`SpoolReader::next`] gives `None`; there is always a last write before the exit record.

use std::{
    io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

mod format;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use reader::{LineJoiner, SpoolReader};
pub(super) use writer::SpoolWriter;

/// The longest payload of a record that is read: 4 MiB.
pub const MAX_RECORD_BYTES: usize = 4 << 20;

/// The longest payload of a record that is written: 1 MiB and a little, so that a line of 1 MiB is one record,
/// whatever the other stream says meanwhile. A record is the least that can be told and signed at once, and in JSON a
/// byte may be six.
pub const CUT_BYTES: usize = (1 << 20) + (4 << 10);

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error; if the agent never started, the engine's complaints.
    Stderr,
    /// The shim itself; the payload is a [`Notice`] in JSON.
    Notice,
}

/// What the shim has to say in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Notice {
    /// From here on all output of the launch is dropped: the limit is reached.
    Truncated,
    /// Output is missing here: the disk was full, or the limit was reached and this is the last record of the launch.
    Dropped {
        /// How many bytes the launch has dropped so far.
        bytes: u64,
    },
    /// The writer before was killed in the middle of the record before this one.
    Torn,
    /// The agent asked for a destination that its network does not let it reach.
    #[serde(rename_all = "camelCase")]
    EgressRefused {
        /// Host and port as it named them, cut.
        destination: String,
        /// Whether it was for the address that they lead to.
        not_public: bool,
        /// Whether this launch tells of no more.
        last_told: bool,
    },
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it comes from.
    pub stream: Stream,
    /// When it was read, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// Whether the line goes on in the next record of the same stream.
    pub unfinished: bool,
    /// The bytes, newline included.
    pub payload: Vec<u8>,
    /// Where it starts in the file.
    pub offset: u64,
}

impl Record {
    /// The notice in it, if it is one.
    #[must_use]
    pub fn notice(&self) -> Option<Notice> {
        match self.stream {
            Stream::Notice => serde_json::from_slice(&self.payload).ok(),
            _ => None,
        }
    }
}

/// Where the next launch's output will begin: the end of the spool, if there is one. A torn record there is closed, so
/// that a record does begin at it. Only while nobody writes; it reads all headers.
///
/// # Errors
/// When the file cannot be read or mended.
pub fn next_launch_at(path: &Path) -> io::Result<u64> {
    if !path.try_exists()? {
        return Ok(0);
    }
    Ok(SpoolWriter::open(path, 0)?.end())
}

/// The time, in milliseconds since the Unix epoch.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
