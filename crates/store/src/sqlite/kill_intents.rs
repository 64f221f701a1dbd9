//! Kills that a hub keeps until they are proven.

use mosaic_types::kill::{KillIntent, KillIntentState};
use rusqlite::{Connection, OptionalExtension};

use super::{
    rows::{column, from_json, to_json},
    writer::Tx,
};
use crate::StoreError;

/// Saves an intent, or how it stands. A settled one stays settled; a new one needs room among the pending.
pub(super) fn save(tx: &mut Tx<'_>, intent: &KillIntent) -> Result<(), StoreError> {
    let sql = StoreError::of(StoreError::KillIntents);
    let id = intent.intent_id.to_string();
    let pending = intent.state == KillIntentState::Pending;
    let record = to_json("kill intent", intent)?;
    let stored: Option<bool> = tx
        .connection
        .prepare_cached("SELECT pending FROM kill_intents WHERE intent_id = ?1")
        .and_then(|mut query| query.query_row([&id], |row| row.get(0)).optional())
        .map_err(&sql)?;
    match stored {
        // Notes overtake one another: what was settled is not pending again.
        Some(false) if pending => return Ok(()),
        Some(_) => {}
        None if pending => {
            let count: i64 = tx
                .connection
                .prepare_cached("SELECT count(*) FROM kill_intents WHERE pending = 1")
                .and_then(|mut query| query.query_row([], |row| row.get(0)))
                .map_err(&sql)?;
            if count >= column(tx.limits.max_pending_kills) {
                return Err(StoreError::Full);
            }
        }
        None => {}
    }
    tx.connection
        .prepare_cached(
            "INSERT INTO kill_intents (intent_id, pending, record) VALUES (?1, ?2, ?3)
             ON CONFLICT (intent_id) DO UPDATE SET pending = excluded.pending, record = excluded.record",
        )
        .and_then(|mut upsert| upsert.execute((id, pending, record)))
        .map_err(&sql)?;
    if !pending {
        tx.connection
            .prepare_cached(
                "DELETE FROM kill_intents WHERE pending = 0 AND ordered <=
                 (SELECT ordered FROM kill_intents WHERE pending = 0
                  ORDER BY ordered DESC LIMIT 1 OFFSET ?1)",
            )
            .and_then(|mut delete| delete.execute([column(tx.limits.max_settled_kills)]))
            .map_err(&sql)?;
    }
    Ok(())
}

/// Every intent that is kept, oldest first.
pub(super) fn all(connection: &Connection) -> Result<Vec<KillIntent>, StoreError> {
    let rows: Vec<String> = connection
        .prepare_cached("SELECT record FROM kill_intents ORDER BY ordered")
        .and_then(|mut query| query.query_map([], |row| row.get(0))?.collect())
        .map_err(StoreError::of(StoreError::KillIntents))?;
    rows.iter()
        .map(|record| from_json("kill intent", record))
        .collect()
}
