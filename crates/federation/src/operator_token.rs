//! Operators' bearer tokens: 256 random bits, stored as their SHA-256, compared in constant time.
//!
//! A plain hash is enough here: what is hashed cannot be guessed, so there is nothing for a slow hash to slow.

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::RandomError;

/// What every operator's token starts with.
pub const PREFIX: &str = "mos_";
/// Longest text that is looked at.
const MAX_TOKEN_BYTES: usize = 256;

/// Makes a fresh token. Show it once and keep its [`hash`].
///
/// # Errors
/// When the operating system gives no randomness.
pub fn generate() -> Result<Zeroizing<String>, RandomError> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(secret.as_mut())?;
    let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 52));
    text.push_str(PREFIX);
    data_encoding::BASE32_NOPAD.encode_append(secret.as_ref(), &mut text);
    text.make_ascii_lowercase();
    Ok(text)
}

/// The hash under which a token is kept and looked up.
#[must_use]
pub fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether `token` is the one that was kept as `kept`.
#[must_use]
pub fn matches(token: &str, kept: &[u8; 32]) -> bool {
    token.len() <= MAX_TOKEN_BYTES && equal_in_constant_time(&hash(token), kept)
}

/// Compares without a branch on the content, so that the time tells nothing of where two hashes differ.
#[must_use]
pub fn equal_in_constant_time(left: &[u8; 32], right: &[u8; 32]) -> bool {
    let difference = left.iter().zip(right).fold(0_u8, |sum, (left, right)| {
        std::hint::black_box(sum | (left ^ right))
    });
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_fresh_and_known_again() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_ne!(*one, *two);
        assert_eq!(one.len(), PREFIX.len() + 52);
        assert!(matches(&one, &hash(&one)));
        assert!(!matches(&two, &hash(&one)));
        assert!(!matches("", &hash(&one)));
        assert!(!matches(&"x".repeat(300), &hash(&"x".repeat(300))));
        for bit in 0..256 {
            let mut other = hash(&one);
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!equal_in_constant_time(&hash(&one), &other), "bit {bit}");
        }
    }
}
