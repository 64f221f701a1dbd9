use std::os::unix::fs::PermissionsExt;

use mosaic_node::Node;
use mosaic_types::connection::NodeRole;
use serde_json::json;

use crate::harness::{Running, config, soon};

#[tokio::test]
async fn roles_are_enforced_on_every_route() {
    let node = Running::start("node").await;
    let mut tokens = Vec::new();
    for role in ["viewer", "operator", "admin"] {
        let body = json!({ "name": format!("a-{role}"), "role": role });
        let (status, created) = node.api("POST", "/tokens", Some(body)).await;
        assert_eq!(status, 201, "{created}");
        tokens.push(created["token"].as_str().unwrap().to_owned());
    }
    let id = mosaic_types::ConnectionId::generate();
    let connection = |verb: &str| format!("/federation/connections/{id}{verb}");
    let accept = json!({ "grants": mosaic_types::grant::Grants::none() });
    let routes = [
        ("GET", "/federation/connections".to_owned(), None, 0),
        ("GET", connection(""), None, 0),
        ("GET", "/audit".to_owned(), None, 0),
        ("GET", "/audit/verify".to_owned(), None, 0),
        ("GET", "/audit/witnessed".to_owned(), None, 0),
        ("GET", "/tokens".to_owned(), None, 2),
        (
            "POST",
            "/tokens".to_owned(),
            Some(json!({ "name": "-", "role": "viewer" })),
            2,
        ),
        ("DELETE", "/tokens/none".to_owned(), None, 2),
        (
            "POST",
            "/federation/connections".to_owned(),
            Some(json!({})),
            2,
        ),
        (
            "POST",
            "/federation/invites".to_owned(),
            Some(accept.clone()),
            2,
        ),
        ("POST", connection("/accept"), Some(accept), 2),
        ("POST", connection("/reject"), None, 2),
        ("POST", connection("/suspend"), None, 2),
        ("POST", connection("/resume"), None, 2),
        ("POST", connection("/disconnect"), None, 2),
    ];
    for (method, path, body, least) in routes {
        for (index, token) in tokens.iter().enumerate() {
            let (status, answer) = node.api_as(token, method, &path, body.clone()).await;
            assert_eq!(
                status == 403,
                index < least,
                "{method} {path} as {index}: {answer}"
            );
            assert_ne!(status, 401);
        }
        for wrong in ["", "mos_wrong", &tokens[0][..20]] {
            let (status, answer) = node.api_as(wrong, method, &path, body.clone()).await;
            assert_eq!(
                (status, &answer["code"]),
                (401, &json!("unauthorized")),
                "{path}"
            );
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn a_deleted_token_is_refused_and_the_last_admin_stays() {
    let node = Running::start("node").await;
    let (status, problem) = node.api("DELETE", "/tokens/admin", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("conflict")));
    let body = json!({ "name": "second", "role": "admin" });
    let created = node.api("POST", "/tokens", Some(body.clone())).await.1;
    assert_eq!(node.api("POST", "/tokens", Some(body)).await.0, 409);
    let second = created["token"].as_str().unwrap();
    assert_eq!(
        node.api_as(second, "DELETE", "/tokens/admin", None).await.0,
        204
    );
    assert_eq!(node.api("GET", "/tokens", None).await.0, 401);
    assert_eq!(node.api_as(second, "GET", "/tokens", None).await.0, 200);
    node.stop().await;
}

/// Tokens work with the store gone: whoever may kill can.
#[tokio::test]
async fn operators_are_known_with_the_store_gone() {
    let node = Running::start("node").await;
    node.node.store().close().await;
    assert_eq!(
        node.api("GET", "/federation/connections", None).await.0,
        200
    );
    assert_eq!(
        node.api_as("mos_wrong", "GET", "/federation/connections", None)
            .await
            .0,
        401
    );
    node.stop().await;
}

#[tokio::test]
async fn no_secret_is_stored_in_the_clear_and_the_first_token_is_its_owners() {
    let node = Running::start("node").await;
    let body = json!({ "name": "second", "role": "viewer" });
    let created = node.api("POST", "/tokens", Some(body)).await.1;
    let second = created["token"].as_str().unwrap().to_owned();
    let invite = node.invite(mosaic_types::grant::Grants::none()).await.token;
    let admin = node.admin.clone();
    let data_dir = node.node.data_dir().to_owned();
    let file = data_dir.join("admin.token");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let folder = std::fs::metadata(&data_dir).unwrap().permissions().mode();
    assert_eq!(folder & 0o7777, 0o700);
    let dir = node.stop().await;

    let secret =
        mosaic_federation::token::PeeringToken::parse(&invite, mosaic_types::Timestamp::now())
            .unwrap()
            .secret;
    let secret = serde_json::to_string(&secret).unwrap();
    let mut searched = 0;
    for entry in std::fs::read_dir(&data_dir).unwrap() {
        let path = entry.unwrap().path();
        if path == file || !path.is_file() {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for text in [
            &admin,
            &second,
            &invite,
            &secret.trim_matches('"').to_owned(),
        ] {
            let found = bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes());
            assert!(!found, "{}", path.display());
        }
        searched += 1;
    }
    assert!(searched >= 2, "the identity and the store");

    // Opened again, the same tokens are good, and none is made.
    let again = Node::open(config(&dir, "node", NodeRole::Orchestrator))
        .await
        .unwrap();
    assert_eq!(again.operators().list().len(), 2);
    assert_eq!(
        again.operators().authenticate(&admin).unwrap().name,
        "admin"
    );
    assert!(again.operators().authenticate(&second).is_some());
    again.close().await;
}

/// A start that was cut off between the file and the store goes on with the same token.
#[tokio::test]
async fn a_first_token_that_was_written_but_not_stored_is_taken_up() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = config(&dir, "node", NodeRole::Hub);
    std::fs::create_dir(&config.data_dir).unwrap();
    let token = mosaic_federation::operator_token::generate().unwrap();
    std::fs::write(config.data_dir.join("admin.token"), token.as_bytes()).unwrap();
    let node = Node::open(config).await.unwrap();
    assert!(node.operators().authenticate(&token).is_some());
    node.close().await;
}

/// One that was cut off while it wrote: an empty file is no token, and no reason not to start.
#[tokio::test]
async fn a_first_token_that_was_not_written_is_made_again() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = config(&dir, "node", NodeRole::Hub);
    std::fs::create_dir(&config.data_dir).unwrap();
    let file = config.data_dir.join("admin.token");
    for left in ["admin.token", "admin.new"] {
        std::fs::write(config.data_dir.join(left), "").unwrap();
    }
    let node = Node::open(config).await.unwrap();
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(node.operators().authenticate(token.trim()).is_some());
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(!file.with_extension("new").exists());
    node.close().await;
}

/// A token that has leaked can be revoked whatever else is broken, and the caller is told that it will not last.
#[tokio::test]
async fn a_token_that_cannot_be_deleted_from_the_store_is_refused_all_the_same() {
    let node = Running::start("node").await;
    let body = json!({ "name": "leaked", "role": "operator" });
    let created = node.api("POST", "/tokens", Some(body)).await.1;
    let leaked = created["token"].as_str().unwrap();
    node.node.store().close().await;
    let (status, problem) = node.api("DELETE", "/tokens/leaked", None).await;
    assert_eq!(status, 503, "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("restart"),
        "{problem}"
    );
    assert_eq!(
        node.api_as(leaked, "GET", "/federation/connections", None)
            .await
            .0,
        401
    );
    // It can be asked for again: it is not said to be gone while it is not.
    assert_eq!(node.api("DELETE", "/tokens/leaked", None).await.0, 503);
    node.stop().await;
}

/// F15: what was opened with a token ends with it, and what was opened with another goes on.
#[tokio::test]
async fn a_deleted_tokens_event_stream_ends() {
    use axum::{Router, extract::FromRef, routing::get};
    use futures_util::{StreamExt, stream};
    use mosaic_node::{EventsRequest, HttpLimits};
    #[derive(Clone)]
    struct Shared(std::sync::Arc<std::sync::OnceLock<Node>>);
    impl FromRef<Shared> for Node {
        fn from_ref(shared: &Shared) -> Self {
            shared.0.get().unwrap().clone()
        }
    }
    let shared = Shared(std::sync::Arc::default());
    let silent = get(async |request: EventsRequest| request.answer(stream::pending()));
    let extra = Router::new().route("/events", silent);
    let extra = extra.with_state(shared.clone());
    let node = Running::start_with("node", HttpLimits::default(), extra).await;
    assert!(shared.0.set(node.node.clone()).is_ok());
    let body = json!({ "name": "leaked", "role": "viewer" });
    let created = node.api("POST", "/tokens", Some(body)).await.1;
    let open = async |token: &str, query: &str| {
        let request = node.http.get(format!("{}/events{query}", node.url));
        request.bearer_auth(token).send().await.unwrap()
    };
    assert_eq!(open("mos_wrong", "").await.status(), 401);
    let leaked = created["token"].as_str().unwrap();
    let story = open(leaked, "?follow=false").await;
    let leaked = open(leaked, "").await;
    let admins = open(&node.admin, "").await;
    assert_eq!(
        (leaked.status().as_u16(), admins.status().as_u16()),
        (200, 200)
    );
    assert_eq!(node.api("DELETE", "/tokens/leaked", None).await.0, 204);
    let mut lines = leaked.bytes_stream();
    assert!(soon(lines.next()).await.is_none());
    // One that does not follow says that it is not whole.
    let story = soon(story.text()).await.unwrap();
    assert!(story.starts_with("event: error\n"), "{story}");
    assert!(story.contains("unauthorized"), "{story}");
    let mut lines = admins.bytes_stream();
    assert!(futures_util::poll!(lines.next()).is_pending());
    drop(lines);
    node.stop().await;
}
