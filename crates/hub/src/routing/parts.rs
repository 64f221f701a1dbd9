//! The parts of a patch or bundle, which a spoke must give in order, whole, and in steps that move on.

use base64::{Engine, engine::general_purpose::STANDARD};
use mosaic_types::{
    ErrorCode, Refusal,
    command::{PatchEncoding, PatchPart},
};

/// Smallest part that is not the last, in bytes: so that the parts of what has a bound have one.
const MIN_PART_BYTES: u64 = 64 * 1024;

/// How far the parts have come.
#[derive(Debug)]
pub(super) struct Parts {
    what: &'static str,
    limit: u64,
    length: u64,
    total: u64,
    started: bool,
}

impl Parts {
    /// Of a `what` of at most `limit` bytes.
    pub(super) fn new(what: &'static str, limit: u64) -> Self {
        Self {
            what,
            limit,
            length: 0,
            total: 0,
            started: false,
        }
    }

    /// Where the next part starts; `None` before the first.
    pub(super) fn offset(&self) -> Option<u64> {
        self.started.then_some(self.length)
    }

    /// Appends the next part to `bytes`. Answers whether it was the last.
    pub(super) fn add(&mut self, part: &PatchPart, bytes: &mut Vec<u8>) -> Result<bool, Refusal> {
        let misfit = |why| misfit(self.what, why);
        if part.total_bytes > self.limit {
            return Err(Refusal::new(
                ErrorCode::BodyTooLarge,
                format!(
                    "the {} has {} bytes, above {}",
                    self.what, part.total_bytes, self.limit
                ),
            ));
        }
        if self.started && part.total_bytes != self.total {
            return Err(misfit("its length changed between parts"));
        }
        if part.offset != self.length {
            return Err(misfit("a part starts where the one before did not end"));
        }
        let before = bytes.len();
        match part.encoding {
            PatchEncoding::Utf8 => bytes.extend_from_slice(part.content.as_bytes()),
            PatchEncoding::Base64 => STANDARD
                .decode_vec(&part.content, bytes)
                .map_err(|_| misfit("a part is not base64"))?,
        }
        let step = (bytes.len() - before) as u64;
        let length = self.length.saturating_add(step);
        if length > part.total_bytes {
            return Err(misfit("it is longer than it says"));
        }
        let is_last = match part.next_offset {
            None if length == part.total_bytes => true,
            None => return Err(misfit("it is shorter than it says")),
            // Parts of next to nothing would be asked for next to for ever.
            Some(_) if step < MIN_PART_BYTES => {
                return Err(misfit("a part that is not the last is too small"));
            }
            Some(next) if next == length => false,
            Some(_) => {
                return Err(misfit(
                    "a part does not say rightly where the next one starts",
                ));
            }
        };
        self.started = true;
        self.total = part.total_bytes;
        self.length = length;
        Ok(is_last)
    }
}

pub(super) fn misfit(what: &str, why: &str) -> Refusal {
    Refusal::new(
        ErrorCode::PeerUnreachable,
        format!("the spoke's {what} cannot be put together: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1024 * 1024;

    struct Assembly {
        parts: Parts,
        bytes: Vec<u8>,
    }

    impl Assembly {
        fn new() -> Self {
            Self {
                parts: Parts::new("patch", LIMIT),
                bytes: Vec::new(),
            }
        }

        fn offset(&self) -> Option<u64> {
            self.parts.offset()
        }

        fn add(&mut self, part: &PatchPart) -> Result<bool, Refusal> {
            self.parts.add(part, &mut self.bytes)
        }
    }

    fn part(content: &str, offset: u64, total: u64, next: Option<u64>) -> PatchPart {
        PatchPart {
            content: content.to_owned(),
            encoding: PatchEncoding::Utf8,
            offset,
            total_bytes: total,
            next_offset: next,
        }
    }

    /// The shortest first part of a patch that goes on.
    fn first() -> String {
        "a".repeat(usize::try_from(MIN_PART_BYTES).unwrap())
    }

    #[test]
    fn parts_are_put_together() {
        let (first, next) = (first(), MIN_PART_BYTES);
        let mut assembly = Assembly::new();
        assert_eq!(assembly.offset(), None);
        let more = assembly.add(&part(&first, 0, next + 4, Some(next)));
        assert_eq!(more, Ok(false));
        assert_eq!(assembly.offset(), Some(next));
        let last = PatchPart {
            encoding: PatchEncoding::Base64,
            ..part("/wA+Zg==", next, next + 4, None)
        };
        assert_eq!(assembly.add(&last), Ok(true));
        assert_eq!(assembly.bytes, [first.as_bytes(), b"\xff\0>f"].concat());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let (start, next) = (first(), MIN_PART_BYTES);
        let total = next * 2;
        let (rest, short) = (first(), "a".repeat(start.len() - 1));
        let long = format!("{rest}a");
        for (bad, why) in [
            (part(&rest, next + 1, total, None), "a gap"),
            (part(&rest, next - 1, total, None), "an overlap"),
            (part(&short, next, total, None), "short"),
            (part(&long, next, total, None), "long"),
            (part(&rest, next, total, Some(next)), "not moving on"),
            (part("", next, total, Some(next)), "empty"),
            (part(&short, next, total, Some(total - 1)), "tiny steps"),
            (part(&rest, next, total + 1, Some(total)), "another length"),
            (
                PatchPart {
                    encoding: PatchEncoding::Base64,
                    ..part("a", next, total, None)
                },
                "not base64",
            ),
        ] {
            let mut assembly = Assembly::new();
            assembly.add(&part(&start, 0, total, Some(next))).unwrap();
            assert_eq!(
                assembly.add(&bad).unwrap_err().code,
                ErrorCode::PeerUnreachable,
                "{why}"
            );
        }
        let huge = part("a", 0, LIMIT + 1, Some(1));
        let code = Assembly::new().add(&huge).unwrap_err().code;
        assert_eq!(code, ErrorCode::BodyTooLarge);
    }
}
