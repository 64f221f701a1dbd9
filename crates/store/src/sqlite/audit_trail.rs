//! The audit trail's rows, and its tip in memory.

use data_encoding::HEXLOWER;
use mosaic_types::audit::{AuditEntry, AuditEvent, AuditHead};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row};

use super::{
    rows::{column, number, to_json},
    writer::Tx,
};
use crate::{
    StoreError,
    audit::{NO_HASH, entry_hash, shortened},
};

/// Where the trail ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tip {
    seq: u64,
    hash: [u8; 32],
}

impl Tip {
    pub(super) fn head(&self) -> AuditHead {
        AuditHead {
            seq: self.seq,
            hash: HEXLOWER.encode(&self.hash),
        }
    }

    pub(super) fn load(connection: &Connection) -> Result<Self, StoreError> {
        let last = connection
            .query_row(
                "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .map_err(StoreError::of(StoreError::Audit))?;
        Ok(match last {
            Some((seq, hash)) => Self {
                seq: number("audit entry's number", seq)?,
                hash,
            },
            None => Self {
                seq: 0,
                hash: NO_HASH,
            },
        })
    }
}

/// Appends an event, or what fits of it: what was done is not undone because there is much to tell of it (F21).
pub(super) fn append(tx: &mut Tx<'_>, event: &AuditEvent) -> Result<AuditHead, StoreError> {
    let mut json = to_json("audit event", event)?;
    let limit_bytes = tx.limits.max_event_bytes;
    if json.len() > limit_bytes {
        let fitting = shortened(event, limit_bytes);
        tracing::warn!(
            action = fitting.action,
            limit_bytes,
            "an audit entry is too large; it is stored without its detail"
        );
        json = to_json("audit event", &fitting)?;
    }
    let Tip {
        seq: last,
        hash: prev_hash,
    } = tx.facts.tip;
    let seq = last + 1;
    let hash = entry_hash(seq, &prev_hash, json.as_bytes());
    tx.connection
        .prepare_cached("INSERT INTO audit (seq, prev_hash, hash, event) VALUES (?1, ?2, ?3, ?4)")
        .and_then(|mut insert| insert.execute((column(seq), prev_hash, hash, json)))
        .map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => StoreError::AuditDiverged { seq },
            _ => StoreError::of(StoreError::Audit)(error),
        })?;
    tx.facts.tip = Tip { seq, hash };
    Ok(tx.facts.tip.head())
}

pub(super) fn entries(
    connection: &Connection,
    after_seq: u64,
    limit: u32,
) -> Result<Vec<AuditEntry>, StoreError> {
    connection
        .prepare_cached(
            "SELECT seq, prev_hash, hash, event FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        )
        .and_then(|mut query| {
            query
                .query_map((column(after_seq), limit), entry)?
                .collect()
        })
        .map_err(StoreError::of(StoreError::Audit))
}

/// Reads whatever is there: an entry that was tampered with must reach the verification that names it.
fn entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    let hex = |index| {
        row.get_ref(index)
            .map(|value| HEXLOWER.encode(value.as_bytes().unwrap_or_default()))
    };
    let event = row.get_ref(3)?.as_bytes().unwrap_or_default();
    Ok(AuditEntry {
        seq: u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
        prev_hash: hex(1)?,
        hash: hex(2)?,
        event_json: String::from_utf8_lossy(event).into_owned(),
    })
}
