//! Agents at spokes, as a hub remembers them.

use mosaic_types::{AgentId, ConnectionId, TaskId, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter, types::Value};

use super::{
    agents::PAGE_MAX,
    connections,
    rows::{from_json, millis, parse, time},
    writer::Tx,
};
use crate::{RemoteAgent, StoreError};

pub(super) fn save(tx: &mut Tx<'_>, agent: &RemoteAgent) -> Result<(), StoreError> {
    let sql = StoreError::of(StoreError::RemoteAgents);
    let id = agent.agent_id.to_string();
    let owner = agent.connection_id.to_string();
    let stored: Option<String> = tx
        .connection
        .prepare_cached("SELECT connection_id FROM remote_agents WHERE agent_id = ?1")
        .and_then(|mut query| query.query_row([&id], |row| row.get(0)).optional())
        .map_err(&sql)?;
    match stored {
        Some(stored) if stored == owner => return Ok(()),
        Some(_) => return Err(StoreError::Conflict),
        None if connections::is_on_record(tx.connection, agent.connection_id)? => {}
        None => return Err(StoreError::NotFound),
    }
    if tx.facts.remote_agents >= tx.limits.max_remote_agents {
        let gone = tx
            .connection
            .prepare_cached(
                "DELETE FROM remote_agents WHERE accepted =
                 (SELECT min(accepted) FROM remote_agents WHERE terminal = 1)",
            )
            .and_then(|mut delete| delete.execute([]))
            .map_err(&sql)?;
        if gone == 0 {
            return Err(StoreError::Full);
        }
        tx.facts.remote_agents -= 1;
    }
    tx.connection
        .prepare_cached(
            "INSERT INTO remote_agents
             (agent_id, connection_id, task_id, operator, request_digest, created_at,
              last_status, terminal, last_seen_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        .and_then(|mut insert| {
            insert.execute(params![
                id,
                owner,
                agent.task_id.as_str(),
                agent.operator,
                agent.request_digest,
                millis(agent.created_at),
                agent.last_status_json,
                agent.terminal,
                agent.last_seen_at.map(millis),
            ])
        })
        .map_err(&sql)?;
    tx.facts.remote_agents += 1;
    Ok(())
}

pub(super) fn observe(
    tx: &mut Tx<'_>,
    agent_id: AgentId,
    status_json: &str,
    terminal: bool,
    seen_at: Timestamp,
) -> Result<(), StoreError> {
    let stored = one(tx.connection, agent_id)?.ok_or(StoreError::NotFound)?;
    if let Some(known) = stored.last_status_json.filter(|_| stored.terminal) {
        // An end that was seen stands; its clean-up may still be reported. Answers overtake one another. What was refused
        // never began, and is not over if it is asked for again.
        let known = stated_in(&known)?;
        let is_other = !terminal || known.state != stated_in(status_json)?.state;
        if is_other && !known.never_began() {
            return Ok(());
        }
    }
    tx.connection
        .prepare_cached(
            "UPDATE remote_agents SET last_status = ?2, terminal = ?3, last_seen_at = ?4
             WHERE agent_id = ?1",
        )
        .and_then(|mut update| {
            update.execute((agent_id.to_string(), status_json, terminal, millis(seen_at)))
        })
        .map_err(StoreError::of(StoreError::RemoteAgents))?;
    Ok(())
}

/// How a status says that the agent stands.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stated {
    state: String,
    #[serde(default)]
    attempt: u32,
    #[serde(default)]
    ended_at: Option<Timestamp>,
}

impl Stated {
    /// Whether its spawn was refused: whoever had it would say when it ended.
    fn never_began(&self) -> bool {
        self.state == "failed" && self.attempt == 0 && self.ended_at.is_none()
    }
}

/// The part of a status that counts here; the rest of it may be of a later release.
fn stated_in(status_json: &str) -> Result<Stated, StoreError> {
    from_json("agent status", status_json)
}

const COLUMNS: &str = "agent_id, connection_id, task_id, operator, request_digest, created_at, \
                       last_status, terminal, last_seen_at";

struct Columns {
    ids: [String; 3],
    agent: (String, String, i64, Option<String>, bool, Option<i64>),
}

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok(Columns {
        ids: [row.get(0)?, row.get(1)?, row.get(2)?],
        agent: (
            row.get(3)?,
            row.get(4)?,
            row.get(5)?,
            row.get(6)?,
            row.get(7)?,
            row.get(8)?,
        ),
    })
}

fn decode(columns: Columns) -> Result<RemoteAgent, StoreError> {
    let [agent_id, connection_id, task_id] = columns.ids;
    let (operator, request_digest, created_at, last_status_json, terminal, seen) = columns.agent;
    Ok(RemoteAgent {
        agent_id: parse("agent's id", &agent_id)?,
        connection_id: parse("connection's id", &connection_id)?,
        task_id: parse("task's id", &task_id)?,
        operator,
        request_digest,
        created_at: time(created_at),
        last_status_json,
        terminal,
        last_seen_at: seen.map(time),
    })
}

pub(super) fn one(
    connection: &Connection,
    agent_id: AgentId,
) -> Result<Option<RemoteAgent>, StoreError> {
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM remote_agents WHERE agent_id = ?1"
        ))
        .and_then(|mut query| query.query_row([agent_id.to_string()], columns).optional())
        .map_err(StoreError::of(StoreError::RemoteAgents))?
        .map(decode)
        .transpose()
}

pub(super) fn page(
    connection: &Connection,
    owner: Option<ConnectionId>,
    task: Option<&TaskId>,
    before: Option<AgentId>,
    limit: u32,
) -> Result<Vec<RemoteAgent>, StoreError> {
    let mut sql = format!("SELECT {COLUMNS} FROM remote_agents WHERE 1");
    let mut values: Vec<Value> = Vec::new();
    if let Some(owner) = owner {
        sql.push_str(" AND connection_id = ?");
        values.push(owner.to_string().into());
    }
    if let Some(task) = task {
        sql.push_str(" AND task_id = ?");
        values.push(task.as_str().to_owned().into());
    }
    if let Some(before) = before {
        sql.push_str(" AND agent_id < ?");
        values.push(before.to_string().into());
    }
    sql.push_str(" ORDER BY agent_id DESC LIMIT ?");
    values.push(i64::from(limit.min(PAGE_MAX)).into());
    let rows: Vec<Columns> = connection
        .prepare_cached(&sql)
        .and_then(|mut query| {
            query
                .query_map(params_from_iter(values), columns)?
                .collect()
        })
        .map_err(StoreError::of(StoreError::RemoteAgents))?;
    rows.into_iter().map(decode).collect()
}
