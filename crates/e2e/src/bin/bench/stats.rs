//! Medians and percentiles.

use std::time::Duration;

/// The value that `percent` of 100 are not above (nearest rank); zero of nothing.
pub(crate) fn percentile(values: &[Duration], percent: usize) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// The median; not a number of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2);
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2);
    match (lower, upper) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => f64::NAN,
    }
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Figures of rounds, in a few words: the median, and how far the rounds lie apart.
pub(crate) fn spread(values: &[f64], unit: &str) -> String {
    let digits = |value: f64| match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let show = |value: f64| format!("{value:.*}", digits(value));
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let middle = show(median(values));
    if values.len() < 2 {
        return format!("{middle}{unit}");
    }
    format!("{middle}{unit} ({}–{})", show(least), show(most))
}
