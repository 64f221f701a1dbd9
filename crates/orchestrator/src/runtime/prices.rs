//! What tokens cost, for as long as the runtime has not said it.
//!
//! A price is found by the model's name. A model that no entry names costs as much as the dearest that is known: a
//! new name must not outrun a budget.

use serde::{Deserialize, Serialize};

use super::progress::Tokens;

const PER: f64 = 1_000_000.0;

/// US dollars for a million tokens of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// Sent, and served by no cache.
    pub input: f64,
    /// Received.
    pub output: f64,
    /// Served by a cache.
    pub cache_read: f64,
    /// Written to a cache.
    pub cache_creation: f64,
}

impl Price {
    /// What these tokens cost, in US dollars.
    #[must_use]
    pub fn of(&self, tokens: Tokens) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts end at 2^53 - 1, which a double holds exactly"
        )]
        let cost = |tokens: u64, price: f64| tokens as f64 / PER * price;
        cost(tokens.input, self.input)
            + cost(tokens.output, self.output)
            + cost(tokens.cache_read, self.cache_read)
            + cost(tokens.cache_creation, self.cache_creation)
    }

    fn kinds(&self) -> [f64; 4] {
        [
            self.input,
            self.output,
            self.cache_read,
            self.cache_creation,
        ]
    }

    /// The dearer of two, kind by kind.
    fn or_dearer(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            output: self.output.max(other.output),
            cache_read: self.cache_read.max(other.cache_read),
            cache_creation: self.cache_creation.max(other.cache_creation),
        }
    }
}

/// An entry of a table of prices, as an operator writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModelPrice {
    /// The models' names, with `*` for any text.
    pub model: String,
    /// For a million tokens sent, in US dollars.
    pub input: f64,
    /// For a million tokens received.
    pub output: f64,
    /// For a million tokens served by a cache.
    pub cache_read: f64,
    /// For a million tokens written to a cache.
    pub cache_creation: f64,
}

impl ModelPrice {
    fn price(&self) -> Price {
        Price {
            input: self.input,
            output: self.output,
            cache_read: self.cache_read,
            cache_creation: self.cache_creation,
        }
    }

    /// Whether it names a model, and its prices are prices.
    pub(super) fn is_valid(&self) -> bool {
        let is_price = |price: f64| price.is_finite() && price >= 0.0;
        !self.model.is_empty() && self.price().kinds().into_iter().all(is_price)
    }
}

/// List prices by family of models, those of the dearest release of each. They change, long contexts and long-lived
/// caches cost more, and contracts differ: an operator who relies on a budget in US dollars sets their own
/// (`[[runtimes.prices]]`).
const BUILT_IN: [(&str, Price); 3] = [
    (
        "*opus*",
        Price {
            input: 15.0,
            output: 75.0,
            cache_read: 1.5,
            cache_creation: 18.75,
        },
    ),
    (
        "*sonnet*",
        Price {
            input: 3.0,
            output: 15.0,
            cache_read: 0.3,
            cache_creation: 3.75,
        },
    ),
    (
        "*haiku*",
        Price {
            input: 1.0,
            output: 5.0,
            cache_read: 0.1,
            cache_creation: 1.25,
        },
    ),
];

/// Prices by model: an operator's first, then those that are built in.
#[derive(Debug, Clone, PartialEq)]
pub struct PriceTable {
    entries: Vec<(String, Price)>,
    dearest: Price,
}

impl PriceTable {
    /// A table of these entries, the first that fits wins, and the built-in ones after them.
    #[must_use]
    pub fn new(own: &[ModelPrice]) -> Self {
        let own = own.iter().map(|entry| (entry.model.clone(), entry.price()));
        let built_in = BUILT_IN.map(|(model, price)| (model.to_owned(), price));
        let entries: Vec<_> = own.chain(built_in).collect();
        let dearest = entries
            .iter()
            .fold(Price::default(), |dearest, (_, price)| {
                dearest.or_dearer(*price)
            });
        Self { entries, dearest }
    }

    /// The price of a model; of one that is not known, or was not named, the dearest.
    #[must_use]
    pub fn price(&self, model: Option<&str>) -> Price {
        model
            .and_then(|model| {
                self.entries
                    .iter()
                    .find(|(pattern, _)| matches(pattern, model))
            })
            .map_or(self.dearest, |(_, price)| *price)
    }
}

impl Default for PriceTable {
    fn default() -> Self {
        Self::new(&[])
    }
}

/// Whether `name` is `pattern` with any text in place of each `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut left) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        // The earliest place leaves most to the parts that follow.
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(model: &str, input: f64) -> ModelPrice {
        ModelPrice {
            model: model.to_owned(),
            input,
            output: 0.0,
            cache_read: 0.0,
            cache_creation: 0.0,
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, fits) in [
            ("claude-sonnet-4*", "claude-sonnet-4-5-20260101", true),
            ("claude-sonnet-4*", "claude-sonnet-4", true),
            ("claude-sonnet-4*", "eu.claude-sonnet-4", false),
            ("*opus*", "eu.vendor.claude-opus-4-1-v1:0", true),
            ("*", "", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("**x", "x", true),
            ("*é*", "né", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn each_kind_of_token_has_its_price() {
        let price = Price {
            input: 1.0,
            output: 10.0,
            cache_read: 100.0,
            cache_creation: 1000.0,
        };
        let tokens = Tokens {
            input: 4_000_000,
            output: 3_000_000,
            cache_read: 2_000_000,
            cache_creation: 1_000_000,
        };
        assert!((price.of(tokens) - 1234.0).abs() < 1e-9);
    }

    #[test]
    fn an_operators_price_goes_before_the_built_in_one() {
        let table = PriceTable::new(&[entry("claude-opus-9*", 2.0), entry("claude-opus-*", 4.0)]);
        let input = |model| table.price(Some(model)).input.to_string();
        assert_eq!(input("claude-opus-9-1"), "2");
        assert_eq!(input("claude-opus-8"), "4");
        assert_eq!(input("claude-haiku-4-5"), "1");
    }

    #[test]
    fn what_is_not_known_costs_as_much_as_the_dearest() {
        let built_in = PriceTable::default();
        assert_eq!(built_in.price(None), built_in.price(Some("claude-opus-4")));
        assert_eq!(
            built_in.price(Some("claude-fable-1")),
            built_in.price(Some("claude-opus-4"))
        );
        let dear = PriceTable::new(&[entry("gold", 99.0)]);
        let unknown = dear.price(Some("brass"));
        assert_eq!(
            (unknown.input.to_string(), unknown.output.to_string()),
            ("99".to_owned(), "75".to_owned()),
            "kind by kind"
        );
    }

    #[test]
    fn what_is_no_price_is_refused() {
        assert!(entry("x", 0.0).is_valid());
        for bad in [
            entry("", 1.0),
            entry("x", -1.0),
            entry("x", f64::NAN),
            entry("x", f64::INFINITY),
        ] {
            assert!(!bad.is_valid(), "{bad:?}");
        }
    }
}
