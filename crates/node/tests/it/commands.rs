use std::{sync::atomic::Ordering, time::Duration};

use mosaic_federation::{command::CommandBuilder, connect::seal_connect, event::seal_events};
use mosaic_node::HttpLimits;
use mosaic_types::{
    ErrorCode, MessageId, Timestamp,
    audit::{Actor, AuditEvent},
    command::CommandType,
    command::NetworkPolicy,
    grant::Grants,
};
use serde_json::{Value, json};

use crate::harness::{COMMANDS, Pair, Running, STREAMS, agent, repositories, soon, spawn_payload};

/// F10: the same message again gets the same bytes, and is not executed again.
#[tokio::test]
async fn f10_a_replay_gets_the_kept_bytes_and_executes_nothing() {
    let pair = Pair::connected().await;
    let command = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    let first = pair.send(&command).await;
    assert_eq!(pair.data::<Value>(&command, &first)["count"], 1);
    for _ in 0..3 {
        assert_eq!(pair.send(&command).await, first);
    }
    assert_eq!(pair.spoke.handler.executed(), 1);
    pair.stop().await;
}

/// F10: a clock that was ahead and is set back makes a message fresh again whose claim was forgotten meanwhile. It is not
/// executed, nor any other that cannot be told from such a one; a kill is, and so is what was signed since.
#[tokio::test]
async fn f10_a_clock_set_back_makes_no_message_fresh_again() {
    let pair = Pair::connected().await;
    let seal = |command_type, payload: &Value, ttl_secs| {
        CommandBuilder::new(pair.spoke.node.instance_id(), command_type)
            .ttl_secs(ttl_secs)
            .seal(pair.hub.node.identity(), payload, Timestamp::now())
            .unwrap()
    };
    let spawn = seal(CommandType::AgentSpawn, &spawn_payload(), 60);
    let status = seal(CommandType::AgentStatus, &agent(), 200);
    let kill = seal(CommandType::AgentKill, &agent(), 60);
    for command in [&spawn, &status] {
        pair.data::<Value>(command, &pair.send(command).await);
    }
    let ahead = Timestamp::now().saturating_add(Duration::from_secs(600));
    let swept = pair.spoke.node.store().sweep_claims(ahead).await.unwrap();
    assert!(swept >= 2, "{swept}");

    let unheard = seal(CommandType::AgentStatus, &agent(), 100);
    for command in [&spawn, &status, &unheard] {
        let refused = pair.refusal(command, &pair.send(command).await);
        assert_eq!(refused.code, ErrorCode::ClockSetBack);
    }
    assert_eq!(pair.spoke.handler.executed(), 2);
    pair.data::<Value>(&kill, &pair.send(&kill).await);
    let later = seal(CommandType::AgentStatus, &agent(), 300);
    pair.data::<Value>(&later, &pair.send(&later).await);
    assert_eq!(pair.spoke.handler.executed(), 4);
    pair.stop().await;
}

#[tokio::test]
async fn identical_commands_at_once_are_executed_once_and_answered_alike() {
    let pair = Pair::connected().await;
    pair.spoke.handler.shut();
    let command = pair.seal(CommandType::AgentStatus, &agent());
    let sending: Vec<_> = (0..32)
        .map(|_| {
            let (http, url) = (
                pair.spoke.http.clone(),
                format!("{}{COMMANDS}", pair.spoke.url),
            );
            let bytes = command.bytes.clone();
            tokio::spawn(async move { crate::harness::post(&http, &url, bytes).await })
        })
        .collect();
    soon(pair.spoke.handler.until_waiting(1)).await;
    pair.spoke.handler.gate.add_permits(1);
    let mut answers = Vec::new();
    for sent in sending {
        answers.push(soon(sent).await.unwrap());
    }
    assert_eq!(pair.data::<Value>(&command, &answers[0])["count"], 1);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(pair.spoke.handler.executed(), 1);
    pair.stop().await;
}

#[tokio::test]
async fn another_message_under_the_same_id_is_a_conflict() {
    let pair = Pair::connected().await;
    let command = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    pair.send(&command).await;
    let other = CommandBuilder::new(pair.spoke.node.instance_id(), CommandType::AgentSpawn)
        .message_id(command.message_id)
        .seal(pair.hub.node.identity(), &spawn_payload(), Timestamp::now())
        .unwrap();
    let answer = pair.send(&other).await;
    let refusal = pair.refusal(&other, &answer);
    assert_eq!(refusal.code, ErrorCode::Conflict);
    assert_eq!(refusal.field.as_deref(), Some("messageId"));
    assert_eq!(pair.spoke.handler.executed(), 1);
    pair.stop().await;
}

/// F6: whoever is not authenticated gets one answer, byte for byte, whatever the cause.
#[tokio::test]
async fn f6_every_unauthenticated_request_gets_the_same_bytes() {
    let pair = Pair::connected().await;
    let stranger = Running::start("stranger").await;
    let command = pair.seal(CommandType::AgentStatus, &agent());
    let of_stranger = CommandBuilder::new(pair.spoke.node.instance_id(), CommandType::AgentStatus)
        .seal(stranger.node.identity(), &agent(), Timestamp::now())
        .unwrap();
    let mut envelope: Value = serde_json::from_slice(&command.bytes).unwrap();
    let forged = |envelope: &Value| serde_json::to_vec(envelope).unwrap();
    let other: Value = serde_json::from_slice(&of_stranger.bytes).unwrap();
    envelope["signatures"][0]["sig"] = other["signatures"][0]["sig"].clone();
    let wrong_signature = forged(&envelope);
    let mut envelope: Value = serde_json::from_slice(&command.bytes).unwrap();
    envelope["payload"] = other["payload"].clone();
    let wrong_payload = forged(&envelope);
    let mut envelope: Value = serde_json::from_slice(&command.bytes).unwrap();
    envelope["extra"] = json!(1);
    let unknown_member = forged(&envelope);

    let expected = pair.spoke.post(COMMANDS, of_stranger.bytes.clone()).await;
    assert_eq!(expected.status, 401);
    let problem: Value = serde_json::from_slice(&expected.body).unwrap();
    assert_eq!(problem["code"], "unauthorized");
    for bytes in [
        Vec::new(),
        b"{}".to_vec(),
        vec![0xff; 100],
        wrong_signature,
        wrong_payload,
        unknown_member,
    ] {
        assert_eq!(pair.spoke.post(COMMANDS, bytes).await, expected);
    }
    for path in ["/federation/v1/streams", "/federation/v1/connect"] {
        assert_eq!(
            pair.spoke.post(path, b"{}".to_vec()).await,
            expected,
            "{path}"
        );
    }
    let id = pair.to_hub().connection_id;
    for verb in ["suspend", "disconnect"] {
        let path = format!("/federation/connections/{id}/{verb}");
        assert_eq!(pair.spoke.api("POST", &path, None).await.0, 200);
        assert_eq!(pair.send(&command).await, expected, "{verb}");
    }
    assert_eq!(pair.spoke.handler.executed(), 0);
    pair.stop().await;
    stranger.stop().await;
}

/// F6: what a peer signs as something else is in the hands of others. Whoever sends it here is nobody, and leaves
/// nothing under the peer's name.
#[tokio::test]
async fn f6_whoever_sends_what_a_peer_signed_as_something_else_is_nobody() {
    let pair = Pair::connected().await;
    // The hub answers others, too: the spoke is as good as any.
    let asked = CommandBuilder::new(pair.hub.node.instance_id(), CommandType::InstancePing)
        .seal(pair.spoke.node.identity(), &json!({}), Timestamp::now())
        .unwrap();
    let response = pair.hub.post(COMMANDS, asked.bytes).await;
    assert_eq!(response.status, 200);
    let events = seal_events(
        pair.hub.node.identity(),
        pair.spoke.node.instance_id(),
        &[0; 32],
        0,
        &[],
    );
    let identity = pair.hub.identity().await;
    let connect = seal_connect(
        pair.hub.node.identity(),
        &identity,
        None,
        None,
        &Grants::none(),
        Timestamp::now(),
    );
    let (mut sent, expected) = (1, pair.spoke.post(COMMANDS, b"{}".to_vec()).await);
    assert_eq!(expected.status, 401);
    for bytes in [
        identity,
        response.body,
        events.unwrap(),
        connect.unwrap().bytes,
    ] {
        for path in [COMMANDS, STREAMS] {
            let answer = pair.spoke.post(path, bytes.clone()).await;
            assert_eq!(answer, expected, "{}", String::from_utf8_lossy(&bytes));
            sent += 1;
        }
    }
    assert_eq!(pair.spoke.handler.heard.load(Ordering::SeqCst), 0);
    let command = pair.seal(CommandType::InstancePing, &json!({}));
    pair.data::<Value>(&command, &pair.send(&command).await);
    assert_eq!(pair.spoke.handler.heard.load(Ordering::SeqCst), 1);

    let Pair { hub, spoke } = pair;
    let spoke = Running::start_in(spoke.stop().await, "spoke").await;
    let entries = spoke.node.store().audit_entries(0, 1000).await.unwrap();
    let refused: Vec<AuditEvent> = entries
        .iter()
        .map(|entry| serde_json::from_str(&entry.event_json).unwrap())
        .filter(|event: &AuditEvent| event.action.starts_with("federation."))
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].actor, Actor::System);
    assert_eq!(refused[0].detail["count"], sent);
    spoke.stop().await;
    hub.stop().await;
}

/// F11: one who cannot sign cannot use up another's message id.
#[tokio::test]
async fn f11_a_forger_burns_no_message_id() {
    let pair = Pair::connected().await;
    let command = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    let mut envelope: Value = serde_json::from_slice(&command.bytes).unwrap();
    let payload = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    let other: Value = serde_json::from_slice(&payload.bytes).unwrap();
    envelope["signatures"][0]["sig"] = other["signatures"][0]["sig"].clone();
    let forged = serde_json::to_vec(&envelope).unwrap();
    assert_eq!(pair.spoke.post(COMMANDS, forged).await.status, 401);
    let answer = pair.send(&command).await;
    assert_eq!(pair.data::<Value>(&command, &answer)["count"], 1);
    pair.stop().await;
}

#[tokio::test]
async fn refusals_of_peers_are_signed_and_name_the_field() {
    let mut grants = Grants::full(repositories());
    grants
        .commands
        .retain(|command| *command != CommandType::AgentRenew);
    grants.caps.network = NetworkPolicy::None;
    let pair = Pair::connected_with(grants, HttpLimits::default()).await;
    let spawn = |change: fn(&mut Value)| {
        let mut payload = spawn_payload();
        change(&mut payload);
        (CommandType::AgentSpawn, payload)
    };
    let renew = json!({ "agentIds": [mosaic_types::AgentId::generate()], "leaseSecs": 5 });
    for ((command_type, payload), code, field) in [
        (
            (CommandType::AgentRenew, renew),
            ErrorCode::NotGranted,
            "commandType",
        ),
        (
            spawn(|p| p["context"]["repository"] = json!("https://example.org/x")),
            ErrorCode::NotGranted,
            "context.repository",
        ),
        (
            spawn(|p| p["options"] = json!({ "network": "open" })),
            ErrorCode::GrantExceeded,
            "options.network",
        ),
        (
            spawn(|p| p["context"]["brunch"] = json!("main")),
            ErrorCode::InvalidRequest,
            "context.brunch",
        ),
    ] {
        let command = pair.seal(command_type, &payload);
        let answer = pair.send(&command).await;
        let refusal = pair.refusal(&command, &answer);
        assert_eq!(
            (refusal.code, refusal.field.as_deref()),
            (code, Some(field))
        );
    }
    let elsewhere = CommandBuilder::new(pair.hub.node.instance_id(), CommandType::AgentStatus)
        .seal(pair.hub.node.identity(), &agent(), Timestamp::now())
        .unwrap();
    let answer = pair.send(&elsewhere).await;
    assert_eq!(
        pair.refusal(&elsewhere, &answer).code,
        ErrorCode::WrongRecipient
    );
    assert_eq!(pair.spoke.handler.executed(), 0);
    pair.stop().await;
}

/// What is refused before the claim may be tried again under its id, and a repetition needs no quota.
#[tokio::test]
async fn a_quota_refusal_claims_nothing_and_a_repetition_needs_no_quota() {
    let mut grants = Grants::full(repositories());
    grants.caps.max_agents = 1;
    let pair = Pair::connected_with(grants, HttpLimits::default()).await;
    let used = &pair.spoke.handler.active_agents;
    let command = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    used.store(1, Ordering::SeqCst);
    let answer = pair.send(&command).await;
    assert_eq!(
        pair.refusal(&command, &answer).code,
        ErrorCode::QuotaExceeded
    );
    used.store(0, Ordering::SeqCst);
    let first = pair.send(&command).await;
    assert_eq!(pair.data::<Value>(&command, &first)["count"], 1);
    used.store(1, Ordering::SeqCst);
    assert_eq!(pair.send(&command).await, first);
    pair.stop().await;
}

/// A4: a spawn whose answer was lost comes again under another id. The agent runs, so it is not refused.
#[tokio::test]
async fn a4_a_spawn_of_an_agent_that_is_there_needs_no_quota() {
    let mut grants = Grants::full(repositories());
    grants.caps.max_agents = 1;
    let pair = Pair::connected_with(grants, HttpLimits::default()).await;
    let spawn = spawn_payload();
    let first = pair.seal(CommandType::AgentSpawn, &spawn);
    pair.data::<Value>(&first, &pair.send(&first).await);
    pair.spoke.handler.active_agents.store(1, Ordering::SeqCst);
    let id = serde_json::from_value(spawn["agentId"].clone()).unwrap();
    pair.spoke.handler.known.lock().unwrap().push(id);
    let again = pair.seal(CommandType::AgentSpawn, &spawn);
    let answer = pair.send(&again).await;
    assert_eq!(pair.data::<Value>(&again, &answer)["count"], 2);
    let other = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    let refused = pair.refusal(&other, &pair.send(&other).await);
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    pair.stop().await;
}

#[tokio::test]
async fn a_failure_is_kept_like_a_success() {
    let pair = Pair::connected().await;
    let command = pair.seal(CommandType::AgentResult, &agent());
    let first = pair.send(&command).await;
    assert_eq!(pair.refusal(&command, &first).code, ErrorCode::UnknownAgent);
    assert_eq!(pair.send(&command).await, first);
    assert_eq!(pair.spoke.handler.executed(), 1);
    let panicking = pair.seal(CommandType::AgentList, &json!({}));
    let answer = pair.send(&panicking).await;
    assert_eq!(pair.refusal(&panicking, &answer).code, ErrorCode::Internal);
    assert_eq!(pair.send(&panicking).await, answer);
    pair.stop().await;
}

/// F12: large answers to what only reads are not kept: a peer cannot fill the disk with them. Nor is it executed
/// again.
#[tokio::test]
async fn f12_a_large_answer_is_not_kept_and_not_made_again() {
    let pair = Pair::connected().await;
    pair.spoke.handler.padding.store(5000, Ordering::SeqCst);
    let read = pair.seal(CommandType::AgentStatus, &agent());
    let first = pair.send(&read).await;
    assert_eq!(pair.data::<Value>(&read, &first)["count"], 1);
    let again = pair.refusal(&read, &pair.send(&read).await);
    assert_eq!(again.code, ErrorCode::OutcomeUnknown);
    assert_eq!(pair.spoke.handler.executed(), 1);
    let spawn = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    let first = pair.send(&spawn).await;
    assert_eq!(pair.send(&spawn).await, first, "what changes is kept");
    pair.stop().await;
}

#[tokio::test]
async fn one_who_hangs_up_stops_nothing_and_finds_the_answer_later() {
    let pair = Pair::connected().await;
    pair.spoke.handler.shut();
    let command = pair.seal(CommandType::AgentStatus, &agent());
    let sending = {
        let (http, url) = (
            pair.spoke.http.clone(),
            format!("{}{COMMANDS}", pair.spoke.url),
        );
        let bytes = command.bytes.clone();
        tokio::spawn(async move { crate::harness::post(&http, &url, bytes).await })
    };
    soon(pair.spoke.handler.until_waiting(1)).await;
    sending.abort();
    assert!(sending.await.unwrap_err().is_cancelled());
    pair.spoke.handler.gate.add_permits(1);
    let answer = soon(pair.send(&command)).await;
    assert_eq!(pair.data::<Value>(&command, &answer)["count"], 1);
    assert_eq!(pair.spoke.handler.executed(), 1);
    pair.stop().await;
}

#[tokio::test]
async fn a_full_node_says_so_in_a_signed_refusal() {
    let limits = HttpLimits {
        max_commands: 1,
        ..HttpLimits::default()
    };
    let pair = Pair::connected_with(Grants::full(repositories()), limits).await;
    pair.spoke.handler.shut();
    let blocking = pair.seal(CommandType::AgentStatus, &agent());
    let blocked = pair.send(&blocking);
    let refused = async {
        soon(pair.spoke.handler.until_waiting(1)).await;
        let command = pair.seal(CommandType::InstancePing, &json!({}));
        let answer = pair.send(&command).await;
        let refusal = pair.refusal(&command, &answer);
        assert_eq!(refusal.code, ErrorCode::Overloaded);
        assert!(refusal.retryable);
        pair.spoke.handler.gate.add_permits(1);
    };
    tokio::join!(blocked, refused);
    pair.stop().await;
}

#[tokio::test]
async fn the_peer_client_sends_verifies_and_witnesses() {
    use mosaic_node::CommandCall;
    let pair = Pair::connected().await;
    let message_id = MessageId::generate();
    let call = CommandCall {
        message_id: Some(message_id),
        command_type: CommandType::InstancePing,
        payload: &json!({}),
        timeout: std::time::Duration::from_secs(10),
        issued_at: None,
    };
    let answer = pair
        .hub
        .node
        .peers()
        .command::<Value, _>(&pair.to_spoke(), call)
        .await
        .unwrap();
    assert_eq!(answer.message_id, message_id);
    assert_eq!(answer.data["command"], "instance.ping");
    assert!(answer.audit_head.seq > 0);
    soon(async {
        while pair
            .hub
            .node
            .store()
            .witnessed_heads()
            .await
            .unwrap()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    pair.stop().await;
}

/// F15: an operator who suspends between admission and execution is heard.
#[tokio::test(flavor = "multi_thread")]
async fn f15_what_was_admitted_before_a_suspension_is_not_executed_after_it() {
    let pair = Pair::connected().await;
    let (node, id) = (pair.spoke.node.clone(), pair.to_hub().connection_id);
    let runtime = tokio::runtime::Handle::current();
    let hook = move || {
        let suspending = async move { node.suspend(id, mosaic_types::audit::Actor::System).await };
        let suspended = std::thread::spawn(move || runtime.block_on(suspending)).join();
        suspended.unwrap().unwrap();
    };
    *pair.spoke.handler.before_claim.lock().unwrap() = Some(Box::new(hook));
    let command = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    let answer = pair.send(&command).await;
    assert_eq!(
        pair.refusal(&command, &answer).code,
        ErrorCode::ConnectionNotActive
    );
    assert_eq!(pair.spoke.handler.executed(), 0);
    pair.stop().await;
}

/// F15: so is one who grants less.
#[tokio::test(flavor = "multi_thread")]
async fn f15_what_was_admitted_before_a_grant_was_narrowed_is_not_executed_after_it() {
    let pair = Pair::connected().await;
    let narrow = Grants {
        commands: CommandType::ALL.to_vec(),
        ..Grants::none()
    };
    let token = pair.spoke.invite(narrow.clone()).await.token;
    let (hub, runtime) = (pair.hub.node.clone(), tokio::runtime::Handle::current());
    let hook = move || {
        let request = mosaic_types::api::ConnectRequest {
            token: Some(token),
            ..Default::default()
        };
        let connecting = async move {
            let actor = mosaic_types::audit::Actor::System;
            hub.connect(request, actor).await
        };
        let connected = std::thread::spawn(move || runtime.block_on(connecting)).join();
        connected.unwrap().unwrap();
    };
    *pair.spoke.handler.before_claim.lock().unwrap() = Some(Box::new(hook));
    let command = pair.seal(CommandType::AgentSpawn, &spawn_payload());
    let answer = pair.send(&command).await;
    assert_eq!(pair.to_hub().granted, narrow);
    assert_eq!(pair.refusal(&command, &answer).code, ErrorCode::NotGranted);
    assert_eq!(pair.spoke.handler.executed(), 0);
    pair.stop().await;
}
