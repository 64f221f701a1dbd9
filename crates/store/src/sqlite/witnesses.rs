//! Heads of peers' trails, as the peers showed them.
//!
//! Heads are kept for each peer, not only the highest: two different hashes of one entry are a proof, whichever comes
//! first, and a trail that was cut and has grown beyond what was shown of it is found by what was shown before. The newest
//! are kept all, of the others one for each doubling of their distance, so that they are few and reach far back.

use mosaic_types::{api::WitnessedHead, audit::AuditHead};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    rows::{column, millis, number, parse, time},
    writer::Tx,
};
use crate::{HEAD_REORDER_WINDOW, StoreError};

/// The highest heads of each peer that are kept all.
const NEWEST_KEPT: usize = 32;
/// Contradictions kept for each peer, the first ones.
const CONTRADICTIONS_KEPT: i64 = 16;

/// What a shown head is, beside those shown before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Witnessed {
    Consistent,
    Contradiction,
}

pub(super) fn witness(tx: &mut Tx<'_>, seen: &WitnessedHead) -> Result<Witnessed, StoreError> {
    let sql = StoreError::of(StoreError::Witnesses);
    let instance = seen.instance.as_str();
    let seq = column(seen.head.seq);
    let highest: Option<(i64, i64)> = tx
        .connection
        .prepare_cached(
            "SELECT seq, seen_at FROM witnessed WHERE instance = ?1 ORDER BY seq DESC LIMIT 1",
        )
        .and_then(|mut query| {
            query
                .query_row([instance], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })
        .map_err(&sql)?;
    let same_entry: Option<String> = tx
        .connection
        .prepare_cached("SELECT hash FROM witnessed WHERE instance = ?1 AND seq = ?2")
        .and_then(|mut query| {
            query
                .query_row((instance, seq), |row| row.get(0))
                .optional()
        })
        .map_err(&sql)?;
    let rewritten = same_entry
        .as_ref()
        .is_some_and(|hash| *hash != seen.head.hash);
    let cut = highest.is_some_and(|(highest_seq, seen_at)| {
        seq < highest_seq && seen.seen_at.since(time(seen_at)) > HEAD_REORDER_WINDOW
    });
    if rewritten || cut {
        keep_contradiction(tx, seen)?;
        return Ok(Witnessed::Contradiction);
    }
    if highest.is_none() {
        make_sure_of_room(tx)?;
    }
    if same_entry.is_none() {
        tx.connection
            .prepare_cached(
                "INSERT INTO witnessed (instance, seq, hash, seen_at) VALUES (?1, ?2, ?3, ?4)",
            )
            .and_then(|mut insert| {
                insert.execute((instance, seq, &seen.head.hash, millis(seen.seen_at)))
            })
            .map_err(&sql)?;
        thin_out(tx, instance)?;
    }
    if highest.is_none_or(|(highest_seq, _)| seq >= highest_seq) {
        let fact = (seen.instance.clone(), seen.head.clone());
        tx.facts.highest_heads.push(fact);
    }
    Ok(Witnessed::Consistent)
}

/// Forgets heads that others stand for.
fn thin_out(tx: &Tx<'_>, instance: &str) -> Result<(), StoreError> {
    let sql = StoreError::of(StoreError::Witnesses);
    let newest_first: Vec<i64> = tx
        .connection
        .prepare_cached("SELECT seq FROM witnessed WHERE instance = ?1 ORDER BY seq DESC")
        .and_then(|mut query| query.query_map([instance], |row| row.get(0))?.collect())
        .map_err(&sql)?;
    for seq in superfluous(&newest_first) {
        tx.connection
            .prepare_cached("DELETE FROM witnessed WHERE instance = ?1 AND seq = ?2")
            .and_then(|mut delete| delete.execute((instance, seq)))
            .map_err(&sql)?;
    }
    Ok(())
}

/// Beyond the newest, the lowest of each doubling of the distance from the highest stands for those above it.
fn superfluous(newest_first: &[i64]) -> Vec<i64> {
    let Some(highest) = newest_first.first() else {
        return Vec::new();
    };
    let doubling = |seq: i64| highest.abs_diff(seq).checked_ilog2();
    let older = newest_first.get(NEWEST_KEPT..).unwrap_or_default();
    let pairs = older.iter().zip(older.iter().skip(1));
    pairs
        .filter(|(seq, next)| doubling(**seq) == doubling(**next))
        .map(|(seq, _)| *seq)
        .collect()
}

fn keep_contradiction(tx: &Tx<'_>, seen: &WitnessedHead) -> Result<(), StoreError> {
    tx.connection
        .prepare_cached(
            "INSERT OR IGNORE INTO contradictions (instance, seq, hash, seen_at)
             SELECT ?1, ?2, ?3, ?4
             WHERE (SELECT count(*) FROM contradictions WHERE instance = ?1) < ?5",
        )
        .and_then(|mut insert| {
            insert.execute((
                seen.instance.as_str(),
                column(seen.head.seq),
                &seen.head.hash,
                millis(seen.seen_at),
                CONTRADICTIONS_KEPT,
            ))
        })
        .map(drop)
        .map_err(StoreError::of(StoreError::Witnesses))
}

fn make_sure_of_room(tx: &Tx<'_>) -> Result<(), StoreError> {
    let peers: i64 = tx
        .connection
        .prepare_cached("SELECT count(DISTINCT instance) FROM witnessed")
        .and_then(|mut query| query.query_row([], |row| row.get(0)))
        .map_err(StoreError::of(StoreError::Witnesses))?;
    if peers >= column(tx.limits.max_witnessed_peers) {
        return Err(StoreError::Full);
    }
    Ok(())
}

pub(super) fn highest(connection: &Connection) -> Result<Vec<WitnessedHead>, StoreError> {
    // SQLite takes the bare columns from the row of the maximum.
    heads(
        connection,
        "SELECT instance, max(seq), hash, seen_at FROM witnessed GROUP BY instance",
    )
}

pub(super) fn kept(connection: &Connection) -> Result<Vec<WitnessedHead>, StoreError> {
    heads(
        connection,
        "SELECT instance, seq, hash, seen_at FROM witnessed ORDER BY instance, seq",
    )
}

pub(super) fn contradictions(connection: &Connection) -> Result<Vec<WitnessedHead>, StoreError> {
    heads(
        connection,
        "SELECT instance, seq, hash, seen_at FROM contradictions ORDER BY seen_at",
    )
}

fn heads(connection: &Connection, sql: &str) -> Result<Vec<WitnessedHead>, StoreError> {
    let columns = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let rows: Vec<(String, i64, String, i64)> = connection
        .prepare_cached(sql)
        .and_then(|mut query| query.query_map([], columns)?.collect())
        .map_err(StoreError::of(StoreError::Witnesses))?;
    rows.into_iter()
        .map(|(instance, seq, hash, seen_at)| {
            Ok(WitnessedHead {
                instance: parse("instance's id", &instance)?,
                head: AuditHead {
                    seq: number("head's number", seq)?,
                    hash,
                },
                seen_at: time(seen_at),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_heads_are_kept_and_they_reach_far_back() {
        let mut kept: Vec<i64> = Vec::new();
        for seq in 1..=5_000 {
            kept.insert(0, seq);
            let gone = superfluous(&kept);
            kept.retain(|seq| !gone.contains(seq));
        }
        let newest: Vec<i64> = (4_969..=5_000).rev().collect();
        assert_eq!(kept[..32], newest);
        assert!(kept.len() < 32 + 13, "{kept:?}");
        assert_eq!(kept.last(), Some(&1));
        // Whatever was cut off, there is one at most twice as far back.
        for distance in 64..4_999 {
            let bound = 5_000 - 2 * distance;
            let witness = kept.iter().find(|seq| **seq <= 5_000 - distance);
            assert!(
                witness.is_some_and(|seq| *seq >= bound.min(1)),
                "{distance}"
            );
        }
    }
}
