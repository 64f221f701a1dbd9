use proptest::prelude::*;

use super::*;
use crate::{
    key::Keyring,
    signed_by_peer,
    test_support::{connection_to, hub, now, stranger},
};

const PAYLOAD: &[u8] = br#"{"hello":"?????~~~"}"#;

fn sealed() -> String {
    String::from_utf8(seal(&hub(), PayloadType::Command, PAYLOAD).bytes).unwrap()
}

fn refused(json: &str) -> EnvelopeError {
    ReceivedEnvelope::parse(json.as_bytes()).expect_err(json)
}

/// The example of the DSSE specification (protocol.md, "Test Vectors").
#[test]
fn the_pre_authentication_encoding_is_that_of_the_specification() {
    assert_eq!(
        pae("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
    assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
    // Lengths are of bytes, not of characters.
    assert_eq!(pae("é", "ü".as_bytes()), "DSSEv1 2 é 2 ü".as_bytes());
}

#[test]
fn an_envelope_is_read_as_it_was_sealed() {
    let sealed = seal(&hub(), PayloadType::Command, PAYLOAD);
    let envelope = ReceivedEnvelope::parse(&sealed.bytes).unwrap();
    assert_eq!(envelope.payload(), PAYLOAD);
    assert_eq!(envelope.payload_type(), PayloadType::Command);
    assert_eq!(envelope.claimed_key(), hub().key_id());
    assert_eq!(envelope.digest(), sealed.digest);
    assert_eq!(envelope.pae, pae(PayloadType::Command.as_str(), PAYLOAD));
    assert!(envelope.verify(&connection_to(&hub()), now()).is_ok());
}

/// F3: the type is under the signature, so one kind of message never passes for another.
#[test]
fn f3_another_payload_type_breaks_the_signature() {
    let (peer, keyring) = (connection_to(&hub()), Keyring::default());
    for signed in PayloadType::ALL {
        let sealed = String::from_utf8(seal(&hub(), signed, PAYLOAD).bytes).unwrap();
        for told in PayloadType::ALL {
            let text = sealed.replace(signed.as_str(), told.as_str());
            let envelope = ReceivedEnvelope::parse(text.as_bytes()).unwrap();
            assert_eq!(envelope.payload_type(), told);
            let verifies = signed_by_peer(&envelope, &peer, &keyring, now());
            assert_eq!(verifies, signed == told, "{signed:?} told as {told:?}");
        }
    }
    let text = sealed().replace("command.v1", "command.v2");
    assert_eq!(refused(&text), EnvelopeError::UnknownType);
}

#[test]
fn f5_there_is_exactly_one_signature() {
    let text = sealed();
    let at = text.find("[{").unwrap();
    let signature = &text[at + 1..text.len() - 2];
    let none = format!("{}[]}}", &text[..at]);
    let two = format!("{}[{signature},{signature}]}}", &text[..at]);
    assert_eq!(refused(&none), EnvelopeError::SignatureCount);
    assert_eq!(refused(&two), EnvelopeError::SignatureCount);
}

#[test]
fn f9_unknown_duplicate_and_missing_members_are_refused() {
    let text = sealed();
    let with = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        changed
    };
    for bad in [
        with(r#"{"payload":"#, r#"{"payload":"","payload":"#),
        with(r#"{"payload":"#, r#"{"extra":1,"payload":"#),
        with(r#"{"keyid":"#, r#"{"keyid":"","keyid":"#),
        with(r#"{"keyid":"#, r#"{"extra":1,"keyid":"#),
        with(r#""keyid":"#, r#""keyId":"#),
        with(r#""payloadType":"#, r#""type":"#),
        with(r#","sig":"#, r#","sig":"","sig":"#),
        format!("{text}{{}}"),
        format!("[{text}]"),
        String::new(),
        "null".to_owned(),
    ] {
        assert_eq!(refused(&bad), EnvelopeError::Malformed, "{bad}");
    }
}

/// serde's derived readers would take these arrays for the objects.
#[test]
fn f9_an_array_is_no_object() {
    let value: serde_json::Value = serde_json::from_str(&sealed()).unwrap();
    let (payload, payload_type) = (&value["payload"], &value["payloadType"]);
    let (keyid, sig) = (
        &value["signatures"][0]["keyid"],
        &value["signatures"][0]["sig"],
    );
    let outer = serde_json::json!([payload, payload_type, [{"keyid": keyid, "sig": sig}]]);
    let inner = serde_json::json!({
        "payload": payload, "payloadType": payload_type, "signatures": [[keyid, sig]]
    });
    assert_eq!(refused(&outer.to_string()), EnvelopeError::Malformed);
    assert_eq!(refused(&inner.to_string()), EnvelopeError::Malformed);
}

#[test]
fn f9_base64_has_one_spelling() {
    let text = sealed();
    let payload = STANDARD.encode(PAYLOAD);
    assert!(payload.ends_with('=') && payload.contains('/'));
    let with = |other: &str| refused(&text.replace(&payload, other));
    for bad in [
        payload.trim_end_matches('=').to_owned(),
        format!("{payload}===="),
        payload.replace('/', "_"),
        format!("{payload}\\n"),
        format!(" {payload}"),
        // The bits behind the last byte are not zero.
        payload.replace("0=", "1="),
        "=".to_owned(),
        "====".to_owned(),
    ] {
        assert_ne!(bad, payload);
        assert_eq!(with(&bad), EnvelopeError::Base64, "{bad}");
    }
    let short = STANDARD.encode([0; 63]);
    let at = text.find(r#""sig":""#).unwrap() + 7;
    let with_signature = |sig: &str| refused(&format!("{}{sig}\"}}]}}", &text[..at]));
    assert_eq!(with_signature(&short), EnvelopeError::SignatureLength);
    assert_eq!(with_signature(""), EnvelopeError::SignatureLength);
    assert_eq!(with_signature("AAA"), EnvelopeError::Base64);
}

#[test]
fn f19_size_is_checked_before_anything_else() {
    let mut text = sealed();
    text.push_str(&" ".repeat(MAX_ENVELOPE_BYTES - text.len()));
    assert!(ReceivedEnvelope::parse(text.as_bytes()).is_ok());
    text.push(' ');
    let limit = MAX_ENVELOPE_BYTES;
    assert_eq!(refused(&text), EnvelopeError::TooLarge { limit });
    assert!(ReceivedEnvelope::parse_within(text.as_bytes(), MAX_RESPONSE_BYTES).is_ok());
}

/// F2: another signature over the same bytes, were there one, would not be another request.
#[test]
fn f2_the_signature_is_not_part_of_the_digest() {
    let ours = ReceivedEnvelope::parse(sealed().as_bytes()).unwrap();
    let theirs = seal(&stranger(), PayloadType::Command, PAYLOAD);
    let theirs = ReceivedEnvelope::parse(&theirs.bytes).unwrap();
    assert_ne!(ours.signature, theirs.signature);
    assert_eq!(ours.digest(), theirs.digest());
}

fn verified_payload(bytes: &[u8]) -> Option<Vec<u8>> {
    let envelope = ReceivedEnvelope::parse(bytes).ok()?;
    let payload = envelope.payload().to_vec();
    let verified = envelope.verify(&connection_to(&hub()), now()).ok()?;
    Some([verified.digest().to_vec(), payload].concat())
}

/// F9: whichever single byte is changed, either nothing verifies or the meaning is the same, byte for byte.
#[test]
fn f9_no_changed_byte_changes_the_meaning() {
    let original = sealed().into_bytes();
    let meaning = verified_payload(&original).unwrap();
    for at in 0..original.len() {
        for flip in [0x01, 0x20, 0x80] {
            let mut changed = original.clone();
            changed[at] ^= flip;
            if let Some(other) = verified_payload(&changed) {
                assert_eq!(other, meaning, "byte {at}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_payload_survives(payload: Vec<u8>, kind in 0_usize..5) {
        let sealed = seal(&hub(), PayloadType::ALL[kind], &payload);
        let envelope = ReceivedEnvelope::parse(&sealed.bytes).unwrap();
        prop_assert_eq!(envelope.payload(), &payload);
        prop_assert!(envelope.is_signed_by(&VerifyingKey::from_bytes(&hub().public_key()).unwrap()));
        prop_assert!(!envelope.is_signed_by(&VerifyingKey::from_bytes(&stranger().public_key()).unwrap()));
    }

    #[test]
    fn f9_no_edit_changes_the_meaning(
        at: prop::sample::Index,
        cut in 0_usize..4,
        insert in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let original = sealed().into_bytes();
        let meaning = verified_payload(&original).unwrap();
        let at = at.index(original.len());
        let mut changed = original.clone();
        changed.splice(at..(at + cut).min(original.len()), insert);
        if let Some(other) = verified_payload(&changed) {
            prop_assert_eq!(other, meaning);
        }
    }

    #[test]
    fn whatever_decodes_is_its_own_spelling(text in "[A-Za-z0-9+/=]{0,24}") {
        let json = sealed().replace(&STANDARD.encode(PAYLOAD), &text);
        if let Ok(envelope) = ReceivedEnvelope::parse(json.as_bytes()) {
            prop_assert_eq!(STANDARD.encode(envelope.payload()), text);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = ReceivedEnvelope::parse(&bytes);
    }
}
