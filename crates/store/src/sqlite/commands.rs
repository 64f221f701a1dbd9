//! Commands that a hub sent.

use mosaic_types::{MessageId, api::CommandRecord};
use rusqlite::{Connection, OptionalExtension};

use super::{
    rows::{column, from_json, to_json},
    writer::Tx,
};
use crate::StoreError;

pub(super) fn save(tx: &mut Tx<'_>, command: &CommandRecord) -> Result<(), StoreError> {
    let sql = StoreError::of(StoreError::Commands);
    let record = to_json("command", command)?;
    tx.connection
        .prepare_cached(
            "INSERT INTO commands (message_id, record) VALUES (?1, ?2)
             ON CONFLICT (message_id) DO UPDATE SET record = excluded.record",
        )
        .and_then(|mut upsert| upsert.execute((command.message_id.to_string(), record)))
        .map_err(&sql)?;
    // `sent` counts up without gaps, so the newest ones are a range of it.
    tx.connection
        .prepare_cached("DELETE FROM commands WHERE sent <= (SELECT max(sent) FROM commands) - ?1")
        .and_then(|mut delete| delete.execute([column(tx.limits.max_commands)]))
        .map_err(&sql)?;
    Ok(())
}

pub(super) fn one(
    connection: &Connection,
    message_id: MessageId,
) -> Result<Option<CommandRecord>, StoreError> {
    connection
        .prepare_cached("SELECT record FROM commands WHERE message_id = ?1")
        .and_then(|mut query| {
            query
                .query_row([message_id.to_string()], |row| row.get::<_, String>(0))
                .optional()
        })
        .map_err(StoreError::of(StoreError::Commands))?
        .map(|record| from_json("command", &record))
        .transpose()
}
