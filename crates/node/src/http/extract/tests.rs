use mosaic_types::{api::InviteRequest, command::SpawnPayload};

use super::*;

#[test]
fn the_member_at_fault_is_named_by_its_path() {
    let field = |text: &str| {
        parse_json::<InviteRequest>(text.as_bytes())
            .unwrap_err()
            .field
    };
    let caps = |inner: &str| {
        format!(
            r#"{{"grants":{{"commands":[],"repositories":[],"runtimes":[],"sandboxes":[],"caps":{{{inner}}}}}}}"#
        )
    };
    assert!(parse_json::<InviteRequest>(caps("").as_bytes()).is_ok());
    assert_eq!(
        field(&caps(r#""maxAgents":-1"#)).as_deref(),
        Some("grants.caps.maxAgents")
    );
    assert_eq!(
        field(&caps(r#""maxAgent":1"#)).as_deref(),
        Some("grants.caps.maxAgent")
    );
    assert_eq!(field("{}").as_deref(), Some("grants"));
    assert_eq!(
        field(r#"{"grants":{"commands":[]}}"#).as_deref(),
        Some("grants.repositories")
    );
    assert_eq!(field("nonsense").as_deref(), None);
}

#[test]
fn what_follows_the_value_is_refused() {
    assert!(parse_json::<u32>(b"1 ").is_ok());
    assert!(parse_json::<u32>(b"1 2").is_err());
}

#[test]
fn a_message_is_never_longer_than_a_line_or_two() {
    let text = format!(r#"{{"{}":1}}"#, "x".repeat(100_000));
    let refusal = parse_json::<SpawnPayload>(text.as_bytes()).unwrap_err();
    assert!(refusal.message.len() <= 300 && refusal.field.unwrap().len() <= 300);
}

/// Serde would read a list as a struct, member by member.
#[test]
fn only_an_object_is_a_body() {
    let list = br#"["name","admin"]"#;
    assert!(parse_json::<mosaic_types::api::TokenRequest>(list).is_ok());
    assert!(parse_object::<mosaic_types::api::TokenRequest>(list).is_err());
    assert!(
        parse_object::<mosaic_types::api::TokenRequest>(br#" {"name":"x","role":"admin"}"#).is_ok()
    );
}
