//! Reading a runtime's output, without any I/O.
//!
//! The state after some bytes depends on the bytes alone, never on how they were cut into chunks: a
//! restarted spoke makes a new reader, feeds it the spool from the start and stands where it stood.
//! Memory is bounded: one line of at most [`MAX_LINE_BYTES`], some recent message ids, some texts.

mod claude;
mod json;
mod usage;

use std::{sync::Arc, time::Instant};

use super::{
    OutputFormat, PriceTable,
    progress::{FinalResult, Phase, Progress, RuntimeEvent},
    text::{self, Tail},
};
use usage::UsageLedger;

/// The longest line that is read; a longer one is counted and passed over.
pub const MAX_LINE_BYTES: usize = 2 * 1024 * 1024;

const MAX_TEXT_BYTES: usize = 4 * 1024;
const MAX_BRIEF_BYTES: usize = 256;
const MAX_NAME_BYTES: usize = 128;
const MAX_RESULT_BYTES: usize = 64 * 1024;

/// Reads the output of one run.
#[derive(Debug, Clone)]
pub struct StreamReader {
    format: OutputFormat,
    line: Vec<u8>,
    overlong: bool,
    offset: u64,
    progress: Progress,
    usage: UsageLedger,
    prices: Arc<PriceTable>,
    turns_settled: u64,
    result: Option<FinalResult>,
    result_seen_at: Option<Instant>,
    last_activity: Option<Instant>,
    output_tail: Tail,
    diagnostics_tail: Tail,
}

impl StreamReader {
    /// A reader at the start of an output of this format, with the built-in prices.
    #[must_use]
    pub fn new(format: OutputFormat) -> Self {
        Self::with_prices(format, Arc::default())
    }

    /// A reader at the start of an output of this format, with these prices.
    #[must_use]
    pub fn with_prices(format: OutputFormat, prices: Arc<PriceTable>) -> Self {
        Self {
            prices,
            format,
            line: Vec::new(),
            overlong: false,
            offset: 0,
            progress: Progress::default(),
            usage: UsageLedger::default(),
            turns_settled: 0,
            result: None,
            result_seen_at: None,
            last_activity: None,
            output_tail: Tail::default(),
            diagnostics_tail: Tail::default(),
        }
    }

    /// Reads the next bytes of standard output, which came at `now`, and tells what happened. There may
    /// be as many events as there are lines: a spool is best fed in chunks of some 64 KiB.
    pub fn feed(&mut self, mut bytes: &[u8], now: Instant) -> Vec<RuntimeEvent> {
        let mut events = Vec::new();
        if bytes.is_empty() {
            return events;
        }
        self.last_activity = Some(now);
        self.offset = self.offset.saturating_add(bytes.len() as u64);
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.buffer(&bytes[..end]);
            self.end_line(now, &mut events);
            bytes = &bytes[end + 1..];
        }
        self.buffer(bytes);
        events
    }

    /// Reads bytes that lie at `offset` of the output, and skips those it has read before: feeding
    /// the same part twice changes nothing. Bytes that leave a gap are refused, nothing is read, and
    /// `None` comes back; the caller then reads from [`Self::offset`].
    pub fn feed_at(
        &mut self,
        offset: u64,
        bytes: &[u8],
        now: Instant,
    ) -> Option<Vec<RuntimeEvent>> {
        let known = self.offset.checked_sub(offset)?;
        let fresh = usize::try_from(known)
            .ok()
            .and_then(|known| bytes.get(known..))
            .unwrap_or_default();
        Some(self.feed(fresh, now))
    }

    /// Reads bytes of standard error, if that is kept apart. They are kept for the report of a
    /// failure, and are a sign of life.
    pub fn feed_diagnostics(&mut self, bytes: &[u8], now: Instant) {
        if !bytes.is_empty() {
            self.last_activity = Some(now);
            self.diagnostics_tail.push(bytes);
        }
    }

    /// Output is missing here: what is held of a line has nothing to do with what comes next.
    pub fn drop_line(&mut self) {
        self.line = Vec::new();
        self.overlong = false;
    }

    /// The output has ended: a last line without a newline is read too. A JSON line that was cut is no
    /// JSON, so that half a result is never one (A16).
    pub fn finish(&mut self, now: Instant) -> Vec<RuntimeEvent> {
        let mut events = Vec::new();
        if !self.line.is_empty() || self.overlong {
            self.end_line(now, &mut events);
        }
        events
    }

    /// What is known so far.
    #[must_use]
    pub fn snapshot(&self) -> Progress {
        let mut progress = self.progress.clone();
        progress.tokens = self.usage.total();
        if let Some(cost) = self.usage.cost() {
            progress.cost_usd = Some(cost.usd);
            progress.cost_is_estimate = cost.is_estimate;
        }
        progress
    }

    /// The format that is read.
    #[must_use]
    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// How many bytes of standard output were read.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What the runtime gave as its result, if it did. Only [`super::Outcome`] says whether it counts.
    #[must_use]
    pub fn final_result(&self) -> Option<&FinalResult> {
        self.result.as_ref()
    }

    /// When the result was read, or the work done that the runtime then waited for; as long as no new
    /// turn began after it (A15).
    #[must_use]
    pub fn result_seen_at(&self) -> Option<Instant> {
        self.result_seen_at
    }

    /// The runtime waits for work in the background, and may go on when that is done.
    #[must_use]
    pub fn waits_for_background(&self) -> bool {
        self.progress.background_tasks > 0
    }

    /// When anything was read last.
    #[must_use]
    pub fn last_activity(&self) -> Option<Instant> {
        self.last_activity
    }

    /// The end of the plain output, bounded.
    #[must_use]
    pub fn output_tail(&self) -> String {
        self.output_tail.text()
    }

    /// The end of standard error, bounded; empty if it is not kept apart.
    #[must_use]
    pub fn diagnostics_tail(&self) -> String {
        self.diagnostics_tail.text()
    }

    fn buffer(&mut self, part: &[u8]) {
        if self.overlong {
            return;
        }
        if self.line.len() + part.len() > MAX_LINE_BYTES {
            self.overlong = true;
            self.line = Vec::new();
            return;
        }
        self.line.extend_from_slice(part);
    }

    fn end_line(&mut self, now: Instant, events: &mut Vec<RuntimeEvent>) {
        let counters = &mut self.progress.counters;
        counters.lines = counters.lines.saturating_add(1);
        if std::mem::take(&mut self.overlong) {
            counters.overlong_lines = counters.overlong_lines.saturating_add(1);
            events.push(RuntimeEvent::OverlongLine);
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        let handled = self.format == OutputFormat::ClaudeStreamJson
            && claude::looks_like_json(&line)
            && self.claude_line(&line, now, events);
        if !handled {
            self.plain_line(&line, events);
        }
        // One huge line must not hold its memory for the rest of the run.
        if line.capacity() <= 64 * 1024 {
            line.clear();
            self.line = line;
        }
    }

    fn plain_line(&mut self, line: &[u8], events: &mut Vec<RuntimeEvent>) {
        let counters = &mut self.progress.counters;
        counters.plain_lines = counters.plain_lines.saturating_add(1);
        self.output_tail.push(line);
        self.output_tail.push(b"\n");
        let window = &line[..line.len().min(4 * MAX_TEXT_BYTES)];
        let line = text::bounded(&String::from_utf8_lossy(window), MAX_TEXT_BYTES);
        if self.format == OutputFormat::Plain {
            self.progress.phase = Phase::Working;
            if !line.trim().is_empty() {
                self.progress.last_text = Some(line.clone());
            }
        }
        events.push(RuntimeEvent::Output { line });
    }
}

#[cfg(test)]
mod tests;
