//! The quota of spawns: what is under way counts, and what was answered before does not.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
};

use mosaic_federation::command::{ClaimRequest, GrantedCommand, Refused};
use mosaic_types::{ConnectionId, InstanceId, MessageId, Timestamp};

use super::{Endpoint, lock};

/// Spawns whose repetition is known for one, so that it needs no quota.
const ANSWERED_SPAWNS: usize = 4096;

impl Endpoint {
    /// Counts a spawn that is under way, so that several at once cannot exceed the quota together.
    pub(super) fn reserve_spawn(
        &self,
        connection: ConnectionId,
        granted: &GrantedCommand,
        now: Timestamp,
    ) -> Result<SpawnReservation<'_>, Refused> {
        let mut spawning = lock(&self.spawning);
        let under_way = spawning.get(&connection).copied().unwrap_or(0);
        let mut usage = self.handler.usage(connection, now);
        usage.active_agents = usage.active_agents.saturating_add(under_way);
        usage.spawns_last_minute = usage.spawns_last_minute.saturating_add(under_way);
        granted.clone().within(&usage)?;
        spawning.insert(connection, under_way.saturating_add(1));
        Ok(SpawnReservation {
            spawning: &self.spawning,
            connection,
        })
    }
}

/// A spawn that is under way; over when dropped.
pub(super) struct SpawnReservation<'a> {
    spawning: &'a Mutex<HashMap<ConnectionId, u32>>,
    connection: ConnectionId,
}

impl Drop for SpawnReservation<'_> {
    fn drop(&mut self) {
        let mut spawning = lock(self.spawning);
        let left = spawning.get(&self.connection).copied().unwrap_or(0);
        if left > 1 {
            spawning.insert(self.connection, left - 1);
        } else {
            spawning.remove(&self.connection);
        }
    }
}

/// The newest spawns that were answered. A repetition of one needs no quota: it starts nothing.
#[derive(Debug, Default)]
pub(super) struct AnsweredSpawns(Mutex<VecDeque<(InstanceId, MessageId)>>);

impl AnsweredSpawns {
    pub(super) fn contains(&self, request: &ClaimRequest) -> bool {
        lock(&self.0)
            .iter()
            .any(|(peer, id)| *id == request.message_id() && peer == request.peer())
    }

    pub(super) fn insert(&self, request: &ClaimRequest) {
        let mut newest = lock(&self.0);
        if newest.len() >= ANSWERED_SPAWNS {
            newest.pop_front();
        }
        newest.push_back((request.peer().clone(), request.message_id()));
    }
}
