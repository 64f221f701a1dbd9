//! Points in time, as RFC 3339 in UTC.

use std::{fmt, str::FromStr, time::Duration};

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Why a text is not a [`Timestamp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not an RFC 3339 time in UTC such as 2026-11-23T09:30:00Z")]
pub struct TimestampError;

/// A point in time with millisecond precision, written as RFC 3339 in UTC (`…Z`).
///
/// Other offsets are refused when read: one instant has one spelling on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The system clock's time. Call it at the edges; everything else takes `now` as an argument.
    #[must_use]
    pub fn now() -> Self {
        Self::from_unix_millis(jiff::Timestamp::now().as_millisecond())
    }

    /// The time so many milliseconds after the Unix epoch, clamped to the years −9999 to 9999.
    #[must_use]
    pub fn from_unix_millis(millis: i64) -> Self {
        Self(
            jiff::Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 {
                jiff::Timestamp::MIN
            } else {
                jiff::Timestamp::MAX
            }),
        )
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn unix_millis(self) -> i64 {
        self.0.as_millisecond()
    }

    /// This time and `duration`, or the last representable time.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let delta = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_unix_millis(self.unix_millis().saturating_add(delta))
    }

    /// This time less `duration`, or the first representable time.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let delta = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_unix_millis(self.unix_millis().saturating_sub(delta))
    }

    /// How long after `earlier` this is; zero if it is before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let elapsed: SignedDuration = self.0.duration_since(earlier.0);
        Duration::try_from(elapsed).unwrap_or(Duration::ZERO)
    }
}

/// A day in UTC, from midnight to midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcDay(i64);

impl UtcDay {
    const MILLIS: i64 = 86_400_000;

    /// The day of a moment.
    #[must_use]
    pub fn of(at: Timestamp) -> Self {
        Self(at.unix_millis().div_euclid(Self::MILLIS))
    }

    /// The day so many days after 1970-01-01.
    #[must_use]
    pub fn from_number(days: i64) -> Self {
        Self(days)
    }

    /// How many days after 1970-01-01.
    #[must_use]
    pub fn number(self) -> i64 {
        self.0
    }

    /// The day so many days before.
    #[must_use]
    pub fn days_before(self, days: u32) -> Self {
        Self(self.0.saturating_sub(i64::from(days)))
    }

    /// When it ends: the midnight at which the next day begins.
    #[must_use]
    pub fn end(self) -> Timestamp {
        Timestamp::from_unix_millis(self.0.saturating_add(1).saturating_mul(Self::MILLIS))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        // jiff also reads offsets, annotations and lower case; RFC 3339 in UTC ends in one way here.
        let digits_end_in_z = text.len() >= 20
            && text.len() <= 35
            && text.ends_with('Z')
            && text.as_bytes()[10] == b'T';
        if !digits_end_in_z {
            return Err(TimestampError);
        }
        text.parse().map(Self).map_err(|_| TimestampError)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_utc_is_read() {
        assert!("2026-11-23T09:30:00Z".parse::<Timestamp>().is_ok());
        assert!("2026-11-23T09:30:00.123Z".parse::<Timestamp>().is_ok());
        for bad in [
            "2026-11-23T09:30:00+00:00",
            "2026-11-23 09:30:00Z",
            "2026-11-23T09:30:00z",
            "2026-11-23",
            "never",
            "",
            "2026-11-23T09:30:00[UTC]Z",
        ] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_day_ends_where_the_next_begins() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let day = UtcDay::of(at("2026-11-23T23:59:59.999Z"));
        assert_eq!(day, UtcDay::of(at("2026-11-23T00:00:00Z")));
        assert_eq!(day.end(), at("2026-11-24T00:00:00Z"));
        assert_eq!(UtcDay::of(day.end()).days_before(1), day);
        assert_eq!(UtcDay::of(Timestamp::from_unix_millis(-1)).number(), -1);
        assert_eq!(UtcDay::from_number(day.number()), day);
    }

    #[test]
    fn arithmetic_saturates() {
        let now = Timestamp::now();
        assert_eq!(
            now.saturating_add(Duration::from_millis(5)).since(now),
            Duration::from_millis(5)
        );
        assert_eq!(
            now.since(now.saturating_add(Duration::from_secs(1))),
            Duration::ZERO
        );
        assert!(now.saturating_add(Duration::MAX) > now);
    }
}
