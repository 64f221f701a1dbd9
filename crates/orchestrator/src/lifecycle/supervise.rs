//! Watches one running attempt: reads what it writes, keeps its limits, and notices its end.

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use mosaic_types::{
    Timestamp,
    agent::{Progress, Usage},
};
use tracing::warn;

use super::{Cell, publisher::Live};
use crate::{
    budget::Meter,
    runtime::{self, Ending, StreamReader, Watchdog},
    sandbox::{
        ExitRecord, ExitStatus, SandboxHandle,
        spool::{Notice, SpoolReader, Stream},
    },
    tail::Tail,
};

/// How much output is read before others get their turn, in records.
const RECORDS_AT_ONCE: usize = 256;
/// And in bytes, before the last record.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Why an agent that has a budget is stopped when nothing of its output is kept any more.
const UNCOUNTED: &str = "its output passed spool-max-bytes: what it uses cannot be counted any more, and it has a budget";

/// Why watching ended. The processes may still be there: the caller kills and proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noticed {
    /// The sandbox ended.
    Exited(ExitStatus),
    /// A limit was passed.
    GaveUp(Ending),
    /// A kill was ordered and answered.
    Killed,
    /// The sandbox ended without the agent's program having run, and this is why.
    NeverStarted(String),
    /// It passed a budget, its own or one of the day, or has one and can pass it unseen: in these words.
    OverBudget(String),
}

/// Reads an attempt's output as its runtime writes it.
#[derive(Debug)]
pub struct OutputReader {
    spool_path: PathBuf,
    offset: u64,
    spool: Option<SpoolReader>,
    is_damaged: bool,
    is_cut_off: bool,
    /// Where the output ended when it was opened.
    written_before: u64,
    is_caught_up: bool,
    stream: StreamReader,
    usage_before: Usage,
}

impl OutputReader {
    /// Reads the spool from `offset`, where the attempt began, into a reader that has read nothing. The attempts
    /// before it have used `usage_before`.
    #[must_use]
    pub fn new(
        spool_path: PathBuf,
        offset: u64,
        stream: StreamReader,
        usage_before: Usage,
    ) -> Self {
        Self {
            usage_before,
            spool_path,
            offset,
            spool: None,
            is_damaged: false,
            is_cut_off: false,
            written_before: 0,
            is_caught_up: false,
            stream,
        }
    }

    /// What was read so far.
    #[must_use]
    pub fn stream(&self) -> &StreamReader {
        &self.stream
    }

    /// Whether all was read that had been written when reading began, as far as it can be read: a daemon that comes
    /// back reads it from the start. Until then the figures are those of an earlier time.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    /// Whether the output has passed its limit, so that nothing more of it is kept.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// Reads what is there, up to a bound. `true` if there was something.
    ///
    /// # Errors
    /// What reading the file gave. That the spool is damaged is said once; nothing is there from then on.
    pub fn read_some(&mut self) -> io::Result<bool> {
        let read = self.read_a_turn();
        let offset = self.spool.as_ref().map(SpoolReader::offset);
        self.is_caught_up |= match read {
            Ok(true) => offset >= Some(self.written_before),
            Ok(false) | Err(_) => true,
        };
        read
    }

    fn read_a_turn(&mut self) -> io::Result<bool> {
        if self.is_damaged {
            return Ok(false);
        }
        let spool = match &mut self.spool {
            Some(spool) => spool,
            None => match SpoolReader::open(&self.spool_path, self.offset) {
                Ok(spool) => {
                    self.written_before = fs::metadata(&self.spool_path)?.len();
                    self.spool.insert(spool)
                }
                // The shim makes it with the first output.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        let mut bytes = 0;
        for read in 0..RECORDS_AT_ONCE {
            if bytes >= BYTES_AT_ONCE {
                break;
            }
            let record = match spool.next() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(read > 0),
                Err(error) => {
                    self.is_damaged = error.kind() == io::ErrorKind::InvalidData;
                    return Err(error);
                }
            };
            bytes += record.payload.len();
            match record.stream {
                Stream::Stdout => {
                    self.stream.feed(&record.payload, Instant::now());
                }
                Stream::Stderr => self
                    .stream
                    .feed_diagnostics(&record.payload, Instant::now()),
                Stream::Notice => match record.notice() {
                    Some(notice @ (Notice::Dropped { .. } | Notice::Truncated)) => {
                        self.stream.drop_line();
                        self.is_cut_off |= notice == Notice::Truncated;
                    }
                    Some(Notice::Torn | Notice::EgressRefused { .. }) | None => {}
                },
            }
        }
        Ok(true)
    }

    /// Reads the rest. Only after the sandbox ended.
    ///
    /// # Errors
    /// What reading the file gave.
    pub fn read_rest(&mut self) -> io::Result<()> {
        while self.read_some()? {}
        self.stream.finish(Instant::now());
        Ok(())
    }

    /// What the output tells, in the words of the wire.
    #[must_use]
    pub fn live(&self) -> Live {
        let snapshot = self.stream.snapshot();
        Live {
            usage: self.usage_before.plus(usage(&snapshot)),
            progress: progress(snapshot),
        }
    }
}

fn usage(snapshot: &runtime::Progress) -> Usage {
    Usage {
        input_tokens: snapshot.tokens.input,
        output_tokens: snapshot.tokens.output,
        cache_read_tokens: snapshot.tokens.cache_read,
        cache_creation_tokens: snapshot.tokens.cache_creation,
        cost_usd: snapshot.cost_usd,
        cost_is_estimate: snapshot.cost_is_estimate,
    }
}

fn progress(snapshot: runtime::Progress) -> Progress {
    let last_tool = match (snapshot.last_tool, snapshot.last_tool_brief) {
        (Some(tool), Some(brief)) => Some(format!("{tool}: {brief}")),
        (tool, _) => tool,
    };
    Progress {
        turns: snapshot.turns,
        tool_calls: snapshot.tool_calls,
        last_tool,
        last_text: snapshot.last_text,
        model: snapshot.model,
        session_id: snapshot.session_id,
    }
}

/// Watches until the attempt ends, passes a limit, or was killed.
///
/// `left` is what is left of its time.
pub async fn watch(
    cell: &Cell,
    handle: &dyn SandboxHandle,
    output: &mut OutputReader,
    watchdog: Watchdog,
    left: Duration,
    tail: &Tail,
    meter: Option<&Meter>,
) -> Noticed {
    let exit = handle.wait_exit();
    tokio::pin!(exit);
    let timeout = tokio::time::sleep(left);
    tokio::pin!(timeout);
    let mut usage = output.usage_before;
    loop {
        let mut more = false;
        match output.read_some() {
            Ok(true) => {
                more = true;
                let live = output.live();
                usage = live.usage;
                cell.publisher.live(live);
                cell.publisher.output_grew();
                tokio::task::yield_now().await;
            }
            Ok(false) => {}
            Err(error) => {
                warn!(agent = %cell.agent_id, error = &error as &dyn std::error::Error, "failed to read output");
            }
        }
        // Also for what others have used: a tail has everybody look once a second. A total that the agent had earlier
        // is not counted: it may be more than it has come down to since, and its result may be yet to be read.
        let excess = meter
            .filter(|_| output.is_caught_up())
            .and_then(|meter| meter.count(&usage, Timestamp::now()));
        let is_uncounted = output.is_cut_off() && meter.is_some_and(Meter::is_bounded);
        let why = excess
            .map(|excess| excess.to_string())
            .or_else(|| is_uncounted.then(|| UNCOUNTED.to_owned()));
        // One that has given its result spends nothing more: its work is worth more than its last seconds.
        if let Some(why) = why
            && output.stream().final_result().is_none()
        {
            return Noticed::OverBudget(why);
        }
        if let Some(verdict) = watchdog.verdict(output.stream(), Instant::now()) {
            return Noticed::GaveUp(Ending::GivenUp(verdict));
        }
        let patience = watchdog
            .next_deadline(output.stream())
            .map_or(Duration::from_secs(3600), |at| {
                at.saturating_duration_since(Instant::now())
            });
        tokio::select! {
            biased;
            () = cell.kill_answered.cancelled() => return Noticed::Killed,
            exited = &mut exit => {
                return match exited {
                    Ok(ExitRecord { status: ExitStatus::NotStarted, detail: Some(why), .. }) => {
                        Noticed::NeverStarted(why)
                    }
                    Ok(record) => Noticed::Exited(record.status),
                    Err(error) => {
                        warn!(agent = %cell.agent_id, error = &error as &dyn std::error::Error, "exit record is lost");
                        Noticed::Exited(ExitStatus::Lost)
                    }
                };
            }
            () = &mut timeout => return Noticed::GaveUp(Ending::TimedOut),
            () = std::future::ready(()), if more => {}
            () = tail.grown() => {}
            () = tokio::time::sleep(patience) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::OutputFormat;

    fn record(payload: &[u8]) -> Vec<u8> {
        record_of(1, payload)
    }

    fn notice(notice: &Notice) -> Vec<u8> {
        record_of(3, &serde_json::to_vec(notice).unwrap())
    }

    fn record_of(stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut record = b"MSP1".to_vec();
        record.extend([stream, 0, 0, 0]);
        record.extend(0_u64.to_le_bytes());
        record.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        record.extend(payload);
        record
    }

    fn reader(spool: &[u8]) -> (tempfile::TempDir, OutputReader) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        std::fs::write(&path, spool).unwrap();
        let stream = StreamReader::new(OutputFormat::Plain);
        (folder, OutputReader::new(path, 0, stream, Usage::default()))
    }

    #[test]
    fn one_turn_reads_a_bounded_number_of_bytes() {
        let line = vec![b'x'; 512 << 10];
        let (_folder, mut output) = reader(&record(&line).repeat(9));
        let mut turns = 0;
        while output.read_some().unwrap() {
            turns += 1;
        }
        assert_eq!(turns, 5);
    }

    #[test]
    fn what_was_there_at_first_is_caught_up_with_whatever_comes_meanwhile() {
        let (folder, mut output) = reader(&record(b"line\n").repeat(RECORDS_AT_ONCE + 1));
        let path = folder.path().join("spool");
        let more = record(b"more\n").repeat(3 * RECORDS_AT_ONCE);
        assert!(!output.is_caught_up());
        assert!(output.read_some().unwrap());
        assert!(!output.is_caught_up());
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, [before, more].concat()).unwrap();
        assert!(output.read_some().unwrap());
        assert!(output.is_caught_up());
    }

    #[test]
    fn where_nothing_can_be_read_there_is_nothing_to_catch_up_with() {
        let (_folder, mut output) = reader(&[0; 64]);
        output.read_some().unwrap_err();
        assert!(output.is_caught_up());
        let (folder, mut output) = reader(&[]);
        std::fs::remove_file(folder.path().join("spool")).unwrap();
        assert!(!output.read_some().unwrap());
        assert!(output.is_caught_up());
    }

    #[test]
    fn a16_lines_on_both_sides_of_a_gap_are_not_joined() {
        for gap in [Notice::Dropped { bytes: 9 }, Notice::Truncated] {
            let spool = [record(b"half a "), notice(&gap), record(b"whole line\n")].concat();
            let (_folder, mut output) = reader(&spool);
            output.read_rest().unwrap();
            assert_eq!(output.stream().output_tail(), "whole line");
            assert_eq!(output.is_cut_off(), gap == Notice::Truncated);
        }
        // Nothing is missing where something else is said.
        let spool = [record(b"half a "), notice(&Notice::Torn), record(b"line\n")];
        let (_folder, mut output) = reader(&spool.concat());
        output.read_rest().unwrap();
        assert_eq!(output.stream().output_tail(), "half a line");
    }

    #[test]
    fn a_damaged_spool_is_said_once() {
        let damaged = [record(b"whole\n"), vec![0; 64]].concat();
        let (_folder, mut output) = reader(&damaged);
        let error = output.read_some().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(!output.read_some().unwrap());
        output.read_rest().unwrap();
        assert_eq!(output.stream().output_tail(), "whole");
    }
}
