//! Text from an agent, made fit to be kept, sent on and shown: bounded in bytes, whole characters
//! only, and without the control characters that drive a terminal.

/// Takes at most `max_bytes` of `text`, cut at a character, without control characters other than
/// newline and tab. A cut is shown by a trailing `…`, inside the bound.
pub(super) fn bounded(text: &str, max_bytes: usize) -> String {
    collect(text, max_bytes, |c| c == '\n' || c == '\t')
}

/// As [`bounded`], but on one line: each run of white space becomes one space.
pub(super) fn bounded_line(text: &str, max_bytes: usize) -> String {
    // Only so much of a huge text is looked at: escapes and spaces may vanish, but not without end.
    let window = prefix(text, max_bytes.saturating_mul(8));
    let joined = window.split_whitespace().collect::<Vec<_>>().join(" ");
    collect(&joined, max_bytes, |_| false)
}

/// The longest prefix of at most `max_bytes` that ends at a character.
pub(super) fn prefix(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn collect(text: &str, max_bytes: usize, keep_control: impl Fn(char) -> bool) -> String {
    const ELLIPSIS: char = '…';
    let mut out = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars() {
        if c.is_control() && !keep_control(c) {
            continue;
        }
        if out.len() + c.len_utf8() > max_bytes {
            while out.len() + ELLIPSIS.len_utf8() > max_bytes {
                if out.pop().is_none() {
                    return out;
                }
            }
            out.push(ELLIPSIS);
            return out;
        }
        out.push(c);
    }
    out
}

/// The last bytes of a stream, at most `MAX_BYTES`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    /// What is kept at most.
    pub(super) const MAX_BYTES: usize = 4096;

    /// Appends `chunk` and forgets what is too old.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        let fresh = &chunk[chunk.len().saturating_sub(Self::MAX_BYTES)..];
        let kept_before = Self::MAX_BYTES - fresh.len();
        let forget = self.bytes.len().saturating_sub(kept_before);
        self.cut |= forget > 0 || fresh.len() < chunk.len();
        self.bytes.drain(..forget);
        self.bytes.extend_from_slice(fresh);
    }

    /// The kept text, trimmed, without terminal control characters; a first line of which the start
    /// was forgotten is left out when another follows.
    pub(super) fn text(&self) -> String {
        let mut bytes = self.bytes.as_slice();
        if self.cut {
            let after_first_line = bytes.iter().position(|byte| *byte == b'\n');
            if let Some(at) = after_first_line
                && at + 1 < bytes.len()
            {
                bytes = &bytes[at + 1..];
            }
        }
        // Replacement characters may be longer than the bytes they stand for: the bound holds again.
        let text = bounded(&String::from_utf8_lossy(bytes), Self::MAX_BYTES);
        text.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(bounded("a\u{1b}[31mb\r\n\tc\u{9b}", 100), "a[31mb\n\tc");
        assert_eq!(bounded_line("  a\n\n b\u{7}\tc ", 100), "a b c");
    }

    #[test]
    fn cuts_are_shown_and_stay_in_bounds() {
        assert_eq!(bounded("abcdefgh", 6), "abc…");
        assert_eq!(bounded("abcdef", 6), "abcdef");
        assert_eq!(bounded("ääää", 2), "ä".replace('ä', ""));
    }

    #[test]
    fn tail_keeps_whole_last_lines() {
        let mut tail = Tail::default();
        for n in 0..2000 {
            tail.push(format!("line {n}\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.ends_with("line 1999"));
        assert!(text.lines().all(|line| line.starts_with("line ")));
        assert!(text.len() <= Tail::MAX_BYTES);
    }

    proptest! {
        #[test]
        fn bounds_hold(text in any::<String>(), max in 0_usize..64) {
            prop_assert!(bounded(&text, max).len() <= max);
            prop_assert!(bounded_line(&text, max).len() <= max);
        }

        #[test]
        fn tail_is_the_same_however_cut(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..6),
        ) {
            let mut cut = Tail::default();
            for chunk in &chunks {
                cut.push(chunk);
            }
            let mut whole = Tail::default();
            whole.push(&chunks.concat());
            prop_assert_eq!(cut.text(), whole.text());
        }
    }
}
