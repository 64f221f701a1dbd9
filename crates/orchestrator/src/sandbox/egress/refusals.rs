//! Word of refusals, from the proxy's threads to the shim's loop, which alone writes the spool. A pipe, so that the
//! loop can wait for it; the number of lines is bounded by what a pipe holds, so that nobody waits for the loop.

use std::{
    io::{self, PipeReader, PipeWriter, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::event::Timespec;
use serde::{Deserialize, Serialize};

use crate::sandbox::{
    identity,
    spool::{Notice, SpoolWriter},
};

/// How many refusals of one launch are told.
const MAX_TOLD: u32 = 100;
/// How much of a destination is told, in bytes. With it a line is at most 400 bytes, and all of them fit a pipe.
const MAX_DESTINATION_BYTES: usize = 300;
const READ_BYTES: usize = 64 << 10;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    destination: String,
    not_public: bool,
    last_told: bool,
}

/// Where the proxy says what it refused.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    pipe: Arc<PipeWriter>,
    told: Arc<AtomicU32>,
}

impl Teller {
    /// Tells of one refusal: of the destination what can be in a name or an address.
    pub(super) fn tell(&self, destination: &str, not_public: bool) {
        let before = self
            .told
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |told| {
                (told < MAX_TOLD).then_some(told + 1)
            });
        let Ok(before) = before else {
            return;
        };
        let line = Line {
            destination: destination
                .chars()
                .filter(|char| char.is_ascii_graphic() && !['"', '\\'].contains(char))
                .take(MAX_DESTINATION_BYTES)
                .collect(),
            not_public,
            last_told: before + 1 == MAX_TOLD,
        };
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            // At most PIPE_BUF: lines of two threads do not mix.
            let _ = (&*self.pipe).write_all(&text);
        }
    }
}

/// The shim's end.
#[derive(Debug)]
pub(in crate::sandbox) struct Refusals {
    pipe: PipeReader,
    held: Vec<u8>,
}

impl Refusals {
    pub(super) fn channel() -> io::Result<(Teller, Self)> {
        let (pipe, writer) = io::pipe()?;
        let teller = Teller {
            pipe: Arc::new(writer),
            told: Arc::default(),
        };
        let held = Vec::new();
        Ok((teller, Self { pipe, held }))
    }

    /// What becomes readable when there is something to write down.
    pub(in crate::sandbox) fn pipe(&self) -> &PipeReader {
        &self.pipe
    }

    /// Writes down what is there now.
    pub(in crate::sandbox) fn write_down(&mut self, spool: &mut SpoolWriter) {
        const AT_ONCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if !matches!(identity::wait_readable(&self.pipe, Some(AT_ONCE)), Ok(true)) {
            return;
        }
        let mut buffer = vec![0; READ_BYTES];
        let count = self.pipe.read(&mut buffer).unwrap_or(0);
        self.held
            .extend_from_slice(buffer.get(..count).unwrap_or_default());
        while let Some(end) = self.held.iter().position(|byte| *byte == b'\n') {
            let rest = self.held.split_off(end + 1);
            let line = std::mem::replace(&mut self.held, rest);
            if let Ok(line) = serde_json::from_slice::<Line>(&line) {
                spool.push_notice(&Notice::EgressRefused {
                    destination: line.destination,
                    not_public: line.not_public,
                    last_told: line.last_told,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::spool::SpoolReader;

    #[test]
    fn refusals_are_told_up_to_a_number_and_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let mut spool = SpoolWriter::open(&path, 1 << 20).unwrap();
        let (teller, mut refusals) = Refusals::channel().unwrap();
        // Nobody reads meanwhile, and each is as long as it can be.
        let long = format!("\\\"\n\u{7f}{}", "a".repeat(1000));
        for _ in 0..MAX_TOLD + 50 {
            teller.tell(&long, true);
        }
        refusals.write_down(&mut spool);
        spool.finish();
        let mut reader = SpoolReader::open(&path, 0).unwrap();
        let told: Vec<_> = std::iter::from_fn(|| reader.next().unwrap())
            .filter_map(|record| match record.notice()? {
                Notice::EgressRefused {
                    destination,
                    not_public: true,
                    last_told,
                } => Some((destination.len(), last_told)),
                _ => None,
            })
            .collect();
        assert_eq!(told.len(), MAX_TOLD as usize);
        assert!(told.iter().all(|(len, _)| *len == MAX_DESTINATION_BYTES));
        let last: Vec<_> = told.iter().filter(|(_, last)| *last).collect();
        assert_eq!(last.len(), 1);
        assert!(told.last().unwrap().1);
    }
}
