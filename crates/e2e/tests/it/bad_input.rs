//! What a hub's API refuses: by status, stable code and field, and with nothing left of it.

use std::collections::BTreeSet;

use mosaic_e2e::{
    api::{Node, read},
    system::{FOREVER, World},
};
use mosaic_types::{AgentId, ConnectionId, MessageId};
use serde_json::{Value, json};

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

/// Everything below a spoke's data folder that an agent could leave.
fn traces(spoke: &Node) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for part in ["agents", "mirrors"] {
        for entry in std::fs::read_dir(spoke.data_dir.join(part))
            .unwrap()
            .flatten()
        {
            found.insert(format!("{part}/{}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

/// A hub and a spoke that grants little.
async fn small_grant(world: &mut World, caps: &[&str]) -> (Node, Node, String) {
    let hub = world.hub("hub").await;
    let (spoke, connection) = spoke_with_small_grant(world, &hub, "spoke", caps).await;
    (hub, spoke, connection)
}

async fn spoke_with_small_grant(
    world: &mut World,
    hub: &Node,
    name: &str,
    caps: &[&str],
) -> (Node, String) {
    let spoke = world.spoke(name, "").await;
    let repositories = format!("file://{}/**", world.marker());
    let invite = [
        "--repository",
        &repositories,
        "--runtime",
        "shell",
        "--sandbox",
        "process",
        "--max-agents",
        "1",
        "--max-timeout",
        "600",
        "--network",
        "none",
    ];
    let connection = world.peer(hub, &spoke, &[&invite, caps].concat()).await;
    (spoke, connection)
}

#[tokio::test]
async fn spawns_are_refused_by_code_and_field_and_leave_nothing() {
    let mut world = World::new();
    let (hub, spoke, connection) = small_grant(&mut world, &[]).await;
    // What not every machine can limit is a cap of a spoke of its own.
    let caps = [
        "--max-memory-mb",
        "64",
        "--max-cpus",
        "0.5",
        "--max-budget-usd",
        "1",
    ];
    let (capped_spoke, capped) = spoke_with_small_grant(&mut world, &hub, "capped", &caps).await;
    let url =
        |path: &str| json!({"context": {"repository": format!("file://{}{path}", world.marker())}});
    let branch = |name: &str| json!({"context": {"branch": name}});
    let option = |name: &str, value: Value| json!({"options": {name: value}});
    let capped =
        |name: &str, value: Value| json!({"connectionId": capped, "options": {name: value}});
    #[rustfmt::skip]
    let cases = [
        (url("/nowhere"), 400, "unknown-repository", "context.repository"),
        (json!({"context": {"repository": "file:///etc/other"}}), 403, "not-granted", "context.repository"),
        (json!({"context": {"repository": "https://example.invalid/x"}}), 403, "not-granted", "context.repository"),
        (json!({"context": {"repository": "ext::sh -c id"}}), 400, "invalid-request", "context.repository"),
        (json!({"context": {"repository": "--upload-pack=id"}}), 400, "invalid-request", "context.repository"),
        (json!({"context": {"repository": format!("file://{}/../../etc", world.marker())}}), 400, "invalid-request", "context.repository"),
        (json!({"context": {"repository": ""}}), 400, "invalid-request", "context.repository"),
        (branch("no-such"), 400, "unknown-branch", "context.branch"),
        (branch("../../x"), 400, "unknown-branch", "context.branch"),
        (branch("--upload-pack=x"), 400, "unknown-branch", "context.branch"),
        (branch("refs/heads/main"), 400, "unknown-branch", "context.branch"),
        (branch("main^{tree}"), 400, "unknown-branch", "context.branch"),
        (json!({"runtime": "claude"}), 403, "not-granted", "runtime"),
        (json!({"runtime": "no-such"}), 403, "not-granted", "runtime"),
        (json!({"runtime": "../sh"}), 400, "invalid-request", "runtime"),
        (option("sandbox", json!("docker")), 403, "not-granted", "options.sandbox"),
        (option("sandbox", json!("none")), 400, "invalid-request", "options.sandbox"),
        (option("timeoutSecs", json!(601)), 403, "grant-exceeded", "options.timeoutSecs"),
        (option("timeoutSecs", json!(0)), 400, "invalid-request", "options.timeoutSecs"),
        (option("timeoutSecs", json!(-1)), 400, "invalid-request", "options.timeoutSecs"),
        (option("timeoutSecs", json!("60")), 400, "invalid-request", "options.timeoutSecs"),
        (capped("memoryMb", json!(65)), 403, "grant-exceeded", "options.memoryMb"),
        (capped("cpus", json!(0.6)), 403, "grant-exceeded", "options.cpus"),
        (capped("budgetUsd", json!(1.5)), 403, "grant-exceeded", "options.budgetUsd"),
        (option("network", json!("open")), 403, "grant-exceeded", "options.network"),
        (option("surprise", json!(1)), 400, "invalid-request", "options.surprise"),
        (json!({"agentId": "not-an-id"}), 400, "invalid-request", "agentId"),
        (json!({"agentId": "550e8400-e29b-41d4-a716-446655440000"}), 400, "invalid-request", "agentId"),
        (json!({"agentType": "boss"}), 400, "invalid-request", "agentType"),
        (json!({"taskId": "a b"}), 400, "invalid-request", "taskId"),
        (json!({"connectionId": ConnectionId::generate()}), 404, "unknown-connection", "connectionId"),
        (json!({"connectionId": "x"}), 400, "invalid-request", "connectionId"),
        (json!({"surprise": 1}), 400, "invalid-request", "surprise"),
        (json!({"context": {"surprise": 1}}), 400, "invalid-request", "context.surprise"),
        (json!({"context": {"workItems": "one"}}), 400, "invalid-request", "context.workItems"),
        (json!({"context": {"instructions": null}}), 400, "invalid-request", "context.instructions"),
        (json!({"context": {"instructions": "nul\u{0}byte"}}), 400, "invalid-request", "context.instructions"),
    ];
    let before = traces(&spoke);
    let mut wrong = Vec::new();
    for (change, status, code, field) in cases {
        let agent = AgentId::generate();
        let mut body = world.spawn_body(Some(&connection), agent, "true");
        body["options"] = json!({"network": "none", "timeoutSecs": 60});
        merge(&mut body, &change);
        let answer = hub.spawn(&body).await;
        let got = (
            answer.status,
            answer.body["code"].as_str().unwrap_or_default(),
            answer.body["field"].as_str().unwrap_or_default(),
        );
        if got != (status, code, field) {
            wrong.push(format!(
                "{change}: expected {:?}, got {got:?}: {}",
                (status, code, field),
                answer.body
            ));
            continue;
        }
        answer.problem(status, code);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing is left at the spoke: neither on record nor on disk.
    assert_eq!(spoke.agents().await, Vec::<Value>::new());
    assert_eq!(capped_spoke.agents().await, Vec::<Value>::new());
    let mirrors: BTreeSet<_> = traces(&spoke).difference(&before).cloned().collect();
    assert!(
        mirrors.iter().all(|trace| trace.starts_with("mirrors/")),
        "{mirrors:?}"
    );
    assert!(
        mirrors.len()
            <= 1 + mirrors
                .iter()
                .filter(|name| name.ends_with(".lock"))
                .count(),
        "of repositories that are there only: {mirrors:?}"
    );
    world.stop().await;
}

#[tokio::test]
async fn an_id_that_is_taken_and_a_quota_that_is_used_up() {
    let mut world = World::new();
    let (hub, spoke, connection) = small_grant(&mut world, &[]).await;
    let agent = AgentId::generate();
    let body = world.spawn_body(Some(&connection), agent, FOREVER);
    assert_eq!(hub.spawn(&body).await.ok()["existing"], false);
    hub.wrote(agent, "at-work").await;
    // The same again is the same agent.
    assert_eq!(hub.spawn(&body).await.ok()["existing"], true);
    let other = world.spawn_body(Some(&connection), agent, "true");
    let field = hub.spawn(&other).await.problem(409, "conflict");
    assert_eq!(field.as_deref(), Some("agentId"));
    // What the refusal was about goes on.
    assert_eq!(hub.status(agent).await["state"], "running");

    let more = world.spawn_body(Some(&connection), AgentId::generate(), "true");
    hub.spawn(&more).await.problem(429, "quota-exceeded");
    assert_eq!(spoke.agents().await.len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn requests_that_are_none_are_refused() {
    let mut world = World::new();
    let (hub, spoke, connection) = small_grant(&mut world, &[]).await;
    let spawn = "/api/v1/federation/agents/spawn";
    let post = |bytes: Vec<u8>| {
        hub.request("POST", spawn)
            .header("content-type", "application/json")
            .body(bytes)
    };
    let good = world.spawn_body(Some(&connection), AgentId::generate(), "true");

    // F19: over the limit, whether it is announced or not.
    let mut huge = good.clone();
    huge["context"]["instructions"] = json!("x".repeat(1 << 20));
    let huge = huge.to_string().into_bytes();
    read(post(huge.clone()))
        .await
        .unwrap()
        .problem(413, "body-too-large");
    let parts = huge
        .chunks(64 * 1024)
        .map(|part| Ok::<_, std::io::Error>(part.to_vec()))
        .collect::<Vec<_>>();
    let streamed = hub
        .request("POST", spawn)
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(futures_util::stream::iter(
            parts,
        )));
    read(streamed).await.unwrap().problem(413, "body-too-large");

    for bytes in ["", "{", "[]", "null", "{} {}", "\u{feff}{}"] {
        read(post(bytes.into()))
            .await
            .unwrap()
            .problem(400, "invalid-request");
    }
    let duplicate =
        good.to_string()
            .replacen('{', &format!("{{\"connectionId\":\"{connection}\","), 1);
    read(post(duplicate.into()))
        .await
        .unwrap()
        .problem(400, "invalid-request");
    let missing = read(post(b"{}".to_vec()))
        .await
        .unwrap()
        .problem(400, "invalid-request");
    assert_eq!(missing.as_deref(), Some("connectionId"));
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
    ] {
        let request = hub
            .request("POST", spawn)
            .header("content-type", media_type)
            .body(good.to_string());
        read(request)
            .await
            .unwrap()
            .problem(415, "unsupported-media-type");
    }
    let zipped = post(good.to_string().into()).header("content-encoding", "gzip");
    read(zipped)
        .await
        .unwrap()
        .problem(415, "unsupported-media-type");

    // Whoever is not known learns nothing else, not even whether a route takes this body.
    for token in [
        "",
        "mos_wrong",
        &hub.token[..hub.token.len() - 1],
        &spoke.token,
    ] {
        let stranger = hub.with_token(token);
        stranger
            .spawn(&json!({}))
            .await
            .problem(401, "unauthorized");
        stranger
            .call("GET", "/api/v1/federation/agents", None)
            .await
            .problem(401, "unauthorized");
    }
    let basic = hub
        .request("GET", "/api/v1/federation/agents")
        .build()
        .unwrap();
    let mut basic = reqwest::Request::new(basic.method().clone(), basic.url().clone());
    basic.headers_mut().insert(
        "authorization",
        format!("Basic {}", hub.token).parse().unwrap(),
    );
    let answer = mosaic_e2e::api::http_client().execute(basic).await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);

    // Roles.
    let viewer = hub.make_token("looker", "viewer").await;
    let operator = hub.make_token("worker", "operator").await;
    let agent = AgentId::generate();
    assert_eq!(viewer.agents().await.len(), 0);
    let body = Some(good.clone());
    #[rustfmt::skip]
    let too_small = [
        (&viewer, "POST", spawn.to_owned(), body.clone()),
        (&viewer, "POST", format!("/api/v1/federation/agents/{agent}/kill"), None),
        (&viewer, "POST", "/api/v1/federation/agents/kill-all".to_owned(), None),
        (&viewer, "POST", "/api/v1/federation/invites".to_owned(), Some(json!({"grants": {"commands": [], "repositories": [], "runtimes": [], "sandboxes": [], "caps": {}}}))),
        (&operator, "POST", "/api/v1/federation/invites".to_owned(), Some(json!({"grants": {"commands": [], "repositories": [], "runtimes": [], "sandboxes": [], "caps": {}}}))),
        (&operator, "POST", format!("/api/v1/federation/connections/{connection}/suspend"), None),
        (&operator, "POST", format!("/api/v1/federation/connections/{connection}/disconnect"), None),
        (&operator, "POST", "/api/v1/tokens".to_owned(), Some(json!({"name": "more", "role": "admin"}))),
        (&operator, "GET", "/api/v1/tokens".to_owned(), None),
        (&viewer, "DELETE", "/api/v1/tokens/worker".to_owned(), None),
    ];
    for (node, method, path, body) in too_small {
        let answer = node.call(method, &path, body).await;
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.body);
        answer.problem(403, "forbidden");
    }

    // What is not there.
    for tail in ["status", "result", "events"] {
        let path = format!("/api/v1/federation/agents/{agent}/{tail}");
        assert_eq!(
            hub.call("GET", &path, None)
                .await
                .problem(404, "unknown-agent")
                .as_deref(),
            Some("agentId"),
            "{tail}"
        );
        let path = format!("/api/v1/federation/agents/no-id/{tail}");
        assert_eq!(
            hub.call("GET", &path, None)
                .await
                .problem(400, "invalid-request")
                .as_deref(),
            Some("agentId"),
            "{tail}"
        );
    }
    assert_eq!(
        operator
            .kill(agent)
            .await
            .problem(404, "unknown-agent")
            .as_deref(),
        Some("agentId")
    );
    hub.call(
        "GET",
        &format!("/api/v1/federation/commands/{}", MessageId::generate()),
        None,
    )
    .await
    .problem(404, "unknown-command");
    for change in ["suspend", "resume", "disconnect", "accept"] {
        let path = format!(
            "/api/v1/federation/connections/{}/{change}",
            ConnectionId::generate()
        );
        let body = (change == "accept").then(|| json!({"grants": {"commands": [], "repositories": [], "runtimes": [], "sandboxes": [], "caps": {}}}));
        hub.call("POST", &path, body)
            .await
            .problem(404, "unknown-connection");
    }
    let stray = json!({"connectionId": ConnectionId::generate()});
    hub.call("POST", "/api/v1/federation/agents/kill-all", Some(stray))
        .await
        .problem(404, "unknown-connection");
    hub.call("GET", "/api/v1/nothing", None)
        .await
        .problem(404, "not-found");
    hub.call("DELETE", spawn, None)
        .await
        .problem(405, "method-not-allowed");
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("nonsense=1", "query"),
        ("before=x", "query"),
    ] {
        let path = format!("/api/v1/federation/agents?{query}");
        assert_eq!(
            hub.call("GET", &path, None)
                .await
                .problem(400, "invalid-request")
                .as_deref(),
            Some(field),
            "{query}"
        );
    }
    let bad_cursor = hub
        .request("GET", &format!("/api/v1/federation/agents/{agent}/events"))
        .header("last-event-id", "five");
    assert_eq!(
        read(bad_cursor)
            .await
            .unwrap()
            .problem(400, "invalid-request")
            .as_deref(),
        Some("Last-Event-ID")
    );
    for token in ["", "mosaic-token", "mp1.x.y"] {
        let answer = hub
            .call(
                "POST",
                "/api/v1/federation/connections",
                Some(json!({"token": token})),
            )
            .await;
        answer.problem(400, "invalid-token");
    }
    assert_eq!(spoke.agents().await, Vec::<Value>::new());
    world.stop().await;
}
