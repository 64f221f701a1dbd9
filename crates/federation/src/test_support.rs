//! Two instances that know each other.

use mosaic_types::{
    ConnectionId, Timestamp,
    connection::{Connection, ConnectionState, NodeRole},
    grant::Grants,
};

use crate::identity::Identity;

pub(crate) const NOW_MILLIS: i64 = 1_795_000_000_000;

pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix_millis(NOW_MILLIS)
}

pub(crate) fn secs_from_now(secs: i64) -> Timestamp {
    Timestamp::from_unix_millis(NOW_MILLIS + secs * 1000)
}

/// The one that asks.
pub(crate) fn hub() -> Identity {
    Identity::from_seed(&[1; 32])
}

/// The one that is asked.
pub(crate) fn spoke() -> Identity {
    Identity::from_seed(&[2; 32])
}

pub(crate) fn stranger() -> Identity {
    Identity::from_seed(&[3; 32])
}

/// The connection to `peer` with everything granted.
pub(crate) fn connection_to(peer: &Identity) -> Connection {
    Connection {
        connection_id: ConnectionId::generate(),
        peer: peer.instance_id().clone(),
        name: "peer".to_owned(),
        role: NodeRole::Hub,
        url: None,
        keys: vec![peer.peer_key(secs_from_now(-3600))],
        protocol: 1,
        state: ConnectionState::Active,
        granted: Grants::full(vec!["**".to_owned()]),
        received: Grants::none(),
        invite_id: None,
        outgoing: false,
        created_at: secs_from_now(-3600),
        updated_at: secs_from_now(-3600),
        version: 1,
    }
}
