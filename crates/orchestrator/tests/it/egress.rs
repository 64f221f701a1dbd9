//! A spoke whose agents have allow-lists: from the option to the events, and over a crash of the daemon.

use mosaic_orchestrator::sandbox::EngineKind;
use mosaic_types::{AgentId, agent::ObservedState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    rig::Spoke,
    sandbox::egress::{CLIENT, Server, rig as loopback_rig},
};

/// Whether this host keeps lists at all; says what is missing.
async fn can_keep_lists() -> bool {
    match loopback_rig() {
        Some(rig) => {
            rig.finish().await;
            true
        }
        None => false,
    }
}

fn body(spoke: &Spoke, agent_id: AgentId, script: &str, network: Option<Value>) -> Value {
    let script = format!("cat > ask.sh <<'END'\n{CLIENT}\n{script}\nEND\nexec bash ask.sh");
    let mut body = spoke.spawn_body(agent_id, &script);
    if let Some(network) = network {
        body["options"] = json!({ "network": network });
    }
    body
}

async fn spawn(spoke: &Spoke, script: &str, network: Option<Value>) -> AgentId {
    let agent_id = AgentId::generate();
    let body = body(spoke, agent_id, script, network);
    let (status, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    agent_id
}

#[tokio::test]
async fn an_allow_list_is_kept_told_and_outlives_a_crash_of_the_daemon() {
    if !can_keep_lists().await {
        return;
    }
    let server = Server::start();
    let at = format!("127.0.0.1:{}", server.port);
    let mut spoke = Spoke::start_process_with(&format!(
        "[egress]\ndefault = [\"default.example\"]\nprivate-hosts = [\"{at}\"]\n"
    ))
    .await;
    let script = format!(
        "echo proxy $https_proxy $HTTP_PROXY $NO_PROXY; ask 'CONNECT elsewhere.example:443'; ask 'GET http://{at}/'\n\
         while ! test -e go; do sleep 0.05; done; ask 'GET http://{at}/again'; ask 'CONNECT later.example:22'"
    );
    let agent = spawn(&spoke, &script, Some(json!({"allow": [at]}))).await;
    spoke
        .wrote(agent, &format!("GET http://{at}/: HTTP/1.1 200 OK"))
        .await;
    spoke.crash();
    spoke.restart().await;
    let go = spoke.data_dir().join(format!("agents/{agent}/work/go"));
    std::fs::write(go, "").unwrap();
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    let story = spoke.follow(agent, None, |_| false).await;
    assert!(
        story.contains("proxy http://127.0.0.1:3128 http://127.0.0.1:3128 localhost,127.0.0.1,::1"),
        "{story}"
    );
    assert!(story.contains("/again: HTTP/1.1 200 OK"), "{story}");
    assert_eq!(story.matches("event: egress-refused").count(), 2, "{story}");
    for destination in ["elsewhere.example:443", "later.example:22"] {
        assert!(
            story.contains(&format!("\"destination\":\"{destination}\"")),
            "{story}"
        );
    }
    // Who names no network gets the spoke's list, who names one gets that.
    let script = format!("ask 'CONNECT {at}'");
    let by_default = spawn(&spoke, &script, None).await;
    spoke.finished(by_default).await;
    let story = spoke.follow(by_default, None, |_| false).await;
    assert!(
        story.contains(&format!("\"destination\":\"{at}\"")),
        "{story}"
    );
    let open = spawn(&spoke, "echo proxy${http_proxy-none}", Some(json!("open"))).await;
    spoke.wrote(open, "proxynone").await;
    spoke.stop().await;
}

#[tokio::test]
async fn a_list_that_cannot_be_kept_is_refused_by_name() {
    let spoke = Spoke::start_with(|config| {
        config.sandbox.engine = Some(EngineKind::Unshare);
        config.egress.default = Some(vec!["a.example".parse().unwrap()]);
    })
    .await;
    for (network, code) in [
        (Some(json!({"allow": ["a.example"]})), "unsupported-option"),
        (None, "unsupported-option"),
        (Some(json!({"allow": []})), "invalid-request"),
        (Some(json!({"allow": ["0x7f.1"]})), "invalid-request"),
    ] {
        let body = body(&spoke, AgentId::generate(), "true", network);
        let (status, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
        assert!(status.is_client_error(), "{answer}");
        let text = answer.to_string();
        assert!(
            text.contains(code) && text.contains("options.network"),
            "{text}"
        );
    }
    let agent = spawn(&spoke, "true", Some(json!("none"))).await;
    assert_eq!(spoke.finished(agent).await.state, ObservedState::Completed);
    spoke.stop().await;
}
