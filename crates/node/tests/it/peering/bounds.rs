//! How many connections there may be, and how much there is to tell of one.

use mosaic_node::{HttpLimits, Node};
use mosaic_types::{
    ConnectionId, Timestamp,
    audit::{Actor, AuditEvent},
    connection::{Connection, ConnectionState},
    grant::Grants,
};
use serde_json::{Value, json};

use crate::harness::{Pair, Running, repositories};

#[tokio::test]
async fn pending_connections_are_bounded_and_a_rejected_peer_stays_out() {
    let limits = HttpLimits {
        max_pending_connections: 1,
        ..HttpLimits::default()
    };
    let spoke = Running::start_limited("spoke", limits).await;
    let (one, two) = (Running::start("one").await, Running::start("two").await);
    let ask = json!({ "url": spoke.url });
    let path = "/federation/connections";
    assert_eq!(one.api("POST", path, Some(ask.clone())).await.0, 201);
    let (status, problem) = two.api("POST", path, Some(ask.clone())).await;
    assert_eq!((status, &problem["code"]), (503, &json!("overloaded")));

    let id = spoke.node.connections().list()[0].connection_id;
    let reject = format!("/federation/connections/{id}/reject");
    assert_eq!(spoke.api("POST", &reject, None).await.0, 200);
    let (status, _) = one.api("POST", path, Some(ask.clone())).await;
    assert_eq!(status, 502);
    assert_eq!(spoke.node.connections().list().len(), 1);
    assert_eq!(two.api("POST", path, Some(ask)).await.0, 201);
    spoke.stop().await;
    one.stop().await;
    two.stop().await;
}

/// Those who have waited too long make room, and only when there has to be.
#[tokio::test]
async fn one_who_has_waited_too_long_makes_room() {
    let limits = HttpLimits {
        max_pending_connections: 1,
        pending_for: std::time::Duration::ZERO,
        ..HttpLimits::default()
    };
    let spoke = Running::start_limited("spoke", limits).await;
    let (one, two) = (Running::start("one").await, Running::start("two").await);
    let ask = json!({ "url": spoke.url });
    let path = "/federation/connections";
    assert_eq!(one.api("POST", path, Some(ask.clone())).await.0, 201);
    assert_eq!(one.api("POST", path, Some(ask.clone())).await.0, 201);
    assert_eq!(two.api("POST", path, Some(ask)).await.0, 201);
    let states: Vec<_> = spoke
        .node
        .connections()
        .list()
        .iter()
        .map(|each| each.state)
        .collect();
    let expected = [ConnectionState::Disconnected, ConnectionState::Pending];
    assert_eq!(states, expected);
    spoke.stop().await;
    one.stop().await;
    two.stop().await;
}

/// Puts connections on record, in the store alone, until as many as may be are there.
async fn fill(node: &Node, sample: &Connection) {
    let most = usize::try_from(mosaic_store::Limits::default().max_connections).unwrap();
    loop {
        let there = node.store().connections().await.unwrap().len();
        if there == most {
            return;
        }
        let save = || {
            let connection = Connection {
                connection_id: ConnectionId::generate(),
                version: 1,
                ..sample.clone()
            };
            let audit = AuditEvent {
                at: Timestamp::now(),
                actor: Actor::System,
                action: "test".to_owned(),
                subject: None,
                outcome: "ok".to_owned(),
                detail: Value::Null,
            };
            node.store().save_connection(connection, audit)
        };
        // As many as the store's queue takes.
        let more = (0..(most - there).min(500)).map(|_| save());
        for saved in futures_util::future::join_all(more).await {
            saved.unwrap();
        }
    }
}

/// F22: nobody who is needed makes room; whoever is not is forgotten, in memory too.
#[tokio::test]
async fn f22_a_full_table_of_connections_refuses_and_uses_no_token_up() {
    let pair = Pair::connected().await;
    let id = pair.to_hub().connection_id;
    fill(&pair.spoke.node, &pair.to_hub()).await;
    let newcomer = Running::start("newcomer").await;
    let token = pair.spoke.invite(Grants::full(repositories())).await.token;
    let (status, problem) = newcomer.connect(&token).await;
    assert_eq!((status, &problem["code"]), (503, &json!("overloaded")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("all of them are needed"), "{detail}");
    let ask = json!({ "url": pair.spoke.url });
    let (status, problem) = newcomer
        .api("POST", "/federation/connections", Some(ask))
        .await;
    assert_eq!((status, &problem["code"]), (503, &json!("overloaded")));
    assert!(newcomer.node.connections().list().is_empty());
    assert_eq!(pair.to_hub().connection_id, id);

    let path = format!("/federation/connections/{id}/disconnect");
    assert_eq!(pair.spoke.api("POST", &path, None).await.0, 200);
    assert_eq!(newcomer.connect(&token).await.0, 201);
    assert!(pair.spoke.node.connections().get(id).is_none());
    let stored = pair.spoke.node.store().connections().await.unwrap();
    assert!(stored.iter().all(|known| known.connection_id != id));
    newcomer.stop().await;
    pair.stop().await;
}

/// F21: grants within every bound may be more than an audit entry holds, and what one verb has to tell fits where that
/// of another does not. None is refused for that, and a connection is ended for good.
#[tokio::test]
async fn f21_no_move_of_a_connection_is_refused_for_what_it_has_to_tell() {
    let (hub, spoke) = (Running::start("hub").await, Running::start("spoke").await);
    let glob = |number: usize| format!("file:///{number:0>2000}/**");
    let grants = Grants::full((0..256).map(glob).collect());
    let ask = json!({ "url": spoke.url, "requestedGrants": grants });
    let (status, body) = hub.api("POST", "/federation/connections", Some(ask)).await;
    assert_eq!((status, &body["state"]), (201, &json!("pending")), "{body}");
    let known = spoke.node.connections().by_peer(hub.node.instance_id());
    let id = known.unwrap().connection_id;
    for (verb, body, state) in [
        ("accept", Some(json!({ "grants": grants })), "active"),
        ("suspend", None, "suspended"),
        ("resume", None, "active"),
        ("disconnect", None, "disconnected"),
    ] {
        let path = format!("/federation/connections/{id}/{verb}");
        let (status, body) = spoke.api("POST", &path, body).await;
        assert_eq!((status, &body["state"]), (200, &json!(state)), "{verb}");
    }
    let spoke = Running::start_in(spoke.stop().await, "spoke").await;
    let known = spoke.node.connections().get(id).unwrap();
    assert_eq!(known.state, ConnectionState::Disconnected);
    assert_eq!(known.granted, grants);

    let entries = spoke.node.store().audit_entries(0, 100).await.unwrap();
    let told: Vec<Value> = entries
        .iter()
        .map(|entry| serde_json::from_str(&entry.event_json).unwrap())
        .filter(|event: &Value| event["subject"] == json!(id))
        .collect();
    let actions: Vec<_> = told.iter().map(|event| &event["action"]).collect();
    assert_eq!(
        actions,
        [
            "connection.ask",
            "connection.accept",
            "connection.suspend",
            "connection.resume",
            "connection.disconnect"
        ]
    );
    for event in &told {
        let omitted = event["detail"]["omittedBytes"].as_u64().unwrap();
        assert!(omitted > 256 << 10, "{event}");
    }
    let (_, verdict) = spoke.api("GET", "/audit/verify", None).await;
    assert_eq!(verdict["valid"], true, "{verdict}");
    hub.stop().await;
    spoke.stop().await;
}
