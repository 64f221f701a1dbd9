//! Orders that are over, for what they overtook: a spawn that came, or was signed, before a kill and is admitted after it
//! must not bring to life what was killed. Of a peer's orders both times are the peer's own, of the operator's here both
//! are of this process, by a clock that nobody sets: no two clocks are compared.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mosaic_types::{AgentId, ConnectionId, ErrorCode, Refusal, TaskId, Timestamp, label::Label};

use super::Reach;

/// How long an order is remembered: longer than a signed command can arrive after it was signed.
const REMEMBERED: Duration = Duration::from_secs(400);
/// Most orders of one connection, or of the operator here, that are remembered; the oldest goes.
const MOST_OF_ONE: usize = 1024;

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

impl PastOrder {
    fn takes(&self, spawn: Spawn<'_>) -> bool {
        match self {
            Self::One(killed) => *killed == spawn.agent,
            Self::All { task, label } => {
                task.as_ref().is_none_or(|task| task == spawn.task)
                    && label
                        .as_ref()
                        .is_none_or(|label| label.is_among(spawn.labels))
            }
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Spawn<'a> {
    /// The agent.
    pub agent: AgentId,
    /// Its task.
    pub task: &'a TaskId,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    order: PastOrder,
    /// By the peer's clock.
    before: Timestamp,
    at: Instant,
}

/// An order of the operator here.
#[derive(Debug)]
struct Here {
    reach: Reach,
    order: PastOrder,
    at: Instant,
}

/// See the module documentation. Bounded by the connections there are.
#[derive(Debug, Default)]
pub struct PastOrders {
    of_peers: Mutex<BTreeMap<ConnectionId, VecDeque<Entry>>>,
    here: Mutex<VecDeque<Here>>,
}

impl PastOrders {
    /// Remembers a peer's order, which holds for what was signed until `before`. To be called before the agents in scope
    /// are looked up: then a spawn at the same time is found by the one or finds the other.
    pub fn note(&self, connection: ConnectionId, order: PastOrder, before: Timestamp) {
        let at = Instant::now();
        let mut entries = lock(&self.of_peers);
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
        if of_one.len() >= MOST_OF_ONE {
            of_one.pop_front();
        }
        of_one.push_back(Entry { order, before, at });
    }

    /// Remembers an order of the operator here, for what has come by now. To be called when [`note`](Self::note) is.
    pub fn note_here(&self, reach: Reach, order: PastOrder) {
        let at = Instant::now();
        let mut here = lock(&self.here);
        here.retain(|past| {
            let is_same = past.reach == reach && past.order == order;
            !is_same && at.duration_since(past.at) <= REMEMBERED
        });
        if here.len() >= MOST_OF_ONE {
            here.pop_front();
        }
        here.push_back(Here { reach, order, at });
    }

    /// Refuses a spawn that an order of its peer has overtaken.
    ///
    /// # Errors
    /// `expired`.
    pub fn refuse(
        &self,
        connection: ConnectionId,
        spawn: Spawn<'_>,
        issued_at: Timestamp,
    ) -> Result<(), Refusal> {
        let entries = lock(&self.of_peers);
        let overtaken = entries.get(&connection).is_some_and(|of_one| {
            let mut past = of_one.iter();
            past.any(|past| issued_at <= past.before && past.order.takes(spawn))
        });
        not_overtaken(!overtaken)
    }

    /// Refuses a spawn that an order of the operator here has overtaken since it was received.
    ///
    /// # Errors
    /// `expired`.
    pub fn refuse_here(
        &self,
        connection: Option<ConnectionId>,
        spawn: Spawn<'_>,
        received: Instant,
    ) -> Result<(), Refusal> {
        let here = lock(&self.here);
        let overtaken = here.iter().any(|past| {
            received <= past.at && past.reach.includes(connection) && past.order.takes(spawn)
        });
        not_overtaken(!overtaken)
    }
}

fn not_overtaken(holds: bool) -> Result<(), Refusal> {
    if holds {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::Expired,
        "a kill that was ordered after this spawn has overtaken it",
    ))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            let spawn = Spawn {
                agent,
                task: &task,
                labels: &labels,
            };
            past.refuse(connection, spawn, at(millis))
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
        for _ in 0..MOST_OF_ONE + 5 {
            let order = PastOrder::One(AgentId::generate());
            past.note(here, order, Timestamp::from_unix_millis(1));
        }
        assert_eq!(lock(&past.of_peers)[&here].len(), MOST_OF_ONE);
        for _ in 0..MOST_OF_ONE + 5 {
            let order = PastOrder::One(AgentId::generate());
            past.note_here(Reach::Everything, order.clone());
            past.note_here(Reach::Everything, order);
        }
        assert_eq!(lock(&past.here).len(), MOST_OF_ONE);
    }

    #[test]
    fn a9_what_the_operators_kill_has_overtaken_does_not_start() {
        let past = PastOrders::default();
        let (one, other) = (ConnectionId::generate(), ConnectionId::generate());
        let (agent, task) = (AgentId::generate(), "T-1".parse().unwrap());
        let labels = BTreeMap::new();
        let asks = |connection, agent, received| {
            let spawn = Spawn {
                agent,
                task: &task,
                labels: &labels,
            };
            past.refuse_here(connection, spawn, received)
                .map_err(|refusal| refusal.code)
        };
        let before = Instant::now();
        past.note_here(Reach::Connection(one), PastOrder::One(agent));
        assert_eq!(asks(Some(one), agent, before), Err(ErrorCode::Expired));
        assert_eq!(asks(Some(one), AgentId::generate(), before), Ok(()));
        assert_eq!(asks(Some(other), agent, before), Ok(()));
        assert_eq!(asks(None, agent, before), Ok(()), "out of its reach");
        let all = PastOrder::All {
            task: None,
            label: None,
        };
        past.note_here(Reach::Everything, all);
        for connection in [Some(other), None] {
            assert_eq!(asks(connection, agent, before), Err(ErrorCode::Expired));
            let after = Instant::now() + Duration::from_nanos(1);
            assert_eq!(asks(connection, agent, after), Ok(()), "it came later");
        }
    }
}
