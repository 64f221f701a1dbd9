//! The spool as the session sees it: with the agent's secrets taken out of everything that goes in. An agent
//! without secrets writes to the spool as if this were not there.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::sandbox::{
    mask::{Finder, Mask, StreamMask},
    spool::{SpoolWriter, Stream},
};

/// For how long what may be the beginning of a secret waits for the rest.
const BEGINNING_DELAY: Duration = Duration::from_secs(1);

pub(super) struct MaskedSpool {
    spool: SpoolWriter,
    finder: Option<Arc<Finder>>,
    masked: Vec<Masked>,
}

/// One stream's mask.
struct Masked {
    stream: Stream,
    mask: StreamMask,
    /// When the stream spoke last, if it left a beginning.
    since: Option<Instant>,
}

impl MaskedSpool {
    pub(super) fn new(spool: SpoolWriter, masks: &[Mask]) -> io::Result<Self> {
        let finder = Finder::new(masks)?;
        let masked = |stream| {
            finder.as_ref().map(|finder| Masked {
                stream,
                mask: StreamMask::new(finder),
                since: None,
            })
        };
        let masked = [Stream::Stdout, Stream::Stderr]
            .into_iter()
            .filter_map(masked)
            .collect();
        Ok(Self {
            spool,
            finder,
            masked,
        })
    }

    /// What finds the agent's secrets, if it has any.
    pub(super) fn finder(&self) -> Option<Arc<Finder>> {
        self.finder.clone()
    }

    /// The spool itself, for what is ours to say and has no secret in it.
    pub(super) fn writer(&mut self) -> &mut SpoolWriter {
        &mut self.spool
    }

    /// As [`SpoolWriter::push`].
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8], now: Instant) {
        let masked = self
            .masked
            .iter_mut()
            .find(|masked| masked.stream == stream);
        let Some(masked) = masked else {
            return self.spool.push(stream, bytes, now);
        };
        let told = masked.mask.push(bytes);
        masked.since = masked.mask.waits().then_some(now);
        self.spool.push(stream, &told, now);
    }

    /// When something that waits has waited long enough.
    pub(super) fn next_flush(&self) -> Option<Instant> {
        let beginnings = self.masked.iter().filter_map(|masked| masked.since);
        beginnings
            .map(|since| since + BEGINNING_DELAY)
            .chain(self.spool.next_flush())
            .min()
    }

    /// Writes what has waited long enough.
    pub(super) fn flush_idle(&mut self, now: Instant) {
        for masked in &mut self.masked {
            if masked
                .since
                .is_some_and(|since| since + BEGINNING_DELAY <= now)
            {
                masked.since = None;
                let told = masked.mask.give_way();
                self.spool.push(masked.stream, &told, now);
            }
        }
        self.spool.flush_idle(now);
    }

    /// As [`SpoolWriter::finish`].
    pub(super) fn finish(mut self) -> u64 {
        for masked in &mut self.masked {
            let told = masked.mask.give_way();
            self.spool.push(masked.stream, &told, Instant::now());
        }
        self.spool.finish()
    }
}
