use std::ops::Deref;

use mosaic_types::{
    AgentId, ErrorCode, InstanceId, RuntimeName,
    command::{CommandType, NetworkPolicy, PingPayload, SandboxKind, SpawnOptions},
    grant::{Grants, RuntimePattern},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    dsse,
    identity::Identity,
    replay::{KillClaimOutcome, KillClaims},
    test_support::{connection_to, hub, now, secs_from_now, spoke, stranger},
};

mod grants;

fn body() -> Value {
    json!({
        "messageId": MessageId::generate(),
        "from": hub().instance_id(),
        "to": spoke().instance_id(),
        "commandType": "instance.ping",
        "payload": {},
        "issuedAt": now(),
        "expiresAt": secs_from_now(60),
        "hopsLeft": 0,
    })
}

fn with(mut body: Value, member: &str, value: Value) -> Value {
    body[member] = value;
    body
}

fn spawn_payload() -> Value {
    json!({
        "agentId": AgentId::generate(),
        "taskId": "MOS-1",
        "agentType": "worker",
        "context": {
            "repository": "file:///srv/git/a.git",
            "branch": "main",
            "workItems": ["do it"],
        },
    })
}

fn command(command_type: CommandType, payload: &Value) -> Value {
    with(
        with(body(), "commandType", json!(command_type)),
        "payload",
        payload.clone(),
    )
}

/// Signs a body that the builder would not make.
fn sign(identity: &Identity, body: &str) -> Vec<u8> {
    dsse::seal(identity, PayloadType::Command, body.as_bytes()).bytes
}

fn verified(body: &str) -> VerifiedEnvelope {
    ReceivedEnvelope::parse(&sign(&hub(), body))
        .unwrap()
        .verify(&connection_to(&hub()), now())
        .unwrap()
}

fn parse_at(body: &str, at: Timestamp) -> Result<AddressedCommand, Refused> {
    verified(body).parse_command(spoke().instance_id(), at)
}

fn parse(body: impl Deref<Target = Value>) -> Result<AddressedCommand, Refused> {
    parse_at(&body.to_string(), now())
}

fn refusal<T>(result: Result<T, Refused>) -> (ErrorCode, Option<String>) {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(refused) => (refused.refusal.code, refused.refusal.field),
    }
}

fn at(code: ErrorCode, field: &str) -> (ErrorCode, Option<String>) {
    (code, Some(field.to_owned()))
}

fn authorise(
    command_type: CommandType,
    payload: &Value,
    grants: &Grants,
) -> Result<GrantedCommand, Refused> {
    let defaults = SpawnDefaults {
        sandbox: Some(SandboxKind::Process),
    };
    parse(&command(command_type, payload))
        .unwrap()
        .authorise(grants, &defaults)
}

fn everything() -> Grants {
    Grants::full(vec!["file:///srv/git/*".to_owned()])
}

fn claimable(command_type: CommandType, payload: &Value) -> ClaimableCommand {
    authorise(command_type, payload, &everything())
        .unwrap()
        .within(&Usage::default())
        .unwrap()
}

#[test]
fn a_command_goes_all_the_way() {
    let (hub, spoke) = (hub(), spoke());
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let original = serde_json::value::RawValue::from_string(r#"{"payload" : ""}"#.to_owned());
    let original = original.unwrap();
    let sealed = CommandBuilder::new(spoke.instance_id(), CommandType::InstancePing)
        .hops_left(3)
        .traceparent(Some(trace))
        .on_behalf_of(Some(&original))
        .seal(&hub, &PingPayload {}, now())
        .unwrap();
    let connection = connection_to(&hub);
    let received = ReceivedEnvelope::parse(&sealed.bytes).unwrap();
    assert_eq!(received.digest(), sealed.digest);
    let claimable = received
        .verify(&connection, now())
        .unwrap()
        .parse_command(spoke.instance_id(), now())
        .unwrap()
        .authorise(&connection.granted, &SpawnDefaults::default())
        .unwrap()
        .within(&Usage::default())
        .unwrap();
    let claim = claimable.claim_request();
    assert_eq!(claim.expires_at(), secs_from_now(60 + 30));
    let admitted = claimable.admit(Claimed::Fresh).unwrap();
    assert_eq!(admitted.message_id(), sealed.message_id);
    assert_eq!(admitted.digest(), sealed.digest);
    assert_eq!(admitted.peer(), hub.instance_id());
    assert_eq!(admitted.connection_id(), connection.connection_id);
    assert_eq!(admitted.payload(), &CommandPayload::Ping(PingPayload {}));
    assert_eq!(admitted.hops_left(), 3);
    assert_eq!(admitted.traceparent(), Some(trace));
    assert_eq!(admitted.on_behalf_of().unwrap().get(), original.get());
    assert_eq!(admitted.issued_at(), now());
    assert_eq!(admitted.deadline(), secs_from_now(60));
}

#[test]
fn f6_whoever_is_not_the_active_peer_is_not_authenticated() {
    let bytes = sign(&hub(), &body().to_string());
    let verify = |bytes: &[u8], connection: &Connection, at| {
        ReceivedEnvelope::parse(bytes)
            .unwrap()
            .verify(connection, at)
    };
    let good = connection_to(&hub());
    assert!(verify(&bytes, &good, now()).is_ok());

    // Another's signature, and another's signature under our peer's key id (F5).
    assert!(verify(&sign(&stranger(), &body().to_string()), &good, now()).is_err());
    let forged = String::from_utf8(sign(&stranger(), &body().to_string())).unwrap();
    let forged = forged.replace(stranger().key_id().as_str(), hub().key_id().as_str());
    assert!(verify(forged.as_bytes(), &good, now()).is_err());
    // A good signature by a key of another peer (F5).
    assert!(verify(&bytes, &connection_to(&stranger()), now()).is_err());

    for state in ConnectionState::ALL {
        let connection = Connection {
            state,
            ..good.clone()
        };
        let taken = verify(&bytes, &connection, now()).is_ok();
        assert_eq!(taken, state == ConnectionState::Active, "{state}");
    }
    let mut ended = good.clone();
    ended.keys[0].not_after = Some(now());
    assert!(verify(&bytes, &ended, now()).is_err());
    assert!(verify(&bytes, &ended, secs_from_now(-1)).is_ok());
    let mut early = good.clone();
    early.keys[0].not_before = secs_from_now(1);
    assert!(verify(&bytes, &early, now()).is_err());
    let mut none = good;
    none.keys.clear();
    assert!(verify(&bytes, &none, now()).is_err());
}

#[test]
fn f3_what_is_signed_as_something_else_is_no_command() {
    for kind in PayloadType::ALL {
        let bytes = dsse::seal(&hub(), kind, body().to_string().as_bytes()).bytes;
        let verified = ReceivedEnvelope::parse(&bytes)
            .unwrap()
            .verify(&connection_to(&hub()), now());
        if kind == PayloadType::Command {
            let parsed = verified
                .unwrap()
                .parse_command(spoke().instance_id(), now());
            assert!(parsed.is_ok());
        } else {
            // No hint, and nothing under the peer's name: it need not be the peer who sent it.
            assert_eq!(verified.unwrap_err(), Unauthenticated, "{kind:?}");
        }
    }
}

#[test]
fn f4_every_member_is_required_and_named() {
    for member in [
        "messageId",
        "from",
        "to",
        "commandType",
        "payload",
        "issuedAt",
        "expiresAt",
        "hopsLeft",
    ] {
        let mut body = body();
        body.as_object_mut().unwrap().remove(member);
        let expected = at(ErrorCode::InvalidRequest, member);
        assert_eq!(refusal(parse(&body)), expected, "without");
        let null = with(self::body(), member, Value::Null);
        if member != "payload" {
            assert_eq!(refusal(parse(&null)), expected, "null");
        }
    }
    for (member, value) in [
        ("messageId", json!("9b2e4a54-6a58-4f6f-9d30-0b1d1b2f9f3c")),
        ("messageId", json!(7)),
        ("from", json!("hub")),
        ("to", json!("mk1aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")),
        ("commandType", json!("agent.exec")),
        ("commandType", json!("instance.Ping")),
        ("issuedAt", json!("never")),
        ("issuedAt", json!(1_795_000_000)),
        ("expiresAt", json!("2026-11-23T10:00:00+00:00")),
        ("expiresAt", json!("")),
        ("hopsLeft", json!(9)),
        ("hopsLeft", json!(-1)),
        ("hopsLeft", json!(256)),
        ("hopsLeft", json!("0")),
        ("traceparent", json!("00-0-0-00")),
        (
            "traceparent",
            json!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"),
        ),
        (
            "traceparent",
            json!("00-00000000000000000000000000000000-b7ad6b7169203331-01"),
        ),
        (
            "traceparent",
            json!("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"),
        ),
        ("onBehalfOf", json!("text")),
        ("onBehalfOf", json!({"payload": "x".repeat(513 << 10)})),
        ("extra", json!(1)),
    ] {
        let expected = at(ErrorCode::InvalidRequest, member);
        let result = parse(&with(body(), member, value.clone()));
        assert_eq!(refusal(result), expected, "{member}: {value}");
    }
}

#[test]
fn f9_bodies_have_one_reading() {
    let good = body().to_string();
    assert!(parse_at(&good, now()).is_ok());
    let twice = good.replacen('{', r#"{"hopsLeft":0,"#, 1);
    assert_eq!(
        refusal(parse_at(&twice, now())),
        at(ErrorCode::InvalidRequest, "hopsLeft")
    );
    for bad in [
        format!("{good} {{}}"),
        format!("[{good}]"),
        good.replace('}', ""),
        "\u{feff}".to_owned() + &good,
    ] {
        assert_eq!(
            refusal(parse_at(&bad, now())).0,
            ErrorCode::InvalidRequest,
            "{bad}"
        );
    }
    let values: Vec<_> = [
        "messageId",
        "from",
        "to",
        "commandType",
        "payload",
        "issuedAt",
        "expiresAt",
        "hopsLeft",
    ]
    .iter()
    .map(|member| body()[member].clone())
    .collect();
    let array = Value::Array(values);
    assert_eq!(refusal(parse(&array)).0, ErrorCode::InvalidRequest);
    let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
    let deep = good.replace(r#""payload":{}"#, &format!(r#""payload":{deep}"#));
    assert_eq!(
        refusal(parse_at(&deep, now())),
        (ErrorCode::InvalidRequest, None)
    );
}

#[test]
fn f8_the_sender_is_the_key_and_nothing_else() {
    let other = with(body(), "from", json!(stranger().instance_id()));
    assert_eq!(refusal(parse(&other)), at(ErrorCode::WrongSender, "from"));
    let misaddressed = with(body(), "to", json!(stranger().instance_id()));
    assert_eq!(
        refusal(parse(&misaddressed)),
        at(ErrorCode::WrongRecipient, "to")
    );
    // Sent back to its sender.
    let reflected = verified(&body().to_string()).parse_command(hub().instance_id(), now());
    assert_eq!(refusal(reflected), at(ErrorCode::WrongRecipient, "to"));
}

#[test]
fn f4_commands_are_good_in_a_short_window_only() {
    let window = |issued, expires| {
        let body = with(body(), "issuedAt", json!(secs_from_now(issued)));
        parse(&with(body, "expiresAt", json!(secs_from_now(expires))))
    };
    for (issued, expires) in [(0, 1), (0, 300), (-299, 1), (30, 330)] {
        assert!(window(issued, expires).is_ok(), "{issued} {expires}");
    }
    for (issued, expires) in [(0, 301), (0, 0), (10, 5), (-300, 0), (-10, -5), (-301, 0)] {
        let expected = at(ErrorCode::Expired, "expiresAt");
        assert_eq!(
            refusal(window(issued, expires)),
            expected,
            "{issued} {expires}"
        );
    }
    let future = window(31, 60);
    assert_eq!(refusal(future), at(ErrorCode::NotYetValid, "issuedAt"));
}

/// A kill says seconds of validity: without this, a caller whose clock is a little behind could not kill.
#[test]
fn a38_a_kill_is_good_for_as_much_longer_as_clocks_may_differ() {
    for (kind, payload) in [
        (
            CommandType::AgentKill,
            json!({"agentId": AgentId::generate()}),
        ),
        (CommandType::AgentKillAll, json!({})),
    ] {
        let window = |issued, expires| {
            let body = with(
                command(kind, &payload),
                "issuedAt",
                json!(secs_from_now(issued)),
            );
            parse(&with(body, "expiresAt", json!(secs_from_now(expires))))
        };
        for (issued, expires) in [(0, 5), (-5, 0), (-34, -29), (30, 35)] {
            assert!(window(issued, expires).is_ok(), "{issued} {expires}");
        }
        let expired = at(ErrorCode::Expired, "expiresAt");
        for (issued, expires) in [(-35, -30), (-60, -55), (0, 301)] {
            assert_eq!(
                refusal(window(issued, expires)),
                expired,
                "{issued} {expires}"
            );
        }
        let future = window(31, 36);
        assert_eq!(refusal(future), at(ErrorCode::NotYetValid, "issuedAt"));
    }
}

#[test]
fn a_refusal_can_be_answered() {
    let body = with(body(), "to", json!(stranger().instance_id()));
    let digest = verified(&body.to_string()).digest();
    let refused = parse(&body).err().unwrap();
    assert_eq!(json!(refused.message_id), body["messageId"]);
    assert_eq!(refused.digest, digest);
    let refused = parse_at("{}", now()).err().unwrap();
    assert_eq!(refused.message_id, None);
    assert_eq!(refused.digest, verified("{}").digest());
}

#[test]
fn payloads_are_bounded_and_faults_are_named() {
    let refused = |pointer: &str, value: Value| {
        let mut payload = spawn_payload();
        payload["options"] = json!({});
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        payload.pointer_mut(parent).unwrap()[name] = value;
        refusal(authorise(CommandType::AgentSpawn, &payload, &everything()))
    };
    for (pointer, value, field) in [
        ("/agentId", json!("../x"), "agentId"),
        ("/taskId", json!("-x"), "taskId"),
        ("/agentType", json!("boss"), "agentType"),
        ("/runtime", json!(""), "runtime"),
        ("/extra", json!(1), "extra"),
        ("/context/extra", json!(1), "context.extra"),
        (
            "/context/repository",
            json!("file:///srv/git/../x"),
            "context.repository",
        ),
        (
            "/context/repository",
            json!("x".repeat(3000)),
            "context.repository",
        ),
        ("/context/branch", json!(""), "context.branch"),
        ("/context/branch", json!("x".repeat(256)), "context.branch"),
        (
            "/context/workItems",
            json!(vec!["x"; 101]),
            "context.workItems",
        ),
        (
            "/context/workItems",
            json!(["ok", "x".repeat((16 << 10) + 1)]),
            "context.workItems[1]",
        ),
        (
            "/context/workItems",
            json!(["ok", "ok", 3]),
            "context.workItems[2]",
        ),
        (
            "/context/workItems",
            json!(["a\0b"]),
            "context.workItems[0]",
        ),
        ("/context/skills", json!(vec!["x"; 51]), "context.skills"),
        ("/context/skills", json!(["a", "b\n"]), "context.skills[1]"),
        (
            "/context/instructions",
            json!("x".repeat((256 << 10) + 1)),
            "context.instructions",
        ),
        (
            "/context",
            json!(["file:///srv/git/a", "main", [], null, null]),
            "context",
        ),
        ("/options/cpus", json!(0), "options.cpus"),
        ("/options/cpus", json!(-1.0), "options.cpus"),
        ("/options/budgetUsd", json!(0.0), "options.budgetUsd"),
        ("/options/budgetTokens", json!(0), "options.budgetTokens"),
        ("/options/timeoutSecs", json!(0), "options.timeoutSecs"),
        ("/options/timeoutSecs", json!(1e300), "options.timeoutSecs"),
        ("/options/memoryMb", json!(-5), "options.memoryMb"),
        ("/options/memoryMb", json!(0), "options.memoryMb"),
        ("/options/network", json!({"allow": []}), "options.network"),
        (
            "/options/network",
            json!({"allow": ["a.org", "0x7f.1"]}),
            "options.network",
        ),
        (
            "/options/network",
            json!({"allow": vec!["a.org"; 65]}),
            "options.network",
        ),
        ("/options/leaseSecs", json!(0), "options.leaseSecs"),
        ("/options/leaseSecs", json!(86_401), "options.leaseSecs"),
        ("/labels", json!({"Team": "x"}), "labels"),
        ("/labels", json!({"team": "a\nb"}), "labels.team"),
        ("/labels", json!({"team": 1}), "labels.team"),
        ("/options/sandbox", json!("vm"), "options.sandbox"),
        ("/options/sandbox", json!({"process": 1}), "options.sandbox"),
    ] {
        assert_eq!(
            refused(pointer, value),
            at(ErrorCode::InvalidRequest, field)
        );
    }
    let list = |payload: Value| authorise(CommandType::AgentList, &payload, &everything());
    assert!(list(json!({"limit": 500})).is_ok());
    for limit in [0, 501] {
        let refused = refusal(list(json!({ "limit": limit })));
        assert_eq!(refused, at(ErrorCode::InvalidRequest, "limit"));
    }
    // A number too large for a float is no number.
    let infinite = command(CommandType::AgentSpawn, &spawn_payload())
        .to_string()
        .replace(r#""taskId":"#, r#""options":{"cpus":1e999},"taskId":"#);
    let infinite = parse_at(&infinite, now())
        .and_then(|command| command.authorise(&everything(), &SpawnDefaults::default()));
    assert_eq!(refusal(infinite).0, ErrorCode::InvalidRequest);
}

#[test]
fn a_kill_is_never_refused_for_its_reason() {
    let payload = json!({"agentId": AgentId::generate(), "reason": "ü".repeat(10_000)});
    let granted = authorise(CommandType::AgentKill, &payload, &everything()).unwrap();
    match granted.payload() {
        CommandPayload::Kill(kill) => assert_eq!(kill.reason, Some("ü".repeat(500))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn quotas_hold_up_spawns_and_nothing_else() {
    let exhausted = Usage {
        active_agents: u32::MAX,
        spawns_last_minute: u32::MAX,
    };
    let kill = json!({"agentId": AgentId::generate()});
    for (command_type, payload) in [
        (CommandType::AgentKill, &kill),
        (CommandType::AgentKillAll, &json!({})),
        (CommandType::InstancePing, &json!({})),
    ] {
        let granted = authorise(command_type, payload, &everything()).unwrap();
        assert!(granted.within(&exhausted).is_ok(), "{command_type}");
    }
    let mut grants = everything();
    grants.caps.max_agents = 2;
    grants.caps.spawns_per_minute = 3;
    let spawn = |active_agents, spawns_last_minute| {
        authorise(CommandType::AgentSpawn, &spawn_payload(), &grants)
            .unwrap()
            .within(&Usage {
                active_agents,
                spawns_last_minute,
            })
    };
    assert!(spawn(1, 2).is_ok());
    assert_eq!(refusal(spawn(2, 0)), (ErrorCode::QuotaExceeded, None));
    assert_eq!(refusal(spawn(0, 3)), (ErrorCode::QuotaExceeded, None));
}

/// F10: whoever is slow between the look at the times and the claim finds the claim of the first.
#[test]
fn f10_a_claim_is_kept_past_the_last_moment_its_command_is_taken() {
    let kill = json!({"agentId": AgentId::generate()});
    for (kind, payload, last) in [
        (CommandType::InstancePing, json!({}), 60),
        (CommandType::AgentKill, kill, 90),
        (CommandType::AgentKillAll, json!({}), 90),
    ] {
        let body = command(kind, &payload).to_string();
        assert!(parse_at(&body, secs_from_now(last - 1)).is_ok(), "{kind}");
        assert!(parse_at(&body, secs_from_now(last)).is_err(), "{kind}");
        let kept_until = claimable(kind, &payload).claim_request().expires_at();
        assert!(kept_until >= secs_from_now(last + 30), "{kind}");
    }
}

/// F10, F11: only kills may be claimed in memory, and a claim is good for the command it was made for.
#[test]
fn f10_f11_a_claim_in_memory_admits_its_own_kill_only() {
    let mut claims = KillClaims::new(10);
    let kill = json!({"agentId": AgentId::generate()});
    let mut claim = |command: &ClaimableCommand| match claims.claim(command.claim_request(), now())
    {
        KillClaimOutcome::Fresh(claim) => claim,
        other => panic!("{other:?}"),
    };
    let one = claimable(CommandType::AgentKill, &kill);
    let two = claimable(CommandType::AgentKill, &kill);
    let ping = claimable(CommandType::InstancePing, &json!({}));
    let (of_one, of_two) = (claim(&one), claim(&two));
    assert!(one.admit(Claimed::InMemory(of_one)).is_ok());
    assert_eq!(
        refusal(ping.admit(Claimed::InMemory(of_two))).0,
        ErrorCode::Internal
    );
    let three = claimable(CommandType::AgentKillAll, &json!({}));
    let of_three = claim(&three);
    assert_eq!(
        refusal(two.admit(Claimed::InMemory(of_three))).0,
        ErrorCode::Internal
    );
}

#[test]
fn f24_what_is_sent_is_clamped_to_the_protocol() {
    let sealed = seal_command(
        &hub(),
        spoke().instance_id(),
        CommandType::InstancePing,
        &PingPayload {},
        now(),
        100_000,
        200,
        None,
    )
    .unwrap();
    assert_eq!(sealed.expires_at, secs_from_now(300));
    let addressed = ReceivedEnvelope::parse(&sealed.bytes)
        .unwrap()
        .verify(&connection_to(&hub()), now())
        .unwrap()
        .parse_command(spoke().instance_id(), now())
        .unwrap();
    assert_eq!(addressed.body.hops_left, MAX_HOPS);
    let large = json!({"text": "x".repeat(1 << 20)});
    let refused = CommandBuilder::new(spoke().instance_id(), CommandType::InstancePing).seal(
        &hub(),
        &large,
        now(),
    );
    assert!(matches!(refused, Err(SealError::TooLarge { .. })));
}

/// F24: the hops are under the signature.
#[test]
fn f24_hops_cannot_be_changed_on_the_way() {
    let text = body().to_string();
    let sealed = String::from_utf8(sign(&hub(), &text)).unwrap();
    let payload = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let more = text.replace(r#""hopsLeft":0"#, r#""hopsLeft":8"#);
    assert_ne!(more, text);
    let changed = sealed.replace(&payload(&text), &payload(&more));
    assert_ne!(changed, sealed);
    let received = ReceivedEnvelope::parse(changed.as_bytes()).unwrap();
    assert!(received.verify(&connection_to(&hub()), now()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn arbitrary_signed_bodies_never_panic(text in "[\\[\\]{}\":,a-z0-9\\\\ ]{0,64}") {
        let _ = parse_at(&text, now());
    }

    #[test]
    fn a_command_of_any_window_is_taken_only_within_it(issued in -400_i64..400, ttl in -10_i64..400) {
        let me: InstanceId = spoke().instance_id().clone();
        let body = with(body(), "issuedAt", json!(secs_from_now(issued)));
        let body = with(body, "expiresAt", json!(secs_from_now(issued + ttl)));
        let taken = verified(&body.to_string()).parse_command(&me, now()).is_ok();
        prop_assert_eq!(taken, (1..=300).contains(&ttl) && issued <= 30 && issued + ttl > 0);
    }
}
