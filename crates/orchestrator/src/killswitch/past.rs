//! Orders of peers that are over, for what they overtook: a spawn that was signed before a kill and arrives after it
//! must not bring to life what was killed. Both times are the peer's own, so no two clocks are compared.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use mosaic_types::{AgentId, ConnectionId, ErrorCode, Refusal, TaskId, Timestamp, label::Label};

/// How long an order is remembered: longer than a signed command can arrive after it was signed.
const REMEMBERED: Duration = Duration::from_secs(400);
/// Most orders of one connection that are remembered; the oldest goes.
const PER_CONNECTION: usize = 1024;

/// What an order was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PastOrder {
    /// One agent.
    One(AgentId),
    /// All in a scope.
    All {
        /// Only of this task.
        task: Option<TaskId>,
        /// Only with this label.
        label: Option<Label>,
    },
}

#[derive(Debug)]
struct Entry {
    order: PastOrder,
    /// By the peer's clock.
    before: Timestamp,
    at: Instant,
}

/// See the module documentation. Bounded by the connections there are.
#[derive(Debug, Default)]
pub struct PastOrders(Mutex<BTreeMap<ConnectionId, VecDeque<Entry>>>);

impl PastOrders {
    /// Remembers an order, which holds for what was signed until `before`. To be called before the agents in scope are
    /// looked up: then a spawn at the same time is found by the one or finds the other.
    pub fn note(&self, connection: ConnectionId, order: PastOrder, before: Timestamp) {
        let at = Instant::now();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, of_one| {
            while of_one
                .front()
                .is_some_and(|entry| at.duration_since(entry.at) > REMEMBERED)
            {
                of_one.pop_front();
            }
            !of_one.is_empty()
        });
        let of_one = entries.entry(connection).or_default();
        of_one.retain(|entry| entry.order != order || entry.before > before);
        if of_one.len() >= PER_CONNECTION {
            of_one.pop_front();
        }
        of_one.push_back(Entry { order, before, at });
    }

    /// Refuses a spawn that an order has overtaken.
    ///
    /// # Errors
    /// `expired`.
    pub fn refuse(
        &self,
        connection: ConnectionId,
        agent: AgentId,
        of: (&TaskId, &BTreeMap<String, String>),
        issued_at: Timestamp,
    ) -> Result<(), Refusal> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let overtaken = entries.get(&connection).is_some_and(|of_one| {
            of_one.iter().any(|entry| {
                issued_at <= entry.before
                    && match &entry.order {
                        PastOrder::One(killed) => *killed == agent,
                        PastOrder::All { task, label } => {
                            task.as_ref().is_none_or(|task| task == of.0)
                                && label.as_ref().is_none_or(|label| label.is_among(of.1))
                        }
                    }
            })
        });
        if !overtaken {
            return Ok(());
        }
        Err(Refusal::new(
            ErrorCode::Expired,
            "a kill that was ordered after this spawn has overtaken it",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a9_what_a_kill_has_overtaken_does_not_start() {
        let past = PastOrders::default();
        let (here, there) = (ConnectionId::generate(), ConnectionId::generate());
        let (agent, task) = (AgentId::generate(), "T-1".parse().unwrap());
        let labels = BTreeMap::from([("team".to_owned(), "core".to_owned())]);
        let at = Timestamp::from_unix_millis;
        let asks = |connection, agent, millis| {
            past.refuse(connection, agent, (&task, &labels), at(millis))
                .map_err(|refusal| refusal.code)
        };
        past.note(here, PastOrder::One(agent), at(10));
        assert_eq!(asks(here, agent, 10), Err(ErrorCode::Expired));
        assert_eq!(asks(here, agent, 11), Ok(()));
        assert_eq!(asks(here, AgentId::generate(), 10), Ok(()));
        assert_eq!(asks(there, agent, 10), Ok(()), "another peer's word");
        let all = |task: Option<&str>, label: Option<&str>| PastOrder::All {
            task: task.map(|task| task.parse().unwrap()),
            label: label.map(|label| label.parse().unwrap()),
        };
        past.note(there, all(Some("T-2"), None), at(10));
        past.note(there, all(None, Some("team=other")), at(10));
        assert_eq!(asks(there, agent, 10), Ok(()), "in neither scope");
        past.note(there, all(None, Some("team=core")), at(20));
        assert_eq!(asks(there, agent, 20), Err(ErrorCode::Expired));
        assert_eq!(asks(there, agent, 21), Ok(()));
    }

    #[test]
    fn f12_what_is_remembered_is_bounded() {
        let past = PastOrders::default();
        let here = ConnectionId::generate();
        for _ in 0..PER_CONNECTION + 5 {
            let order = PastOrder::One(AgentId::generate());
            past.note(here, order, Timestamp::from_unix_millis(1));
        }
        assert_eq!(past.0.lock().unwrap()[&here].len(), PER_CONNECTION);
    }
}
