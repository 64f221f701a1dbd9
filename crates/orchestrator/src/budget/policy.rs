//! Whether a bound is passed: pure policy, no clock and no memory.

use std::fmt;

use mosaic_store::Spent;

/// What may be spent. What is absent is not bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bound {
    micro_usd: Option<u64>,
    tokens: Option<u64>,
}

impl Bound {
    /// A bound in US dollars, in tokens, in both or in neither.
    #[must_use]
    pub fn new(usd: Option<f64>, tokens: Option<u64>) -> Self {
        Self {
            micro_usd: usd.map(micro_usd),
            tokens,
        }
    }
}

/// An amount in millionths, rounded up, so that no amount above nothing is nothing.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and what is no number is nothing"
)]
pub(super) fn micro_usd(usd: f64) -> u64 {
    // What a double cannot tell from a whole number is one.
    let micros = usd * 1e6;
    let whole = micros.round();
    if (micros - whole).abs() < 1e-3 {
        whole as u64
    } else {
        micros.ceil() as u64
    }
}

/// Whose bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The agent's own.
    Agent,
    /// That of all agents of its connection, for a day.
    ConnectionDay,
    /// That of all agents of the spoke, for a day.
    SpokeDay,
}

/// What is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Cost in millionths of a US dollar.
    Cost,
    /// Tokens of every kind.
    Tokens,
}

/// A bound that was passed, or used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// Whose.
    pub scope: Scope,
    /// Of what.
    pub measure: Measure,
    /// What was spent.
    pub spent: u64,
    /// What may be spent.
    pub bound: u64,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.scope {
            Scope::Agent => "the agent's budget",
            Scope::ConnectionDay => "the connection's budget of the day",
            Scope::SpokeDay => "the spoke's budget of the day",
        };
        let how = if self.spent > self.bound {
            "passed"
        } else {
            "used up"
        };
        write!(f, "{whose} is {how}: ")?;
        match self.measure {
            Measure::Cost => write!(f, "${} of ${}", Usd(self.spent), Usd(self.bound)),
            Measure::Tokens => write!(f, "{} of {} tokens", self.spent, self.bound),
        }
    }
}

struct Usd(u64);

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

fn first(
    scope: Scope,
    spent: Spent,
    bound: Bound,
    reached: fn(u64, u64) -> bool,
) -> Option<Excess> {
    [
        (Measure::Cost, spent.micro_usd, bound.micro_usd),
        (Measure::Tokens, spent.tokens, bound.tokens),
    ]
    .into_iter()
    .find_map(|(measure, spent, bound)| {
        let bound = bound.filter(|bound| reached(spent, *bound))?;
        Some(Excess {
            scope,
            measure,
            spent,
            bound,
        })
    })
}

fn passed(spent: u64, bound: u64) -> bool {
    spent > bound
}

fn used_up(spent: u64, bound: u64) -> bool {
    spent >= bound
}

/// Whether a running agent is to be stopped for what it has used itself.
pub(super) fn agent_passed(spent: Spent, bound: Bound) -> Option<Excess> {
    first(Scope::Agent, spent, bound, passed)
}

/// Whether nothing is left of an agent's budget for another attempt.
pub(super) fn agent_used_up(spent: Spent, bound: Bound) -> Option<Excess> {
    first(Scope::Agent, spent, bound, used_up)
}

/// Whether running agents of a connection are to be stopped for what all have used today.
pub(super) fn day_passed(connection: (Spent, Bound), spoke: (Spent, Bound)) -> Option<Excess> {
    first(Scope::ConnectionDay, connection.0, connection.1, passed)
        .or_else(|| first(Scope::SpokeDay, spoke.0, spoke.1, passed))
}

/// Whether no agent of a connection may begin today.
pub(super) fn day_used_up(connection: (Spent, Bound), spoke: (Spent, Bound)) -> Option<Excess> {
    first(Scope::ConnectionDay, connection.0, connection.1, used_up)
        .or_else(|| first(Scope::SpokeDay, spoke.0, spoke.1, used_up))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spent(micro_usd: u64, tokens: u64) -> Spent {
        Spent { micro_usd, tokens }
    }

    #[test]
    fn a_budget_is_passed_by_more_and_used_up_by_as_much() {
        let bound = Bound::new(Some(1.5), Some(100));
        for (so_far, is_passed, is_used_up) in [
            (spent(1_499_999, 99), None, None),
            (spent(1_500_000, 99), None, Some(Measure::Cost)),
            (
                spent(1_500_001, 99),
                Some(Measure::Cost),
                Some(Measure::Cost),
            ),
            (spent(0, 100), None, Some(Measure::Tokens)),
            (spent(0, 101), Some(Measure::Tokens), Some(Measure::Tokens)),
        ] {
            let measure = |excess: Option<Excess>| excess.map(|excess| excess.measure);
            assert_eq!(measure(agent_passed(so_far, bound)), is_passed);
            assert_eq!(measure(agent_used_up(so_far, bound)), is_used_up);
        }
    }

    #[test]
    fn a_day_has_the_connections_bound_and_the_spokes() {
        let (small, large) = (Bound::new(None, Some(10)), Bound::new(None, Some(20)));
        let of_day = |connection: u64, spoke: u64| {
            let excess = day_passed((spent(0, connection), small), (spent(0, spoke), large));
            excess.map(|excess| (excess.scope, excess.spent, excess.bound))
        };
        assert_eq!(of_day(10, 20), None);
        assert_eq!(of_day(11, 20), Some((Scope::ConnectionDay, 11, 10)));
        assert_eq!(of_day(0, 21), Some((Scope::SpokeDay, 21, 20)));
        let none = Bound::default();
        let most = spent(u64::MAX, u64::MAX);
        assert_eq!(day_used_up((most, none), (most, none)), None);
        assert!(day_used_up((spent(0, 10), small), (spent(0, 0), none)).is_some());
    }

    #[test]
    fn an_excess_says_whose_and_how_much() {
        let bound = Bound::new(Some(2.5), None);
        let excess = agent_passed(spent(2_500_001, 7), bound).unwrap();
        assert_eq!(
            excess.to_string(),
            "the agent's budget is passed: $2.500001 of $2.500000"
        );
        let bound = Bound::new(None, Some(7));
        let excess = day_used_up((spent(0, 7), bound), (spent(0, 7), bound)).unwrap();
        assert_eq!(
            excess.to_string(),
            "the connection's budget of the day is used up: 7 of 7 tokens"
        );
    }

    #[test]
    fn no_amount_is_rounded_to_nothing() {
        for (usd, micros) in [
            (0.0, 0),
            (1e-9, 1),
            (0.1, 100_000),
            (0.3, 300_000),
            (2.5, 2_500_000),
            (f64::NAN, 0),
            (-1.0, 0),
            (f64::INFINITY, u64::MAX),
        ] {
            assert_eq!(micro_usd(usd), micros, "{usd}");
        }
    }

    proptest! {
        #[test]
        fn spending_more_never_lifts_a_bound(
            so_far in any::<(u64, u64)>(),
            more in any::<(u64, u64)>(),
            usd in proptest::option::of(1e-6..1e9),
            tokens in proptest::option::of(1..u64::MAX),
        ) {
            let bound = Bound::new(usd, tokens);
            let before = spent(so_far.0, so_far.1);
            let after = spent(
                so_far.0.saturating_add(more.0),
                so_far.1.saturating_add(more.1),
            );
            prop_assert!(agent_passed(before, bound).is_none() || agent_passed(after, bound).is_some());
            // What is passed is used up.
            prop_assert!(agent_passed(after, bound).is_none() || agent_used_up(after, bound).is_some());
        }
    }
}
