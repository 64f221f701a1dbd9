use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{Router, response::Redirect};
use mosaic_node::{HttpLimits, Node, NodeConfig, fallback, operator_routes, serve};
use mosaic_types::connection::NodeRole;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{Running, config};

/// F18: with private peers not allowed, no spelling of a private address is connected to.
#[tokio::test]
async fn f18_private_peers_are_refused_before_anything_is_sent() {
    let dir = tempfile::TempDir::new().unwrap();
    let node = Node::open(NodeConfig {
        allow_private_peers: false,
        ..config(&dir, "strict", NodeRole::Hub)
    })
    .await
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let router = fallback(Router::new().nest("/api/v1", operator_routes(node.clone())));
    let serving = tokio::spawn(serve(
        listener,
        router,
        HttpLimits::default(),
        shutdown.clone(),
    ));
    let token = std::fs::read_to_string(node.data_dir().join("admin.token")).unwrap();

    let victim = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = victim.local_addr().unwrap().port();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "localhost",
        "[::1]",
    ] {
        let response = http
            .post(format!("{url}/api/v1/federation/connections"))
            .bearer_auth(token.trim())
            .json(&json!({ "url": format!("https://{host}:{port}") }))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 400, "{host}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["field"], "url");
    }
    let nobody = futures_util::FutureExt::now_or_never(victim.accept());
    assert!(nobody.is_none(), "somebody connected");
    shutdown.cancel();
    serving.await.unwrap().unwrap();
    node.close().await;
}

/// F18: a redirect is an answer like any other, and not one that was signed.
#[tokio::test]
async fn f18_redirects_are_not_followed() {
    let hits = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&hits);
    let extra = Router::new().route(
        "/target",
        axum::routing::any(move || {
            seen.fetch_add(1, Ordering::SeqCst);
            async { "" }
        }),
    );
    let target = Running::start_with("target", HttpLimits::default(), extra).await;
    let to = format!("{}/target", target.url);
    let redirecting = Router::new().fallback(move || {
        let to = to.clone();
        async move { Redirect::temporary(&to) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(serve(
        listener,
        redirecting,
        HttpLimits::default(),
        shutdown.clone(),
    ));
    let (status, problem) = target
        .api(
            "POST",
            "/federation/connections",
            Some(json!({ "url": url })),
        )
        .await;
    assert_eq!(
        (status, &problem["code"]),
        (502, &json!("peer-unreachable"))
    );
    assert_eq!(hits.load(Ordering::SeqCst), 0);
    shutdown.cancel();
    serving.await.unwrap().unwrap();
    target.stop().await;
}

/// F18: what the environment says of proxies is no way to read or hold up what is sent to peers.
#[tokio::test]
async fn f18_proxies_of_the_environment_are_not_used() {
    const PROXIED: &str = "MOSAIC_TEST_PROXIED";
    if std::env::var_os(PROXIED).is_some() {
        crate::harness::Pair::connected().await.stop().await;
        return;
    }
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let name = "ssrf::f18_proxies_of_the_environment_are_not_used";
    let mut again = tokio::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", name]).env(PROXIED, "1");
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        again.env(variable, &url);
    }
    for variable in ["NO_PROXY", "no_proxy", "REQUEST_METHOD"] {
        again.env_remove(variable);
    }
    let mut again = again.stdout(std::process::Stdio::null()).spawn().unwrap();
    tokio::select! {
        status = again.wait() => assert!(status.unwrap().success()),
        used = proxy.accept() => {
            again.kill().await.unwrap();
            panic!("the proxy was used: {used:?}");
        }
    }
}
