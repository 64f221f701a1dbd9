//! Requests to be connected that wait for the other side's operator.

use std::{collections::HashMap, time::Duration};

use mosaic_types::{
    ConnectionId, Refusal, Timestamp,
    audit::Actor,
    connection::{Connection, ConnectionState},
    grant::Grants,
};
use tokio_util::sync::CancellationToken;

use super::Asking;
use crate::node::Node;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(3600);

/// Asks peers again who have yet to accept us, less and less often.
pub(crate) async fn ask_again(node: &Node, shutdown: &CancellationToken) {
    let mut due: HashMap<ConnectionId, (Timestamp, Duration)> = HashMap::new();
    let mut ticks = tokio::time::interval(FIRST_RETRY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Timestamp::now();
        let waiting: Vec<_> = node
            .connections()
            .list()
            .into_iter()
            .filter(|each| each.outgoing && each.state == ConnectionState::Pending)
            .collect();
        due.retain(|id, _| waiting.iter().any(|each| each.connection_id == *id));
        for connection in waiting {
            let (at, delay) = *due
                .entry(connection.connection_id)
                .or_insert((now.saturating_add(FIRST_RETRY), FIRST_RETRY));
            if now < at {
                continue;
            }
            let next = (delay * 2).min(LAST_RETRY);
            due.insert(connection.connection_id, (now.saturating_add(next), next));
            let asking = ask_once(node, &connection);
            let asked = tokio::select! {
                () = shutdown.cancelled() => return,
                asked = asking => asked,
            };
            if let Err(refusal) = asked {
                tracing::debug!(%refusal, peer = %connection.peer, "asked a peer again");
            }
        }
    }
}

async fn ask_once(node: &Node, connection: &Connection) -> Result<(), Refusal> {
    let Some(url) = &connection.url else {
        return Ok(());
    };
    let url = node.peers().url(url).map_err(|error| error.refusal())?;
    let identity = node
        .peers()
        .identify(&url, Some(&connection.peer))
        .await
        .map_err(|error| error.refusal())?;
    let by = Asking::Again(connection.connection_id);
    node.ask(&url, &identity, by, &Grants::none(), Actor::System)
        .await
        .map(drop)
}
