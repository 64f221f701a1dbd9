//! Bad input and small roles: each refused with its status, code and field, before a spoke hears of it.

use mosaic_types::{AgentId, ConnectionId, MessageId, api::Role};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, World};

#[tokio::test]
async fn bad_spawns_name_their_field() {
    let world = World::start(1).await;
    let order = world.order(0);
    let with = |pointer: &str, value: Value| {
        let mut body = order.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let and = |name: &str, value: Value| {
        let mut body = order.clone();
        body[name] = value;
        body
    };
    let without = |name: &str| {
        let mut body = order.clone();
        body.as_object_mut().unwrap().remove(name);
        body
    };
    let invalid = (400, "invalid-request");
    for (body, (status, code), field) in [
        (without("connectionId"), invalid, "connectionId"),
        (without("taskId"), invalid, "taskId"),
        (without("context"), invalid, "context"),
        (with("/connectionId", json!("x")), invalid, "connectionId"),
        (
            with("/connectionId", json!(ConnectionId::generate())),
            (404, "unknown-connection"),
            "connectionId",
        ),
        (with("/taskId", json!("../x")), invalid, "taskId"),
        (with("/agentType", json!("boss")), invalid, "agentType"),
        (with("/runtime", json!("--x")), invalid, "runtime"),
        (
            with("/context/workItems", json!("x")),
            invalid,
            "context.workItems",
        ),
        (
            and("agentId", json!("9b2e4a54-6a58-4f6f-9d30-0b1d1b2f9f3c")),
            invalid,
            "agentId",
        ),
        (and("agentID", json!("x")), invalid, "agentID"),
        (
            and("options", json!({ "memoryMb": -1 })),
            invalid,
            "options.memoryMb",
        ),
        (
            and("options", json!({ "root": true })),
            invalid,
            "options.root",
        ),
    ] {
        let answer = world.post("/federation/agents/spawn", body.clone()).await;
        assert_eq!(answer.body["field"], field, "{body} → {}", answer.body);
        answer.refused(status, code, Some(field));
    }
    assert_eq!(world.spokes[0].executed("agent.spawn"), 0);
    world.stop().await;
}

/// What no spoke takes is not sent, nor does it fill the store and the audit trail.
#[tokio::test]
async fn f22_a_repository_longer_than_any_is_neither_kept_nor_audited() {
    let world = World::start(1).await;
    let agent = AgentId::generate();
    let mut order = world.order(0);
    order["agentId"] = json!(agent);
    order["context"]["repository"] = json!("x".repeat(900_000));
    let answer = world.post("/federation/agents/spawn", order).await;
    answer.refused(400, "invalid-request", Some("context.repository"));
    let status = format!("/federation/agents/{agent}/status");
    let answer = world.get(&status).await;
    answer.refused(404, "unknown-agent", Some("agentId"));
    let event = loop {
        let audit = world.get("/audit?limit=1000").await.ok();
        let entries = audit["entries"].as_array().unwrap().iter();
        let spawn = entries
            .map(|entry| entry["eventJson"].as_str().unwrap())
            .map(|event| serde_json::from_str::<Value>(event).unwrap())
            .find(|event| event["action"] == "agent.spawn");
        if let Some(event) = spawn {
            break event;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(event["outcome"], "invalid-request");
    assert_eq!(
        event["detail"],
        json!({"connectionId": world.connections[0], "sent": false})
    );
    world.stop().await;
}

#[tokio::test]
async fn bad_requests_are_problems() {
    let world = World::start(1).await;
    let agent = AgentId::generate();
    for (method, path, body, status, code, field) in [
        (
            Method::GET,
            "/federation/agents?limit=0".to_owned(),
            None,
            400,
            "invalid-request",
            Some("limit"),
        ),
        (
            Method::GET,
            "/federation/agents?limit=501".to_owned(),
            None,
            400,
            "invalid-request",
            Some("limit"),
        ),
        (
            Method::GET,
            "/federation/agents?color=red".to_owned(),
            None,
            400,
            "invalid-request",
            Some("query"),
        ),
        (
            Method::GET,
            "/federation/agents?before=x".to_owned(),
            None,
            400,
            "invalid-request",
            Some("query"),
        ),
        (
            Method::GET,
            format!(
                "/federation/agents?connectionId={}",
                ConnectionId::generate()
            ),
            None,
            404,
            "unknown-connection",
            Some("connectionId"),
        ),
        (
            Method::POST,
            "/federation/agents/kill-all".to_owned(),
            Some(json!({"label": {"key": "team", "value": "x".repeat(900_000)}})),
            400,
            "invalid-request",
            Some("label"),
        ),
        (
            Method::GET,
            "/federation/agents/x/status".to_owned(),
            None,
            400,
            "invalid-request",
            Some("agentId"),
        ),
        (
            Method::GET,
            format!("/federation/agents/{agent}/status"),
            None,
            404,
            "unknown-agent",
            Some("agentId"),
        ),
        (
            Method::GET,
            format!("/federation/agents/{agent}/result"),
            None,
            404,
            "unknown-agent",
            Some("agentId"),
        ),
        (
            Method::GET,
            format!("/federation/agents/{agent}/result?format=zip"),
            None,
            400,
            "invalid-request",
            Some("query"),
        ),
        (
            Method::POST,
            format!("/federation/agents/{agent}/kill"),
            Some(json!({ "force": true })),
            400,
            "invalid-request",
            Some("force"),
        ),
        (
            Method::POST,
            "/federation/agents/kill-all".to_owned(),
            Some(json!({ "taskId": "/" })),
            400,
            "invalid-request",
            Some("taskId"),
        ),
        (
            Method::POST,
            "/federation/agents/kill-all".to_owned(),
            Some(json!({ "connectionId": ConnectionId::generate() })),
            404,
            "unknown-connection",
            Some("connectionId"),
        ),
        (
            Method::GET,
            format!("/federation/commands/{}", MessageId::generate()),
            None,
            404,
            "unknown-command",
            None,
        ),
        (
            Method::GET,
            format!("/federation/connections/{}/ping", ConnectionId::generate()),
            None,
            404,
            "unknown-connection",
            Some("connectionId"),
        ),
        (
            Method::GET,
            "/nowhere".to_owned(),
            None,
            404,
            "not-found",
            None,
        ),
        (
            Method::DELETE,
            "/federation/agents".to_owned(),
            None,
            405,
            "method-not-allowed",
            None,
        ),
    ] {
        let response = world
            .request(Some(Role::Admin), method.clone(), &path, body)
            .await;
        let media_type = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        let answer = Answer::of(response).await;
        assert_eq!(answer.body["code"], code, "{method} {path}");
        assert_eq!(media_type, "application/problem+json", "{method} {path}");
        answer.refused(status, code, field);
    }
    let huge = json!({ "reason": "x".repeat(2 * 1024 * 1024) });
    let answer = world.post("/federation/agents/kill-all", huge).await;
    answer.refused(413, "body-too-large", None);
    let text = world
        .raw(Method::POST, "/federation/agents/spawn")
        .body("{}")
        .send()
        .await
        .unwrap();
    Answer::of(text)
        .await
        .refused(415, "unsupported-media-type", None);
    world.stop().await;
}

#[tokio::test]
async fn roles_are_kept_to() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let kill = format!("/federation/agents/{agent}/kill");
    let suspend = format!("/federation/connections/{}/suspend", world.connections[0]);
    let status = format!("/federation/agents/{agent}/status");
    let events = format!("/federation/agents/{agent}/events?follow=false");
    let result = format!("/federation/agents/{agent}/result");
    let ping = format!("/federation/connections/{}/ping", world.connections[0]);
    let spawn = "/federation/agents/spawn";
    for (method, path, body, least) in [
        (Method::GET, "/instance", None, Role::Viewer),
        (Method::GET, "/federation/agents", None, Role::Viewer),
        (Method::GET, &*status, None, Role::Viewer),
        (Method::GET, &*events, None, Role::Viewer),
        (Method::GET, &*result, None, Role::Viewer),
        (Method::GET, &*ping, None, Role::Viewer),
        (Method::GET, "/federation/connections", None, Role::Viewer),
        (Method::POST, spawn, Some(world.order(0)), Role::Operator),
        (Method::POST, &*kill, Some(json!({})), Role::Operator),
        (
            Method::POST,
            "/federation/agents/kill-all",
            Some(json!({})),
            Role::Operator,
        ),
        (Method::GET, "/tokens", None, Role::Admin),
        (Method::POST, &*suspend, Some(json!({})), Role::Admin),
    ] {
        let nobody = world
            .request(None, method.clone(), path, body.clone())
            .await;
        assert_eq!(nobody.status(), 401, "{path}");
        for role in [Role::Viewer, Role::Operator, Role::Admin] {
            let response = world
                .request(Some(role), method.clone(), path, body.clone())
                .await;
            let answer = Answer::of(response).await;
            if role < least {
                answer.refused(403, "forbidden", None);
            } else {
                assert!(
                    answer.status.is_success(),
                    "{role:?} {path}: {}",
                    answer.body
                );
            }
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn it_says_that_it_is_well() {
    let world = World::start(0).await;
    for path in ["/healthz", "/readyz"] {
        let response = reqwest::get(format!("{}{path}", world.hub.url()))
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    world.stop().await;
}
