use mosaic_types::{
    command::CommandType,
    connection::{NodeRole, ProtocolRange},
};
use serde_json::{Value, json};

use super::*;
use crate::test_support::{hub, now, secs_from_now, spoke, stranger};

fn facts(name: &str) -> IdentityFacts {
    IdentityFacts {
        name: name.to_owned(),
        role: NodeRole::Orchestrator,
        url: Some("https://spoke.example:7443".to_owned()),
        commands: CommandType::ALL.to_vec(),
    }
}

fn document_of(identity: &Identity) -> Vec<u8> {
    seal_identity(identity, &facts("node"), now()).unwrap()
}

fn body_of(identity: &Identity) -> Value {
    let bytes = document_of(identity);
    serde_json::from_slice(ReceivedEnvelope::parse(&bytes).unwrap().payload()).unwrap()
}

fn sign(identity: &Identity, kind: PayloadType, body: &Value) -> Vec<u8> {
    dsse::seal(identity, kind, body.to_string().as_bytes()).bytes
}

fn verify(bytes: &[u8]) -> Result<VerifiedIdentity, IdentityDocumentError> {
    VerifiedIdentity::verify(bytes, now())
}

#[test]
fn a_document_certifies_itself() {
    let bytes = document_of(&spoke());
    let identity = verify(&bytes).unwrap();
    assert_eq!(identity.instance_id(), spoke().instance_id());
    assert_eq!(identity.document().protocol, ProtocolRange::OURS);
    assert!(VerifiedIdentity::verify_of(&bytes, spoke().instance_id(), now()).is_ok());
    let refused = VerifiedIdentity::verify_of(&bytes, hub().instance_id(), now());
    assert!(matches!(
        refused,
        Err(IdentityDocumentError::Unexpected { .. })
    ));
    // A clock that is a little behind still takes it.
    assert!(VerifiedIdentity::verify(&bytes, secs_from_now(-30)).is_ok());
    for at in [-31, 86_400] {
        let refused = VerifiedIdentity::verify(&bytes, secs_from_now(at));
        assert_eq!(refused, Err(IdentityDocumentError::NotValid), "{at}");
    }
}

#[test]
fn f8_nobody_can_squat_the_id_of_another() {
    let ours = body_of(&spoke());
    // Signed by another key than its own.
    let signed = sign(&stranger(), PayloadType::Identity, &ours);
    assert_eq!(verify(&signed), Err(IdentityDocumentError::NotSigned));
    // With another's id over one's own key.
    let mut squatted = body_of(&stranger());
    squatted["instanceId"] = json!(spoke().instance_id());
    let signed = sign(&stranger(), PayloadType::Identity, &squatted);
    assert_eq!(verify(&signed), Err(IdentityDocumentError::WrongId));
    // With one's own key behind another's first, or another's behind one's own: nothing proves the second.
    let theirs = body_of(&stranger());
    for (signer, body, keys) in [
        (stranger(), &ours, [&ours, &theirs]),
        (stranger(), &theirs, [&theirs, &ours]),
    ] {
        let mut joined = body.clone();
        joined["keys"] = keys.iter().map(|body| body["keys"][0].clone()).collect();
        let refused = verify(&sign(&signer, PayloadType::Identity, &joined)).unwrap_err();
        assert!(
            matches!(&refused, IdentityDocumentError::Malformed { field, .. } if field == "keys"),
            "{refused}"
        );
    }
    // With a key that is not what its id says (F5), or weak (F1).
    let mut confused = ours.clone();
    confused["keys"][0]["keyId"] = json!(stranger().key_id());
    let signed = sign(&spoke(), PayloadType::Identity, &confused);
    assert!(matches!(
        verify(&signed),
        Err(IdentityDocumentError::Key { index: 0, .. })
    ));
    // Another type of envelope.
    assert!(verify(&sign(&spoke(), PayloadType::Command, &ours)).is_err());
    assert!(verify(&sign(&spoke(), PayloadType::Identity, &ours)).is_ok());
}

#[test]
fn f4_documents_are_strict_and_short_lived() {
    let refused = |member: &str, value: Value| {
        let mut body = body_of(&spoke());
        body[member] = value;
        verify(&sign(&spoke(), PayloadType::Identity, &body)).unwrap_err()
    };
    for (member, value) in [
        ("name", json!("")),
        ("name", json!("x".repeat(129))),
        ("name", json!("a\u{1b}[31m")),
        ("role", json!("king")),
        ("url", json!("file:///etc/passwd")),
        ("url", json!("https://x\n")),
        ("keys", json!([])),
        ("keys", json!(vec![body_of(&spoke())["keys"][0].clone(); 2])),
        ("protocol", json!({"min": 2, "max": 1})),
        ("commands", json!(vec!["x"; 65])),
        ("issuedAt", Value::Null),
        ("expiresAt", Value::Null),
        ("extra", json!(1)),
    ] {
        match refused(member, value) {
            IdentityDocumentError::Malformed { field, .. } => assert_eq!(field, member),
            error => panic!("{member}: {error}"),
        }
    }
    for (member, value) in [
        ("expiresAt", secs_from_now(86_401)),
        ("expiresAt", now()),
        ("issuedAt", secs_from_now(31)),
    ] {
        assert_eq!(
            refused(member, json!(value)),
            IdentityDocumentError::NotValid
        );
    }
    let long = IdentityFacts {
        url: Some("x".repeat(100_000)),
        ..facts("node")
    };
    assert!(seal_identity(&spoke(), &long, now()).is_err());
}

fn connect(from: &Identity, to: Option<&InstanceId>, token: Option<&TokenSecret>) -> SealedCommand {
    let grants = Grants::full(vec!["**".to_owned()]);
    seal_connect(from, &document_of(from), to, token, &grants, now()).unwrap()
}

#[test]
fn two_instances_come_to_know_each_other() {
    let secret = TokenSecret::generate().unwrap();
    let request = connect(&hub(), Some(spoke().instance_id()), Some(&secret));
    let asked = verify_connect(&request.bytes, spoke().instance_id(), now()).unwrap();
    assert_eq!(asked.identity.instance_id(), hub().instance_id());
    assert_eq!(asked.token_secret.as_ref().unwrap().hash(), secret.hash());
    assert_eq!(
        (asked.message_id, asked.digest),
        (request.message_id, request.digest)
    );

    let grants = Grants::full(vec!["file:///srv/**".to_owned()]);
    let answer = |identity: &Identity, document: &[u8], state| {
        seal_connect_response(
            identity,
            document,
            &asked,
            state,
            &grants,
            &AuditHead::empty(),
            now(),
        )
        .unwrap()
    };
    let peer = verify(&document_of(&spoke())).unwrap();
    let read = |bytes: &[u8], request: &SealedCommand| {
        verify_connect_response(bytes, &peer, hub().instance_id(), request, now())
    };
    let good = answer(&spoke(), &document_of(&spoke()), ConnectionState::Active);
    let connected = read(&good, &request).unwrap().unwrap();
    assert_eq!(connected.state, ConnectionState::Active);
    assert_eq!(connected.granted, grants);
    assert_eq!(connected.identity.instance_id(), spoke().instance_id());

    // To another request, by another instance, with another's document, of a state that makes no sense.
    assert!(read(&good, &connect(&hub(), None, None)).is_err());
    let active = ConnectionState::Active;
    assert!(
        read(
            &answer(&stranger(), &document_of(&stranger()), active),
            &request
        )
        .is_err()
    );
    assert!(
        read(
            &answer(&spoke(), &document_of(&stranger()), active),
            &request
        )
        .is_err()
    );
    let suspended = answer(&spoke(), &document_of(&spoke()), ConnectionState::Suspended);
    assert!(read(&suspended, &request).is_err());

    let hub = hub();
    let reply = InReplyTo {
        to: hub.instance_id(),
        request_digest: request.digest,
        correlation_id: Some(request.message_id),
    };
    let refusal = Refusal::new(ErrorCode::InvalidToken, "unknown, expired or used");
    let head = AuditHead::empty();
    let bytes = response::seal_refusal(&spoke(), reply, &refusal, &head, now()).unwrap();
    let told = read(&bytes, &request).unwrap().unwrap_err();
    assert_eq!(told.into_refusal(), refusal);
}

#[test]
fn f6_a_connect_request_of_somebody_else_gets_no_hint() {
    let body_of_connect = |from: &Identity| {
        let bytes = connect(from, Some(spoke().instance_id()), None).bytes;
        let envelope = ReceivedEnvelope::parse(&bytes).unwrap();
        serde_json::from_slice::<Value>(envelope.payload()).unwrap()
    };
    let verify = |bytes: &[u8]| verify_connect(bytes, spoke().instance_id(), now()).map(|_| ());
    let stranger_gets = Err(ConnectError::Unauthenticated(Unauthenticated));
    let good = body_of_connect(&hub());
    assert!(verify(&sign(&hub(), PayloadType::Connect, &good)).is_ok());
    // The identity of one, the signature of another.
    assert_eq!(
        verify(&sign(&stranger(), PayloadType::Connect, &good)),
        stranger_gets
    );
    assert_eq!(
        verify(&sign(&hub(), PayloadType::Command, &good)),
        stranger_gets
    );
    assert_eq!(verify(b"{}"), stranger_gets);
    let mut extra = good.clone();
    extra["extra"] = json!(1);
    assert_eq!(
        verify(&sign(&hub(), PayloadType::Connect, &extra)),
        stranger_gets
    );

    let refused = |member: &str, value: Value| {
        let mut body = good.clone();
        body[member] = value;
        match verify(&sign(&hub(), PayloadType::Connect, &body)) {
            Err(ConnectError::Refused(refused, peer)) => {
                assert_eq!(&peer, hub().instance_id());
                assert!(refused.message_id.is_some());
                refused.refusal.code
            }
            other => panic!("{member}: {other:?}"),
        }
    };
    let id = json!(stranger().instance_id());
    assert_eq!(refused("from", id.clone()), ErrorCode::WrongSender);
    assert_eq!(refused("to", id), ErrorCode::WrongRecipient);
    assert_eq!(
        refused("expiresAt", json!(secs_from_now(301))),
        ErrorCode::Expired
    );
    assert_eq!(
        refused("issuedAt", json!(secs_from_now(40))),
        ErrorCode::NotYetValid
    );
}

#[test]
fn the_secret_of_a_connect_request_is_not_printed() {
    let secret = TokenSecret::generate().unwrap();
    let request = connect(&hub(), None, Some(&secret));
    let asked = verify_connect(&request.bytes, spoke().instance_id(), now()).unwrap();
    let text = serde_json::to_string(&secret).unwrap();
    assert!(!format!("{asked:?} {secret:?}").contains(text.trim_matches('"')));
}
