//! Tokens, counted once (A17).
//!
//! The runtime repeats a message's usage on each of its content blocks. Figures are therefore kept by
//! message id, the last for each, and never less than was known. Only recent messages can still
//! change; older ones are folded into a sum, so that memory is bounded.

use std::collections::VecDeque;

use serde::Deserialize;

use super::json::{self, Raw};
use crate::runtime::{Price, progress::Tokens};

const RECENT_MESSAGES: usize = 256;
const MAX_ID_BYTES: usize = 128;

/// A `usage` object as the Messages API gives it, or one model's part of `modelUsage`, which Claude Code spells its own
/// way.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct UsageJson<'a> {
    #[serde(borrow, alias = "inputTokens")]
    input_tokens: Raw<'a>,
    #[serde(borrow, alias = "outputTokens")]
    output_tokens: Raw<'a>,
    #[serde(borrow, alias = "cacheReadInputTokens")]
    cache_read_input_tokens: Raw<'a>,
    #[serde(borrow, alias = "cacheCreationInputTokens")]
    cache_creation_input_tokens: Raw<'a>,
}

impl UsageJson<'_> {
    pub(super) fn tokens(&self) -> Tokens {
        Tokens {
            input: json::count(self.input_tokens).unwrap_or(0),
            output: json::count(self.output_tokens).unwrap_or(0),
            cache_read: json::count(self.cache_read_input_tokens).unwrap_or(0),
            cache_creation: json::count(self.cache_creation_input_tokens).unwrap_or(0),
        }
    }
}

/// What all models together have used in the whole run, if a result tells it by `modelUsage`: sub-agents included,
/// which `usage` there leaves out.
pub(super) fn of_all_models(model_usage: Raw<'_>) -> Option<Tokens> {
    json::values(model_usage)
        .into_iter()
        .filter_map(|of_model| json::object::<UsageJson<'_>>(Some(of_model)))
        .map(|of_model| of_model.tokens())
        .reduce(Tokens::plus)
}

/// The count of one run.
#[derive(Debug, Clone, Default)]
pub(super) struct UsageLedger {
    /// The totals of earlier results.
    settled: Tokens,
    /// The total of the result that stands, if one does.
    standing: Option<Tokens>,
    /// Messages since the last result that are too old to change.
    folded: Tokens,
    recent: VecDeque<Entry>,
    costs: Costs,
}

#[derive(Debug, Clone)]
struct Entry {
    id: String,
    tokens: Tokens,
    price: Price,
    /// A result has counted it.
    settled: bool,
    /// The cost of a result has it in it.
    paid: bool,
}

impl Entry {
    fn cost(&self) -> f64 {
        self.price.of(self.tokens)
    }
}

/// What was counted, in US dollars.
#[derive(Debug, Clone, Copy, Default)]
struct Costs {
    /// Of earlier results.
    settled: f64,
    /// Of the result that stands, if one does.
    standing: Option<f64>,
    /// Of messages since the last result that are too old to change.
    folded: f64,
    /// A result told its tokens and no cost.
    is_estimate: bool,
}

/// The cost of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    pub(super) usd: f64,
    /// A part of it is reckoned by prices.
    pub(super) is_estimate: bool,
}

impl UsageLedger {
    /// Notes that a message was seen; says whether it is new. An id that is no id is not.
    pub(super) fn see(&mut self, id: &str) -> bool {
        if id.is_empty() || id.len() > MAX_ID_BYTES {
            return false;
        }
        // The newest are asked for most.
        if self.recent.iter().rev().any(|entry| entry.id == id) {
            return false;
        }
        if self.recent.len() == RECENT_MESSAGES
            && let Some(oldest) = self.recent.pop_front()
        {
            if !oldest.settled {
                self.folded = self.folded.plus(oldest.tokens);
            }
            if !oldest.paid {
                self.costs.folded += oldest.cost();
            }
        }
        self.recent.push_back(Entry {
            id: id.to_owned(),
            tokens: Tokens::default(),
            price: Price::default(),
            settled: false,
            paid: false,
        });
        true
    }

    /// Takes the usage of a message that was seen, and the price of its tokens.
    pub(super) fn set(&mut self, id: &str, tokens: Tokens, price: Price) {
        if let Some(entry) = self.recent.iter_mut().rev().find(|entry| entry.id == id) {
            // A message's figures only grow while it is written, and some lines tell them in part.
            entry.tokens = entry.tokens.at_least(tokens);
            entry.price = price;
        }
    }

    /// Takes the runtime's own total since its last result, in place of what was added up, and never less than that:
    /// it may leave out what sub-agents used. Said again with no turn between, it is the same total. Until it says the
    /// cost too, that is the tokens' at `price`.
    pub(super) fn settle(&mut self, tokens: Tokens, price: Price) {
        let added_up = self.standing.unwrap_or_default().plus(self.since());
        let standing = tokens.at_least(added_up);
        let reckoned = self.costs.standing.unwrap_or(0.0) + self.cost_since();
        self.standing = Some(standing);
        self.costs.standing = Some(price.of(standing).max(reckoned));
        self.close();
    }

    /// As [`Self::settle`], with the total of the whole run, whatever results there were before.
    pub(super) fn settle_run(&mut self, tokens: Tokens, price: Price) {
        let total = tokens.at_least(self.total());
        let reckoned = self.cost().map_or(0.0, |cost| cost.usd);
        self.settled = Tokens::default();
        self.standing = Some(total);
        self.costs.settled = 0.0;
        self.costs.standing = Some(price.of(total).max(reckoned));
        self.close();
    }

    /// What was added up is in a result.
    fn close(&mut self) {
        self.folded = Tokens::default();
        self.costs.is_estimate = true;
        self.costs.folded = 0.0;
        for entry in &mut self.recent {
            entry.settled = true;
            entry.paid = true;
        }
    }

    /// Takes the runtime's own word on what the whole run has cost so far, in place of all that was reckoned.
    pub(super) fn settle_cost(&mut self, usd: f64) {
        self.costs = Costs {
            standing: Some(usd),
            ..Costs::default()
        };
        for entry in &mut self.recent {
            entry.paid = true;
        }
    }

    /// The run goes on after a result: its total is kept, and what follows is added.
    pub(super) fn reopen(&mut self) {
        if let Some(standing) = self.standing.take() {
            self.settled = self.settled.plus(standing);
        }
        if let Some(standing) = self.costs.standing.take() {
            self.costs.settled += standing;
        }
    }

    /// What was added up since the last result.
    fn since(&self) -> Tokens {
        let open = self.recent.iter().filter(|entry| !entry.settled);
        open.fold(self.folded, |sum, entry| sum.plus(entry.tokens))
    }

    /// What was reckoned since the last result.
    fn cost_since(&self) -> f64 {
        let open = self.recent.iter().filter(|entry| !entry.paid);
        open.fold(self.costs.folded, |sum, entry| sum + entry.cost())
    }

    /// The total.
    pub(super) fn total(&self) -> Tokens {
        self.settled
            .plus(self.standing.unwrap_or_default())
            .plus(self.since())
    }

    /// The cost, if anything was used or told.
    pub(super) fn cost(&self) -> Option<Cost> {
        let costs = &self.costs;
        let since = self.cost_since();
        let told = costs.settled + costs.standing.unwrap_or(0.0);
        let is_known = costs.standing.is_some() || told > 0.0 || since > 0.0;
        is_known.then_some(Cost {
            usd: told + since,
            is_estimate: costs.is_estimate || since > 0.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dollar a token.
    const PRICE: Price = Price {
        input: 1_000_000.0,
        output: 0.0,
        cache_read: 0.0,
        cache_creation: 0.0,
    };

    fn tokens(input: u64) -> Tokens {
        Tokens {
            input,
            ..Tokens::default()
        }
    }

    #[test]
    fn a17_a_message_counts_once_with_its_last_figures() {
        let mut ledger = UsageLedger::default();
        for figure in [100, 100, 120] {
            ledger.see("a");
            ledger.set("a", tokens(figure), PRICE);
        }
        assert!(ledger.see("b"));
        ledger.set("b", tokens(5), PRICE);
        assert_eq!(ledger.total(), tokens(125));
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_forgotten() {
        let mut ledger = UsageLedger::default();
        for n in 0..10_000 {
            let id = n.to_string();
            assert!(ledger.see(&id));
            ledger.set(&id, tokens(1), PRICE);
        }
        assert_eq!(ledger.recent.len(), RECENT_MESSAGES);
        assert_eq!(cost(&ledger), Some((10_000.0, true)));
        assert_eq!(ledger.total(), tokens(10_000));
        assert!(!ledger.see(&"x".repeat(MAX_ID_BYTES + 1)));
    }

    #[test]
    fn a17_each_result_counts_for_the_turns_before_it() {
        let mut ledger = UsageLedger::default();
        ledger.see("a");
        ledger.set("a", tokens(10), PRICE);
        ledger.settle(tokens(50), PRICE);
        assert_eq!(ledger.total(), tokens(50));
        ledger.settle(tokens(50), PRICE);
        assert_eq!(ledger.total(), tokens(50));
        ledger.reopen();
        assert_eq!(ledger.total(), tokens(50));
        // A late repetition of what the result has counted.
        ledger.set("a", tokens(10), PRICE);
        ledger.see("b");
        ledger.set("b", tokens(1), PRICE);
        assert_eq!(ledger.total(), tokens(51));
        ledger.settle(tokens(7), PRICE);
        assert_eq!(ledger.total(), tokens(57));
        // Of the whole run.
        ledger.settle_run(tokens(60), PRICE);
        assert_eq!(ledger.total(), tokens(60));
        ledger.reopen();
        ledger.see("c");
        ledger.set("c", tokens(2), PRICE);
        ledger.settle_run(tokens(90), PRICE);
        assert_eq!(ledger.total(), tokens(90));
    }

    #[test]
    fn a17_a_result_takes_back_nothing_that_was_counted() {
        for settle in [UsageLedger::settle, UsageLedger::settle_run] {
            let mut ledger = UsageLedger::default();
            for id in ["of the main loop", "of a sub-agent"] {
                ledger.see(id);
                ledger.set(id, tokens(10), PRICE);
            }
            settle(&mut ledger, tokens(10), PRICE);
            assert_eq!(ledger.total(), tokens(20));
            ledger.see("of a sub-agent that goes on");
            ledger.set("of a sub-agent that goes on", tokens(5), PRICE);
            settle(&mut ledger, tokens(10), PRICE);
            assert_eq!(ledger.total(), tokens(25));
            assert_eq!(cost(&ledger), Some((25.0, true)));
            // Nor what it cost, where the main loop's model is a cheaper one.
            settle(&mut ledger, tokens(10), Price::default());
            assert_eq!(cost(&ledger), Some((25.0, true)));
        }
    }

    fn cost(ledger: &UsageLedger) -> Option<(f64, bool)> {
        ledger.cost().map(|cost| (cost.usd, cost.is_estimate))
    }

    #[test]
    fn a17_cost_is_reckoned_once_a_message_until_it_is_told() {
        let mut ledger = UsageLedger::default();
        assert_eq!(cost(&ledger), None);
        for figure in [100, 100, 120] {
            ledger.see("a");
            ledger.set("a", tokens(figure), PRICE);
        }
        assert_eq!(cost(&ledger), Some((120.0, true)));
        ledger.settle(tokens(200), PRICE);
        assert_eq!(cost(&ledger), Some((200.0, true)));
        ledger.settle_cost(7.0);
        assert_eq!(cost(&ledger), Some((7.0, false)));
        // A late repetition of what was paid, and a turn that was not.
        ledger.reopen();
        ledger.set("a", tokens(120), PRICE);
        ledger.see("b");
        ledger.set("b", tokens(1), PRICE);
        assert_eq!(cost(&ledger), Some((8.0, true)));
        // Costs are told in total.
        ledger.settle(tokens(1), PRICE);
        ledger.settle_cost(9.0);
        assert_eq!(cost(&ledger), Some((9.0, false)));
    }

    #[test]
    fn sums_saturate() {
        let mut ledger = UsageLedger::default();
        for id in ["a", "b", "c"] {
            ledger.see(id);
            ledger.set(id, tokens(u64::MAX), PRICE);
        }
        assert_eq!(ledger.total(), tokens(Tokens::MAX));
    }
}
