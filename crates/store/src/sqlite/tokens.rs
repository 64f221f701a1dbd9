//! Operators' tokens.

use mosaic_types::{api::Role, audit::AuditEvent};
use rusqlite::{Connection, params};

use super::{
    audit_trail,
    rows::{from_json, millis, time, to_json},
    writer::Tx,
};
use crate::{OperatorToken, StoreError};

pub(super) fn save(
    tx: &mut Tx<'_>,
    token: &OperatorToken,
    audit: &AuditEvent,
) -> Result<(), StoreError> {
    let saved = tx
        .connection
        .execute(
            "INSERT OR IGNORE INTO tokens (name, role, hash, created_at) VALUES (?1, ?2, ?3, ?4)",
            params![
                token.name,
                to_json("role", &token.role)?,
                token.hash,
                millis(token.created_at),
            ],
        )
        .map_err(StoreError::of(StoreError::Tokens))?;
    if saved == 0 {
        return Err(StoreError::Conflict);
    }
    audit_trail::append(tx, audit).map(drop)
}

pub(super) fn all(connection: &Connection) -> Result<Vec<OperatorToken>, StoreError> {
    let rows: Vec<(String, String, [u8; 32], i64)> = connection
        .prepare_cached("SELECT name, role, hash, created_at FROM tokens ORDER BY made")
        .and_then(|mut query| {
            query
                .query_map([], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })?
                .collect()
        })
        .map_err(StoreError::of(StoreError::Tokens))?;
    rows.into_iter()
        .map(|(name, role, hash, created_at)| {
            Ok(OperatorToken {
                name,
                role: from_json::<Role>("role", &role)?,
                hash,
                created_at: time(created_at),
            })
        })
        .collect()
}

pub(super) fn delete(tx: &mut Tx<'_>, name: &str, audit: &AuditEvent) -> Result<(), StoreError> {
    let gone = tx
        .connection
        .execute("DELETE FROM tokens WHERE name = ?1", [name])
        .map_err(StoreError::of(StoreError::Tokens))?;
    if gone == 0 {
        return Err(StoreError::NotFound);
    }
    audit_trail::append(tx, audit).map(drop)
}
