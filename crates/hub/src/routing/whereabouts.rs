//! Which spoke an agent is at, in memory, so that a kill finds its way with the store slow or gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use mosaic_types::{AgentId, ConnectionId, agent::ObservedState};

/// Most agents that are remembered. One costs about 64 bytes.
const CAPACITY: usize = 100_000;

/// What is remembered of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sighting {
    connection: ConnectionId,
    /// The last state that went to the store, so that a state is written once and not at every look.
    state: Option<ObservedState>,
    /// Its death was proven by the answer to a kill, and no status has told of it yet.
    proven: bool,
}

impl Sighting {
    fn at(connection: ConnectionId) -> Self {
        Self {
            connection,
            state: None,
            proven: false,
        }
    }
}

fn has_ended(state: ObservedState) -> bool {
    state.known().is_some_and(|state| state.is_terminal())
}

/// A bounded map from agents to connections. When it is full the agent with the oldest id goes: ids are
/// ordered by time, and an evicted agent is still found by the store or by asking every spoke.
#[derive(Debug)]
pub struct Whereabouts {
    sightings: Mutex<BTreeMap<AgentId, Sighting>>,
    capacity: usize,
}

impl Default for Whereabouts {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl Whereabouts {
    /// A map that holds at most `capacity` agents.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            sightings: Mutex::default(),
            capacity: capacity.max(1),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<AgentId, Sighting>> {
        // Every critical section leaves the map whole, so a panic elsewhere spoils nothing.
        self.sightings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the agent is, if it is remembered.
    #[must_use]
    pub fn get(&self, agent: AgentId) -> Option<ConnectionId> {
        self.lock().get(&agent).map(|sighting| sighting.connection)
    }

    /// Remembers that the agent is there.
    pub fn remember(&self, agent: AgentId, connection: ConnectionId) {
        let mut sightings = self.lock();
        let known = sightings.entry(agent).or_insert(Sighting::at(connection));
        if known.connection != connection {
            *known = Sighting::at(connection);
        }
        while sightings.len() > self.capacity {
            sightings.pop_first();
        }
    }

    /// The connections at which agents are remembered that were not seen to end.
    #[must_use]
    pub fn unended(&self) -> BTreeSet<ConnectionId> {
        self.lock()
            .values()
            .filter(|sighting| !sighting.state.is_some_and(has_ended))
            .map(|sighting| sighting.connection)
            .collect()
    }

    /// Notes the state of an agent that is remembered at that connection. Answers whether the state differs from the
    /// last one noted, or is the first that tells of a death that was proven before: until then the spoke may still say
    /// that it kills, which is no news. Of any other agent nothing is noted: a spoke must not draw another's agents to
    /// itself.
    pub fn note_state(
        &self,
        agent: AgentId,
        connection: ConnectionId,
        state: ObservedState,
    ) -> bool {
        self.lock()
            .get_mut(&agent)
            .filter(|sighting| sighting.connection == connection)
            .filter(|sighting| !sighting.proven || has_ended(state))
            .is_some_and(|sighting| {
                let was_proven = std::mem::take(&mut sighting.proven);
                sighting.state.replace(state) != Some(state) || was_proven
            })
    }

    /// Notes that the death of an agent that is remembered at that connection was proven. Answers whether that is news.
    pub fn note_death(&self, agent: AgentId, connection: ConnectionId) -> bool {
        self.lock()
            .get_mut(&agent)
            .filter(|sighting| sighting.connection == connection)
            .filter(|sighting| !sighting.state.is_some_and(has_ended))
            .is_some_and(|sighting| {
                sighting.state = Some(ObservedState::Killed);
                sighting.proven = true;
                true
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_when_it_is_full() {
        let whereabouts = Whereabouts::with_capacity(2);
        let connection = ConnectionId::generate();
        let agents: Vec<_> = (0..3).map(|_| AgentId::generate()).collect();
        for agent in &agents {
            whereabouts.remember(*agent, connection);
        }
        assert_eq!(whereabouts.get(agents[0]), None);
        assert_eq!(whereabouts.get(agents[1]), Some(connection));
        assert_eq!(whereabouts.get(agents[2]), Some(connection));
    }

    #[test]
    fn what_was_not_seen_to_end_may_live() {
        let whereabouts = Whereabouts::default();
        let (agent, connection) = (AgentId::generate(), ConnectionId::generate());
        whereabouts.remember(agent, connection);
        assert!(whereabouts.unended().contains(&connection));
        whereabouts.note_state(agent, connection, ObservedState::Unknown);
        assert!(whereabouts.unended().contains(&connection));
        whereabouts.note_state(agent, connection, ObservedState::Killed);
        assert!(whereabouts.unended().is_empty());
    }

    #[test]
    fn a_state_is_news_once() {
        let whereabouts = Whereabouts::default();
        let (agent, connection) = (AgentId::generate(), ConnectionId::generate());
        whereabouts.remember(agent, connection);
        assert!(whereabouts.note_state(agent, connection, ObservedState::Running));
        assert!(!whereabouts.note_state(agent, connection, ObservedState::Running));
        assert!(whereabouts.note_state(agent, connection, ObservedState::Killed));
    }

    // A8: what was proven stands, whatever the spoke still says of it, and its status is written once it is there.
    #[test]
    fn a8_a_death_that_was_proven_is_no_more_in_doubt() {
        let whereabouts = Whereabouts::default();
        let (agent, here, there) = (
            AgentId::generate(),
            ConnectionId::generate(),
            ConnectionId::generate(),
        );
        whereabouts.remember(agent, here);
        assert!(!whereabouts.note_death(agent, there));
        assert!(whereabouts.note_death(agent, here));
        assert!(!whereabouts.note_death(agent, here), "it is known");
        assert!(!whereabouts.note_state(agent, here, ObservedState::Killing));
        assert!(whereabouts.unended().is_empty());
        assert!(whereabouts.note_state(agent, here, ObservedState::Killed));
        assert!(!whereabouts.note_state(agent, here, ObservedState::Killed));
    }

    #[test]
    fn a_spoke_cannot_draw_anothers_agent_to_itself() {
        let whereabouts = Whereabouts::default();
        let (agent, here, there) = (
            AgentId::generate(),
            ConnectionId::generate(),
            ConnectionId::generate(),
        );
        // Nor one that nobody is known to have.
        assert!(!whereabouts.note_state(agent, there, ObservedState::Killed));
        assert_eq!(whereabouts.get(agent), None);
        whereabouts.remember(agent, here);
        assert!(!whereabouts.note_state(agent, there, ObservedState::Killed));
        assert_eq!(whereabouts.get(agent), Some(here));
    }
}
