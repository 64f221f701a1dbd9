use std::{sync::atomic::Ordering, time::Duration};

use axum::{Router, routing::get};
use futures_util::StreamExt;
use mosaic_federation::command::CommandBuilder;
use mosaic_node::HttpLimits;
use mosaic_types::{ErrorCode, Timestamp, command::CommandType, grant::Grants};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Answer, COMMANDS, Pair, Running, agent, repositories, soon};

async fn raw(node: &Running, bytes: &[u8]) -> String {
    let address = node.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// F20: one who sends a head, or a body, drop by drop is cut off.
#[tokio::test]
async fn f20_slow_heads_and_bodies_are_cut_off() {
    let limits = HttpLimits {
        header_timeout: Duration::from_millis(50),
        body_timeout: Duration::from_millis(50),
        ..HttpLimits::default()
    };
    let node = Running::start_limited("node", limits).await;
    raw(
        &node,
        b"POST /federation/v1/commands HTTP/1.1\r\nHost: x\r\nX-",
    )
    .await;
    raw(&node, b"").await;
    let head = "POST /federation/v1/commands HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1";
    let answer = raw(&node, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains(r#""code":"request-timeout""#), "{answer}");
    node.stop().await;
}

/// F20: one who takes nothing of what is written to it is cut off, and what was read for it is let go.
#[tokio::test]
async fn f20_a_reader_that_takes_nothing_is_cut_off() {
    use axum::body::{Body, Bytes};
    let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
    let alive = std::sync::Mutex::new(Some(alive));
    let endless = move || {
        let alive = alive.lock().unwrap().take();
        let chunks = futures_util::stream::repeat_with(move || {
            let _held = &alive;
            Ok::<_, std::convert::Infallible>(Bytes::from(vec![0; 64 * 1024]))
        });
        async move { Body::from_stream(chunks) }
    };
    let endless = std::sync::Arc::new(endless);
    let route = get(move || endless());
    let limits = HttpLimits {
        write_timeout: Duration::from_millis(50),
        ..HttpLimits::default()
    };
    let node = Running::start_with("node", limits, Router::new().route("/endless", route)).await;
    let address = node.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(soon(dropped).await.is_err(), "the sender was dropped");
    drop(stream);
    node.stop().await;
}

#[tokio::test]
async fn bodies_too_large_or_encoded_are_refused_unread() {
    let node = Running::start("node").await;
    let large = vec![b'x'; 1024 * 1024 + 1];
    for (path, problem) in [
        (COMMANDS, node.post(COMMANDS, large.clone()).await),
        (
            "/federation/v1/connect",
            node.post("/federation/v1/connect", large).await,
        ),
    ] {
        assert_eq!(problem.status, 413, "{path}");
        let body: Value = serde_json::from_slice(&problem.body).unwrap();
        assert_eq!(body["code"], "body-too-large");
    }
    // Without a length that is announced.
    let chunk = format!("{:x}\r\n{}\r\n", 600_000, "x".repeat(600_000));
    let head =
        "POST /federation/v1/commands HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = raw(&node, format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 413"),
        "{answer}"
    );
    // F19: nothing is decompressed.
    let response = node
        .http
        .post(format!("{}{COMMANDS}", node.url))
        .header("content-encoding", "gzip")
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 415);
    node.stop().await;
}

#[tokio::test]
async fn whatever_goes_wrong_is_a_problem_document() {
    let extra = Router::new().route("/panic", get(async || panicking()));
    let node = Running::start_with("node", HttpLimits::default(), extra).await;
    for (method, path, content_type, body, status, code) in [
        ("GET", "/nowhere", "", "", 404, "not-found"),
        ("GET", "/api/v1/nowhere", "", "", 404, "not-found"),
        ("PUT", "/api/v1/tokens", "", "", 405, "method-not-allowed"),
        ("GET", COMMANDS, "", "", 405, "method-not-allowed"),
        (
            "POST",
            "/api/v1/tokens",
            "text/plain",
            "{}",
            415,
            "unsupported-media-type",
        ),
        (
            "POST",
            "/api/v1/tokens",
            "application/json",
            "{",
            400,
            "invalid-request",
        ),
        (
            "POST",
            "/api/v1/tokens",
            "application/json",
            r#"{"name":"x","role":"king"}"#,
            400,
            "invalid-request",
        ),
        (
            "POST",
            "/api/v1/tokens",
            "application/json",
            r#"{"name":"x","role":"admin","x":1}"#,
            400,
            "invalid-request",
        ),
        (
            "GET",
            "/api/v1/audit?limit=0",
            "",
            "",
            400,
            "invalid-request",
        ),
        (
            "GET",
            "/api/v1/audit?limit=1001",
            "",
            "",
            400,
            "invalid-request",
        ),
        (
            "GET",
            "/api/v1/audit?from=1",
            "",
            "",
            400,
            "invalid-request",
        ),
        ("GET", "/panic", "", "", 500, "internal"),
    ] {
        let mut request = node
            .http
            .request(method.parse().unwrap(), format!("{}{path}", node.url))
            .bearer_auth(&node.admin)
            .body(body);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json",
            "{path}"
        );
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["code"], code, "{method} {path}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("/problems/{code}"));
    }
    node.stop().await;
}

fn panicking() -> &'static str {
    panic!("a route that panics")
}

#[tokio::test]
async fn health_needs_no_token_and_readiness_needs_the_store() {
    let node = Running::start("node").await;
    let get = async |path: &str| {
        let response = node
            .http
            .get(format!("{}{path}", node.url))
            .send()
            .await
            .unwrap();
        (
            response.status().as_u16(),
            response.json::<Value>().await.unwrap(),
        )
    };
    assert_eq!(get("/healthz").await, (200, json!({ "status": "ok" })));
    assert_eq!(get("/readyz").await, (200, json!({ "status": "ok" })));
    node.node.store().close().await;
    assert_eq!(get("/healthz").await.0, 200);
    assert_eq!(get("/readyz").await.0, 503);
    node.stop().await;
}

/// An open stream does not hold up a shutdown; and it is not taken for whole.
#[tokio::test]
async fn draining_breaks_streams_off_at_once() {
    let limits = HttpLimits {
        drain_timeout: Duration::from_secs(3600),
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    let payload = mosaic_types::command::WatchPayload {
        agent_id: mosaic_types::AgentId::generate(),
        after: None,
        no_follow: false,
    };
    let mut stream = pair
        .hub
        .node
        .peers()
        .watch(&pair.to_spoke(), &payload)
        .await
        .unwrap();
    assert!(stream.next().await.unwrap().unwrap().is_empty());
    let Pair { hub, spoke } = pair;
    // Were the stream not broken off, it would go on for the hour that requests under way are given.
    let (_, end) = tokio::join!(spoke.stop(), soon(stream.next()));
    assert!(end.as_ref().is_some_and(Result::is_err), "{end:?}");
    hub.stop().await;
}

/// Promise 1: sockets that somebody holds open, on this machine even, do not keep an operator or a peer out; and
/// one who was let in is not closed for those who come after.
#[tokio::test]
async fn idle_sockets_make_room_for_those_who_may_kill() {
    let limits = HttpLimits {
        header_timeout: Duration::from_secs(3600),
        max_connections: 12,
        reserved_local_connections: 2,
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    let address = pair.spoke.url.strip_prefix("http://").unwrap().to_owned();
    let idle = async |count: usize| {
        let sockets = (0..count).map(|_| TcpStream::connect(address.clone()));
        futures_util::future::try_join_all(sockets).await.unwrap()
    };
    let mut held = idle(20).await;
    let closed = soon(held[0].read(&mut [0])).await;
    assert!(matches!(closed, Ok(0) | Err(_)), "the oldest is closed");
    let kill = pair.seal(CommandType::AgentKill, &agent());
    let answer = soon(pair.send(&kill)).await;
    assert_eq!(pair.data::<Value>(&kill, &answer)["count"], 1);
    assert_eq!(soon(pair.spoke.api("GET", "/tokens", None)).await.0, 200);

    let payload = mosaic_types::command::WatchPayload {
        agent_id: mosaic_types::AgentId::generate(),
        after: None,
        no_follow: false,
    };
    let peers = pair.hub.node.peers();
    let mut stream = peers.watch(&pair.to_spoke(), &payload).await.unwrap();
    assert!(stream.next().await.unwrap().unwrap().is_empty());
    let _more = idle(20).await;
    pair.spoke.handler.events.send_replace(Vec::new());
    assert!(soon(stream.next()).await.unwrap().unwrap().is_empty());
    pair.stop().await;
}

/// Promise 1: an old command, or one to another node, may come from whoever has got hold of it: it gets its signed
/// refusal, and no place that a newcomer's kill could need. One that is refused for anything later does.
#[tokio::test]
async fn a30_only_a_fresh_command_to_this_node_gives_standing() {
    let limits = HttpLimits {
        header_timeout: Duration::from_secs(3600),
        max_connections: 24,
        reserved_local_connections: 0,
        ..HttpLimits::default()
    };
    let mut grants = Grants::full(repositories());
    grants
        .commands
        .retain(|command| *command != CommandType::AgentRenew);
    let pair = Pair::connected_with(grants, limits).await;
    let seal = |to: &Running, command_type, payload: &Value, at| {
        CommandBuilder::new(to.node.instance_id(), command_type)
            .ttl_secs(60)
            .seal(pair.hub.node.identity(), payload, at)
            .unwrap()
    };
    let (now, kill) = (Timestamp::now(), CommandType::AgentKill);
    let before = Timestamp::from_unix_millis(now.unix_millis() - 600_000);
    let later = now.saturating_add(Duration::from_secs(600));
    let renew = json!({ "agentIds": [mosaic_types::AgentId::generate()], "leaseSecs": 5 });
    let (spoke, hub) = (&pair.spoke, &pair.hub);
    let mut sent = Vec::new();
    for (command, code) in [
        (seal(spoke, kill, &agent(), before), ErrorCode::Expired),
        (seal(spoke, kill, &agent(), later), ErrorCode::NotYetValid),
        (seal(hub, kill, &agent(), now), ErrorCode::WrongRecipient),
        (
            seal(spoke, CommandType::AgentRenew, &renew, now),
            ErrorCode::NotGranted,
        ),
    ] {
        let mut stream = TcpStream::connect(spoke.url.strip_prefix("http://").unwrap())
            .await
            .unwrap();
        let refusal = pair.refusal(&command, &post_on(&mut stream, &command.bytes).await);
        assert_eq!(refusal.code, code);
        sent.push((stream, code));
    }
    assert_eq!(spoke.handler.heard.load(Ordering::SeqCst), 1);
    let (mut of_peer, _) = sent.pop().unwrap();
    let address = spoke.url.strip_prefix("http://").unwrap();
    let idle = (0..30).map(|_| TcpStream::connect(address));
    let _idle = futures_util::future::try_join_all(idle).await.unwrap();
    for (mut stream, code) in sent {
        let closed = soon(stream.read(&mut [0])).await;
        assert!(matches!(closed, Ok(0) | Err(_)), "{code}");
    }
    let fresh = pair.seal(kill, &agent());
    let answer = post_on(&mut of_peer, &fresh.bytes).await;
    assert_eq!(pair.data::<Value>(&fresh, &answer)["count"], 1);
    pair.stop().await;
}

/// Posts a command on a connection that stays open.
async fn post_on(stream: &mut TcpStream, bytes: &[u8]) -> Answer {
    let length = bytes.len();
    let head = format!("POST {COMMANDS} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let (mut answer, end) = (Vec::new(), b"\r\n\r\n");
    let body = loop {
        let found = answer.windows(end.len()).position(|window| window == end);
        if let Some(at) = found {
            break at + end.len();
        }
        assert_ne!(soon(stream.read_buf(&mut answer)).await.unwrap(), 0);
    };
    let head = String::from_utf8(answer[..body].to_vec()).unwrap();
    let head = head.to_ascii_lowercase();
    let header = |name: &str| head.split_once(name).unwrap().1.split_whitespace().next();
    let length: usize = header("content-length:").unwrap().parse().unwrap();
    while answer.len() < body + length {
        assert_ne!(soon(stream.read_buf(&mut answer)).await.unwrap(), 0);
    }
    Answer {
        status: header("http/1.1").unwrap().parse().unwrap(),
        headers: Vec::new(),
        body: answer[body..].to_vec(),
    }
}

/// Promise 1: whoever has taken every connection there is, a peer or an operator, keeps nobody's kill out.
#[tokio::test]
async fn a30_one_on_every_connection_keeps_no_kill_out() {
    let limits = HttpLimits {
        header_timeout: Duration::from_secs(3600),
        max_connections: 8,
        reserved_local_connections: 0,
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    let other = Running::start("other").await;
    let invite = pair.spoke.invite(Grants::full(repositories())).await;
    assert_eq!(other.connect(&invite.token).await.0, 201);
    let spoke = other.node.connections().list().remove(0);
    let address = pair.spoke.url.strip_prefix("http://").unwrap().to_owned();
    let of_peer = || {
        let ping = pair.seal(CommandType::InstancePing, &json!({})).bytes;
        let head = format!(
            "POST {COMMANDS} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            ping.len()
        );
        [head.as_bytes(), &ping].concat()
    };
    let of_operator = || {
        let token = &pair.spoke.admin;
        let head = "GET /api/v1/tokens HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer";
        format!("{head} {token}\r\n\r\n").into_bytes()
    };
    for request in [&of_peer as &dyn Fn() -> Vec<u8>, &of_operator] {
        let mut held = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(&request()).await.unwrap();
            let mut answer = Vec::new();
            while !String::from_utf8_lossy(&answer).contains("HTTP/1.1 200") {
                assert_ne!(soon(stream.read_buf(&mut answer)).await.unwrap(), 0);
            }
            held.push(stream);
        }
        let call = mosaic_node::CommandCall {
            message_id: None,
            command_type: CommandType::AgentKill,
            payload: &agent(),
            timeout: Duration::from_secs(20),
            issued_at: None,
        };
        let answer = other.node.peers().command::<Value, _>(&spoke, call).await;
        assert_eq!(answer.unwrap().data["command"], "agent.kill");
        let newcomer = reqwest::Client::builder().no_proxy().build().unwrap();
        let tokens = newcomer
            .get(format!("{}/api/v1/tokens", pair.spoke.url))
            .bearer_auth(&pair.spoke.admin);
        assert_eq!(soon(tokens.send()).await.unwrap().status(), 200);
    }
    pair.stop().await;
    other.stop().await;
}
