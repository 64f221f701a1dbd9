//! What 10,000 ended agents cost: nothing, where only the others are asked for.

use rusqlite::Connection;

use crate::{
    AgentFilter, Store,
    contract::samples::{agent, at, event},
};
use mosaic_types::agent::AgentState;

use super::{super::connections::FORGET_OLDEST, support::TempBackend};

fn plan(connection: &Connection, sql: &str) -> String {
    let mut statement = connection
        .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
        .unwrap();
    // Unbound parameters are null, which a plan does not depend on.
    let rows = statement.raw_query().mapped(|row| row.get::<_, String>(3));
    rows.collect::<Result<Vec<_>, _>>().unwrap().join("; ")
}

#[test]
fn hot_queries_walk_an_index_in_its_order() {
    let backend = TempBackend::fresh();
    drop(backend.store().unwrap());
    let connection = Connection::open(backend.database()).unwrap();
    for (sql, index) in [
        (
            "SELECT record FROM agents WHERE active = 1 ORDER BY accepted",
            "agents_active",
        ),
        (
            "SELECT record FROM agents WHERE active = 0 AND cleanup_pending = 1 ORDER BY accepted",
            "agents_to_clean",
        ),
        (
            "SELECT record FROM agents WHERE 1 AND connection_id IS ? ORDER BY agent_id DESC LIMIT 9",
            "agents_by_connection",
        ),
        (
            "SELECT record FROM agents WHERE 1 AND task_id = ? ORDER BY agent_id DESC LIMIT 9",
            "agents_by_task",
        ),
        (
            "SELECT agent_id FROM agents WHERE active = 0 AND cleanup_pending = 0
             AND (ended_at, accepted) > (?2, ?3) AND ended_at < ?1
             ORDER BY ended_at, accepted LIMIT 9",
            "agents_retirable",
        ),
        (
            "SELECT min(accepted) FROM remote_agents WHERE terminal = 1",
            "remote_agents_ended",
        ),
        (FORGET_OLDEST, " agents USING INDEX agents_by_connection"),
        (FORGET_OLDEST, "remote_agents_by_connection"),
        (
            "SELECT digest FROM claims WHERE peer = ?1 AND message_id = ?2",
            "PRIMARY KEY",
        ),
    ] {
        let plan = plan(&connection, sql);
        assert!(plan.contains(index), "{sql}: {plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{sql}: {plan}");
    }
}

/// A restart with many ended agents finds the few others, and pages through all of them.
#[tokio::test]
async fn ten_thousand_ended_agents_are_carried() {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    store
        .insert_agent(agent(AgentState::Completed).unwrap(), event("x"))
        .await
        .unwrap();
    store.close().await;
    let filler = Connection::open(backend.database()).unwrap();
    filler
        .execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
             INSERT INTO agents SELECT i, agent_id || i, connection_id, task_id, state, version,
                queued_at, ended_at + i, active, cleanup_pending, record FROM agents, n",
        )
        .unwrap();
    drop(filler);
    let store = backend.store().unwrap();
    let running = agent(AgentState::Running).unwrap();
    store
        .insert_agent(running.clone(), event("x"))
        .await
        .unwrap();
    let active = store.active_agents().await.unwrap();
    assert_eq!(active, std::slice::from_ref(&running));
    let filter = AgentFilter {
        before: Some(running.agent_id),
        limit: u32::MAX,
        ..AgentFilter::default()
    };
    assert_eq!(store.agents(filter).await.unwrap().len(), 1_000);
    let none = store
        .retirable_agents(at(0), 10_000, None, 1)
        .await
        .unwrap();
    assert!(none.is_empty(), "{none:?}");
    store.close().await;
}
