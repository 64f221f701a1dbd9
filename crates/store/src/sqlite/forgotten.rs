//! When the claims that were forgotten expired.
//!
//! A claim is forgotten when its message has expired. A clock that is set back afterwards makes the message fresh again,
//! with nobody left who knows it. So what is forgotten leaves its expiry behind, and a message that would expire among
//! those is told from a first one by nobody. While the clock goes on as it should, no message does: all that come expire
//! later than all that were forgotten.
//!
//! Ranges and not one latest moment, because a clock that was ahead by a year, and is right again, must not shut the
//! node for a year.

use std::sync::Arc;

use mosaic_types::Timestamp;
use rusqlite::Connection;

use super::{rows::millis, writer::Tx};
use crate::StoreError;

/// Ranges no further apart than this, in milliseconds, become one: ten minutes, about twice the longest life of a
/// message.
const JOINED_WITHIN_MS: i64 = 600_000;
/// How many ranges are kept. Beyond that the two earliest become one: of the past the least is left to tell.
const MAX_RANGES: usize = 64;

/// From when to when, both included, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: i64,
    last: i64,
}

/// The ranges, apart from each other and in order. Cheap to clone, as every verb does.
#[derive(Debug, Clone, Default)]
pub(super) struct Forgotten(Arc<[Range]>);

impl Forgotten {
    pub(super) fn load(connection: &Connection) -> Result<Self, StoreError> {
        let ranges: Vec<Range> = connection
            .prepare("SELECT first, last FROM forgotten_claims ORDER BY first")
            .and_then(|mut query| {
                let ranges = query.query_map([], |row| {
                    Ok(Range {
                        first: row.get(0)?,
                        last: row.get(1)?,
                    })
                })?;
                ranges.collect()
            })
            .map_err(StoreError::of(StoreError::Claims))?;
        Ok(Self(ranges.into()))
    }

    /// Whether a claim that expires then may have been forgotten.
    pub(super) fn may_hold(&self, expires_at: Timestamp) -> bool {
        let at = millis(expires_at);
        // The latest first: that one alone is ever near.
        let mut ranges = self.0.iter().rev();
        ranges.any(|range| (range.first..=range.last).contains(&at))
    }

    fn with(&self, range: Range) -> Self {
        let near = |other: &Range| {
            other.first <= range.last.saturating_add(JOINED_WITHIN_MS)
                && range.first <= other.last.saturating_add(JOINED_WITHIN_MS)
        };
        let (joined, mut apart): (Vec<Range>, Vec<Range>) =
            self.0.iter().partition(|one| near(one));
        apart.push(joined.into_iter().fold(range, hull));
        apart.sort_unstable_by_key(|range| range.first);
        if apart.len() > MAX_RANGES {
            let earliest = apart.remove(0);
            if let Some(next) = apart.first_mut() {
                *next = hull(*next, earliest);
            }
        }
        Self(apart.into())
    }
}

fn hull(one: Range, other: Range) -> Range {
    Range {
        first: one.first.min(other.first),
        last: one.last.max(other.last),
    }
}

/// Those that are near each other as one range.
fn gathered(mut expiries: Vec<i64>) -> Vec<Range> {
    expiries.sort_unstable();
    expiries
        .chunk_by(|one, next| *next <= one.saturating_add(JOINED_WITHIN_MS))
        .filter_map(|near| {
            Some(Range {
                first: *near.first()?,
                last: *near.last()?,
            })
        })
        .collect()
}

/// Keeps when forgotten claims expired. To be called where they are forgotten, so that both are undone or neither.
pub(super) fn keep(tx: &mut Tx<'_>, expiries: Vec<i64>) -> Result<(), StoreError> {
    if expiries.is_empty() {
        return Ok(());
    }
    let before = tx.facts.forgotten.clone();
    let forgotten = gathered(expiries)
        .into_iter()
        .fold(before, |forgotten, range| forgotten.with(range));
    let written = || {
        let mut delete = tx
            .connection
            .prepare_cached("DELETE FROM forgotten_claims")?;
        delete.execute([])?;
        let mut insert = tx
            .connection
            .prepare_cached("INSERT INTO forgotten_claims (first, last) VALUES (?1, ?2)")?;
        for range in forgotten.0.iter() {
            insert.execute((range.first, range.last))?;
        }
        Ok(())
    };
    written().map_err(StoreError::of(StoreError::Claims))?;
    tx.facts.forgotten = forgotten;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64) -> Range {
        Range { first, last }
    }

    fn of(ranges: &[Range]) -> Forgotten {
        ranges
            .iter()
            .fold(Forgotten::default(), |forgotten, range| {
                forgotten.with(*range)
            })
    }

    #[test]
    fn ranges_that_are_near_are_one_in_whatever_order_they_come() {
        const NEAR: i64 = JOINED_WITHIN_MS;
        let apart = 3 * NEAR;
        for ranges in [
            [range(0, 1), range(1 + NEAR, 5 + NEAR), range(apart, apart)],
            [range(apart, apart), range(1 + NEAR, 5 + NEAR), range(0, 1)],
            [range(0, 1), range(apart, apart), range(1 + NEAR, 5 + NEAR)],
        ] {
            assert_eq!(
                *of(&ranges).0,
                [range(0, 5 + NEAR), range(apart, apart)],
                "{ranges:?}"
            );
        }
        let bridged = of(&[range(0, 0), range(2 * NEAR, 2 * NEAR), range(NEAR, NEAR)]);
        assert_eq!(*bridged.0, [range(0, 2 * NEAR)]);
    }

    #[test]
    fn what_is_forgotten_at_once_need_not_be_near() {
        let year = 365 * 86_400_000;
        assert_eq!(
            gathered(vec![year + 5, 7, 3, year, 5]),
            [range(3, 7), range(year, year + 5)]
        );
        assert_eq!(gathered(Vec::new()), []);
    }

    #[test]
    fn they_are_bounded_and_what_is_joined_then_still_holds_all() {
        let step = 2 * JOINED_WITHIN_MS;
        let times: Vec<i64> = (0..200).map(|number| number * step).collect();
        let forgotten = times.iter().fold(Forgotten::default(), |forgotten, at| {
            forgotten.with(range(*at, *at))
        });
        assert_eq!(forgotten.0.len(), MAX_RANGES);
        for at in &times {
            assert!(forgotten.may_hold(Timestamp::from_unix_millis(*at)));
        }
        // The latest are told apart as before.
        let between = times[198] + JOINED_WITHIN_MS;
        assert!(!forgotten.may_hold(Timestamp::from_unix_millis(between)));
    }
}
