use super::*;
use crate::limits::HttpLimits;

fn admission(max: usize, per_address: usize, local: usize) -> Arc<Admission> {
    Arc::new(Admission::new(&HttpLimits {
        max_connections: max,
        max_connections_per_address: per_address,
        reserved_local_connections: local,
        ..HttpLimits::default()
    }))
}

fn operator() -> Killer {
    Killer::Operator("admin".to_owned())
}

fn peer() -> Killer {
    Killer::Peer(mosaic_types::ConnectionId::generate())
}

fn kept(slots: &[Slot]) -> usize {
    slots.iter().filter(|slot| !slot.is_revoked()).count()
}

#[test]
fn a_flood_from_one_address_leaves_room_for_others_and_for_the_local_operator() {
    let admission = admission(4, 2, 1);
    let admit = |text: &str| Admission::admit(&admission, text.parse().unwrap());
    let flood: Vec<_> = (0..10).filter_map(|_| admit("203.0.113.1")).collect();
    assert_eq!((flood.len(), kept(&flood)), (10, 2), "the newest are kept");
    assert!(flood[..8].iter().all(Slot::is_revoked));
    let mapped = admit("::ffff:203.0.113.1");
    assert!(
        flood[8].is_revoked(),
        "the same address in another spelling"
    );
    let local = admit("127.0.0.1").unwrap();
    let others: Vec<_> = (2..10)
        .filter_map(|n| admit(&format!("203.0.113.{n}")))
        .collect();
    assert_eq!(kept(&others), 3, "and the local one");
    assert!(!local.is_revoked(), "the reserve is not taken from outside");
    assert!(admit("::1").is_some());
    drop((flood, others, local, mapped));
    let admitted = admission.lock();
    assert_eq!(
        (admitted.connections.len(), admitted.by_address.len()),
        (0, 0),
        "nothing is kept for who has left"
    );
}

/// Promise 1: whoever holds sockets open, the one who comes to kill gets in.
#[test]
fn whoever_has_shown_nothing_makes_room_for_a_newcomer() {
    let admission = admission(3, 3, 1);
    let admit = |text: &str| Admission::admit(&admission, text.parse().unwrap());
    let idle: Vec<_> = (0..4).filter_map(|_| admit("127.0.0.1")).collect();
    assert_eq!(kept(&idle), 4);
    let operator = admit("127.0.0.1").unwrap();
    assert!(idle[0].is_revoked() && kept(&idle) == 3);
    operator.standing().raise_to_killer(&self::operator());
    let viewer = admit("127.0.0.1").unwrap();
    viewer.standing().raise_to_viewer();
    // A hub from elsewhere: the share of loopback is what it has above its reserve.
    let hub = admit("203.0.113.1").unwrap();
    hub.standing().raise_to_killer(&peer());
    assert!(idle[2].is_revoked(), "{idle:?}");
    let more: Vec<_> = (0..8).filter_map(|_| admit("127.0.0.1")).collect();
    assert_eq!((kept(&idle), kept(&more)), (0, 1));
    assert!(!viewer.is_revoked() && !operator.is_revoked() && !hub.is_revoked());
    // Only when everybody else has shown more does the viewer go; those who may kill stay.
    more[7].standing().raise_to_killer(&peer());
    assert!(admit("127.0.0.1").is_some());
    assert!(viewer.is_revoked() && !operator.is_revoked() && !more[7].is_revoked());
}

/// One who has a network of 2^64 addresses has one.
#[test]
fn an_ipv6_network_is_one_address() {
    let admission = admission(10, 2, 1);
    let admit = |text: &str| Admission::admit(&admission, text.parse().unwrap());
    let flood: Vec<_> = (1..8)
        .filter_map(|n| admit(&format!("2001:db8:1:2::{n:x}")))
        .collect();
    let other = admit("2001:db8:1:3::1").unwrap();
    assert_eq!(kept(&flood), 2);
    assert!(!other.is_revoked());
}

#[test]
fn those_who_may_kill_are_never_closed_for_a_newcomer() {
    let admission = admission(2, 2, 0);
    let admit = |text: &str| Admission::admit(&admission, text.parse().unwrap());
    let hub: Vec<_> = (0..2).filter_map(|_| admit("203.0.113.1")).collect();
    hub.iter()
        .for_each(|slot| slot.standing().raise_to_killer(&peer()));
    assert!(admit("203.0.113.1").is_none() && admit("203.0.113.2").is_none());
    assert_eq!(kept(&hub), 2);
}

/// Promise 1: one peer, from however many addresses, or one operator keeps nobody out; and what is within the share stays.
#[test]
fn a30_what_one_has_above_its_share_makes_room_for_a_newcomer() {
    for killer in [peer(), operator()] {
        let admission = admission(8, 8, 0);
        let admit = |text: &str| Admission::admit(&admission, text.parse().unwrap());
        let of_one = |number: usize| {
            let slot = admit(&format!("203.0.113.{number}")).unwrap();
            // As often as it asks.
            for _ in 0..3 {
                slot.standing().raise_to_killer(&killer);
            }
            slot
        };
        let flood: Vec<_> = (0..8).map(of_one).collect();
        let others: Vec<_> = (0..6)
            .filter_map(|number| {
                let slot = admit(&format!("198.51.100.{number}"))?;
                slot.standing().raise_to_killer(&peer());
                Some(slot)
            })
            .collect();
        assert_eq!((kept(&others), kept(&flood)), (6, 2));
        assert!(!flood[0].is_revoked() && !flood[1].is_revoked());
        // What is closed is given back.
        drop((flood, others));
        let again: Vec<_> = (0..2).map(of_one).collect();
        let newcomers: Vec<_> = (0..8).filter_map(|_| admit("198.51.100.1")).collect();
        assert_eq!((kept(&again), kept(&newcomers)), (2, 6));
    }
}

/// Streams cannot take all the connections by which a kill could come.
#[test]
fn the_default_limits_leave_room_for_kills_beside_streams() {
    let limits = HttpLimits::default();
    assert!(limits.max_streams_per_peer * 4 <= limits.max_connections_per_address);
    assert!(limits.max_streams * 2 <= limits.max_connections);
    assert!(limits.max_connections_per_address * 4 <= limits.max_connections);
    assert!(limits.max_streams_per_peer * 2 <= limits.max_connections / 4);
}
