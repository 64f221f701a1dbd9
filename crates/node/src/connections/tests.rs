use futures_util::FutureExt as _;
use mosaic_federation::connection as moves;
use mosaic_store::sqlite::SqliteStore;
use mosaic_types::connection::{NodeRole, PeerKey};

use super::*;

fn connection(peer: char, keys: &[char], state: ConnectionState) -> Arc<Connection> {
    let hash = |of: char| of.to_string().repeat(32);
    let at = Timestamp::from_unix_millis(0);
    Arc::new(Connection {
        connection_id: ConnectionId::generate(),
        peer: format!("mi1{}", hash(peer)).parse().unwrap(),
        name: "peer".to_owned(),
        role: NodeRole::Hub,
        url: None,
        keys: keys
            .iter()
            .map(|key| PeerKey {
                key_id: format!("mk1{}", hash(*key)).parse().unwrap(),
                public_key: String::new(),
                not_before: at,
                not_after: None,
            })
            .collect(),
        protocol: 1,
        state,
        granted: Grants::none(),
        received: Grants::none(),
        invite_id: None,
        outgoing: false,
        created_at: at,
        updated_at: at,
        version: 1,
    })
}

/// Promise 1: one who claims another's key does not get that one's kills refused.
#[test]
fn a_key_stays_with_the_connection_that_showed_it_first() {
    let hub = connection('a', &['a'], ConnectionState::Active);
    let stranger = connection('b', &['b', 'a'], ConnectionState::Pending);
    let mut table = Table::default();
    table.put(Arc::clone(&hub));
    table.put(Arc::clone(&stranger));
    let owner =
        |table: &Table, index: usize| table.by_key.get(&stranger.keys[index].key_id).copied();
    assert_eq!(owner(&table, 1), Some(hub.connection_id));
    assert_eq!(owner(&table, 0), Some(stranger.connection_id));
    table.put(Arc::new(Connection {
        state: ConnectionState::Disconnected,
        ..(*stranger).clone()
    }));
    assert_eq!(
        owner(&table, 1),
        Some(hub.connection_id),
        "nor when it goes"
    );
    // The same connection again, at its next version.
    table.put(Arc::clone(&hub));
    assert_eq!(owner(&table, 1), Some(hub.connection_id));
}

/// F15: what another change makes of a connection does not undo a move that waits for its turn.
#[test]
fn f15_what_is_to_leave_stays_out_of_use_whatever_comes_before_its_turn() {
    let hub = connection('a', &['a'], ConnectionState::Active);
    let id = hub.connection_id;
    let mut table = Table::default();
    table.put(Arc::clone(&hub));
    let entry = table.by_id.get_mut(&id).unwrap();
    entry.suspend(Arc::clone(&hub));
    entry.leaving = 1;
    let changes = entry.changes.subscribe();
    let at = |version, state| {
        Arc::new(Connection {
            state,
            version,
            ..(*hub).clone()
        })
    };
    table.put(at(2, ConnectionState::Active));
    let entry = &table.by_id[&id];
    assert_eq!(*entry.connection, *at(2, ConnectionState::Suspended));
    assert_eq!(*changes.borrow(), entry.connection);
    assert_eq!(entry.stored, Some(at(2, ConnectionState::Active)));
    // What ends it is seen as it is.
    table.put(at(3, ConnectionState::Disconnected));
    let entry = &table.by_id[&id];
    assert_eq!(*entry.connection, *at(3, ConnectionState::Disconnected));
    assert_eq!(entry.stored, None);
}

/// F15: nor does one that puts it into use again, and is still at the store when the suspension is asked for.
#[tokio::test]
async fn f15_a_suspension_behind_a_resumption_holds_when_that_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path(), mosaic_store::Limits::default()).unwrap();
    let connections = Connections::load(Arc::new(store)).await.unwrap();
    let hub = connection('a', &['a'], ConnectionState::Suspended);
    let id = hub.connection_id;
    connections.put((*hub).clone());
    let resumed = Connection {
        state: ConnectionState::Active,
        version: 2,
        ..(*hub).clone()
    };
    let turn = Arc::clone(&connections.changes).lock_owned().await;
    let suspension = connections.change(id, Actor::System, |connection, now| {
        moves::suspend(connection, now).map_err(|error| error.refusal())
    });
    assert!(suspension.now_or_never().is_none());
    connections.put(resumed.clone());
    let current = connections.get(id).unwrap();
    assert_eq!((current.state, current.version), (hub.state, 2));
    drop(turn);
    connections.settled().await;
    assert_eq!(connections.get(id).unwrap().state, hub.state);
    connections.store.close().await;
}
