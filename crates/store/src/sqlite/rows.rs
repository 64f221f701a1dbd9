//! Between columns and the types of the domain.

use std::{str::FromStr, sync::Arc};

use mosaic_types::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use crate::StoreError;

pub(super) fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Encode {
        what,
        source: Arc::new(source),
    })
}

pub(super) fn from_json<T: DeserializeOwned>(
    what: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Decode {
        what,
        source: Arc::new(source),
    })
}

pub(super) fn parse<T: FromStr>(what: &'static str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Malformed { what })
}

pub(super) fn millis(time: Timestamp) -> i64 {
    time.unix_millis()
}

pub(super) fn time(millis: i64) -> Timestamp {
    Timestamp::from_unix_millis(millis)
}

/// A count or number for a column. SQLite's integers end at 2^63; nothing counted here comes near.
pub(super) fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn number(what: &'static str, column: i64) -> Result<u64, StoreError> {
    u64::try_from(column).map_err(|_| StoreError::Malformed { what })
}
