//! Labels: pairs that a caller gives an agent to find it by again, alone or with others. They mean nothing here.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};

/// Most labels of one agent.
pub const MAX_LABELS: usize = 16;
/// Longest key, in characters of `a-z0-9._-`.
pub const MAX_KEY_CHARS: usize = 63;
/// Longest value, in characters.
pub const MAX_VALUE_CHARS: usize = 128;

/// Why something is not a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The key.
    #[error("a label's key has 1 to 63 characters of a-z, 0-9, `.`, `_` and `-`")]
    Key,
    /// The value.
    #[error("a label's value has at most 128 characters, none of them a control character")]
    Value,
    /// There are too many.
    #[error("an agent has at most 16 labels")]
    TooMany,
    /// It is not `key=value`.
    #[error("a label is written key=value")]
    Form,
}

/// One label, to select agents by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Label {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Label {
    /// Whether these labels include it.
    #[must_use]
    pub fn is_among(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.get(&self.key) == Some(&self.value)
    }

    /// Checks its bounds.
    ///
    /// # Errors
    /// [`LabelError`].
    pub fn check(&self) -> Result<(), LabelError> {
        check(&self.key, &self.value)
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (key, value) = text.split_once('=').ok_or(LabelError::Form)?;
        check(key, value)?;
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

fn check(key: &str, value: &str) -> Result<(), LabelError> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if key.is_empty() || key.chars().count() > MAX_KEY_CHARS || !key.chars().all(legal) {
        return Err(LabelError::Key);
    }
    if value.chars().count() > MAX_VALUE_CHARS || value.chars().any(char::is_control) {
        return Err(LabelError::Value);
    }
    Ok(())
}

/// Checks all labels of an agent. Answers with the key at fault, if it is one of them.
///
/// # Errors
/// [`LabelError`].
pub fn check_all(labels: &BTreeMap<String, String>) -> Result<(), (Option<&str>, LabelError)> {
    if labels.len() > MAX_LABELS {
        return Err((None, LabelError::TooMany));
    }
    for (key, value) in labels {
        check(key, value).map_err(|error| (Some(key.as_str()), error))?;
    }
    Ok(())
}

/// A label that selects, as the text `key=value`: what fits into a query.
pub mod text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::Label;

    /// Writes it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(label: &Option<Label>, out: S) -> Result<S::Ok, S::Error> {
        match label {
            Some(label) => out.collect_str(label),
            None => out.serialize_none(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is no label.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Label>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(de::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_bounds_by_name() {
        let label: Label = "team=core=x".parse().unwrap();
        assert_eq!(
            (label.key.as_str(), label.value.as_str()),
            ("team", "core=x")
        );
        assert_eq!("a=".parse::<Label>().unwrap().value, "");
        for (bad, why) in [
            ("team", LabelError::Form),
            ("=x", LabelError::Key),
            ("Team=x", LabelError::Key),
            ("a b=x", LabelError::Key),
            ("a=\n", LabelError::Value),
        ] {
            assert_eq!(bad.parse::<Label>(), Err(why), "{bad:?}");
        }
        let long = |key: usize, value: usize| format!("{}={}", "k".repeat(key), "ä".repeat(value));
        assert!(long(63, 128).parse::<Label>().is_ok());
        assert_eq!(long(64, 1).parse::<Label>(), Err(LabelError::Key));
        assert_eq!(long(1, 129).parse::<Label>(), Err(LabelError::Value));
        let many = |n: usize| (0..n).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(check_all(&many(16)).is_ok());
        assert_eq!(check_all(&many(17)), Err((None, LabelError::TooMany)));
    }

    #[test]
    fn a_label_in_a_query_is_text() {
        use crate::command::ListPayload;
        let list: ListPayload = serde_json::from_str(r#"{"label":"team=core"}"#).unwrap();
        assert_eq!(list.label.as_ref().unwrap().value, "core");
        assert_eq!(
            serde_json::to_string(&list).unwrap(),
            r#"{"label":"team=core"}"#
        );
        assert_eq!(
            serde_json::to_string(&ListPayload::default()).unwrap(),
            "{}"
        );
    }
}
