//! JSON from a program that may change, lie or be cut, read field by field.
//!
//! A field that is not what it should be is absent, and spoils no other. Values that nobody asks for
//! are never built, however deep or large they are.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Visitor},
};
use serde_json::value::RawValue;

use crate::runtime::progress::Tokens;

/// A value that was not looked into yet.
pub(super) type Raw<'a> = Option<&'a RawValue>;

/// The value as `T`, if it is one.
pub(super) fn read<T: DeserializeOwned>(raw: Raw<'_>) -> Option<T> {
    serde_json::from_str(raw?.get()).ok()
}

/// The value as an object of our own kind, which borrows.
pub(super) fn object<'a, T: Deserialize<'a>>(raw: Raw<'a>) -> Option<T> {
    // An array would do for a struct too, as far as serde is concerned.
    let text = raw?.get();
    text.starts_with('{')
        .then(|| serde_json::from_str(text).ok())?
}

/// The elements of an array.
pub(super) fn elements<'a>(raw: Raw<'a>) -> Vec<&'a RawValue> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default()
}

/// The values of an object, whatever their names.
pub(super) fn values<'a>(raw: Raw<'a>) -> Vec<&'a RawValue> {
    raw.and_then(|raw| serde_json::from_str::<BTreeMap<String, &'a RawValue>>(raw.get()).ok())
        .unwrap_or_default()
        .into_values()
        .collect()
}

/// The value as text. A lone surrogate, which JavaScript writes when it cuts a string, is replaced
/// rather than taken for a fault.
pub(super) fn text(raw: Raw<'_>) -> Option<String> {
    struct Lossy(String);

    impl<'de> Deserialize<'de> for Lossy {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Text;
            impl Visitor<'_> for Text {
                type Value = Lossy;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a string")
                }
                fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Lossy, E> {
                    Ok(Lossy(String::from_utf8_lossy(bytes).into_owned()))
                }
            }
            deserializer.deserialize_bytes(Text)
        }
    }

    let raw = raw?.get();
    // `deserialize_bytes` takes an array of numbers too.
    raw.starts_with('"')
        .then(|| serde_json::from_str::<Lossy>(raw).ok())?
        .map(|lossy| lossy.0)
}

/// The value as a count: a number that is not negative, its fraction dropped, saturating at
/// [`Tokens::MAX`].
pub(super) fn count(raw: Raw<'_>) -> Option<u64> {
    let value = match read::<u64>(raw) {
        Some(value) => value,
        None => {
            let float = read::<f64>(raw).filter(|float| *float >= 0.0)?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a float becomes an integer by saturation, which is what is wanted"
            )]
            let value = float as u64;
            value
        }
    };
    Some(value.min(Tokens::MAX))
}

/// The value as an amount of dollars: finite, not negative, at most a million.
pub(super) fn dollars(raw: Raw<'_>) -> Option<f64> {
    read::<f64>(raw)
        .filter(|amount| amount.is_finite() && *amount >= 0.0)
        .map(|amount| amount.min(1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(json: &str, f: impl Fn(Raw<'_>) -> T) -> T {
        let raw: Box<RawValue> = serde_json::from_str(json).unwrap();
        f(Some(&raw))
    }

    #[test]
    fn counts_saturate_and_never_turn_negative() {
        assert_eq!(with("7", count), Some(7));
        assert_eq!(with("7.9", count), Some(7));
        assert_eq!(with("-1", count), None);
        assert_eq!(with("-0.5", count), None);
        assert_eq!(with("18446744073709551616", count), Some(Tokens::MAX));
        assert_eq!(with("1e300", count), Some(Tokens::MAX));
        assert_eq!(with("1e999", count), None);
        assert_eq!(with("\"7\"", count), None);
        assert_eq!(with("null", count), None);
    }

    #[test]
    fn dollars_are_finite() {
        assert_eq!(with("0.25", dollars), Some(0.25));
        assert_eq!(with("-0.25", dollars), None);
        assert_eq!(with("1e999", dollars), None);
        assert_eq!(with("1e300", dollars), Some(1e6));
    }

    #[test]
    fn a_lone_surrogate_does_not_lose_the_text() {
        let cut = with(r#""cut \ud83d""#, text).unwrap();
        assert!(cut.starts_with("cut "));
        assert_eq!(with("[65,66]", text), None);
    }
}
