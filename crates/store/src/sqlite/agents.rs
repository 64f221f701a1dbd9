//! Agents of an orchestrator.

use mosaic_types::{AgentId, Timestamp, agent::AgentState, audit::AuditEvent};
use rusqlite::{Connection, OptionalExtension, params, params_from_iter, types::Value};

use super::{
    audit_trail, connections,
    rows::{column, from_json, millis, number, parse, to_json},
    writer::Tx,
};
use crate::{
    AgentFilter, AgentMove, AgentRecord, InsertAgent, RetirableAgent, RetirementCursor, StoreError,
};

/// Most rows of one answer.
pub(super) const PAGE_MAX: u32 = 1_000;

pub(super) fn insert(
    tx: &mut Tx<'_>,
    agent: &AgentRecord,
    audit: &AuditEvent,
) -> Result<InsertAgent, StoreError> {
    if let Some(taken) = one(tx.connection, agent.agent_id)? {
        return Ok(InsertAgent::Taken(Box::new(taken)));
    }
    // It may have been forgotten since the agent was asked for, for nothing said then that it was needed.
    if let Some(id) = agent.connection_id
        && !connections::is_on_record(tx.connection, id)?
    {
        return Err(StoreError::NotFound);
    }
    if tx.facts.agents >= tx.limits.max_agents {
        return Err(StoreError::Full);
    }
    let record = to_json("agent", agent)?;
    tx.connection
        .prepare_cached(
            "INSERT INTO agents (agent_id, connection_id, task_id, state, version, queued_at,
                                 ended_at, active, cleanup_pending, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )
        .and_then(|mut statement| {
            statement.execute(params![
                agent.agent_id.to_string(),
                agent.connection_id.map(|id| id.to_string()),
                agent.request.task_id.as_str(),
                agent.state.as_str(),
                column(agent.version),
                millis(agent.status.queued_at),
                ended_at(agent),
                !agent.state.is_terminal(),
                agent.cleanup_pending,
                record,
            ])
        })
        .map_err(StoreError::of(StoreError::Agents))?;
    tx.facts.agents += 1;
    audit_trail::append(tx, audit)?;
    Ok(InsertAgent::Inserted)
}

fn ended_at(agent: &AgentRecord) -> Option<i64> {
    // An ended agent has an end, even if its status does not say when: else it would never be retired.
    agent
        .state
        .is_terminal()
        .then(|| millis(agent.status.ended_at.unwrap_or(agent.status.queued_at)))
}

pub(super) fn change(tx: &mut Tx<'_>, change: &AgentMove) -> Result<(), StoreError> {
    let sql = StoreError::of(StoreError::Agents);
    let agent = &change.record;
    let id = agent.agent_id.to_string();
    let (version, state) = tx
        .connection
        .prepare_cached("SELECT version, state FROM agents WHERE agent_id = ?1")
        .and_then(|mut query| {
            query
                .query_row([&id], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
                .optional()
        })
        .map_err(&sql)?
        .ok_or(StoreError::NotFound)?;
    if number("agent's version", version)?.checked_add(1) != Some(agent.version) {
        return Err(StoreError::VersionConflict);
    }
    let (from, to) = (state_named(&state)?, agent.state);
    if from != to && !from.may_become(to) {
        return Err(StoreError::IllegalMove { from, to });
    }
    let record = to_json("agent", agent)?;
    tx.connection
        .prepare_cached(
            "UPDATE agents SET state = ?2, version = ?3, ended_at = ?4, active = ?5,
                               cleanup_pending = ?6, record = ?7
             WHERE agent_id = ?1",
        )
        .and_then(|mut update| {
            update.execute(params![
                id,
                to.as_str(),
                column(agent.version),
                ended_at(agent),
                !to.is_terminal(),
                agent.cleanup_pending,
                record,
            ])
        })
        .map_err(&sql)?;
    match &change.audit {
        Some(event) => audit_trail::append(tx, event).map(drop),
        None => Ok(()),
    }
}

fn state_named(text: &str) -> Result<AgentState, StoreError> {
    AgentState::ALL
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or(StoreError::Malformed {
            what: "agent's state",
        })
}

pub(super) fn one(
    connection: &Connection,
    agent_id: AgentId,
) -> Result<Option<AgentRecord>, StoreError> {
    connection
        .prepare_cached("SELECT record FROM agents WHERE agent_id = ?1")
        .and_then(|mut query| {
            query
                .query_row([agent_id.to_string()], |row| row.get::<_, String>(0))
                .optional()
        })
        .map_err(StoreError::of(StoreError::Agents))?
        .map(|record| from_json("agent", &record))
        .transpose()
}

pub(super) fn page(
    connection: &Connection,
    filter: &AgentFilter,
) -> Result<Vec<AgentRecord>, StoreError> {
    let mut sql = "SELECT record FROM agents WHERE 1".to_owned();
    let mut values: Vec<Value> = Vec::new();
    if let Some(owner) = &filter.connection {
        sql.push_str(" AND connection_id IS ?");
        values.push(owner.map(|id| id.to_string()).into());
    }
    if let Some(task) = &filter.task {
        sql.push_str(" AND task_id = ?");
        values.push(task.as_str().to_owned().into());
    }
    if filter.active {
        sql.push_str(" AND active = 1");
    }
    if let Some(before) = filter.before {
        sql.push_str(" AND agent_id < ?");
        values.push(before.to_string().into());
    }
    sql.push_str(" ORDER BY agent_id DESC LIMIT ?");
    values.push(i64::from(filter.limit.min(PAGE_MAX)).into());
    records(connection, &sql, values)
}

pub(super) fn active(connection: &Connection) -> Result<Vec<AgentRecord>, StoreError> {
    let sql = "SELECT record FROM agents WHERE active = 1 ORDER BY accepted";
    records(connection, sql, Vec::new())
}

pub(super) fn to_clean(connection: &Connection) -> Result<Vec<AgentRecord>, StoreError> {
    let sql =
        "SELECT record FROM agents WHERE active = 0 AND cleanup_pending = 1 ORDER BY accepted";
    records(connection, sql, Vec::new())
}

fn records(
    connection: &Connection,
    sql: &str,
    values: Vec<Value>,
) -> Result<Vec<AgentRecord>, StoreError> {
    let records: Vec<String> = connection
        .prepare_cached(sql)
        .and_then(|mut query| {
            query
                .query_map(params_from_iter(values), |row| row.get(0))?
                .collect()
        })
        .map_err(StoreError::of(StoreError::Agents))?;
    records
        .iter()
        .map(|record| from_json("agent", record))
        .collect()
}

pub(super) fn retirable(
    connection: &Connection,
    ended_before: Timestamp,
    keep_newest: u64,
    after: Option<RetirementCursor>,
    limit: u32,
) -> Result<Vec<RetirableAgent>, StoreError> {
    let after = after.unwrap_or(RetirementCursor {
        ended_at: i64::MIN,
        accepted: i64::MIN,
    });
    let rows: Vec<(String, i64, i64)> = connection
        .prepare_cached(
            "SELECT agent_id, ended_at, accepted FROM agents
             WHERE active = 0 AND cleanup_pending = 0 AND (ended_at, accepted) > (?3, ?4) AND (
                 ended_at < ?1
                 OR (ended_at, accepted) <= (
                     SELECT ended_at, accepted FROM agents
                     WHERE active = 0 AND cleanup_pending = 0
                     ORDER BY ended_at DESC, accepted DESC LIMIT 1 OFFSET ?2))
             ORDER BY ended_at, accepted LIMIT ?5",
        )
        .and_then(|mut query| {
            let bounds = (
                millis(ended_before),
                column(keep_newest),
                after.ended_at,
                after.accepted,
                limit.min(PAGE_MAX),
            );
            query
                .query_map(bounds, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect()
        })
        .map_err(StoreError::of(StoreError::Agents))?;
    rows.iter()
        .map(|(id, ended_at, accepted)| {
            Ok(RetirableAgent {
                agent_id: parse("agent's id", id)?,
                cursor: RetirementCursor {
                    ended_at: *ended_at,
                    accepted: *accepted,
                },
            })
        })
        .collect()
}

pub(super) fn forget(tx: &mut Tx<'_>, agent_id: AgentId) -> Result<(), StoreError> {
    let Some(agent) = one(tx.connection, agent_id)? else {
        return Ok(());
    };
    if !agent.state.is_terminal() || agent.cleanup_pending {
        return Err(StoreError::IllegalMove {
            from: agent.state,
            to: agent.state,
        });
    }
    tx.connection
        .prepare_cached("DELETE FROM agents WHERE agent_id = ?1")
        .and_then(|mut delete| delete.execute([agent_id.to_string()]))
        .map_err(StoreError::of(StoreError::Agents))?;
    tx.facts.agents = tx.facts.agents.saturating_sub(1);
    Ok(())
}
