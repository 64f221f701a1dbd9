//! Reading while somebody writes: whole records only, without a lock.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use super::{
    MAX_RECORD_BYTES, Record, Stream,
    format::{HEADER_BYTES, Header},
};

/// Reads records one by one, from any offset at which one starts.
#[derive(Debug)]
pub struct SpoolReader {
    file: File,
    offset: u64,
}

impl SpoolReader {
    /// Opens the spool at an offset: 0, or what [`SpoolReader::offset`] said before.
    ///
    /// # Errors
    /// When the file cannot be opened; `NotFound` before the shim has made it.
    pub fn open(path: &Path, offset: u64) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            offset,
        })
    }

    /// Whether a record starts at the offset, or may yet: it is the end of the file, or a header that is not
    /// whole yet.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_at_record(&self) -> io::Result<bool> {
        if self.offset > self.file.metadata()?.len() {
            return Ok(false);
        }
        // What is not there yet is taken to be well.
        let mut header = Header {
            stream: Stream::Stdout,
            unfinished: false,
            at_unix_ms: 0,
            payload_bytes: 0,
        }
        .encode();
        read_at_most(&self.file, &mut header, self.offset)?;
        Ok(Header::decode(&header).is_some())
    }

    /// Goes to the end of the file, past what cannot be read; says how many bytes that is.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn skip_to_end(&mut self) -> io::Result<u64> {
        let end = self.file.metadata()?.len();
        let skipped = end.saturating_sub(self.offset);
        self.offset = end.max(self.offset);
        Ok(skipped)
    }

    /// Where the next record starts or will start.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next whole record; `None` if there is none yet.
    ///
    /// # Errors
    /// When the file cannot be read; `InvalidData` when no record starts at the offset.
    #[expect(
        clippy::should_implement_trait,
        reason = "none yet is not the end of an iteration"
    )]
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        // Asked for first: a record that a full disk broke off gives way to another, and where a header is older than
        // the length, the length may be the other one's.
        let length = self.file.metadata()?.len();
        let mut header = [0; HEADER_BYTES];
        if read_at_most(&self.file, &mut header, self.offset)? < HEADER_BYTES {
            return Ok(None);
        }
        let header = Header::decode(&header).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("no record at {}", self.offset),
            )
        })?;
        let start = self.offset + HEADER_BYTES as u64;
        // Before room is made for it: a length alone must not cost memory.
        if length < start + header.payload_bytes as u64 {
            return Ok(None);
        }
        let mut payload = vec![0; header.payload_bytes];
        if read_at_most(&self.file, &mut payload, start)? < payload.len() {
            return Ok(None);
        }
        let offset = self.offset;
        self.offset = start + header.payload_bytes as u64;
        Ok(Some(Record {
            stream: header.stream,
            at_unix_ms: header.at_unix_ms,
            unfinished: header.unfinished,
            payload,
            offset,
        }))
    }
}

/// Reads until the buffer is full or the file ends; says how much there was, in bytes.
pub(super) fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Puts lines together that came in several records. One for each stream.
#[derive(Debug, Default)]
pub struct LineJoiner {
    held: Vec<u8>,
}

impl LineJoiner {
    /// Takes the next payload of the stream, and gives the line if that finished it.
    ///
    /// A line that grows beyond [`MAX_RECORD_BYTES`] is given in pieces of about that size.
    pub fn push(&mut self, record: &Record) -> Option<Vec<u8>> {
        self.held.extend_from_slice(&record.payload);
        if record.unfinished && self.held.len() < MAX_RECORD_BYTES {
            return None;
        }
        Some(std::mem::take(&mut self.held))
    }

    /// What is left at the end of the stream: a last line without its end.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.held)).filter(|line| !line.is_empty())
    }
}
