use mosaic_node::Node;
use mosaic_store::audit::verify;
use mosaic_types::{
    AgentId, ErrorCode, Timestamp,
    audit::{Actor, AuditEvent},
    command::CommandType,
    connection::NodeRole,
};
use serde_json::{Value, json};

use crate::harness::{COMMANDS, Pair, Running, agent, config, soon, spawn_payload};

#[tokio::test]
async fn every_mutation_is_on_the_trail_and_the_trail_is_sound() {
    let pair = Pair::connected().await;
    let id = pair.to_hub().connection_id;
    let token = json!({ "name": "second", "role": "viewer" });
    assert_eq!(pair.spoke.api("POST", "/tokens", Some(token)).await.0, 201);
    assert_eq!(
        pair.spoke.api("DELETE", "/tokens/second", None).await.0,
        204
    );
    for (command_type, payload) in [
        (CommandType::AgentSpawn, spawn_payload()),
        (CommandType::AgentKill, agent()),
        (CommandType::AgentKillAll, json!({})),
        (CommandType::InstancePing, json!({})),
    ] {
        let command = pair.seal(command_type, &payload);
        assert_eq!(pair.send(&command).await.status, 200);
    }
    for verb in ["suspend", "resume", "disconnect"] {
        let path = format!("/federation/connections/{id}/{verb}");
        assert_eq!(pair.spoke.api("POST", &path, None).await.0, 200, "{verb}");
    }
    soon(async {
        while pair.spoke.node.audit().kept() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut actions = pair.spoke.audit_actions().await;
    actions.sort();
    let mut expected = [
        "token.create",
        "invite.create",
        "connection.connect",
        "token.create",
        "token.delete",
        "agent.spawn",
        "agent.kill",
        "agent.killAll",
        "connection.suspend",
        "connection.resume",
        "connection.disconnect",
    ];
    expected.sort_unstable();
    assert_eq!(actions, expected);
    let (status, verdict) = pair.spoke.api("GET", "/audit/verify", None).await;
    assert_eq!(
        (status, &verdict["valid"]),
        (200, &json!(true)),
        "{verdict}"
    );
    let (_, page) = pair.spoke.api("GET", "/audit?after=2&limit=3", None).await;
    assert_eq!(page["entries"].as_array().unwrap().len(), 3);
    assert_eq!(page["entries"][0]["seq"], 3);
    assert_eq!(page["more"], true);
    assert_eq!(
        pair.hub.audit_actions().await,
        ["token.create", "connection.connect"]
    );
    pair.stop().await;
}

/// A peer that shows another hash for an entry than it did before is put on our trail.
#[tokio::test]
async fn a_peer_that_rewrites_its_trail_is_noticed() {
    use mosaic_types::{api::WitnessedHead, audit::AuditHead};
    let pair = Pair::connected().await;
    let ping = async || {
        let call = mosaic_node::CommandCall {
            message_id: None,
            command_type: CommandType::InstancePing,
            payload: &json!({}),
            timeout: std::time::Duration::from_secs(10),
            issued_at: None,
        };
        let to_spoke = pair.to_spoke();
        let peers = pair.hub.node.peers();
        peers
            .command::<Value, _>(&to_spoke, call)
            .await
            .unwrap()
            .audit_head
    };
    let shown = ping().await;
    let hub = pair.hub.node.store();
    soon(async {
        while hub
            .witnessed_heads()
            .await
            .unwrap()
            .iter()
            .all(|seen| seen.head != shown)
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // As if it had shown another next entry before.
    let seen = WitnessedHead {
        instance: pair.spoke.node.instance_id().clone(),
        head: AuditHead {
            seq: shown.seq + 1,
            hash: "f".repeat(64),
        },
        seen_at: Timestamp::now(),
    };
    hub.witness_head(seen).await.unwrap();
    let token = json!({ "name": "second", "role": "viewer" });
    assert_eq!(pair.spoke.api("POST", "/tokens", Some(token)).await.0, 201);
    assert_eq!(ping().await.seq, shown.seq + 1);
    soon(async {
        while !pair
            .hub
            .audit_actions()
            .await
            .contains(&"audit.fork".to_owned())
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    pair.stop().await;
}

/// A30: kills take no quota, but what comes to nothing does not fill the trail: past a rate it is counted. What others do
/// meanwhile is on the trail before it is answered.
#[tokio::test]
async fn a30_a_flood_of_kills_of_nobody_leaves_the_trail_to_others() {
    let pair = Pair::connected().await;
    let of_nobody = || json!({ "agentId": AgentId::generate(), "reason": "of nobody" });
    let kills: Vec<_> = (0..100)
        .map(|_| pair.seal(CommandType::AgentKill, &of_nobody()))
        .collect();
    let flood = futures_util::future::join_all(kills.iter().map(|kill| pair.send(kill)));
    for (kill, answer) in kills.iter().zip(flood.await) {
        assert_eq!(pair.refusal(kill, &answer).code, ErrorCode::UnknownAgent);
    }
    let token = json!({ "name": "second", "role": "viewer" });
    assert_eq!(pair.spoke.api("POST", "/tokens", Some(token)).await.0, 201);
    soon(async {
        while pair.spoke.node.audit().kept() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let actions = pair.spoke.audit_actions().await;
    let of = |wanted: &str| actions.iter().filter(|action| *action == wanted).count();
    assert_eq!((of("agent.kill"), of("token.create")), (60, 2));
    pair.stop().await;
}

/// Strangers do not fill the trail: they are counted.
#[tokio::test]
async fn unauthenticated_requests_are_summed() {
    let node = Running::start("node").await;
    for _ in 0..50 {
        assert_eq!(node.post(COMMANDS, b"{}".to_vec()).await.status, 401);
    }
    let dir = node.stop().await;
    let node = Node::open(config(&dir, "node", NodeRole::Orchestrator))
        .await
        .unwrap();
    let entries = node.store().audit_entries(0, 100).await.unwrap();
    let event: Value = serde_json::from_str(&entries.last().unwrap().event_json).unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (&event["outcome"], &event["detail"]["count"]),
        (&json!("unauthorized"), &json!(50))
    );
    node.close().await;
}

/// What the store does not take is on the trail after the next start, in order.
#[tokio::test]
async fn entries_outlive_a_store_that_is_gone() {
    let dir = tempfile::TempDir::new().unwrap();
    let event = |action: &str| AuditEvent {
        at: Timestamp::now(),
        actor: Actor::System,
        action: action.to_owned(),
        subject: None,
        outcome: "ok".to_owned(),
        detail: Value::Null,
    };
    let node = Node::open(config(&dir, "node", NodeRole::Hub))
        .await
        .unwrap();
    node.audit().record(event("one")).await;
    node.store().close().await;
    node.audit().record(event("two")).await;
    let spill = node.data_dir().join("audit.spill");
    assert!(
        std::fs::read_to_string(&spill).unwrap().contains("two"),
        "durable at once"
    );
    node.audit().record_later(event("three"));
    node.audit().record(event("four")).await;
    drop(node); // as after a crash: nothing is flushed

    let node = Node::open(config(&dir, "node", NodeRole::Hub))
        .await
        .unwrap();
    node.close().await;
    let node = Node::open(config(&dir, "node", NodeRole::Hub))
        .await
        .unwrap();
    let entries = node.store().audit_entries(0, 100).await.unwrap();
    let actions: Vec<_> = entries
        .iter()
        .map(|entry| {
            serde_json::from_str::<AuditEvent>(&entry.event_json)
                .unwrap()
                .action
        })
        .collect();
    assert_eq!(actions, ["token.create", "one", "two", "three", "four"]);
    assert!(!node.data_dir().join("audit.spill").exists());
    node.close().await;
}

fn named(action: &str) -> AuditEvent {
    AuditEvent {
        at: Timestamp::now(),
        actor: Actor::System,
        action: action.to_owned(),
        subject: None,
        outcome: "ok".to_owned(),
        detail: Value::Null,
    }
}

/// F21: what the store will never take as it is keeps nothing behind it off the trail, and is on it itself: recorded at
/// once, kept back, and taken up after a restart.
#[tokio::test]
async fn f21_an_entry_too_large_for_the_store_holds_up_nobody() {
    let dir = tempfile::TempDir::new().unwrap();
    let open = async || {
        Node::open(config(&dir, "node", NodeRole::Hub))
            .await
            .unwrap()
    };
    let detail = json!({ "note": "x".repeat(300_000) });
    let large = |action: &str| AuditEvent {
        detail: detail.clone(),
        ..named(action)
    };
    let node = open().await;
    soon(node.audit().record(large("large at once"))).await;
    assert_eq!(node.audit().kept(), 0, "it is not kept back");
    soon(node.audit().record(named("after it"))).await;
    node.audit().record_later(large("large and kept back"));
    node.audit().record_later(AuditEvent {
        subject: Some("\u{1}".repeat(300_000)),
        ..named("large without its detail")
    });
    soon(node.audit().record(named("after them"))).await;
    assert_eq!(node.audit().kept(), 0);
    node.store().close().await;
    soon(node.audit().record(large("large with the store gone"))).await;
    soon(node.audit().record(named("the last"))).await;
    assert_eq!(node.audit().kept(), 2);
    drop(node); // as after a crash: nothing is flushed

    let node = open().await;
    node.close().await;
    let node = open().await;
    assert_eq!(node.audit().kept(), 0);
    let entries = node.store().audit_entries(0, 100).await.unwrap();
    let events: Vec<AuditEvent> = entries
        .iter()
        .map(|entry| serde_json::from_str(&entry.event_json).unwrap())
        .collect();
    let told: Vec<_> = events[1..]
        .iter()
        .map(|event| (event.action.as_str(), &event.detail))
        .collect();
    let omitted = json!({ "omittedBytes": detail.to_string().len() });
    assert_eq!(
        told,
        [
            ("large at once", &omitted),
            ("after it", &Value::Null),
            ("large and kept back", &omitted),
            ("large without its detail", &Value::Null),
            ("after them", &Value::Null),
            ("large with the store gone", &omitted),
            ("the last", &Value::Null),
        ]
    );
    let verdict = verify(&**node.store(), [node.audit().head()])
        .await
        .unwrap();
    assert!(verdict.valid, "{verdict:?}");
    node.close().await;
}

/// Promise 1: a kill records what it did without waiting for a disk that does not take it.
#[tokio::test(flavor = "multi_thread")]
async fn recording_later_does_not_wait_for_a_spill_under_way() {
    use std::io::Read;
    let dir = tempfile::TempDir::new().unwrap();
    let node = Node::open(config(&dir, "node", NodeRole::Hub))
        .await
        .unwrap();
    node.store().close().await;
    // A file that takes nothing until somebody reads from it.
    let spill = node.data_dir().join("audit.spill");
    let made = std::process::Command::new("mkfifo").arg(&spill).status();
    assert!(made.unwrap().success());
    let large = AuditEvent {
        detail: json!("x".repeat(200_000)),
        ..named("large")
    };
    let (audit, recorder) = (node.audit().clone(), node.audit().clone());
    let spilling = tokio::spawn(async move { audit.record(large).await });
    let opening = tokio::task::spawn_blocking(move || std::fs::File::open(spill));
    // Returns once the spill has opened its side; more than the pipe holds is on its way.
    let mut reader = soon(opening).await.unwrap().unwrap();
    let recording = tokio::task::spawn_blocking(move || recorder.record_later(named("kill")));
    soon(recording).await.unwrap();
    assert!(!spilling.is_finished());
    let draining = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
    soon(spilling).await.unwrap();
    soon(draining).await.unwrap().unwrap();
    std::fs::remove_file(node.data_dir().join("audit.spill")).unwrap();
}

/// A spill that was cut off, in the middle of a character even, costs neither the start nor another entry.
#[tokio::test]
async fn a_torn_spill_file_is_read_and_written_on() {
    let dir = tempfile::TempDir::new().unwrap();
    let open = async || {
        Node::open(config(&dir, "node", NodeRole::Hub))
            .await
            .unwrap()
    };
    let node = open().await;
    let spill = node.data_dir().join("audit.spill");
    node.close().await;
    let mut torn = serde_json::to_vec(&named("one")).unwrap();
    torn.extend_from_slice(b"\n{\"at\":\"\xc3");
    std::fs::write(&spill, torn).unwrap();
    let node = open().await;
    node.store().close().await;
    node.audit().record(named("two")).await;
    drop(node);
    let node = open().await;
    node.close().await;
    let node = open().await;
    let entries = node.store().audit_entries(0, 100).await.unwrap();
    let actions: Vec<Value> = entries
        .iter()
        .map(|entry| serde_json::from_str::<Value>(&entry.event_json).unwrap()["action"].take())
        .collect();
    assert_eq!(actions, ["token.create", "one", "two"]);
    node.close().await;
}

/// What waits to be stored does not make whoever records wait for the disk twice: the store comes first.
#[tokio::test]
async fn what_was_kept_back_is_stored_before_it_is_spilled() {
    let dir = tempfile::TempDir::new().unwrap();
    let node = Node::open(config(&dir, "node", NodeRole::Hub))
        .await
        .unwrap();
    node.audit().record_later(named("one"));
    node.audit().record(named("two")).await;
    assert_eq!(node.audit().kept(), 0);
    assert!(!node.data_dir().join("audit.spill").exists());
    node.close().await;
}
