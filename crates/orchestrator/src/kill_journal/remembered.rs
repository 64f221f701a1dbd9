//! Who was killed before it was on record. A kill is answered at any moment, also while the agent's record is being
//! tried; if that comes to nothing the store never hears of the agent, and word of the kill is all that keeps it from
//! being asked for again, and started.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mosaic_types::{AgentId, Timestamp};

use crate::lifecycle::KillOrder;

/// For how long such an agent is remembered: longer than any command is good for.
const REMEMBERED: Duration = Duration::from_secs(86_400);
/// How many of these are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// The agents that were killed and whose death is not on record.
#[derive(Debug)]
pub(super) struct Remembered(Mutex<HashSet<AgentId>>);

impl Remembered {
    pub(super) fn new(killed: &HashMap<AgentId, KillOrder>) -> Self {
        Self(Mutex::new(killed.keys().copied().collect()))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<AgentId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, agents: &[AgentId]) {
        self.lock().extend(agents);
    }

    pub(super) fn has(&self, agent: AgentId) -> bool {
        self.lock().contains(&agent)
    }

    pub(super) fn forget(&self, agent: AgentId) {
        self.lock().remove(&agent);
    }

    /// Keeps those orders that are `wanted`, and those of agents that are to be remembered; and remembers just those.
    pub(super) fn keep(
        &self,
        orders: &mut HashMap<AgentId, KillOrder>,
        now: Timestamp,
        wanted: impl Fn(AgentId) -> bool,
    ) {
        let mut remembered = self.lock();
        let mut others: Vec<(AgentId, Timestamp)> = orders
            .iter()
            .filter(|(agent, order)| {
                !wanted(**agent) && remembered.contains(agent) && now.since(order.at) < REMEMBERED
            })
            .map(|(agent, order)| (*agent, order.at))
            .collect();
        others.sort_by_key(|(_, at)| Reverse(*at));
        others.truncate(MAX_REMEMBERED);
        let others: HashSet<AgentId> = others.into_iter().map(|(agent, _)| agent).collect();
        orders.retain(|agent, _| wanted(*agent) || others.contains(agent));
        *remembered = orders.keys().copied().collect();
    }
}
