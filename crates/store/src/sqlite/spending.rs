//! What agents spent, and on which day.

use std::sync::Arc;

use mosaic_types::{AgentId, ConnectionId, UtcDay};
use rusqlite::{Connection, OptionalExtension};

use super::{
    rows::{column, number, parse},
    writer::Tx,
};
use crate::{AgentSpending, ConnectionSpending, Spent, StoreError};

/// Most days' rows that one sweep takes, so that others get their turn.
pub(super) const SWEEP_BATCH: u32 = 10_000;

fn sql(error: rusqlite::Error) -> StoreError {
    StoreError::of(StoreError::Spending as fn(Arc<rusqlite::Error>) -> StoreError)(error)
}

pub(super) fn note(tx: &mut Tx<'_>, noted: &[AgentSpending]) -> Result<(), StoreError> {
    for spending in noted {
        note_one(tx.connection, spending)?;
    }
    Ok(())
}

fn note_one(database: &Connection, spending: &AgentSpending) -> Result<(), StoreError> {
    let agent_id = spending.agent_id.to_string();
    // Without its record there is nothing to tell what of it was counted before.
    let Some((connection_id, counted)) = counted(database, &agent_id)? else {
        return Ok(());
    };
    let total = spending.total;
    if counted == total {
        return Ok(());
    }
    database
        .prepare_cached(
            "INSERT INTO agent_spending (agent_id, micro_usd, tokens) VALUES (?1, ?2, ?3)
             ON CONFLICT (agent_id) DO UPDATE
             SET micro_usd = excluded.micro_usd, tokens = excluded.tokens",
        )
        .and_then(|mut upsert| {
            upsert.execute((&agent_id, column(total.micro_usd), column(total.tokens)))
        })
        .map_err(sql)?;
    let difference = (
        column(total.micro_usd) - column(counted.micro_usd),
        column(total.tokens) - column(counted.tokens),
    );
    // A total that came down takes back what it had added, and no more than the day has: whoever counts notes none
    // that is below what it was before this day. A sum ends where the column does.
    database
        .prepare_cached(
            "INSERT INTO spending (day, connection_id, micro_usd, tokens)
             VALUES (?1, ?2, max(?3, 0), max(?4, 0))
             ON CONFLICT (day, connection_id) DO UPDATE SET
                 micro_usd = max(micro_usd + min(?3, 9223372036854775807 - micro_usd), 0),
                 tokens = max(tokens + min(?4, 9223372036854775807 - tokens), 0)",
        )
        .and_then(|mut upsert| {
            upsert.execute((
                spending.day.number(),
                connection_id.unwrap_or_default(),
                difference.0,
                difference.1,
            ))
        })
        .map_err(sql)?;
    Ok(())
}

/// The agent's connection and what was counted of it, if the agent is on record.
fn counted(
    database: &Connection,
    agent_id: &str,
) -> Result<Option<(Option<String>, Spent)>, StoreError> {
    let row = database
        .prepare_cached(
            "SELECT a.connection_id, coalesce(s.micro_usd, 0), coalesce(s.tokens, 0)
             FROM agents a LEFT JOIN agent_spending s ON s.agent_id = a.agent_id
             WHERE a.agent_id = ?1",
        )
        .and_then(|mut query| {
            query
                .query_row([agent_id], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()
        })
        .map_err(sql)?;
    row.map(|(connection_id, micro_usd, tokens)| Ok((connection_id, spent(micro_usd, tokens)?)))
        .transpose()
}

fn spent(micro_usd: i64, tokens: i64) -> Result<Spent, StoreError> {
    Ok(Spent {
        micro_usd: number("spending", micro_usd)?,
        tokens: number("spending", tokens)?,
    })
}

pub(super) fn of_day(
    database: &Connection,
    day: UtcDay,
) -> Result<Vec<ConnectionSpending>, StoreError> {
    let rows: Vec<(String, i64, i64)> = database
        .prepare_cached(
            "SELECT connection_id, micro_usd, tokens FROM spending
             WHERE day = ?1 ORDER BY connection_id",
        )
        .and_then(|mut query| {
            query
                .query_map([day.number()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect()
        })
        .map_err(sql)?;
    rows.into_iter()
        .map(|(connection_id, micro_usd, tokens)| {
            let connection_id: Option<ConnectionId> = match connection_id.as_str() {
                "" => None,
                id => Some(parse("connection's id", id)?),
            };
            Ok(ConnectionSpending {
                connection_id,
                spent: spent(micro_usd, tokens)?,
            })
        })
        .collect()
}

pub(super) fn of_active_agents(database: &Connection) -> Result<Vec<(AgentId, Spent)>, StoreError> {
    let rows: Vec<(String, i64, i64)> = database
        .prepare_cached(
            "SELECT s.agent_id, s.micro_usd, s.tokens
             FROM agents a JOIN agent_spending s ON s.agent_id = a.agent_id
             WHERE a.active = 1 ORDER BY a.accepted",
        )
        .and_then(|mut query| {
            query
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect()
        })
        .map_err(sql)?;
    rows.into_iter()
        .map(|(id, micro_usd, tokens)| Ok((parse("agent's id", &id)?, spent(micro_usd, tokens)?)))
        .collect()
}

pub(super) fn sweep(tx: &mut Tx<'_>, before: UtcDay) -> Result<u64, StoreError> {
    let swept = tx
        .connection
        .prepare_cached(
            "DELETE FROM spending WHERE (day, connection_id) IN
                 (SELECT day, connection_id FROM spending WHERE day < ?1 LIMIT ?2)",
        )
        .and_then(|mut delete| delete.execute((before.number(), SWEEP_BATCH)))
        .map_err(sql)?;
    Ok(swept as u64)
}
