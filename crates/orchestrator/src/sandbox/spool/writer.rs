//! Writing lines as they come, up to a limit, without ever failing the one who speaks.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    CUT_BYTES, Notice, Stream,
    format::{HEADER_BYTES, Header},
    reader::read_at_most,
    unix_ms,
};

/// For how long an unfinished line is held back, so that a prompt without a newline is seen too.
const PARTIAL_LINE_DELAY: Duration = Duration::from_millis(200);

/// Kept free below the limit, so that the notice of having reached it always fits.
const NOTICE_RESERVE_BYTES: u64 = 4096;

/// Cuts one stream into lines.
#[derive(Debug)]
struct LineCutter {
    stream: Stream,
    held: Vec<u8>,
    held_since: Option<Instant>,
}

/// Writes the spool. One at a time for each file.
#[derive(Debug)]
pub(in crate::sandbox) struct SpoolWriter {
    pub(super) file: File,
    size: u64,
    limit: u64,
    dropped_bytes: u64,
    truncated: bool,
    out: LineCutter,
    err: LineCutter,
    batch: Vec<u8>,
}

impl SpoolWriter {
    /// Opens the spool for appending up to `max_bytes`, and closes a torn record at its end.
    pub(in crate::sandbox) fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let (size, torn) = repair_tail(&file)?;
        let cutter = |stream| LineCutter {
            stream,
            held: Vec::new(),
            held_since: None,
        };
        let mut writer = Self {
            file,
            size,
            limit: size.saturating_add(max_bytes.max(2 * NOTICE_RESERVE_BYTES)),
            dropped_bytes: 0,
            truncated: false,
            out: cutter(Stream::Stdout),
            err: cutter(Stream::Stderr),
            batch: Vec::new(),
        };
        if torn {
            writer.notice(&Notice::Torn);
        }
        Ok(writer)
    }

    /// Takes what was read from a stream. Never fails: what cannot be kept is counted.
    pub(in crate::sandbox) fn push(&mut self, stream: Stream, bytes: &[u8], now: Instant) {
        let at = unix_ms();
        let mut cutter = self.take(stream);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = CUT_BYTES - cutter.held.len();
            let line_end = rest.iter().take(room).position(|byte| *byte == b'\n');
            let piece;
            (piece, rest) = rest.split_at(line_end.map_or(rest.len().min(room), |end| end + 1));
            let whole = line_end.is_some();
            if !whole && cutter.held.len() + piece.len() < CUT_BYTES {
                cutter.held.extend_from_slice(piece);
                cutter.held_since.get_or_insert(now);
            } else if cutter.held.is_empty() {
                self.record(cutter.stream, at, !whole, piece);
            } else {
                cutter.held.extend_from_slice(piece);
                self.record(cutter.stream, at, !whole, &cutter.held);
                cutter.held.clear();
                cutter.held_since = None;
            }
        }
        self.put_back(cutter);
        self.write_batch();
    }

    /// Takes a notice that counts as output: one that an agent can cause, and so fill the spool with.
    pub(in crate::sandbox) fn push_notice(&mut self, notice: &Notice) {
        if let Ok(payload) = serde_json::to_vec(notice) {
            self.record(Stream::Notice, unix_ms(), false, &payload);
            self.write_batch();
        }
    }

    /// When an unfinished line has waited long enough, if one waits.
    pub(in crate::sandbox) fn next_flush(&self) -> Option<Instant> {
        [&self.out, &self.err]
            .into_iter()
            .filter_map(|cutter| cutter.held_since)
            .min()
            .map(|since| since + PARTIAL_LINE_DELAY)
    }

    /// Writes unfinished lines that have waited long enough.
    pub(in crate::sandbox) fn flush_idle(&mut self, now: Instant) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut cutter = self.take(stream);
            if cutter
                .held_since
                .is_some_and(|since| since + PARTIAL_LINE_DELAY <= now)
            {
                self.record(stream, unix_ms(), true, &cutter.held);
                cutter.held.clear();
                cutter.held_since = None;
            }
            self.put_back(cutter);
        }
        self.write_batch();
    }

    /// Writes what is left and makes it durable; says how much was dropped, in bytes.
    pub(in crate::sandbox) fn finish(mut self) -> u64 {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let cutter = self.take(stream);
            if !cutter.held.is_empty() {
                self.record(stream, unix_ms(), true, &cutter.held);
            }
        }
        self.write_batch();
        if self.dropped_bytes > 0 {
            self.notice(&Notice::Dropped {
                bytes: self.dropped_bytes,
            });
        }
        // Without the disk's consent the bytes are still in the file for every reader of this boot.
        let _ = self.file.sync_data();
        self.dropped_bytes
    }

    fn take(&mut self, stream: Stream) -> LineCutter {
        let slot = if stream == Stream::Stdout {
            &mut self.out
        } else {
            &mut self.err
        };
        std::mem::replace(
            slot,
            LineCutter {
                stream,
                held: Vec::new(),
                held_since: None,
            },
        )
    }

    fn put_back(&mut self, cutter: LineCutter) {
        let slot = if cutter.stream == Stream::Stdout {
            &mut self.out
        } else {
            &mut self.err
        };
        *slot = cutter;
    }

    fn record(&mut self, stream: Stream, at_unix_ms: u64, unfinished: bool, payload: &[u8]) {
        let needed = (HEADER_BYTES + payload.len()) as u64;
        let used = self.size + self.batch.len() as u64;
        if self.truncated || used + needed > self.limit - NOTICE_RESERVE_BYTES {
            self.dropped_bytes += payload.len() as u64;
            if !self.truncated {
                self.truncated = true;
                self.write_batch();
                self.notice(&Notice::Truncated);
            }
            return;
        }
        let header = Header {
            stream,
            unfinished,
            at_unix_ms,
            payload_bytes: payload.len(),
        };
        self.batch.extend_from_slice(&header.encode());
        self.batch.extend_from_slice(payload);
    }

    fn notice(&mut self, notice: &Notice) {
        let Ok(payload) = serde_json::to_vec(notice) else {
            return;
        };
        let header = Header {
            stream: Stream::Notice,
            unfinished: false,
            at_unix_ms: unix_ms(),
            payload_bytes: payload.len(),
        };
        self.batch.extend_from_slice(&header.encode());
        self.batch.extend_from_slice(&payload);
        self.write_batch();
    }

    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.file.write_all_at(&self.batch, self.size) {
            Ok(()) => self.size += self.batch.len() as u64,
            Err(_) => {
                // A full disk: what did arrive of the batch must not pass for a record.
                let _ = self.file.set_len(self.size);
                self.dropped_bytes += self.batch.len() as u64;
                self.truncated = true;
            }
        }
        self.batch.clear();
        // One huge line must not keep its memory for the rest of the agent's life.
        self.batch.shrink_to(1 << 20);
    }
}

/// Finds the end of the last whole record, and makes a record of what follows.
fn repair_tail(file: &File) -> io::Result<(u64, bool)> {
    let length = file.metadata()?.len();
    let mut at = 0;
    while at < length {
        let mut bytes = [0; HEADER_BYTES];
        let start = at + HEADER_BYTES as u64;
        let whole_header = read_at_most(file, &mut bytes, at)? == HEADER_BYTES;
        let Some(mut header) = Header::decode(&bytes).filter(|_| whole_header) else {
            file.set_len(at)?;
            return Ok((at, true));
        };
        let end = start + header.payload_bytes as u64;
        if end > length {
            header.payload_bytes = usize::try_from(length - start).unwrap_or(0);
            header.unfinished = true;
            file.write_all_at(&header.encode(), at)?;
            return Ok((length, true));
        }
        at = end;
    }
    Ok((at, false))
}
