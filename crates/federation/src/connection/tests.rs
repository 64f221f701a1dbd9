use mosaic_types::{command::NetworkPolicy, connection::NodeRole, grant::Caps};
use serde_json::json;

use super::*;
use crate::{
    connect::{IdentityFacts, seal_identity},
    test_support::{connection_to, hub, now, secs_from_now},
};

fn in_state(state: ConnectionState) -> Connection {
    Connection {
        state,
        ..connection_to(&hub())
    }
}

#[test]
fn every_move_is_in_the_table_and_counts() {
    use ConnectionState::{Active, Disconnected, Pending, Suspended};
    type Move = fn(&Connection) -> Result<Connection, ConnectionError>;
    let moves: [(&str, Move, &[ConnectionState], ConnectionState); 5] = [
        (
            "accept",
            |c| accept(c, Grants::none(), now()),
            &[Pending],
            Active,
        ),
        ("reject", |c| reject(c, now()), &[Pending], Disconnected),
        ("suspend", |c| suspend(c, now()), &[Active], Suspended),
        ("resume", |c| resume(c, now()), &[Suspended], Active),
        (
            "disconnect",
            |c| disconnect(c, now()),
            &[Pending, Active, Suspended],
            Disconnected,
        ),
    ];
    for (name, make, from, to) in moves {
        for state in ConnectionState::ALL {
            let before = in_state(state);
            match make(&before) {
                Ok(after) => {
                    assert!(from.contains(&state), "{name} from {state}");
                    assert_eq!((after.state, after.version), (to, 2));
                    assert_eq!(
                        (after.created_at, after.updated_at),
                        (before.created_at, now())
                    );
                    let granted = if name == "accept" {
                        Grants::none()
                    } else {
                        before.granted
                    };
                    assert_eq!(after.granted, granted, "{name}");
                }
                Err(error) => {
                    assert!(!from.contains(&state), "{name} from {state}: {error}");
                    assert_eq!(error.refusal().code, ErrorCode::ConnectionNotActive);
                }
            }
        }
    }
}

#[test]
fn f14_grants_are_checked_before_they_are_given() {
    let pending = in_state(ConnectionState::Pending);
    let globs = Grants::full(vec!["{".to_owned()]);
    let refused = accept(&pending, globs, now()).unwrap_err().refusal();
    assert_eq!(refused.field.as_deref(), Some("grants.repositories"));
    for cap in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        let caps = Caps {
            max_cpus: Some(cap),
            ..Caps::default()
        };
        let grants = Grants {
            caps,
            ..Grants::none()
        };
        let refused = accept(&pending, grants, now()).unwrap_err().refusal();
        assert_eq!(refused.field.as_deref(), Some("grants.caps.maxCpus"));
    }
    for list in [vec![], vec!["127.1".to_owned()]] {
        let mut grants = Grants::none();
        grants.caps.network = NetworkPolicy::Allow(list);
        let refused = accept(&pending, grants, now()).unwrap_err().refusal();
        assert_eq!(refused.field.as_deref(), Some("grants.caps.network"));
    }
    for (field, zero) in [
        ("maxBudgetUsd", json!(0.0)),
        ("budgetUsdPerDay", json!(0.0)),
        ("maxBudgetTokens", json!(0)),
        ("budgetTokensPerDay", json!(0)),
        ("maxLeaseSecs", json!(0)),
    ] {
        let grants = Grants {
            caps: serde_json::from_value(json!({ field: zero })).unwrap(),
            ..Grants::none()
        };
        let refused = accept(&pending, grants, now()).unwrap_err().refusal();
        assert_eq!(refused.field, Some(format!("grants.caps.{field}")));
    }
}

#[test]
fn connections_begin_as_their_origin_says() {
    let facts = IdentityFacts {
        name: "hub".to_owned(),
        role: NodeRole::Hub,
        url: Some("https://hub.example".to_owned()),
        commands: vec![],
    };
    let document = seal_identity(&hub(), &facts, now()).unwrap();
    let identity = VerifiedIdentity::verify(&document, now()).unwrap();
    let begin = |origin| from_connect(&identity, origin, ConnectionId::generate(), now());
    let grants = Grants::full(vec!["**".to_owned()]);
    let invite_id = InviteId::generate();

    let invited = begin(Origin::Invited {
        invite_id,
        granted: grants.clone(),
    })
    .unwrap();
    assert_eq!(invited.state, ConnectionState::Active);
    assert_eq!(
        (&invited.granted, invited.invite_id),
        (&grants, Some(invite_id))
    );
    assert_eq!(
        (invited.version, invited.protocol, invited.outgoing),
        (1, 1, false)
    );
    assert_eq!(&invited.peer, hub().instance_id());
    assert_eq!(invited.keys[0].not_before, secs_from_now(-30));

    let asked = begin(Origin::Asked).unwrap();
    assert_eq!(asked.state, ConnectionState::Pending);
    assert_eq!(asked.granted, Grants::none());

    let outgoing = |state| Origin::Outgoing {
        state,
        received: Box::new(grants.clone()),
        granted: Grants::none(),
        invite_id: None,
    };
    let ours = begin(outgoing(ConnectionState::Active)).unwrap();
    assert!(ours.outgoing);
    assert_eq!((&ours.received, &ours.granted), (&grants, &Grants::none()));
    assert!(begin(outgoing(ConnectionState::Suspended)).is_err());
}
