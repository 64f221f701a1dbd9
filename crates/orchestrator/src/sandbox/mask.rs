//! Keeps secrets out of what an agent says: each secret's value, in the forms in which programs are wont to print
//! it, is replaced by `[secret:NAME]` before anything reaches the spool. So neither the disk nor a reader of the
//! output, the events, the progress or the summary ever has it.
//!
//! This is against accidents: a program that prints its environment, a log that quotes a header. An agent that *wants* to tell
//! a secret can spell it in a way that nobody foresaw; what it may have it may tell.
//!
//! | form | found |
//! |---|---|
//! | as it is | also across reads, writes and pauses |
//! | in a JSON string | escaped once or twice (JSON in JSON), with `\/`, HTML-safe (`\u003c`, `\u003C`), in ASCII alone |
//! | percent-encoded | as RFC 3986, `encodeURIComponent`, forms (`+`), and with `/` left alone; either case |
//! | base64 | standard and URL-safe, padded or not, at each of the three places in a longer text, and wrapped at 64 or 76 |
//! | several lines | each line of at least 16 bytes by itself too, but for `-----BEGIN …` and its like |
//!
//! Where an agent was refused a destination, these are looked for in what named it, in whichever case a program made of
//! it (`Finder::mask_name`).
//!
//! In the middle of a longer base64 text up to one character at each end is left, which holds at most four bits.
//!
//! A value that is too short or too uniform would be found where it is not meant, and is refused instead
//! ([`Mask::new`]).

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

mod forms;
mod stream;

pub(super) use stream::{Finder, StreamMask};

/// The shortest value of a secret, in bytes.
pub const MIN_SECRET_BYTES: usize = 8;
/// The least number of different bytes in a secret.
const MIN_DIFFERENT_BYTES: usize = 5;

/// Why a value cannot be found again in what an agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unmaskable {
    /// Shorter than [`MIN_SECRET_BYTES`].
    #[error("shorter than 8 bytes, so it could not be masked in output")]
    TooShort,
    /// Of few different bytes.
    #[error("of fewer than 5 different bytes, so it could not be masked in output")]
    TooUniform,
}

/// A secret that must not appear in an agent's output. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask {
    name: String,
    value: Zeroizing<String>,
}

impl Mask {
    /// A mask for a value, by the name that stands in its place.
    ///
    /// # Errors
    /// [`Unmaskable`].
    pub fn new(name: &str, value: &str) -> Result<Self, Unmaskable> {
        if value.len() < MIN_SECRET_BYTES {
            return Err(Unmaskable::TooShort);
        }
        if !is_varied(value) {
            return Err(Unmaskable::TooUniform);
        }
        Ok(Self {
            name: name.to_owned(),
            value: Zeroizing::new(value.to_owned()),
        })
    }

    /// What stands in the place of the value: the same inside a JSON string as outside.
    fn replacement(&self) -> Vec<u8> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let name = self.name.replace(|c| !is_plain(c), "_");
        format!("[secret:{name}]").into_bytes()
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mask").field(&self.name).finish()
    }
}

fn is_varied(text: &str) -> bool {
    text.bytes().collect::<BTreeSet<u8>>().len() >= MIN_DIFFERENT_BYTES
}

#[cfg(test)]
mod tests;
