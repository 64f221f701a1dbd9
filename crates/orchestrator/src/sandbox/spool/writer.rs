//! Writing lines as they come, up to a limit, without ever failing the one who speaks.
//!
//! A write that fails loses what it was to write: what comes next is written again when it can be, behind a notice that
//! says what is missing there. The limit alone is final.

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

/// More than a notice of missing output takes, header included. One in the middle counts as output.
const GAP_NOTICE_BYTES: u64 = 128;

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
    /// How much of that the file tells of.
    told_bytes: u64,
    /// Output is missing at the end of the file, and the file does not say so yet.
    has_gap: bool,
    truncated: bool,
    truncation_told: bool,
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
            told_bytes: 0,
            has_gap: false,
            truncated: false,
            truncation_told: false,
            out: cutter(Stream::Stdout),
            err: cutter(Stream::Stderr),
            batch: Vec::new(),
        };
        if torn {
            writer.push_notice(&Notice::Torn);
        }
        Ok(writer)
    }

    /// Where the next record will be.
    pub(super) fn end(&self) -> u64 {
        self.size
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
        if self.dropped_bytes > self.told_bytes {
            self.has_gap = true;
            self.write();
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
        let gap_notice = if self.has_gap { GAP_NOTICE_BYTES } else { 0 };
        let used = self.size + self.batch.len() as u64 + gap_notice;
        if self.truncated || used + needed > self.limit - NOTICE_RESERVE_BYTES {
            if !self.truncated {
                // What came before it is not missing behind it.
                self.write_batch();
                self.truncated = true;
            }
            self.dropped_bytes += payload.len() as u64;
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

    fn write_batch(&mut self) {
        let owes_truncation = self.truncated && !self.truncation_told;
        if !self.batch.is_empty() || owes_truncation {
            self.write();
        }
    }

    /// Writes the batch between what is to be told before it and behind it.
    fn write(&mut self) {
        let dropped_bytes = self.dropped_bytes;
        let gap = if self.has_gap {
            notice_record(&Notice::Dropped {
                bytes: dropped_bytes,
            })
        } else {
            Vec::new()
        };
        if !gap.is_empty() {
            self.batch.splice(..0, gap.iter().copied());
        }
        if self.truncated && !self.truncation_told {
            self.batch
                .extend_from_slice(&notice_record(&Notice::Truncated));
        }
        let written = write_at_most(&self.file, &self.batch, self.size);
        let (whole, lost_bytes) = whole_records(&self.batch, written);
        // What arrived whole may have been read already, and stays.
        self.size += whole as u64;
        if self.has_gap && whole >= gap.len() {
            self.has_gap = false;
            self.told_bytes = dropped_bytes;
        }
        if whole == self.batch.len() {
            self.truncation_told = self.truncated;
        } else {
            // A full disk: what did arrive of a record must not pass for one.
            let _ = self.file.set_len(self.size);
            self.dropped_bytes += lost_bytes;
            self.has_gap |= lost_bytes > 0;
        }
        self.batch.clear();
        // One huge line must not keep its memory for the rest of the agent's life.
        self.batch.shrink_to(1 << 20);
    }
}

/// A record of what the shim says itself.
fn notice_record(notice: &Notice) -> Vec<u8> {
    let Ok(payload) = serde_json::to_vec(notice) else {
        return Vec::new();
    };
    let header = Header {
        stream: Stream::Notice,
        unfinished: false,
        at_unix_ms: unix_ms(),
        payload_bytes: payload.len(),
    };
    [&header.encode(), payload.as_slice()].concat()
}

/// Writes as much as goes; says how much that is, in bytes.
fn write_at_most(file: &File, bytes: &[u8], offset: u64) -> usize {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write_at(rest, offset + written as u64) {
            Ok(count) if count > 0 => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    written
}

/// How much of a batch is whole records, where so much of it was written, and how much output is in the rest.
pub(super) fn whole_records(batch: &[u8], written: usize) -> (usize, u64) {
    let (mut at, mut whole, mut lost_bytes) = (0, 0, 0);
    while let Some(header) = batch
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .and_then(Header::decode)
    {
        at += HEADER_BYTES + header.payload_bytes;
        if at <= written {
            whole = at;
        } else if header.stream != Stream::Notice {
            lost_bytes += header.payload_bytes as u64;
        }
    }
    (whole, lost_bytes)
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
