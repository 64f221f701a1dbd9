use mosaic_types::command::{CommandType, PingPayload};
use serde_json::{Value, json};

use super::*;
use crate::{
    command::CommandBuilder,
    test_support::{connection_to, hub, now, secs_from_now, spoke, stranger},
};

/// The hub's request to the spoke.
fn request() -> SealedCommand {
    CommandBuilder::new(spoke().instance_id(), CommandType::InstancePing)
        .seal(&hub(), &PingPayload {}, now())
        .unwrap()
}

fn body(request: &SealedCommand) -> Value {
    json!({
        "messageId": MessageId::generate(),
        "correlationId": request.message_id,
        "requestDigest": HEXLOWER.encode(&request.digest),
        "from": spoke().instance_id(),
        "to": hub().instance_id(),
        "success": true,
        "data": {"answer": 42},
        "timestamp": now(),
        "auditHead": AuditHead::empty(),
    })
}

fn sign(identity: &Identity, body: &Value) -> Vec<u8> {
    dsse::seal(identity, PayloadType::Response, body.to_string().as_bytes()).bytes
}

fn verify(bytes: &[u8], request: &SealedCommand) -> Result<VerifiedResponse, ResponseError> {
    verify_response(
        bytes,
        &connection_to(&spoke()),
        hub().instance_id(),
        request,
        now(),
    )
}

fn reply<'a>(request: &SealedCommand, to: &'a InstanceId) -> InReplyTo<'a> {
    InReplyTo {
        to,
        request_digest: request.digest,
        correlation_id: Some(request.message_id),
    }
}

#[test]
fn an_answer_and_a_refusal_are_read_as_they_were_signed() {
    let (request, head) = (
        request(),
        AuditHead {
            seq: 7,
            hash: "a".repeat(64),
        },
    );
    let hub = hub();
    let reply = reply(&request, hub.instance_id());
    let answer = json!({"answer": 42});
    let bytes = seal_response(&spoke(), reply, Ok(&answer), &head, now()).unwrap();
    let response = verify(&bytes, &request).unwrap();
    assert_eq!(response.audit_head, head);
    assert_eq!(response.timestamp, now());
    assert_eq!(response.read::<Value>().unwrap(), Ok(answer));
    assert!(response.read::<String>().is_err());

    for code in ErrorCode::ALL.iter().copied() {
        let refusal = Refusal::field(code, "options.cpus", "too many");
        let bytes = seal_refusal(&spoke(), reply, &refusal, &head, now()).unwrap();
        let told = verify(&bytes, &request).unwrap().result.unwrap_err();
        assert_eq!(told.code, Some(code));
        assert_eq!(told.into_refusal(), refusal);
    }
    // A null is an answer, too.
    let bytes = seal_response(&spoke(), reply, Ok(&()), &head, now()).unwrap();
    assert_eq!(
        verify(&bytes, &request).unwrap().read::<()>().unwrap(),
        Ok(())
    );
}

/// F16, F10: an answer fits its own request and no other.
#[test]
fn f16_an_answer_to_another_request_is_refused() {
    let (asked, other) = (request(), request());
    let bytes = sign(&spoke(), &body(&other));
    assert!(verify(&bytes, &other).is_ok());
    let refused = verify(&bytes, &asked).unwrap_err();
    assert!(matches!(
        refused,
        ResponseError::Mismatch {
            field: "requestDigest"
        }
    ));
    let same_id = SealedCommand {
        digest: other.digest,
        ..asked
    };
    let refused = verify(&bytes, &same_id).unwrap_err();
    assert!(matches!(
        refused,
        ResponseError::Mismatch {
            field: "correlationId"
        }
    ));
    for (field, value) in [
        ("from", json!(stranger().instance_id())),
        ("to", json!(stranger().instance_id())),
        ("to", json!(spoke().instance_id())),
    ] {
        let mut body = body(&other);
        body[field] = value;
        match verify(&sign(&spoke(), &body), &other).unwrap_err() {
            ResponseError::Mismatch { field: at } => assert_eq!(at, field),
            error => panic!("{error}"),
        }
    }
}

#[test]
fn f6_an_answer_that_the_peer_did_not_sign_is_refused() {
    let request = request();
    for identity in [stranger(), hub()] {
        let refused = verify(&sign(&identity, &body(&request)), &request).unwrap_err();
        assert!(matches!(refused, ResponseError::Unauthenticated));
    }
    let body = body(&request).to_string();
    let event = dsse::seal(&spoke(), PayloadType::Event, body.as_bytes()).bytes;
    assert!(matches!(
        verify(&event, &request),
        Err(ResponseError::NotAResponse)
    ));
    let mut ended = connection_to(&spoke());
    ended.keys[0].not_after = Some(secs_from_now(-1));
    let bytes = sign(&spoke(), &self::body(&request));
    let refused = verify_response(&bytes, &ended, hub().instance_id(), &request, now());
    assert!(matches!(refused, Err(ResponseError::Unauthenticated)));
}

#[test]
fn success_and_error_exclude_each_other() {
    let request = request();
    let error = json!({"code": "held", "message": "held", "retryable": true});
    for (success, data, error, sound) in [
        (true, Some(json!(1)), None, true),
        (false, None, Some(error.clone()), true),
        (true, None, None, false),
        (false, None, None, false),
        (true, None, Some(error.clone()), false),
        (false, Some(json!(1)), None, false),
        (true, Some(json!(1)), Some(error.clone()), false),
        (false, Some(json!(1)), Some(error), false),
    ] {
        let mut body = body(&request);
        let members = body.as_object_mut().unwrap();
        members.remove("data");
        members.insert("success".to_owned(), json!(success));
        data.map(|data| members.insert("data".to_owned(), data));
        error.map(|error| members.insert("error".to_owned(), error));
        let result = verify(&sign(&spoke(), &body), &request);
        assert_eq!(result.is_ok(), sound, "{body}");
    }
    for member in [
        "correlationId",
        "requestDigest",
        "timestamp",
        "auditHead",
        "success",
    ] {
        let mut body = body(&request);
        body.as_object_mut().unwrap().remove(member);
        assert!(
            verify(&sign(&spoke(), &body), &request).is_err(),
            "{member}"
        );
    }
}

/// A peer's heads are kept: what has not their form is none, however long it is.
#[test]
fn f22_an_audit_head_has_the_form_of_one() {
    let request = request();
    let with = |head: Value| {
        let mut body = body(&request);
        body["auditHead"] = head;
        verify(&sign(&spoke(), &body), &request)
    };
    let hash = "0123456789abcdef".repeat(4);
    assert!(with(json!({ "seq": i64::MAX, "hash": hash })).is_ok());
    for head in [
        json!({ "seq": 7, "hash": "a".repeat(1 << 20) }),
        json!({ "seq": 7, "hash": "a".repeat(63) }),
        json!({ "seq": 7, "hash": "A".repeat(64) }),
        json!({ "seq": 7, "hash": "g".repeat(64) }),
        json!({ "seq": 7, "hash": "" }),
        json!({ "seq": 1_u64 << 63, "hash": hash }),
    ] {
        let refused = with(head.clone());
        let refused = refused.is_err_and(|error| error.to_string().contains("auditHead"));
        assert!(refused, "{head}");
    }
}

#[test]
fn only_a_refusal_may_leave_the_id_open() {
    let request = request();
    let hub = hub();
    let unread = InReplyTo {
        correlation_id: None,
        ..reply(&request, hub.instance_id())
    };
    let refusal = Refusal::new(ErrorCode::InvalidRequest, "unreadable");
    let bytes = seal_refusal(&spoke(), unread, &refusal, &AuditHead::empty(), now()).unwrap();
    assert!(verify(&bytes, &request).unwrap().result.is_err());
    let bytes = seal_response(&spoke(), unread, Ok(&1), &AuditHead::empty(), now()).unwrap();
    assert!(verify(&bytes, &request).is_err());
}

#[test]
fn a_newer_peer_may_say_more() {
    let request = request();
    let mut body = body(&request);
    body["later"] = json!({"x": 1});
    assert!(verify(&sign(&spoke(), &body), &request).is_ok());
    body["success"] = json!(false);
    body.as_object_mut().unwrap().remove("data");
    body["error"] = json!({"code": "moon-phase", "message": "wait", "retryable": true, "hint": 1});
    let told = verify(&sign(&spoke(), &body), &request)
        .unwrap()
        .result
        .unwrap_err();
    assert_eq!((told.code, told.raw_code.as_str()), (None, "moon-phase"));
    let passed_on = told.into_refusal();
    assert_eq!(passed_on.message, "wait (moon-phase)");
    assert!(passed_on.retryable);
    body["error"]["message"] = json!("ü".repeat(5000));
    let told = verify(&sign(&spoke(), &body), &request)
        .unwrap()
        .result
        .unwrap_err();
    assert_eq!(told.message.chars().count(), MAX_MESSAGE_CHARS);
}
