//! How far agents' leases reach.

use rusqlite::{Connection, params};

use super::{
    rows::{column, millis, number, parse, time},
    writer::Tx,
};
use crate::{LeaseRecord, StoreError};

/// Keeps these leases. One of an agent that is not on record, or has ended, is left out.
pub(super) fn save(tx: &mut Tx<'_>, leases: &[LeaseRecord]) -> Result<(), StoreError> {
    let sql = StoreError::of(StoreError::Leases);
    let mut upsert = tx
        .connection
        .prepare_cached(
            "INSERT INTO leases (agent_id, boot_id, boot_deadline, deadline)
             SELECT ?1, ?2, ?3, ?4 FROM agents WHERE agent_id = ?1 AND active = 1
             ON CONFLICT (agent_id) DO UPDATE SET boot_id = excluded.boot_id,
                boot_deadline = excluded.boot_deadline, deadline = excluded.deadline",
        )
        .map_err(&sql)?;
    for lease in leases {
        upsert
            .execute(params![
                lease.agent_id.to_string(),
                lease.boot_id,
                column(lease.boot_deadline_ms),
                millis(lease.deadline),
            ])
            .map_err(&sql)?;
    }
    Ok(())
}

/// The leases of the agents that have not ended.
pub(super) fn active(connection: &Connection) -> Result<Vec<LeaseRecord>, StoreError> {
    let rows: Vec<(String, String, i64, i64)> = connection
        .prepare_cached(
            "SELECT leases.agent_id, boot_id, boot_deadline, deadline FROM agents
             JOIN leases ON leases.agent_id = agents.agent_id WHERE active = 1 ORDER BY accepted",
        )
        .and_then(|mut query| {
            query
                .query_map([], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })?
                .collect()
        })
        .map_err(StoreError::of(StoreError::Leases))?;
    rows.into_iter()
        .map(|(agent_id, boot_id, boot_deadline, deadline)| {
            Ok(LeaseRecord {
                agent_id: parse("agent's id", &agent_id)?,
                boot_id,
                boot_deadline_ms: number("lease", boot_deadline)?,
                deadline: time(deadline),
            })
        })
        .collect()
}
