//! The header of a record, byte by byte.

use super::{MAX_RECORD_BYTES, Stream};

const MAGIC: [u8; 4] = *b"MSP1";
pub(super) const HEADER_BYTES: usize = 20;
const FLAG_UNFINISHED: u8 = 1;

impl Stream {
    fn code(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Notice => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            3 => Some(Self::Notice),
            _ => None,
        }
    }
}

/// What stands before each payload.
pub(super) struct Header {
    pub(super) stream: Stream,
    pub(super) unfinished: bool,
    pub(super) at_unix_ms: u64,
    pub(super) payload_bytes: usize,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let length = u32::try_from(self.payload_bytes).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.stream.code();
        out[5] = if self.unfinished { FLAG_UNFINISHED } else { 0 };
        out[8..16].copy_from_slice(&self.at_unix_ms.to_le_bytes());
        out[16..].copy_from_slice(&length.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (at, length) = rest.split_first_chunk::<8>()?;
        let payload_bytes = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
        if *magic != MAGIC || payload_bytes > MAX_RECORD_BYTES {
            return None;
        }
        Some(Self {
            stream: Stream::from_code(kind[0])?,
            unfinished: kind[1] & FLAG_UNFINISHED != 0,
            at_unix_ms: u64::from_le_bytes(*at),
            payload_bytes,
        })
    }
}
