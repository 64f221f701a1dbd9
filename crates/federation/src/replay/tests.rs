use mosaic_types::InstanceId;
use proptest::prelude::*;

use super::*;
use crate::test_support::{hub, now, secs_from_now, stranger};

fn request(peer: &InstanceId, message_id: MessageId, digest: u8, expires_in: i64) -> ClaimRequest {
    ClaimRequest {
        peer: peer.clone(),
        message_id,
        digest: [digest; 32],
        expires_at: secs_from_now(expires_in),
        is_kill: true,
    }
}

#[test]
fn f10_f16_a_claim_is_of_one_peer_id_and_digest() {
    let (hub, stranger, id) = (hub(), stranger(), MessageId::generate());
    let mut claims = KillClaims::new(10);
    let one = request(hub.instance_id(), id, 1, 60);
    assert!(matches!(
        claims.claim(one.clone(), now()),
        KillClaimOutcome::Fresh(_)
    ));
    assert_eq!(claims.claim(one, now()), KillClaimOutcome::Repeated);
    let other = request(hub.instance_id(), id, 2, 60);
    assert_eq!(claims.claim(other, now()), KillClaimOutcome::Conflict);
    let anothers = request(stranger.instance_id(), id, 1, 60);
    assert!(matches!(
        claims.claim(anothers, now()),
        KillClaimOutcome::Fresh(_)
    ));
    let spawn = ClaimRequest {
        is_kill: false,
        ..request(hub.instance_id(), MessageId::generate(), 1, 60)
    };
    assert_eq!(claims.claim(spawn, now()), KillClaimOutcome::NotAKill);
}

/// A clock that is set back brings back no kill that is kept, and hinders no new one.
#[test]
fn f10_a_clock_set_back_repeats_no_kill_and_hinders_none() {
    let hub = hub();
    let mut claims = KillClaims::new(10);
    let kill = request(hub.instance_id(), MessageId::generate(), 1, 60);
    claims.claim(kill.clone(), now());
    for back in [-1, -86_400] {
        let earlier = secs_from_now(back);
        let again = claims.claim(kill.clone(), earlier);
        assert_eq!(again, KillClaimOutcome::Repeated);
        let fresh = request(hub.instance_id(), MessageId::generate(), 1, back + 60);
        let outcome = claims.claim(fresh.clone(), earlier);
        assert!(matches!(outcome, KillClaimOutcome::Fresh(_)));
        let again = claims.claim(fresh, earlier);
        assert_eq!(again, KillClaimOutcome::Repeated);
    }
}

#[test]
fn f12_a_full_table_keeps_what_it_has_and_kills_in_doubt() {
    let hub = hub();
    let mut claims = KillClaims::new(100);
    let first: Vec<_> = (0..100)
        .map(|_| request(hub.instance_id(), MessageId::generate(), 1, 60))
        .collect();
    for claim in &first {
        assert!(matches!(
            claims.claim(claim.clone(), now()),
            KillClaimOutcome::Fresh(_)
        ));
    }
    for _ in 0..4000 {
        let more = request(hub.instance_id(), MessageId::generate(), 1, 60);
        assert!(matches!(
            claims.claim(more, now()),
            KillClaimOutcome::InDoubt(_)
        ));
    }
    assert_eq!(claims.len(), 100);
    for claim in first {
        assert_eq!(
            claims.claim(claim, secs_from_now(60)),
            KillClaimOutcome::Repeated
        );
    }
    let later = request(hub.instance_id(), MessageId::generate(), 1, 120);
    assert!(matches!(
        claims.claim(later, secs_from_now(61)),
        KillClaimOutcome::Fresh(_)
    ));
    assert_eq!(claims.len(), 1);
}

proptest! {
    /// F12: nothing that has not expired is ever forgotten, whatever the order of times.
    #[test]
    fn f12_what_is_fresh_is_known_until_it_expires(steps in prop::collection::vec((0_i64..50, 1_i64..50), 1..60)) {
        let hub = hub();
        let mut claims = KillClaims::new(20);
        let mut kept: Vec<ClaimRequest> = Vec::new();
        let mut clock = 0;
        for (wait, ttl) in steps {
            clock += wait / 10;
            let at = secs_from_now(clock);
            let claim = request(hub.instance_id(), MessageId::generate(), 1, clock + ttl);
            if matches!(claims.claim(claim.clone(), at), KillClaimOutcome::Fresh(_)) {
                kept.push(claim);
            }
            kept.retain(|claim| claim.expires_at >= at);
            prop_assert!(kept.len() <= 20);
            prop_assert_eq!(claims.len(), kept.len());
            for claim in &kept {
                prop_assert_eq!(claims.claim(claim.clone(), at), KillClaimOutcome::Repeated);
            }
        }
    }
}

/// F10: a captured kill is no kill again after a restart.
#[test]
fn f10_a_claim_of_before_a_restart_is_known() {
    let (hub, id) = (hub(), MessageId::generate());
    let kill = request(hub.instance_id(), id, 1, 60);
    let mut claims = KillClaims::new(4);
    claims.restore(hub.instance_id().clone(), id, [1; 32], secs_from_now(60));
    assert_eq!(
        claims.claim(kill.clone(), now()),
        KillClaimOutcome::Repeated
    );
    let other = request(hub.instance_id(), id, 2, 60);
    assert_eq!(claims.claim(other, now()), KillClaimOutcome::Conflict);
    for _ in 0..10 {
        let id = MessageId::generate();
        claims.restore(hub.instance_id().clone(), id, [1; 32], secs_from_now(60));
    }
    assert_eq!(claims.len(), 2, "half of it is for fresh kills");
    // Forgotten when it expires, like every other.
    assert!(matches!(
        claims.claim(kill, secs_from_now(61)),
        KillClaimOutcome::Fresh(_)
    ));
}
