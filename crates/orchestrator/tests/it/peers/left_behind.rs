//! A peer that was turned out and let in again: what it had started by its old connection it can kill, and nothing else.

use futures_util::future::join_all;
use mosaic_store::{Limits, Store, sqlite::SqliteStore};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode,
    agent::ObservedState,
    audit::{Actor, AuditEvent},
    command::CommandType,
    connection::{Connection, ConnectionState},
};
use serde_json::json;

use super::Peer;
use crate::rig::Spoke;

/// Saves a connection, whatever becomes of others by that.
async fn save(store: &dyn Store, connection: Connection) {
    let audit = AuditEvent {
        at: connection.updated_at,
        actor: Actor::System,
        action: "test".to_owned(),
        subject: None,
        outcome: "ok".to_owned(),
        detail: json!(null),
    };
    store.save_connection(connection, audit).await.unwrap();
}

/// A connection like that one that was ended in its turn.
fn ended_like(sample: &Connection) -> Connection {
    Connection {
        connection_id: ConnectionId::generate(),
        state: ConnectionState::Disconnected,
        version: 1,
        ..sample.clone()
    }
}

/// Fills the table of connections with ones that were ended later than all that are there.
async fn fill(store: &dyn Store, sample: &Connection) {
    let most = usize::try_from(Limits::default().max_connections).unwrap();
    loop {
        let there = store.connections().await.unwrap().len();
        if there == most {
            return;
        }
        // As many as the store's queue takes.
        let more = (0..(most - there).min(500)).map(|_| save(store, ended_like(sample)));
        join_all(more).await;
    }
}

/// A38: else its hub would be told that there is no such agent, and take that for a death.
#[tokio::test]
async fn a38_a_peer_that_was_let_in_again_kills_what_it_left_behind() {
    let spoke = Spoke::start().await;
    let (mut peer, other) = (Peer::of(&spoke).await, Peer::of(&spoke).await);
    let (one, more) = (peer.idle(&spoke).await, peer.idle(&spoke).await);
    let others = other.idle(&spoke).await;
    peer.turned_out(&spoke).await;
    peer.let_in_again(&spoke).await;
    let own = peer.idle(&spoke).await;

    let seen = peer.status(one).await.unwrap_err();
    assert_eq!(seen.code, ErrorCode::UnknownAgent);
    let kill = json!({"agentId": one});
    let strangers = other.ask(CommandType::AgentKill, &kill).await;
    assert_eq!(strangers.unwrap_err().code, ErrorCode::UnknownAgent);
    let killed = peer.ask(CommandType::AgentKill, &kill).await;
    assert_eq!(killed.unwrap()["outcome"], "killed");

    let report = peer.ask(CommandType::AgentKillAll, &json!({})).await;
    let report = report.unwrap();
    assert_eq!(report["killed"], 2, "{report}");
    for agent in [one, more, own] {
        let status = spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Killed);
    }
    let spared = spoke.status(others).await;
    assert_eq!(spared.state, ObservedState::Running);
    spoke.stop().await;
}

/// A38: ten thousand connections later, and after a restart, it is still known who left an agent behind.
#[tokio::test]
async fn a38_a_full_table_of_connections_keeps_those_that_agents_came_by() {
    let mut spoke = Spoke::start_process().await;
    let mut peer = Peer::of(&spoke).await;
    let (one, more) = (peer.idle(&spoke).await, peer.idle(&spoke).await);
    peer.turned_out(&spoke).await;
    let at = spoke.data_dir().to_owned();
    spoke.stop_daemon();
    let store = SqliteStore::open(&at, Limits::default()).unwrap();
    let there = store.connections().await.unwrap();
    fill(&store, &there[0]).await;
    store.close().await;

    // One of them has to make room for the new connection.
    spoke.restart().await;
    peer.let_in_again(&spoke).await;
    spoke.stop_daemon();
    let store = SqliteStore::open(&at, Limits::default()).unwrap();
    let there = store.connections().await.unwrap();
    assert_eq!(there.len() as u64, Limits::default().max_connections);
    store.close().await;

    spoke.restart().await;
    let kill = json!({"agentId": one});
    let killed = peer.ask(CommandType::AgentKill, &kill).await;
    assert_eq!(killed.unwrap()["outcome"], "killed");
    let report = peer.ask(CommandType::AgentKillAll, &json!({})).await;
    assert_eq!(report.unwrap()["killed"], 1);
    for agent in [one, more] {
        let status = spoke.finished(agent).await;
        assert_eq!(status.state, ObservedState::Killed);
    }
    peer.stop().await;
    spoke.stop().await;
}

/// A38: a spawn may be under way when its connection is ended and makes room for another.
#[tokio::test]
async fn a38_no_agent_enters_by_a_connection_that_was_forgotten_meanwhile() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    // In the store alone: the spoke goes on as it does when it has admitted the spawn already.
    let store = spoke.node().store();
    let active = spoke.node().connections().get(peer.at_spoke).unwrap();
    let ended = Connection {
        state: ConnectionState::Disconnected,
        version: active.version + 1,
        ..(*active).clone()
    };
    save(&**store, ended.clone()).await;
    fill(&**store, &ended).await;
    save(&**store, ended_like(&ended)).await;

    let agent = AgentId::generate();
    let body = spoke.spawn_body(agent, "touch ran");
    let refused = peer.ask(CommandType::AgentSpawn, &body).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ConnectionNotActive);
    assert_eq!(store.agent(agent).await.unwrap(), None);
    let kill = json!({"agentId": agent});
    let unknown = peer.ask(CommandType::AgentKill, &kill).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::UnknownAgent);
    peer.stop().await;
    spoke.stop().await;
}
