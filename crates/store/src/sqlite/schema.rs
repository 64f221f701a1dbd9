//! The schema of the database file, and the steps from every release's schema to this one's.
//!
//! `PRAGMA user_version` counts the steps taken. A file of a later release is refused, never guessed at; a
//! file that is not ours is refused, never touched.

use std::{path::Path, sync::Arc};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::StoreError;

/// `MOSA` in ASCII: marks the file as ours in its header.
pub(super) const APPLICATION_ID: i64 = 0x4d4f_5341;

/// Step `n` makes schema `n + 1`. Steps that were released are never edited.
pub(super) const STEPS: &[&str] = &[
    include_str!("schema/v1.sql"),
    include_str!("schema/v2.sql"),
    include_str!("schema/v3.sql"),
    include_str!("schema/v4.sql"),
];

/// Brings the database to the schema of this release, each step in a transaction of its own.
pub(super) fn migrate(
    connection: &mut Connection,
    path: &Path,
    steps: &[&str],
) -> Result<(), StoreError> {
    let not_ours = || StoreError::NotOurs {
        path: path.to_owned(),
    };
    let read = |sql: &str| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map_err(|error| match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => not_ours(),
                _ => StoreError::of(StoreError::Open)(error),
            })
    };
    let application_id = read("PRAGMA application_id")?;
    let found = read("PRAGMA user_version")?;
    let is_fresh =
        application_id == 0 && found == 0 && read("SELECT count(*) FROM sqlite_schema")? == 0;
    if !is_fresh && (application_id != APPLICATION_ID || found < 1) {
        return Err(not_ours());
    }
    let known = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::SchemaTooNew { found, known });
    }
    for (to, step) in (1..).zip(steps).filter(|(to, _)| *to > found) {
        take_step(connection, to, step).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::DiskFull(Arc::new(error)),
            Some(ErrorCode::ReadOnly) => StoreError::Unwritable(Arc::new(error)),
            _ => StoreError::Migrate {
                to,
                source: Arc::new(error),
            },
        })?;
        tracing::info!(schema = to, "the store was brought to a new schema");
    }
    Ok(())
}

fn take_step(connection: &mut Connection, to: i64, step: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(step)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", to)?;
    transaction.commit()
}
