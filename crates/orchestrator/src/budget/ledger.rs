//! What was spent, in memory: today's sums, and of each agent what was counted and what of it the store has yet to
//! be told.

use std::collections::{BTreeMap, HashMap};

use mosaic_store::{AgentSpending, ConnectionSpending, Spent};
use mosaic_types::{AgentId, ConnectionId, UtcDay};

/// See the module documentation. An agent's totals are counted in the order in which they came about.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The latest day that was seen, unless that was days ahead of the clock: one that goes back does not bring
    /// yesterday's budget back.
    day: UtcDay,
    spoke: Spent,
    connections: HashMap<Option<ConnectionId>, Spent>,
    agents: HashMap<AgentId, Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// What was counted in all.
    counted: Spent,
    /// What was counted before today, or before a restart, which does not know on which day that was. A total that
    /// comes down takes nothing back of it: it would take it from what others have spent today.
    floor: Spent,
    /// The total at the end of each day, for days of which the store does not know it. One day, unless the store
    /// is down for longer.
    unwritten: BTreeMap<UtcDay, Spent>,
    ended: bool,
}

impl Account {
    /// What is yet to be told of later days is told of this one.
    fn move_back_to(&mut self, day: UtcDay) {
        let later = self.unwritten.split_off(&day);
        if let Some((_, total)) = later.into_iter().next_back() {
            self.unwritten.insert(day, total);
        }
    }
}

impl Ledger {
    /// A ledger with a day's sums so far, and what was counted of agents that have not ended.
    pub(super) fn new(
        day: UtcDay,
        of_day: &[ConnectionSpending],
        agents: Vec<(AgentId, Spent)>,
    ) -> Self {
        let account = |counted| Account {
            counted,
            floor: counted,
            ..Account::default()
        };
        Self {
            day,
            spoke: of_day.iter().fold(Spent::default(), |sum, connection| {
                plus(sum, connection.spent)
            }),
            connections: of_day
                .iter()
                .map(|connection| (connection.connection_id, connection.spent))
                .collect(),
            agents: agents
                .into_iter()
                .map(|(agent_id, counted)| (agent_id, account(counted)))
                .collect(),
        }
    }

    fn turn_to(&mut self, day: UtcDay) {
        if day > self.day {
            self.day = day;
            self.spoke = Spent::default();
            self.connections.clear();
            for account in self.agents.values_mut() {
                account.floor = account.counted;
            }
        } else if day < self.day.days_before(1) {
            // The clock was ahead, for a moment say: no midnight would come until then. What is counted is the day's that
            // is, and begins anew at the next midnight.
            self.day = day;
            for account in self.agents.values_mut() {
                account.move_back_to(day);
            }
        }
    }

    /// What a connection and the whole spoke have spent on a day that is now.
    pub(super) fn of_day(
        &mut self,
        connection_id: Option<ConnectionId>,
        day: UtcDay,
    ) -> (Spent, Spent) {
        self.turn_to(day);
        let of_connection = self.connections.get(&connection_id);
        (of_connection.copied().unwrap_or_default(), self.spoke)
    }

    /// Counts an agent's total: the sums move by what is new of it. One that came down takes back what it has added
    /// today, and no more.
    pub(super) fn count(
        &mut self,
        agent_id: AgentId,
        connection_id: Option<ConnectionId>,
        total: Spent,
        day: UtcDay,
    ) {
        self.turn_to(day);
        if total == Spent::default() && !self.agents.contains_key(&agent_id) {
            return;
        }
        let account = self.agents.entry(agent_id).or_default();
        let total = at_least(total, account.floor);
        let counted = std::mem::replace(&mut account.counted, total);
        if counted == total {
            return;
        }
        account.unwritten.insert(self.day, total);
        let of_connection = self.connections.entry(connection_id).or_default();
        *of_connection = moved(*of_connection, counted, total);
        self.spoke = moved(self.spoke, counted, total);
    }

    /// What the store is to be told, of each agent in the order of days.
    pub(super) fn unwritten(&self) -> Vec<AgentSpending> {
        fn of_agent<'a>(
            (agent_id, account): (&'a AgentId, &'a Account),
        ) -> impl Iterator<Item = AgentSpending> + 'a {
            let of_day = |(day, total): (&UtcDay, &Spent)| AgentSpending {
                agent_id: *agent_id,
                day: *day,
                total: *total,
            };
            account.unwritten.iter().map(of_day)
        }
        self.agents.iter().flat_map(of_agent).collect()
    }

    /// The store knows these. What was counted since stays to be told.
    pub(super) fn written(&mut self, noted: &[AgentSpending]) {
        for spending in noted {
            let Some(account) = self.agents.get_mut(&spending.agent_id) else {
                continue;
            };
            if account.unwritten.get(&spending.day) == Some(&spending.total) {
                account.unwritten.remove(&spending.day);
            }
            if account.ended && account.unwritten.is_empty() {
                self.agents.remove(&spending.agent_id);
            }
        }
    }

    /// Nothing more will be counted of an agent: it is forgotten once the store knows all of it.
    pub(super) fn ended(&mut self, agent_id: AgentId) {
        let Some(account) = self.agents.get_mut(&agent_id) else {
            return;
        };
        account.ended = true;
        if account.unwritten.is_empty() {
            self.agents.remove(&agent_id);
        }
    }
}

fn plus(one: Spent, more: Spent) -> Spent {
    Spent {
        micro_usd: one.micro_usd.saturating_add(more.micro_usd),
        tokens: one.tokens.saturating_add(more.tokens),
    }
}

fn at_least(total: Spent, floor: Spent) -> Spent {
    Spent {
        micro_usd: total.micro_usd.max(floor.micro_usd),
        tokens: total.tokens.max(floor.tokens),
    }
}

/// A sum after a part of it went from one total to another.
fn moved(sum: Spent, from: Spent, to: Spent) -> Spent {
    let part = |sum: u64, from: u64, to: u64| {
        if to >= from {
            sum.saturating_add(to - from)
        } else {
            sum.saturating_sub(from - to)
        }
    };
    Spent {
        micro_usd: part(sum.micro_usd, from.micro_usd, to.micro_usd),
        tokens: part(sum.tokens, from.tokens, to.tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(tokens: u64) -> Spent {
        Spent {
            micro_usd: tokens * 10,
            tokens,
        }
    }

    fn day(number: i64) -> UtcDay {
        UtcDay::from_number(number)
    }

    fn tokens(ledger: &mut Ledger, connection: Option<ConnectionId>, on: i64) -> (u64, u64) {
        let (of_connection, of_spoke) = ledger.of_day(connection, day(on));
        (of_connection.tokens, of_spoke.tokens)
    }

    #[test]
    fn a17_a_total_counts_once_and_for_its_connection() {
        let mut ledger = Ledger::new(day(1), &[], Vec::new());
        let (one, other) = (
            Some(ConnectionId::generate()),
            Some(ConnectionId::generate()),
        );
        let (a, b) = (AgentId::generate(), AgentId::generate());
        for total in [5, 5, 8] {
            ledger.count(a, one, spent(total), day(1));
        }
        ledger.count(b, other, spent(2), day(1));
        assert_eq!(tokens(&mut ledger, one, 1), (8, 10));
        assert_eq!(tokens(&mut ledger, other, 1), (2, 10));
        // An estimate that was too high.
        ledger.count(a, one, spent(6), day(1));
        assert_eq!(tokens(&mut ledger, one, 1), (6, 8));
    }

    #[test]
    fn a_restart_counts_on() {
        let (connection, agent) = (Some(ConnectionId::generate()), AgentId::generate());
        let sums = [
            ConnectionSpending {
                connection_id: connection,
                spent: spent(30),
            },
            ConnectionSpending {
                connection_id: None,
                spent: spent(1),
            },
        ];
        let mut ledger = Ledger::new(day(1), &sums, vec![(agent, spent(20))]);
        assert_eq!(tokens(&mut ledger, connection, 1), (30, 31));
        // Its output is read again from the start.
        ledger.count(agent, connection, spent(20), day(1));
        assert_eq!(ledger.unwritten(), []);
        ledger.count(agent, connection, spent(25), day(1));
        assert_eq!(tokens(&mut ledger, connection, 1), (35, 36));
    }

    #[test]
    fn a_restart_moves_nothing_of_yesterday_into_today() {
        let agent = AgentId::generate();
        let today = ConnectionSpending {
            connection_id: None,
            spent: spent(1),
        };
        let mut ledger = Ledger::new(day(2), &[today], vec![(agent, spent(16))]);
        // Whoever reads its output again passes by every total that it had.
        for total in [4, 12, 16] {
            ledger.count(agent, None, spent(total), day(2));
            assert_eq!(tokens(&mut ledger, None, 2), (1, 1));
        }
        assert_eq!(ledger.unwritten(), []);
        ledger.count(agent, None, spent(17), day(2));
        assert_eq!(tokens(&mut ledger, None, 2), (2, 2));
    }

    #[test]
    fn an_estimate_of_yesterday_takes_nothing_from_what_others_spend_today() {
        let mut ledger = Ledger::new(day(1), &[], Vec::new());
        let (early, late) = (AgentId::generate(), AgentId::generate());
        ledger.count(early, None, spent(15), day(1));
        ledger.count(late, None, spent(8), day(2));
        ledger.count(early, None, spent(18), day(2));
        assert_eq!(tokens(&mut ledger, None, 2), (11, 11));
        // What it added today it takes back.
        ledger.count(early, None, spent(5), day(2));
        assert_eq!(tokens(&mut ledger, None, 2), (8, 8));
        let of_early: Vec<_> = ledger
            .unwritten()
            .into_iter()
            .filter(|noted| noted.agent_id == early)
            .map(|noted| (noted.day, noted.total))
            .collect();
        assert_eq!(of_early, [(day(1), spent(15)), (day(2), spent(15))]);
    }

    #[test]
    fn midnight_begins_anew_and_a_clock_that_goes_back_does_not() {
        let mut ledger = Ledger::new(day(1), &[], Vec::new());
        let agent = AgentId::generate();
        ledger.count(agent, None, spent(5), day(1));
        ledger.count(agent, None, spent(7), day(2));
        assert_eq!(tokens(&mut ledger, None, 2), (2, 2));
        ledger.count(agent, None, spent(9), day(1));
        assert_eq!(tokens(&mut ledger, None, 1), (4, 4));
        let days: Vec<_> = ledger
            .unwritten()
            .iter()
            .map(|noted| (noted.day, noted.total))
            .collect();
        assert_eq!(days, [(day(1), spent(5)), (day(2), spent(9))]);
    }

    #[test]
    fn a_clock_that_was_days_ahead_stops_no_midnight() {
        let mut ledger = Ledger::new(day(10), &[], Vec::new());
        let (agent, other) = (AgentId::generate(), AgentId::generate());
        ledger.count(agent, None, spent(5), day(10));
        ledger.count(agent, None, spent(7), day(99));
        // Nothing that was counted since is given back.
        assert_eq!(tokens(&mut ledger, None, 10), (2, 2));
        ledger.count(other, None, spent(1), day(10));
        assert_eq!(tokens(&mut ledger, None, 10), (3, 3));
        let mut noted: Vec<_> = ledger
            .unwritten()
            .iter()
            .map(|noted| (noted.day, noted.total))
            .collect();
        noted.sort_by_key(|(_, total)| total.tokens);
        assert_eq!(noted, [(day(10), spent(1)), (day(10), spent(7))]);
        assert_eq!(tokens(&mut ledger, None, 11), (0, 0));
        // By a day, it may just have been set.
        ledger.count(other, None, spent(4), day(11));
        assert_eq!(tokens(&mut ledger, None, 10), (3, 3));
        assert_eq!(tokens(&mut ledger, None, 11), (3, 3));
    }

    #[test]
    fn what_was_counted_while_it_was_written_stays_to_be_written() {
        let mut ledger = Ledger::new(day(1), &[], Vec::new());
        let agent = AgentId::generate();
        ledger.count(agent, None, Spent::default(), day(1));
        assert_eq!(ledger.unwritten(), [], "nothing is not written");
        ledger.count(agent, None, spent(5), day(1));
        let batch = ledger.unwritten();
        ledger.count(agent, None, spent(6), day(1));
        ledger.ended(agent);
        ledger.written(&batch);
        let batch = ledger.unwritten();
        assert_eq!((batch.len(), batch[0].total), (1, spent(6)));
        ledger.written(&batch);
        assert!(ledger.agents.is_empty(), "ended, and all of it is written");
        assert_eq!(tokens(&mut ledger, None, 1), (6, 6));
    }
}
