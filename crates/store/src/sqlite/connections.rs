//! Connections and the invitations that make them.

use mosaic_types::{
    ConnectionId, InviteId, Timestamp,
    audit::AuditEvent,
    connection::{Connection as Peering, ConnectionState},
};
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    audit_trail,
    rows::{column, from_json, millis, number, parse, time, to_json},
    writer::Tx,
};
use crate::{InviteRecord, StoreError};

/// An agent that has not ended keeps the connection that it came by, or is at: that says whose the agent is, so that
/// the peer's kills reach it (A38), and that a hub's kill-all names the spoke. So does a kept kill: by the ended connection
/// the hub knows which spoke it is for.
pub(super) const FORGET_OLDEST: &str = "
    DELETE FROM connections WHERE made = (
        SELECT made FROM connections AS ended WHERE state = 'disconnected'
        AND NOT EXISTS (
            SELECT 1 FROM agents
            WHERE agents.connection_id = ended.connection_id AND active = 1)
        AND NOT EXISTS (
            SELECT 1 FROM remote_agents
            WHERE remote_agents.connection_id = ended.connection_id AND terminal = 0)
        AND connection_id NOT IN (
            SELECT record ->> 'connectionId' FROM kill_intents WHERE pending = 1)
        ORDER BY made LIMIT 1)
    RETURNING connection_id";

pub(super) fn save(
    tx: &mut Tx<'_>,
    peering: &Peering,
    audit: &AuditEvent,
) -> Result<Option<ConnectionId>, StoreError> {
    let sql = StoreError::of(StoreError::Connections);
    let id = peering.connection_id.to_string();
    let stored = tx
        .connection
        .prepare_cached("SELECT version, state FROM connections WHERE connection_id = ?1")
        .and_then(|mut query| {
            query
                .query_row([&id], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
                .optional()
        })
        .map_err(&sql)?;
    let stored_version = match &stored {
        Some((version, _)) => number("connection's version", *version)?,
        None => 0,
    };
    if stored_version.checked_add(1) != Some(peering.version) {
        return Err(StoreError::VersionConflict);
    }
    let record = to_json("connection", peering)?;
    let forgotten = match stored {
        Some((_, state)) => {
            let from = state_named(&state)?;
            let to = peering.state;
            if from != to && !from.may_become(to) {
                return Err(StoreError::IllegalConnectionMove { from, to });
            }
            tx.connection
                .prepare_cached(
                    "UPDATE connections SET state = ?2, version = ?3, record = ?4
                     WHERE connection_id = ?1",
                )
                .and_then(|mut update| {
                    update.execute((&id, to.as_str(), column(peering.version), &record))
                })
                .map_err(&sql)?;
            None
        }
        None => {
            let forgotten = make_room(tx)?;
            tx.connection
                .prepare_cached(
                    "INSERT INTO connections (connection_id, peer, state, version, record)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )
                .and_then(|mut insert| {
                    insert.execute((
                        &id,
                        peering.peer.as_str(),
                        peering.state.as_str(),
                        column(peering.version),
                        &record,
                    ))
                })
                .map_err(&sql)?;
            forgotten
        }
    };
    audit_trail::append(tx, audit)?;
    Ok(forgotten)
}

/// If there is no room for one more, forgets the oldest that has ended and is not needed. Answers which.
fn make_room(tx: &Tx<'_>) -> Result<Option<ConnectionId>, StoreError> {
    let sql = StoreError::of(StoreError::Connections);
    let count: i64 = tx
        .connection
        .query_row("SELECT count(*) FROM connections", [], |row| row.get(0))
        .map_err(&sql)?;
    if count < column(tx.limits.max_connections) {
        return Ok(None);
    }
    let forgotten: Option<String> = tx
        .connection
        .prepare_cached(FORGET_OLDEST)
        .and_then(|mut delete| delete.query_row([], |row| row.get(0)).optional())
        .map_err(&sql)?;
    let forgotten = forgotten.ok_or(StoreError::Full)?;
    parse("connection's id", &forgotten).map(Some)
}

/// Whether a connection is on record. No agent may come by one that is not: its peer could not reach it (A38).
pub(super) fn is_on_record(connection: &Connection, id: ConnectionId) -> Result<bool, StoreError> {
    connection
        .prepare_cached("SELECT 1 FROM connections WHERE connection_id = ?1")
        .and_then(|mut query| query.exists([id.to_string()]))
        .map_err(StoreError::of(StoreError::Connections))
}

fn state_named(text: &str) -> Result<ConnectionState, StoreError> {
    ConnectionState::ALL
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or(StoreError::Malformed {
            what: "connection's state",
        })
}

pub(super) fn all(connection: &Connection) -> Result<Vec<Peering>, StoreError> {
    let records: Vec<String> = connection
        .prepare_cached("SELECT record FROM connections ORDER BY made")
        .and_then(|mut query| query.query_map([], |row| row.get(0))?.collect())
        .map_err(StoreError::of(StoreError::Connections))?;
    records
        .iter()
        .map(|record| from_json("connection", record))
        .collect()
}

pub(super) fn save_invite(
    tx: &mut Tx<'_>,
    invite: &InviteRecord,
    audit: &AuditEvent,
) -> Result<(), StoreError> {
    let sql = StoreError::of(StoreError::Invites);
    let count: i64 = tx
        .connection
        .query_row("SELECT count(*) FROM invites", [], |row| row.get(0))
        .map_err(&sql)?;
    if count >= column(tx.limits.max_invites) {
        let gone = tx
            .connection
            .execute(
                "DELETE FROM invites WHERE used_by IS NOT NULL OR expires_at <= ?1",
                [millis(invite.created_at)],
            )
            .map_err(&sql)?;
        if gone == 0 {
            return Err(StoreError::Full);
        }
    }
    let saved = tx
        .connection
        .execute(
            "INSERT OR IGNORE INTO invites
             (invite_id, secret_hash, grants, created_at, expires_at, used_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                invite.invite_id.to_string(),
                invite.secret_hash,
                to_json("grants", &invite.grants)?,
                millis(invite.created_at),
                millis(invite.expires_at),
                invite.used_by.map(|id| id.to_string()),
            ],
        )
        .map_err(&sql)?;
    if saved == 0 {
        return Err(StoreError::Conflict);
    }
    audit_trail::append(tx, audit).map(drop)
}

pub(super) fn invite(
    connection: &Connection,
    secret_hash: [u8; 32],
) -> Result<Option<InviteRecord>, StoreError> {
    let row = connection
        .prepare_cached(
            "SELECT invite_id, grants, created_at, expires_at, used_by FROM invites
             WHERE secret_hash = ?1",
        )
        .and_then(|mut query| {
            query
                .query_row([secret_hash], |row| {
                    Ok((
                        row.get::<_, String>(0)?,
                        row.get::<_, String>(1)?,
                        row.get(2)?,
                        row.get(3)?,
                        row.get::<_, Option<String>>(4)?,
                    ))
                })
                .optional()
        })
        .map_err(StoreError::of(StoreError::Invites))?;
    let Some((invite_id, grants, created_at, expires_at, used_by)) = row else {
        return Ok(None);
    };
    Ok(Some(InviteRecord {
        invite_id: parse("invitation's id", &invite_id)?,
        secret_hash,
        grants: from_json("grants", &grants)?,
        created_at: time(created_at),
        expires_at: time(expires_at),
        used_by: used_by
            .map(|id| parse("connection's id", &id))
            .transpose()?,
    }))
}

pub(super) fn redeem(
    tx: &mut Tx<'_>,
    invite_id: InviteId,
    now: Timestamp,
    peering: &Peering,
    audit: &AuditEvent,
) -> Result<Option<ConnectionId>, StoreError> {
    let sql = StoreError::of(StoreError::Invites);
    let id = invite_id.to_string();
    let used_up = tx
        .connection
        .execute(
            "UPDATE invites SET used_by = ?2
             WHERE invite_id = ?1 AND used_by IS NULL AND expires_at > ?3",
            (&id, peering.connection_id.to_string(), millis(now)),
        )
        .map_err(&sql)?;
    if used_up == 0 {
        let known = tx
            .connection
            .prepare_cached("SELECT 1 FROM invites WHERE invite_id = ?1")
            .and_then(|mut query| query.exists([&id]))
            .map_err(&sql)?;
        return Err(if known {
            StoreError::InviteSpent
        } else {
            StoreError::NotFound
        });
    }
    save(tx, peering, audit)
}
