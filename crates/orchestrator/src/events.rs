//! An agent's event stream: its moves and its output, merged from two append-only sources, the record's version
//! and the spool's offset.
//!
//! A reader that comes back with a cursor misses no output that was kept, and sees none twice. Statuses coalesce:
//! each holds the whole, so a reader that is slower than the agent moves is told where it stands now, not each
//! move on the way there.
//!
//! Whatever an agent writes, a batch can be signed: batches and events are bounded by the length of their JSON.

use std::{io, path::PathBuf, sync::Arc};

use futures_util::stream::{self, BoxStream, StreamExt};
use mosaic_store::AgentRecord;
use mosaic_types::{
    AgentId, Timestamp,
    agent::AgentStatus,
    event::{AgentEvent, EventCursor, EventKind, OutputStream},
};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    lifecycle::publisher::View,
    sandbox::spool::{Notice, Record, SpoolReader, Stream},
};

/// How much is told in one batch before its last line, in bytes of JSON. With the longest held line, the longest
/// record, which may come with it, and a status, a batch is at most 10 MiB, and 14 MiB when it is signed.
const BATCH_BYTES: usize = 512 << 10;
/// How much is read for one batch, in bytes of output.
const READ_BYTES: usize = 1 << 20;
/// How many events go into one batch.
const BATCH_EVENTS: usize = 512;

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The place to go on from is not one that a stream gave.
    #[error("no event of this agent ended at {0}")]
    NoSuchPlace(EventCursor),
    /// The output cannot be read.
    #[error("failed to read the output")]
    Read(#[source] io::Error),
}

/// Where an agent's story is read from.
#[derive(Debug)]
pub enum Source {
    /// It has not ended: its driver's views.
    Live(watch::Receiver<View>),
    /// It has ended.
    Ended(Arc<AgentRecord>),
}

/// The events of an agent after `after`; ends after the last one, or, without `follow`, when all that is there
/// was told.
///
/// # Errors
/// [`OpenError`].
pub fn stream(
    source: Source,
    spool: PathBuf,
    after: EventCursor,
    follow: bool,
) -> Result<BoxStream<'static, Vec<AgentEvent>>, OpenError> {
    let is_place = match SpoolReader::open(&spool, after.output) {
        Ok(reader) => reader.is_at_record().map_err(OpenError::Read)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => after.output == 0,
        Err(error) => return Err(OpenError::Read(error)),
    };
    if !is_place {
        return Err(OpenError::NoSuchPlace(after));
    }
    let teller = Teller {
        source,
        follow,
        seen_moves: after.moves,
        output: OutputTeller {
            path: spool,
            reader: None,
            next: after.output,
            held: None,
            has_warned: false,
        },
        over: false,
    };
    let batches = stream::unfold(teller, |mut teller| async move {
        teller.batch().await.map(|batch| (batch, teller))
    });
    Ok(batches.boxed())
}

struct Teller {
    source: Source,
    follow: bool,
    seen_moves: u64,
    output: OutputTeller,
    over: bool,
}

impl Teller {
    /// The next batch; waits for one.
    async fn batch(&mut self) -> Option<Vec<AgentEvent>> {
        loop {
            if self.over {
                return None;
            }
            let (status, version, ended, last) = self.look();
            let mut batch = Vec::new();
            // While it lives a move comes before the output that follows it; the end comes after all output.
            if !ended {
                self.tell_status(&mut batch, &status, version);
            }
            let more = self
                .output
                .tell(&mut batch, status.agent_id, self.seen_moves, ended);
            if !more {
                if ended {
                    self.tell_status(&mut batch, &status, version);
                }
                self.over = last || !self.follow;
            }
            if !batch.is_empty() {
                return Some(batch);
            }
            if self.over {
                return None;
            }
            if more {
                // A long line was read, but not to its end: others get their turn.
                tokio::task::yield_now().await;
            } else if let Source::Live(views) = &mut self.source
                && views.changed().await.is_err()
            {
                // The driver is gone: what it published last is all there is.
                self.over = true;
            }
        }
    }

    fn look(&mut self) -> (AgentStatus, u64, bool, bool) {
        match &mut self.source {
            Source::Live(views) => {
                let view = views.borrow_and_update();
                let ended = view.record.state.is_terminal();
                (view.status(), view.record.version, ended, view.finished)
            }
            Source::Ended(record) => (record.status.clone(), record.version, true, true),
        }
    }

    fn tell_status(&mut self, batch: &mut Vec<AgentEvent>, status: &AgentStatus, version: u64) {
        if version <= self.seen_moves {
            return;
        }
        self.seen_moves = version;
        batch.push(AgentEvent {
            agent_id: status.agent_id,
            id: EventCursor {
                moves: version,
                output: self.output.cursor(),
            },
            at: Timestamp::now(),
            kind: EventKind::Status {
                status: Box::new(status.clone()),
            },
        });
    }
}

/// Tells output line by line. A line that is not finished is held back until it is, or until the other stream
/// has something to say: so whatever was told, the cursor is where the untold begins.
struct OutputTeller {
    path: PathBuf,
    reader: Option<SpoolReader>,
    /// Where the untold begins.
    next: u64,
    held: Option<Held>,
    has_warned: bool,
}

struct Held {
    stream: OutputStream,
    at: Timestamp,
    bytes: Vec<u8>,
    /// How long it is in JSON.
    json_bytes: usize,
    offset: u64,
}

/// A held line is told in parts beyond this length in JSON. A part is at least one record.
const HELD_JSON_BYTES: usize = 2 << 20;

/// How long bytes are as the inside of a string in JSON, with U+FFFD for what is no UTF-8. Told of parts, the sum
/// is never less than told of the whole.
pub(crate) fn json_bytes(bytes: &[u8]) -> usize {
    bytes
        .utf8_chunks()
        .map(|chunk| {
            let valid: usize = chunk
                .valid()
                .bytes()
                .map(|byte| match byte {
                    b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
                    0..=0x1f => 6,
                    _ => 1,
                })
                .sum();
            let replaced = if chunk.invalid().is_empty() {
                0
            } else {
                char::REPLACEMENT_CHARACTER.len_utf8()
            };
            valid + replaced
        })
        .sum()
}

impl OutputTeller {
    fn cursor(&self) -> u64 {
        self.held.as_ref().map_or(self.next, |held| held.offset)
    }

    /// Adds what is there to the batch. `true` if there is more than fits.
    fn tell(
        &mut self,
        batch: &mut Vec<AgentEvent>,
        agent_id: AgentId,
        moves: u64,
        ended: bool,
    ) -> bool {
        let (mut told, mut read) = (0, 0);
        while told < BATCH_BYTES && read < READ_BYTES && batch.len() < BATCH_EVENTS {
            match self.read() {
                Ok(Some(record)) => {
                    read += record.payload.len();
                    told += self.take(batch, agent_id, moves, record);
                }
                Ok(None) => {
                    if ended {
                        self.flush(batch, agent_id, moves, true);
                    }
                    return false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.has_warned, true) {
                        warn!(agent = %agent_id, error = &error as &dyn std::error::Error, "failed to read output");
                    }
                    if error.kind() == io::ErrorKind::InvalidData {
                        self.tell_damage(batch, agent_id, moves);
                    }
                    return false;
                }
            }
        }
        true
    }

    /// What follows damage cannot be told from it: that so much is missing is said, and the rest goes on after it.
    fn tell_damage(&mut self, batch: &mut Vec<AgentEvent>, agent_id: AgentId, moves: u64) {
        self.flush(batch, agent_id, moves, false);
        let Some(reader) = &mut self.reader else {
            return;
        };
        // What cannot be read is looked at again, like what is not there yet.
        let Ok(dropped_bytes @ 1..) = reader.skip_to_end() else {
            return;
        };
        self.next = reader.offset();
        batch.push(AgentEvent {
            agent_id,
            id: EventCursor {
                moves,
                output: self.next,
            },
            at: Timestamp::now(),
            kind: EventKind::OutputTruncated { dropped_bytes },
        });
    }

    fn read(&mut self) -> io::Result<Option<Record>> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => match SpoolReader::open(&self.path, self.next) {
                Ok(reader) => self.reader.insert(reader),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        reader.next()
    }

    /// Takes a record; says how much was told, in bytes of JSON.
    fn take(
        &mut self,
        batch: &mut Vec<AgentEvent>,
        agent_id: AgentId,
        moves: u64,
        record: Record,
    ) -> usize {
        let at = Timestamp::from_unix_millis(i64::try_from(record.at_unix_ms).unwrap_or(i64::MAX));
        let end = self.reader.as_ref().map_or(self.next, SpoolReader::offset);
        let stream = match record.stream {
            Stream::Stdout => OutputStream::Stdout,
            Stream::Stderr => OutputStream::Stderr,
            Stream::Notice => {
                let told = self.flush(batch, agent_id, moves, false);
                self.next = end;
                let kind = match record.notice() {
                    Some(Notice::Dropped {
                        bytes: dropped_bytes,
                    }) => Some(EventKind::OutputTruncated { dropped_bytes }),
                    Some(Notice::EgressRefused {
                        destination,
                        not_public,
                        last_told,
                    }) => Some(EventKind::EgressRefused {
                        destination,
                        not_public,
                        last_told,
                    }),
                    Some(Notice::Truncated | Notice::Torn) | None => None,
                };
                batch.extend(kind.map(|kind| AgentEvent {
                    agent_id,
                    id: EventCursor { moves, output: end },
                    at,
                    kind,
                }));
                return told;
            }
        };
        let json_bytes = json_bytes(&record.payload);
        let mut told = 0;
        if self.held.as_ref().is_some_and(|held| {
            held.stream != stream || held.json_bytes + json_bytes > HELD_JSON_BYTES
        }) {
            told += self.flush(batch, agent_id, moves, false);
        }
        let held = self.held.get_or_insert_with(|| Held {
            stream,
            at,
            bytes: Vec::new(),
            json_bytes: 0,
            offset: record.offset,
        });
        held.bytes.extend_from_slice(&record.payload);
        held.json_bytes += json_bytes;
        self.next = end;
        if !record.unfinished {
            told += self.flush(batch, agent_id, moves, true);
        }
        told
    }

    /// Tells what is held; says how much that is, in bytes of JSON.
    fn flush(
        &mut self,
        batch: &mut Vec<AgentEvent>,
        agent_id: AgentId,
        moves: u64,
        finished: bool,
    ) -> usize {
        let Some(mut held) = self.held.take() else {
            return 0;
        };
        if held.bytes.last() == Some(&b'\n') {
            held.bytes.pop();
        }
        batch.push(AgentEvent {
            agent_id,
            id: EventCursor {
                moves,
                output: self.next,
            },
            at: held.at,
            kind: EventKind::Output {
                stream: held.stream,
                line: String::from_utf8(held.bytes)
                    .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
                unfinished: !finished,
            },
        });
        held.json_bytes
    }
}

#[cfg(test)]
mod tests {
    use mosaic_types::agent::AgentState;
    use proptest::prelude::*;

    use super::*;

    fn spool(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        std::fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn record(payload: &[u8]) -> Vec<u8> {
        let mut record = b"MSP1\x01\0\0\0".to_vec();
        record.extend(0_u64.to_le_bytes());
        record.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        record.extend(payload);
        record
    }

    fn ended() -> Source {
        let record = mosaic_store::contract::samples::agent(AgentState::Completed).unwrap();
        Source::Ended(Arc::new(record))
    }

    #[tokio::test]
    async fn a_stream_goes_on_only_where_one_was() {
        let content = [
            record(b"one\n"),
            record(b"MSP1 two\n"),
            b"MSP1\x01".to_vec(),
        ]
        .concat();
        let (_folder, path) = spool(&content);
        for offset in 0..=content.len() as u64 + 1 {
            let after = EventCursor {
                moves: 0,
                output: offset,
            };
            let opened = stream(ended(), path.clone(), after, true);
            if [0, 24, 53, 58].contains(&offset) {
                assert!(opened.is_ok(), "{offset}");
            } else {
                assert!(
                    matches!(opened, Err(OpenError::NoSuchPlace(place)) if place == after),
                    "{offset}"
                );
            }
        }
        let nothing_yet = path.with_file_name("none");
        let at = |output| EventCursor { moves: 0, output };
        assert!(stream(ended(), nothing_yet.clone(), at(0), true).is_ok());
        assert!(stream(ended(), nothing_yet, at(1), true).is_err());
    }

    #[tokio::test]
    async fn damage_is_told_and_the_story_goes_on_to_its_end() {
        let content = [record(b"one\n"), vec![0; 64]].concat();
        let (_folder, path) = spool(&content);
        let batches = stream(ended(), path, EventCursor::default(), true).unwrap();
        let events: Vec<AgentEvent> = batches.map(stream::iter).flatten().collect().await;
        let names: Vec<_> = events.iter().map(|event| event.kind.name()).collect();
        assert_eq!(names, ["output", "output-truncated", "status"]);
        assert_eq!(
            events[1].kind,
            EventKind::OutputTruncated { dropped_bytes: 64 }
        );
        assert_eq!(events[2].id.output, content.len() as u64);
    }

    proptest! {
        #[test]
        fn f21_the_length_in_json_is_known_before_it_is_written(
            bytes: Vec<u8>,
            text: String,
            cut: prop::sample::Index,
        ) {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                let written = serde_json::to_string(&String::from_utf8_lossy(bytes)).unwrap();
                prop_assert_eq!(json_bytes(bytes), written.len() - 2);
                let (left, right) = bytes.split_at(cut.index(bytes.len() + 1));
                prop_assert!(json_bytes(left) + json_bytes(right) >= json_bytes(bytes));
            }
        }
    }
}
