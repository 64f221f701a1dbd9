//! Connections that are taken out of use: at once, whatever the store or the other side is at.

use futures_util::FutureExt as _;
use mosaic_federation::connect::seal_connect;
use mosaic_types::{
    Refusal, Timestamp,
    audit::Actor,
    command::CommandType,
    connection::{Connection, ConnectionState},
    grant::Grants,
};
use serde_json::json;

use super::{CONNECT, identity_of};
use crate::harness::{Pair, Running, agent, repositories, soon};

#[tokio::test]
async fn a_suspended_peer_cannot_come_back_by_a_token() {
    let pair = Pair::connected().await;
    let id = pair.to_hub().connection_id;
    let path = format!("/federation/connections/{id}/suspend");
    assert_eq!(pair.spoke.api("POST", &path, None).await.0, 200);
    let token = pair.spoke.invite(Grants::full(repositories())).await.token;
    let (status, problem) = pair.hub.connect(&token).await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid-token")));
    // Nor without one: it is not even told where it stands.
    let request = seal_connect(
        pair.hub.node.identity(),
        &identity_of(&pair.hub).await,
        None,
        None,
        &Grants::none(),
        Timestamp::now(),
    )
    .unwrap();
    assert_eq!(pair.spoke.post(CONNECT, request.bytes).await.status, 401);
    assert_eq!(pair.to_hub().state, ConnectionState::Suspended);
    pair.stop().await;
}

/// Suspension takes effect even when the store does not take it.
#[tokio::test]
async fn f15_a_suspension_that_cannot_be_stored_holds_in_memory() {
    for verb in ["suspend", "disconnect"] {
        let pair = Pair::connected().await;
        let id = pair.to_hub().connection_id;
        pair.spoke.node.store().close().await;
        let path = format!("/federation/connections/{id}/{verb}");
        let (status, problem) = pair.spoke.api("POST", &path, None).await;
        assert_eq!(status, 503, "{problem}");
        let told = problem["detail"].as_str().unwrap();
        assert!(told.ends_with("out of use until a restart"), "{problem}");
        assert_eq!(pair.to_hub().state, ConnectionState::Suspended);
        let command = pair.seal(CommandType::AgentKill, &agent());
        assert_eq!(pair.send(&command).await.status, 401);
        pair.stop().await;
    }
}

/// Who hangs up while the store is at it leaves no difference between what is on record and what is in force.
#[tokio::test]
async fn f15_a_suspension_whose_caller_hangs_up_is_carried_through() {
    let pair = Pair::connected().await;
    let (node, id) = (&pair.spoke.node, pair.to_hub().connection_id);
    let suspension = node.suspend(id, Actor::System);
    assert!(suspension.now_or_never().is_none(), "the store was asked");
    assert_eq!(pair.to_hub().state, ConnectionState::Suspended, "at once");
    // After it, and of the version that it made.
    let resumed = node.resume(id, Actor::System).await.unwrap();
    assert_eq!(resumed.state, ConnectionState::Active);
    assert_eq!(
        *node.store().connections().await.unwrap(),
        [(*resumed).clone()]
    );
    pair.stop().await;
}

/// Whatever change the store is still at: it holds in memory before its turn comes, and what that change makes of the
/// connection does not undo it.
#[tokio::test]
async fn f15_a_suspension_waits_for_no_other_change() {
    let pair = Pair::connected().await;
    let (node, id) = (&pair.spoke.node, pair.to_hub().connection_id);
    let renamed = |connection: &Connection, now| {
        Ok::<_, Refusal>(Connection {
            name: "renamed".to_owned(),
            updated_at: now,
            version: connection.version + 1,
            ..connection.clone()
        })
    };
    let connections = node.connections();
    let mut renaming = Box::pin(connections.change(id, Actor::System, renamed));
    assert!(renaming.as_mut().now_or_never().is_none());
    // Whether or not whoever asked for it waits.
    assert!(node.suspend(id, Actor::System).now_or_never().is_none());
    assert_eq!(pair.to_hub().state, ConnectionState::Suspended, "at once");
    let command = pair.seal(CommandType::AgentStatus, &agent());
    assert_eq!(pair.send(&command).await.status, 401);
    renaming.await.unwrap();
    assert_eq!(pair.to_hub().name, "renamed");
    let resumed = node.resume(id, Actor::System).await.unwrap();
    assert_eq!(resumed.state, ConnectionState::Active);
    assert_eq!(pair.to_hub(), resumed);
    let moves = pair.spoke.audit_actions().await;
    let ours = [
        "connection.update",
        "connection.suspend",
        "connection.resume",
    ];
    assert!(moves.ends_with(&ours.map(str::to_owned)), "{moves:?}");
    assert_eq!(
        *node.store().connections().await.unwrap(),
        [(*resumed).clone()]
    );
    pair.stop().await;
}

/// An operator who ends a connection while its peer is asked again is heard.
#[tokio::test]
async fn a_disconnection_is_not_undone_by_a_retry_under_way() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (hub, spoke) = (Running::start("hub").await, Running::start("spoke").await);
    // A way to the spoke that holds back what comes after the first ask.
    let way = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", way.local_addr().unwrap());
    let (asked, mut asks) = tokio::sync::watch::channel(0);
    let (open, gate) = tokio::sync::watch::channel(false);
    let to = spoke.url.strip_prefix("http://").unwrap().to_owned();
    let forwarding = tokio::spawn(async move {
        loop {
            let (mut near, _) = way.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(&to).await.unwrap();
            let (asked, mut gate) = (asked.clone(), gate.clone());
            tokio::spawn(async move {
                let (mut request, mut answer) = (vec![0; 65_536], vec![0; 65_536]);
                loop {
                    tokio::select! {
                        read = near.read(&mut request) => {
                            let Ok(length @ 1..) = read else { return };
                            far.write_all(&request[..length]).await.unwrap();
                            if request.starts_with(b"POST") {
                                asked.send_modify(|asks| *asks += 1);
                            }
                        }
                        read = far.read(&mut answer) => {
                            let Ok(length @ 1..) = read else { return };
                            if *asked.borrow() > 1 {
                                gate.wait_for(|open| *open).await.unwrap();
                            }
                            near.write_all(&answer[..length]).await.unwrap();
                        }
                    }
                }
            });
        }
    });
    let ask = json!({ "url": url });
    let path = "/federation/connections";
    let other = Running::start("other").await;
    let ask_other = json!({ "url": other.url });
    for ask in [ask, ask_other] {
        assert_eq!(hub.api("POST", path, Some(ask)).await.0, 201);
    }
    let theirs = spoke.node.connections().list().remove(0).connection_id;
    let accept = json!({ "grants": Grants::full(repositories()) });
    let accepting = format!("{path}/{theirs}/accept");
    assert_eq!(spoke.api("POST", &accepting, Some(accept)).await.0, 200);
    soon(asks.wait_for(|asks| *asks > 1)).await.unwrap();
    let ours = hub.node.connections().by_peer(spoke.node.instance_id());
    let ours = ours.unwrap().connection_id;
    let rejecting = format!("{path}/{ours}/reject");
    assert_eq!(hub.api("POST", &rejecting, None).await.0, 200);
    // Peers are asked one after another: once the other one is active, the retry is over.
    let accept = json!({ "grants": Grants::none() });
    let theirs = other.node.connections().list().remove(0).connection_id;
    let accepting = format!("{path}/{theirs}/accept");
    assert_eq!(other.api("POST", &accepting, Some(accept)).await.0, 200);
    let to_other = hub.node.connections().by_peer(other.node.instance_id());
    let to_other = to_other.unwrap().connection_id;
    let mut state = hub.node.connections().subscribe(to_other);
    open.send_replace(true);
    soon(state.wait_for(|state| *state == ConnectionState::Active))
        .await
        .unwrap();
    let connections = hub.node.connections().list();
    let states: Vec<_> = connections
        .iter()
        .filter(|each| each.connection_id != to_other)
        .map(|each| (each.connection_id, each.state))
        .collect();
    assert_eq!(states, [(ours, ConnectionState::Disconnected)]);
    hub.stop().await;
    other.stop().await;
    forwarding.abort();
    spoke.stop().await;
}
