//! When a runtime that still runs is to be taken for hung (A15).
//!
//! `claude -p` is known to stay after its result, and to stay without ever giving one. Waiting for the
//! end of its output is therefore never the only way on: after a result there is a grace, and before
//! it a limit to silence. While the runtime says that it waits for work in the background, the limit to
//! silence holds after a result as well. Pure: `now` is an argument, and the caller sleeps until
//! [`Watchdog::next_deadline`].

use std::time::{Duration, Instant};

use super::{config::RuntimeConfig, stream::StreamReader};

/// Why a running runtime is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It gave its result and did not go.
    HungAfterResult,
    /// It said nothing for too long.
    Silent,
}

/// The limits of one run. Times are monotonic, so that a clock that is set does not kill; after a
/// restart of the spoke they count from the replay, which is later, never earlier.
#[derive(Debug, Clone, Copy)]
pub struct Watchdog {
    started_at: Instant,
    silence_timeout: Option<Duration>,
    result_grace: Duration,
}

impl Watchdog {
    /// A watchdog for a run of `config` that began (or was adopted) at `started_at`.
    #[must_use]
    pub fn new(config: &RuntimeConfig, started_at: Instant) -> Self {
        Self {
            started_at,
            silence_timeout: config
                .silence_timeout_secs
                .map(|secs| Duration::from_secs(secs.into())),
            result_grace: Duration::from_secs(config.result_grace_secs.into()),
        }
    }

    /// When [`Self::verdict`] is to be asked next, unless more output comes first; `None` when there
    /// is no limit.
    #[must_use]
    pub fn next_deadline(&self, reader: &StreamReader) -> Option<Instant> {
        self.limit(reader).map(|(deadline, _)| deadline)
    }

    /// The verdict at `now`; `None` while the run is within its limits.
    #[must_use]
    pub fn verdict(&self, reader: &StreamReader, now: Instant) -> Option<Verdict> {
        self.limit(reader)
            .and_then(|(deadline, verdict)| (now >= deadline).then_some(verdict))
    }

    fn limit(&self, reader: &StreamReader) -> Option<(Instant, Verdict)> {
        let heard_at = reader.last_activity().unwrap_or(self.started_at);
        let silent_at = self
            .silence_timeout
            .and_then(|limit| heard_at.max(self.started_at).checked_add(limit));
        let Some(seen_at) = reader.result_seen_at() else {
            return Some((silent_at?, Verdict::Silent));
        };
        let graced_at = seen_at.checked_add(self.result_grace)?;
        // A build in the background is work, and a server left there is a hang: silence tells.
        let deadline = if reader.waits_for_background() {
            silent_at.map_or(graced_at, |silent_at| silent_at.max(graced_at))
        } else {
            graced_at
        };
        Some((deadline, Verdict::HungAfterResult))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::claude;

    const RESULT: &[u8] = b"{\"type\":\"result\",\"subtype\":\"success\",\"result\":\"ok\"}\n";
    const ASSISTANT: &[u8] =
        b"{\"type\":\"assistant\",\"message\":{\"id\":\"m\",\"content\":[]}}\n";

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a15_hung_after_its_result() {
        let config = claude::default_config();
        let start = Instant::now();
        let watchdog = Watchdog::new(&config, start);
        let mut reader = StreamReader::new(config.output);
        reader.feed(RESULT, start + secs(5));
        assert_eq!(watchdog.next_deadline(&reader), Some(start + secs(15)));
        assert_eq!(watchdog.verdict(&reader, start + secs(14)), None);
        // Noise does not put the end off.
        reader.feed(b"noise\n", start + secs(14));
        assert_eq!(
            watchdog.verdict(&reader, start + secs(15)),
            Some(Verdict::HungAfterResult)
        );
    }

    #[test]
    fn a15_silent_from_the_start_and_later() {
        let config = claude::default_config();
        let start = Instant::now();
        let watchdog = Watchdog::new(&config, start);
        let mut reader = StreamReader::new(config.output);
        assert_eq!(watchdog.verdict(&reader, start + secs(899)), None);
        assert_eq!(
            watchdog.verdict(&reader, start + secs(900)),
            Some(Verdict::Silent)
        );
        reader.feed(ASSISTANT, start + secs(100));
        assert_eq!(watchdog.verdict(&reader, start + secs(900)), None);
        assert_eq!(
            watchdog.verdict(&reader, start + secs(1000)),
            Some(Verdict::Silent)
        );
    }

    #[test]
    fn a15_work_in_the_background_has_the_time_of_silence() {
        let config = claude::default_config();
        let start = Instant::now();
        let watchdog = Watchdog::new(&config, start);
        let mut reader = StreamReader::new(config.output);
        let tasks = |tasks| {
            format!(
                "{{\"type\":\"system\",\"subtype\":\"background_tasks_changed\",\"tasks\":{tasks}}}\n"
            )
        };
        reader.feed(tasks("[{}]").as_bytes(), start);
        reader.feed(RESULT, start);
        assert_eq!(watchdog.verdict(&reader, start + secs(899)), None);
        let verdict = watchdog.verdict(&reader, start + secs(900));
        assert_eq!(verdict, Some(Verdict::HungAfterResult));
        // The work is done: the grace begins.
        reader.feed(tasks("[]").as_bytes(), start + secs(60));
        assert_eq!(watchdog.verdict(&reader, start + secs(69)), None);
        let verdict = watchdog.verdict(&reader, start + secs(70));
        assert_eq!(verdict, Some(Verdict::HungAfterResult));
    }

    #[test]
    fn a_turn_after_a_result_is_not_a_hang() {
        let config = claude::default_config();
        let start = Instant::now();
        let watchdog = Watchdog::new(&config, start);
        let mut reader = StreamReader::new(config.output);
        reader.feed(RESULT, start);
        reader.feed(ASSISTANT, start + secs(1));
        assert_eq!(watchdog.verdict(&reader, start + secs(60)), None);
        assert_eq!(
            watchdog.verdict(&reader, start + secs(901)),
            Some(Verdict::Silent)
        );
    }

    #[test]
    fn no_silence_limit_for_plain_runtimes() {
        let config = RuntimeConfig::shell();
        let start = Instant::now();
        let reader = StreamReader::new(config.output);
        assert_eq!(Watchdog::new(&config, start).next_deadline(&reader), None);
    }
}
