//! How two nodes come to be connected: by a token, or by an operator's word on each side.

use mosaic_federation::{connect::seal_connect, token::PeeringToken};
use mosaic_node::HttpLimits;
use mosaic_types::{
    Timestamp,
    command::CommandType,
    connection::{Connection, ConnectionState},
    grant::Grants,
};
use serde_json::{Value, json};

use crate::harness::{Pair, Running, agent, repositories, soon};

mod bounds;
mod suspended;

const CONNECT: &str = "/federation/v1/connect";

async fn identity_of(node: &Running) -> Vec<u8> {
    let url = format!("{}/.well-known/mosaic", node.url);
    let response = node.http.get(url).send().await.unwrap();
    response.bytes().await.unwrap().to_vec()
}

#[tokio::test]
async fn a_peering_token_makes_both_sides_active_once() {
    let pair = Pair::connected().await;
    let (ours, theirs) = (pair.to_spoke(), pair.to_hub());
    assert_eq!(ours.state, ConnectionState::Active);
    assert_eq!(theirs.state, ConnectionState::Active);
    let grants = Grants::full(repositories());
    assert_eq!(
        (&theirs.granted, &theirs.received),
        (&grants, &Grants::none())
    );
    assert_eq!((&ours.granted, &ours.received), (&Grants::none(), &grants));
    assert!(ours.outgoing && !theirs.outgoing);
    assert_eq!(ours.url.as_deref(), Some(pair.spoke.url.as_str()));

    // What is on disk is what is in memory.
    let stored = pair.spoke.node.store().connections().await.unwrap();
    assert_eq!(stored, vec![(*theirs).clone()]);
    // The spoke was granted nothing.
    let back = mosaic_federation::command::CommandBuilder::new(
        pair.hub.node.instance_id(),
        CommandType::AgentStatus,
    )
    .seal(pair.spoke.node.identity(), &agent(), Timestamp::now())
    .unwrap();
    let answer = pair.hub.post(crate::harness::COMMANDS, back.bytes).await;
    assert_eq!(answer.status, 200, "it is signed");
    assert_eq!(pair.hub.handler.executed(), 0);
    pair.stop().await;
}

#[tokio::test]
async fn a_token_is_good_for_one_peer_and_a_wrong_one_for_none() {
    let spoke = Running::start("spoke").await;
    let (one, two) = (Running::start("one").await, Running::start("two").await);
    let token = spoke.invite(Grants::full(repositories())).await.token;
    assert_eq!(one.connect(&token).await.0, 201);
    // The same peer is told again; another is not.
    let before = spoke.node.connections().list();
    assert_eq!(one.connect(&token).await.0, 201);
    assert_eq!(spoke.node.connections().list(), before);
    let (status, problem) = two.connect(&token).await;
    assert_eq!(
        (status, &problem["code"], &problem["field"]),
        (400, &json!("invalid-token"), &json!("token"))
    );
    assert!(two.node.connections().list().is_empty());

    let fresh = spoke.invite(Grants::full(repositories())).await.token;
    let parsed = PeeringToken::parse(&fresh, Timestamp::now()).unwrap();
    let made_up = PeeringToken::mint(
        parsed.url.clone(),
        parsed.instance_id.clone(),
        parsed.invite_id,
        parsed.expires_at,
        parsed.grants.clone(),
    )
    .unwrap()
    .encode()
    .unwrap();
    let (status, problem) = two.connect(&made_up).await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid-token")));
    let (status, problem) = two.connect("mosaic1.AAAA").await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid-token")));
    // A token that names another instance than the one at its URL.
    let elsewhere = PeeringToken::mint(
        parsed.url.clone(),
        one.node.instance_id().clone(),
        parsed.invite_id,
        parsed.expires_at,
        parsed.grants.clone(),
    )
    .unwrap()
    .encode()
    .unwrap();
    let (status, problem) = two.connect(&elsewhere).await;
    assert_eq!(
        (status, &problem["code"]),
        (502, &json!("peer-unreachable"))
    );
    assert_eq!(two.connect(&fresh).await.0, 201, "none of that used it up");
    spoke.stop().await;
    one.stop().await;
    two.stop().await;
}

/// The same connect request, byte for byte, many times at once: one connection, told to all.
#[tokio::test]
async fn a_connect_request_that_is_sent_again_is_answered_again() {
    let limits = HttpLimits {
        max_connects_per_second: 1000,
        ..HttpLimits::default()
    };
    let spoke = Running::start_limited("spoke", limits).await;
    for round in 0..12 {
        let hub = Running::start("hub").await;
        let token = spoke.invite(Grants::full(repositories())).await.token;
        let token = PeeringToken::parse(&token, Timestamp::now()).unwrap();
        let request = seal_connect(
            hub.node.identity(),
            &identity_of(&hub).await,
            Some(spoke.node.instance_id()),
            Some(&token.secret),
            &Grants::none(),
            Timestamp::now(),
        )
        .unwrap();
        let sends = (0..8).map(|_| spoke.post(CONNECT, request.bytes.clone()));
        for answer in futures_util::future::join_all(sends).await {
            assert_eq!(
                answer.status,
                200,
                "{}",
                String::from_utf8_lossy(&answer.body)
            );
        }
        let connections = spoke.node.connections().list();
        assert_eq!(connections.len(), round + 1);
        assert!(connections.iter().all(|each| each.version == 1));
        hub.stop().await;
    }
    spoke.stop().await;
}

#[tokio::test]
async fn a_fresh_token_changes_what_an_active_peer_is_granted() {
    let pair = Pair::connected().await;
    let id = pair.to_hub().connection_id;
    let narrow = Grants {
        commands: vec![CommandType::AgentStatus],
        ..Grants::none()
    };
    let token = pair.spoke.invite(narrow.clone()).await.token;
    assert_eq!(pair.hub.connect(&token).await.0, 201);
    assert_eq!(pair.to_hub().granted, narrow);
    assert_eq!(pair.to_hub().connection_id, id);
    assert_eq!(pair.to_spoke().received, narrow);
    pair.stop().await;
}

#[tokio::test]
async fn without_a_token_an_operator_accepts_and_the_peer_learns_of_it() {
    let (hub, spoke) = (Running::start("hub").await, Running::start("spoke").await);
    let requested = Grants::full(repositories());
    let ask = json!({ "url": spoke.url, "requestedGrants": requested });
    let (status, body) = hub.api("POST", "/federation/connections", Some(ask)).await;
    assert_eq!((status, &body["state"]), (201, &json!("pending")));
    let ours: Connection = serde_json::from_value(body).unwrap();
    let theirs = spoke
        .node
        .connections()
        .by_peer(hub.node.instance_id())
        .unwrap();
    assert_eq!(theirs.state, ConnectionState::Pending);
    assert_eq!(theirs.granted, Grants::none());
    let entries = spoke.node.store().audit_entries(0, 10).await.unwrap();
    let asked: Value = serde_json::from_str(&entries.last().unwrap().event_json).unwrap();
    assert_eq!(asked["action"], "connection.ask");
    assert_eq!(asked["detail"]["requested"], json!(requested));

    // The one who asked cannot accept for the other.
    let accept = json!({ "grants": Grants::full(repositories()) });
    let path = format!("/federation/connections/{}/accept", ours.connection_id);
    let (status, problem) = hub.api("POST", &path, Some(accept.clone())).await;
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("connection-not-active"))
    );

    let path = format!("/federation/connections/{}/accept", theirs.connection_id);
    let (status, body) = spoke.api("POST", &path, Some(accept)).await;
    assert_eq!((status, &body["state"]), (200, &json!("active")));
    let mut state = hub.node.connections().subscribe(ours.connection_id);
    soon(state.wait_for(|state| *state == ConnectionState::Active))
        .await
        .unwrap();
    let ours = hub.node.connections().get(ours.connection_id).unwrap();
    assert_eq!(ours.received, Grants::full(repositories()));
    hub.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn bad_connect_and_invite_requests_name_the_field() {
    let node = Running::start("node").await;
    for (path, body, field) in [
        ("/federation/connections", json!({}), Value::Null),
        (
            "/federation/connections",
            json!({ "token": 5 }),
            json!("token"),
        ),
        (
            "/federation/connections",
            json!({ "url": "ftp://x" }),
            json!("url"),
        ),
        (
            "/federation/connections",
            json!({ "url": "http://u:p@127.0.0.1" }),
            json!("url"),
        ),
        (
            "/federation/invites",
            json!({ "grants": Grants::none(), "ttlSecs": 0 }),
            json!("ttlSecs"),
        ),
        (
            "/federation/invites",
            json!({ "grants": Grants { repositories: vec!["[".to_owned()], ..Grants::none() } }),
            json!("grants.repositories"),
        ),
    ] {
        let (status, problem) = node.api("POST", path, Some(body.clone())).await;
        assert_eq!(status, 400, "{body}: {problem}");
        assert_eq!(
            problem.get("field").unwrap_or(&Value::Null),
            &field,
            "{body}"
        );
    }
    let unknown = format!(
        "/federation/connections/{}",
        mosaic_types::ConnectionId::generate()
    );
    assert_eq!(
        node.api("GET", &unknown, None).await.1["code"],
        "unknown-connection"
    );
    let (status, problem) = node.api("GET", "/federation/connections/x", None).await;
    assert_eq!((status, &problem["field"]), (400, &json!("id")));
    node.stop().await;
}

/// Two operators who both ask: the first who asked is the one to be accepted.
#[tokio::test]
async fn two_nodes_that_ask_each_other_can_still_be_connected() {
    let (one, two) = (Running::start("one").await, Running::start("two").await);
    let path = "/federation/connections";
    for (from, to) in [(&one, &two), (&two, &one)] {
        let ask = json!({ "url": to.url });
        let (status, body) = from.api("POST", path, Some(ask)).await;
        assert_eq!((status, &body["state"]), (201, &json!("pending")));
    }
    let ours = two.node.connections().list().remove(0);
    let accept = json!({ "grants": Grants::full(repositories()) });
    let path = format!("{path}/{}/accept", ours.connection_id);
    let (status, body) = two.api("POST", &path, Some(accept)).await;
    assert_eq!((status, &body["state"]), (200, &json!("active")), "{body}");
    let theirs = one.node.connections().list().remove(0);
    let mut state = one.node.connections().subscribe(theirs.connection_id);
    soon(state.wait_for(|state| *state == ConnectionState::Active))
        .await
        .unwrap();
    one.stop().await;
    two.stop().await;
}
