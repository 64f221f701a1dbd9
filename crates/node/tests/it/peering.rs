use futures_util::FutureExt as _;
use mosaic_federation::{connect::seal_connect, token::PeeringToken};
use mosaic_node::{HttpLimits, Node};
use mosaic_types::{
    ConnectionId, Refusal, Timestamp,
    audit::{Actor, AuditEvent},
    command::CommandType,
    connection::{Connection, ConnectionState},
    grant::Grants,
};
use serde_json::{Value, json};

use crate::harness::{Pair, Running, agent, repositories, soon};

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
