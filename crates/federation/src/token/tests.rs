use serde_json::{Value, json};

use super::*;
use crate::test_support::{now, secs_from_now, spoke};

fn token() -> PeeringToken {
    PeeringToken::mint(
        "https://spoke.example:7443".to_owned(),
        spoke().instance_id().clone(),
        InviteId::generate(),
        secs_from_now(3600),
        Grants::full(vec!["**".to_owned()]),
    )
    .unwrap()
}

fn text(value: &Value) -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(value.to_string()))
}

#[test]
fn a_token_is_read_as_it_was_made() {
    let token = token();
    let text = token.encode().unwrap();
    let read = PeeringToken::parse(&format!(" {}\n", text.as_str()), now()).unwrap();
    assert_eq!(read, token);
    assert_eq!(read.secret_hash(), token.secret_hash());
    assert_ne!(self::token().secret_hash(), token.secret_hash());
}

#[test]
fn a_damaged_token_is_refused_without_its_secret() {
    let token = token();
    let good = serde_json::to_value(&token).unwrap();
    let secret = good["secret"].as_str().unwrap().to_owned();
    let with = |member: &str, value: Value| {
        let mut bad = good.clone();
        bad[member] = value;
        PeeringToken::parse(&text(&bad), now()).unwrap_err()
    };
    let malformed = |field: &str| TokenError::Malformed {
        field: field.to_owned(),
    };
    assert_eq!(with("v", json!(2)), TokenError::Version { version: 2 });
    assert_eq!(with("more", json!(1)), malformed("more"));
    assert_eq!(with("secret", json!(secret[1..])), malformed("secret"));
    assert_eq!(
        with("secret", json!(format!("{secret}="))),
        malformed("secret")
    );
    assert_eq!(with("instanceId", json!("mi1")), malformed("instanceId"));
    assert_eq!(with("inviteId", json!("7")), malformed("inviteId"));
    assert_eq!(with("expiresAt", Value::Null), malformed("expiresAt"));
    assert_eq!(with("grants", json!({})), malformed("grants.commands"));
    assert_eq!(with("url", json!("x".repeat(3000))), TokenError::TooLong);
    assert_eq!(with("url", json!("x".repeat(20_000))), TokenError::TooLong);
    let good_text = text(&good);
    for bad in [
        &good_text[1..],
        "",
        PREFIX,
        "mosaic2.e30",
        &good_text.replace('.', ".."),
    ] {
        assert!(PeeringToken::parse(bad, now()).is_err(), "{bad}");
    }
    let padded = format!("{good_text}==");
    assert_eq!(PeeringToken::parse(&padded, now()), Err(TokenError::Form));
    let twice = good.to_string().replacen('{', r#"{"v":1,"#, 1);
    let twice = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(twice));
    assert_eq!(PeeringToken::parse(&twice, now()), Err(malformed("v")));
    let expired = PeeringToken::parse(&good_text, token.expires_at);
    assert!(matches!(expired, Err(TokenError::Expired { .. })));
    assert!(!format!("{token:?}").contains(&secret));
}

#[test]
fn a_token_that_could_not_be_read_is_not_made() {
    let mut token = token();
    token.grants.repositories = vec!["x".repeat(2000); 10];
    assert_eq!(token.encode().unwrap_err(), TokenError::TooLong);
    token.grants.repositories.clear();
    token.url = "x".repeat(3000);
    assert_eq!(token.encode().unwrap_err(), TokenError::TooLong);
}
