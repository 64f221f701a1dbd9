//! What an agent has used, and what it may use.

use serde::{Deserialize, Serialize};

/// Tokens and cost of all attempts together, counted once for each message (A17).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// Tokens sent that no cache served.
    pub input_tokens: u64,
    /// Tokens received.
    pub output_tokens: u64,
    /// Tokens that a cache served.
    pub cache_read_tokens: u64,
    /// Tokens written to a cache.
    pub cache_creation_tokens: u64,
    /// US dollars, as the runtime reports them or, until it does, by a table of prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Whether a part of the cost is reckoned by a table of prices.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cost_is_estimate: bool,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cache_read_tokens: self
                .cache_read_tokens
                .saturating_add(other.cache_read_tokens),
            cache_creation_tokens: self
                .cache_creation_tokens
                .saturating_add(other.cache_creation_tokens),
            cost_usd: match (self.cost_usd, other.cost_usd) {
                (Some(one), Some(more)) => Some(one + more),
                (one, more) => one.or(more),
            },
            cost_is_estimate: self.cost_is_estimate || other.cost_is_estimate,
        }
    }

    /// Tokens of every kind: what a budget in tokens is held against.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.input_tokens
            .saturating_add(self.output_tokens)
            .saturating_add(self.cache_read_tokens)
            .saturating_add(self.cache_creation_tokens)
    }
}

/// What an agent may use, all its attempts together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Budget {
    /// US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<f64>,
    /// Tokens of every kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_adds_up_and_counts_every_kind_of_token() {
        let one = Usage {
            input_tokens: 1,
            output_tokens: 2,
            cache_read_tokens: 4,
            cache_creation_tokens: 8,
            cost_usd: Some(0.5),
            cost_is_estimate: true,
        };
        let both = one.plus(Usage {
            cost_usd: None,
            cost_is_estimate: false,
            ..one
        });
        assert_eq!((one.tokens(), both.tokens()), (15, 30));
        assert_eq!((both.cost_usd, both.cost_is_estimate), (Some(0.5), true));
        assert_eq!(one.plus(one).cost_usd, Some(1.0));
        assert_eq!(Usage::default().plus(Usage::default()), Usage::default());
    }
}
