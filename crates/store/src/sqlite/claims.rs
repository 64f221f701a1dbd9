//! Claims of peers' messages, and the responses kept for those who ask again.

use std::{collections::HashMap, sync::Arc};

use mosaic_types::{InstanceId, MessageId, Timestamp};
use rusqlite::{Connection, OptionalExtension};

use super::{
    forgotten,
    rows::{millis, number, parse, time},
    writer::Tx,
};
use crate::{Claim, ClaimOutcome, StoreError};

/// How many rows there are. Cheap to clone, as every verb does; a change copies a number for each peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims {
    total: u64,
    by_peer: Arc<HashMap<String, u64>>,
}

impl Claims {
    pub(super) fn load(connection: &Connection) -> Result<Self, StoreError> {
        let rows: Vec<(String, i64)> = connection
            .prepare("SELECT peer, count(*) FROM claims GROUP BY peer")
            .and_then(|mut query| {
                let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect()
            })
            .map_err(StoreError::of(StoreError::Claims))?;
        let by_peer = rows
            .into_iter()
            .map(|(peer, count)| Ok((peer, number("count", count)?)))
            .collect::<Result<HashMap<_, _>, StoreError>>()?;
        Ok(Self {
            total: by_peer.values().sum(),
            by_peer: Arc::new(by_peer),
        })
    }

    fn of(&self, peer: &InstanceId) -> u64 {
        self.by_peer.get(peer.as_str()).copied().unwrap_or(0)
    }

    fn add(&mut self, peer: &InstanceId) {
        self.total += 1;
        let counts = Arc::make_mut(&mut self.by_peer);
        *counts.entry(peer.as_str().to_owned()).or_insert(0) += 1;
    }

    fn remove(&mut self, peers: &[String]) {
        let counts = Arc::make_mut(&mut self.by_peer);
        for peer in peers {
            self.total = self.total.saturating_sub(1);
            match counts.get_mut(peer) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(counts.remove(peer)),
            }
        }
    }
}

pub(super) fn claim(tx: &mut Tx<'_>, claim: &Claim) -> Result<ClaimOutcome, StoreError> {
    let sql = StoreError::of(StoreError::Claims);
    let key = (claim.peer.as_str(), claim.message_id.as_bytes());
    let stored = tx
        .connection
        .prepare_cached("SELECT digest FROM claims WHERE peer = ?1 AND message_id = ?2")
        .and_then(|mut query| {
            query
                .query_row(key, |row| row.get::<_, [u8; 32]>(0))
                .optional()
        })
        .map_err(&sql)?;
    match stored {
        Some(digest) if digest == claim.digest => {
            let response = tx
                .connection
                .prepare_cached(
                    "SELECT response FROM responses WHERE peer = ?1 AND message_id = ?2",
                )
                .and_then(|mut query| query.query_row(key, |row| row.get(0)).optional())
                .map_err(StoreError::of(StoreError::Responses))?;
            return Ok(ClaimOutcome::Repeated { response });
        }
        Some(_) => return Ok(ClaimOutcome::Conflict),
        None => {}
    }
    if tx.facts.forgotten.may_hold(claim.expires_at) {
        return Ok(ClaimOutcome::Forgotten);
    }
    if tx.facts.claims.total >= tx.limits.max_claims
        || tx.facts.claims.of(&claim.peer) >= tx.limits.max_claims_per_peer
    {
        return Err(StoreError::Full);
    }
    tx.connection
        .prepare_cached(
            "INSERT INTO claims (peer, message_id, digest, expires_at) VALUES (?1, ?2, ?3, ?4)",
        )
        .and_then(|mut insert| {
            insert.execute((key.0, key.1, claim.digest, millis(claim.expires_at)))
        })
        .map_err(&sql)?;
    tx.facts.claims.add(&claim.peer);
    Ok(ClaimOutcome::Fresh)
}

/// The first response that was kept stays: it is the one that was sent.
pub(super) fn keep_response(
    tx: &mut Tx<'_>,
    peer: &InstanceId,
    message_id: MessageId,
    response: &[u8],
) -> Result<(), StoreError> {
    let limit_bytes = tx.limits.max_response_bytes;
    if response.len() > limit_bytes {
        return Err(StoreError::TooLarge { limit_bytes });
    }
    let sql = StoreError::of(StoreError::Responses);
    let key = (peer.as_str(), message_id.as_bytes());
    let kept = tx
        .connection
        .prepare_cached(
            "INSERT OR IGNORE INTO responses (peer, message_id, response)
             SELECT peer, message_id, ?3 FROM claims WHERE peer = ?1 AND message_id = ?2",
        )
        .and_then(|mut insert| insert.execute((key.0, key.1, response)))
        .map_err(&sql)?;
    if kept == 0 {
        let claimed = tx
            .connection
            .prepare_cached("SELECT 1 FROM claims WHERE peer = ?1 AND message_id = ?2")
            .and_then(|mut query| query.exists(key))
            .map_err(&sql)?;
        if !claimed {
            return Err(StoreError::NotFound);
        }
    }
    Ok(())
}

/// How many claims one transaction forgets: a sweep must not hold up the claims that wait.
pub(super) const SWEEP_BATCH: u32 = 2_000;

pub(super) fn sweep(tx: &mut Tx<'_>, now: Timestamp) -> Result<u64, StoreError> {
    let swept: Vec<(String, i64)> = tx
        .connection
        .prepare_cached(
            "DELETE FROM claims WHERE (peer, message_id) IN
             (SELECT peer, message_id FROM claims INDEXED BY claims_by_expiry
              WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2) RETURNING peer, expires_at",
        )
        .and_then(|mut delete| {
            let swept = delete.query_map((millis(now), SWEEP_BATCH), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
            swept.collect()
        })
        .map_err(StoreError::of(StoreError::Claims))?;
    let (peers, expiries): (Vec<String>, Vec<i64>) = swept.into_iter().unzip();
    forgotten::keep(tx, expiries)?;
    tx.facts.claims.remove(&peers);
    Ok(peers.len() as u64)
}

/// Claims that have not expired, the last to expire first.
pub(super) fn unexpired(
    connection: &Connection,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Claim>, StoreError> {
    type Row = (String, [u8; 16], [u8; 32], i64);
    let rows: Vec<Row> = connection
        .prepare_cached(
            "SELECT peer, message_id, digest, expires_at FROM claims
             WHERE expires_at >= ?1 ORDER BY expires_at DESC LIMIT ?2",
        )
        .and_then(|mut query| {
            let rows = query.query_map((millis(now), limit), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            rows.collect()
        })
        .map_err(StoreError::of(StoreError::Claims))?;
    rows.into_iter()
        .map(|(peer, message_id, digest, expires_at)| {
            Ok(Claim {
                peer: parse("claim's peer", &peer)?,
                message_id: parse("claim's message id", &hyphenated(message_id))?,
                digest,
                expires_at: time(expires_at),
            })
        })
        .collect()
}

fn hyphenated(uuid: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(uuid));
    let groups = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    groups.join("-")
}
