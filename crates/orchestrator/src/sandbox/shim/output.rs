//! From the agent's pipes into the spool: as it comes while the agent lives, and what is left once
//! everybody who could write is dead.

use std::{
    io::{self, PipeReader, Read},
    time::Instant,
};

use rustix::event::Timespec;

use super::masked::MaskedSpool;
use crate::sandbox::{identity, spool::Stream};

const READ_BYTES: usize = 64 << 10;
/// More than a pipe can hold: a bound for the last drain.
const DRAIN_BYTES: usize = 4 << 20;

/// One read; a pipe that is at its end is closed.
pub(super) fn pump(pipe: &mut Option<PipeReader>, spool: &mut MaskedSpool, stream: Stream) {
    let Some(open) = pipe else { return };
    let mut buffer = vec![0; READ_BYTES];
    match open.read(&mut buffer) {
        Ok(0) => *pipe = None,
        Ok(count) => spool.push(
            stream,
            buffer.get(..count).unwrap_or_default(),
            Instant::now(),
        ),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(_) => *pipe = None,
    }
}

/// Takes what a pipe still holds. Everybody who could write is dead, so what is there is all there
/// will be; should somebody hold it open all the same, an empty one is the end (A15).
pub(super) fn drain(pipe: &mut Option<PipeReader>, spool: &mut MaskedSpool, stream: Stream) {
    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut left = DRAIN_BYTES / READ_BYTES;
    while left > 0
        && let Some(open) = pipe.as_ref()
        && matches!(identity::wait_readable(open, Some(AT_ONCE)), Ok(true))
    {
        pump(pipe, spool, stream);
        left -= 1;
    }
}
