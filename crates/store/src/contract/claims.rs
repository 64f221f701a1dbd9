//! Claims: a message of a peer is executed at most once.

use std::sync::Arc;

use mosaic_types::MessageId;
use tokio::task::JoinSet;

use super::{
    Backend, Outcome,
    samples::{at, claim, peer},
};
use crate::{Claim, ClaimOutcome, Limits, StoreError};

const NO_RESPONSE: ClaimOutcome = ClaimOutcome::Repeated { response: None };

fn repeated(response: &[u8]) -> ClaimOutcome {
    ClaimOutcome::Repeated {
        response: Some(response.to_vec()),
    }
}

/// F10.
pub async fn a_claim_is_fresh_once_and_repeats_its_response(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let message = claim(&peer(1)?, 1, 60);
    assert_eq!(store.claim(message.clone()).await?, ClaimOutcome::Fresh);
    assert_eq!(store.claim(message.clone()).await?, NO_RESPONSE);
    let response = b"signed \x00\xff".to_vec();
    store
        .keep_response(&message.peer, message.message_id, response.clone())
        .await?;
    assert_eq!(store.claim(message).await?, repeated(&response));
    store.close().await;
    Ok(())
}

/// F10: and the first claim stays what it was.
pub async fn the_same_id_with_another_digest_conflicts(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let message = claim(&peer(1)?, 1, 60);
    let forged = Claim {
        digest: [2; 32],
        ..message.clone()
    };
    assert_eq!(store.claim(message.clone()).await?, ClaimOutcome::Fresh);
    assert_eq!(store.claim(forged.clone()).await?, ClaimOutcome::Conflict);
    store
        .keep_response(&message.peer, message.message_id, b"mine".to_vec())
        .await?;
    assert_eq!(store.claim(forged).await?, ClaimOutcome::Conflict);
    assert_eq!(store.claim(message).await?, repeated(b"mine"));
    store.close().await;
    Ok(())
}

/// F16.
pub async fn the_same_id_of_two_peers_is_two_messages(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let first = claim(&peer(1)?, 1, 60);
    let second = Claim {
        peer: peer(2)?,
        ..first.clone()
    };
    assert_eq!(store.claim(first.clone()).await?, ClaimOutcome::Fresh);
    store
        .keep_response(&first.peer, first.message_id, b"for the first".to_vec())
        .await?;
    assert_eq!(store.claim(second.clone()).await?, ClaimOutcome::Fresh);
    assert_eq!(store.claim(second).await?, NO_RESPONSE);
    assert_eq!(store.claim(first).await?, repeated(b"for the first"));
    store.close().await;
    Ok(())
}

/// F10: a restart is no way to have a message executed again.
pub async fn claims_and_responses_survive_a_restart(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let answered = claim(&peer(1)?, 1, 60);
    let unanswered = claim(&peer(1)?, 2, 60);
    store.claim(answered.clone()).await?;
    store.claim(unanswered.clone()).await?;
    store
        .keep_response(&answered.peer, answered.message_id, b"kept".to_vec())
        .await?;
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.claim(answered.clone()).await?, repeated(b"kept"));
    assert_eq!(store.claim(unanswered).await?, NO_RESPONSE);
    let forged = Claim {
        digest: [9; 32],
        ..answered
    };
    assert_eq!(store.claim(forged).await?, ClaimOutcome::Conflict);
    store.close().await;
    Ok(())
}

/// F12: after a restart too, so the count is not lost.
pub async fn a_full_table_refuses_and_evicts_nothing(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_claims: 8,
        ..Limits::default()
    };
    let store = backend.open(limits.clone()).await?;
    let claims: Vec<Claim> = (0..8)
        .map(|number| Ok(claim(&peer(number)?, 1, 60 + u64::from(number))))
        .collect::<Result<_, StoreError>>()?;
    for message in &claims {
        assert_eq!(store.claim(message.clone()).await?, ClaimOutcome::Fresh);
    }
    let late = claim(&peer(9)?, 1, 999);
    for _ in 0..20 {
        let refused = store.claim(late.clone()).await;
        assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    }
    store.close().await;
    let store = backend.open(limits).await?;
    let refused = store.claim(late.clone()).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    for message in &claims {
        assert_eq!(store.claim(message.clone()).await?, NO_RESPONSE);
    }
    assert_eq!(store.sweep_claims(at(61)).await?, 1);
    assert_eq!(store.claim(late).await?, ClaimOutcome::Fresh);
    let refused = store.claim(claim(&peer(9)?, 1, 999)).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    store.close().await;
    Ok(())
}

/// F12: a peer that claims without end is refused, and the others are not, after a restart neither.
pub async fn a_peer_has_its_share_and_no_more(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_claims_per_peer: 3,
        ..Limits::default()
    };
    let mut store = backend.open(limits.clone()).await?;
    let first = claim(&peer(1)?, 1, 60);
    assert_eq!(store.claim(first.clone()).await?, ClaimOutcome::Fresh);
    for _ in 0..2 {
        let fresh = store.claim(claim(&peer(1)?, 1, 90)).await?;
        assert_eq!(fresh, ClaimOutcome::Fresh);
    }
    for round in 0..2 {
        let refused = store.claim(claim(&peer(1)?, 1, 90)).await;
        assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
        let other = store.claim(claim(&peer(2)?, 1, 90)).await?;
        assert_eq!(other, ClaimOutcome::Fresh);
        assert_eq!(store.claim(first.clone()).await?, NO_RESPONSE);
        if round == 0 {
            store.close().await;
            store = backend.open(limits.clone()).await?;
        }
    }
    // What is swept is given back, to the peer whose it was.
    assert_eq!(store.sweep_claims(at(61)).await?, 1);
    let fresh = store.claim(claim(&peer(1)?, 1, 90)).await?;
    assert_eq!(fresh, ClaimOutcome::Fresh);
    let refused = store.claim(claim(&peer(1)?, 1, 90)).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    store.close().await;
    Ok(())
}

/// F10: what a restarted node reads, to know of what it did before.
pub async fn unexpired_claims_are_told_after_a_restart(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let claims = [
        claim(&peer(1)?, 1, 59),
        claim(&peer(1)?, 2, 60),
        claim(&peer(2)?, 3, 90),
    ];
    for message in &claims {
        store.claim(message.clone()).await?;
    }
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    let told = store.unexpired_claims(at(60), 10).await?;
    assert_eq!(told, [claims[2].clone(), claims[1].clone()]);
    let told = store.unexpired_claims(at(60), 1).await?;
    assert_eq!(told, [claims[2].clone()]);
    store.close().await;
    Ok(())
}

/// F12: a claim that has not expired is never swept, not even at the millisecond of its expiry.
pub async fn a_sweep_forgets_only_what_expired(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let gone = claim(&peer(1)?, 1, 59);
    let edge = claim(&peer(1)?, 1, 60);
    let stays = claim(&peer(1)?, 1, 61);
    for message in [&gone, &edge, &stays] {
        store.claim(message.clone()).await?;
        store
            .keep_response(&message.peer, message.message_id, b"kept".to_vec())
            .await?;
    }
    assert_eq!(store.sweep_claims(at(60)).await?, 1);
    assert_eq!(store.sweep_claims(at(60)).await?, 0);
    assert_eq!(store.claim(edge).await?, repeated(b"kept"));
    assert_eq!(store.claim(stays).await?, repeated(b"kept"));
    assert_eq!(store.claim(gone).await?, ClaimOutcome::Forgotten);
    store.close().await;
    Ok(())
}

/// F10: a clock that is set back makes a message fresh again, not its claim. What comes while clocks go on as they
/// should is never taken for one, nor what comes after a clock that was far ahead was set right.
pub async fn a_message_whose_claim_was_swept_is_never_fresh_again(
    backend: &dyn Backend,
) -> Outcome {
    const YEAR: u64 = 365 * 86_400;
    let mut store = backend.open(Limits::default()).await?;
    let message = claim(&peer(1)?, 1, 60);
    let in_a_year = claim(&peer(1)?, 2, YEAR);
    for message in [&message, &in_a_year] {
        assert_eq!(store.claim(message.clone()).await?, ClaimOutcome::Fresh);
    }
    assert_eq!(store.sweep_claims(at(YEAR + 1)).await?, 2);
    for round in 0..2_u8 {
        for swept in [&message, &in_a_year] {
            let again = store.claim(swept.clone()).await?;
            assert_eq!(again, ClaimOutcome::Forgotten, "round {round}");
        }
        for (number, expires) in [
            (3 + round, 61),
            (5 + round, YEAR / 2),
            (7 + round, YEAR + 1),
        ] {
            let fresh = store.claim(claim(&peer(2)?, number, expires)).await?;
            assert_eq!(fresh, ClaimOutcome::Fresh, "{expires}");
        }
        store.close().await;
        store = backend.open(Limits::default()).await?;
    }
    store.close().await;
    Ok(())
}

/// F10: sixteen who race for each of fifty messages.
pub async fn one_of_many_concurrent_claims_is_fresh(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    for _ in 0..50 {
        let message = claim(&peer(1)?, 1, 60);
        let mut racers = JoinSet::new();
        for _ in 0..16 {
            let (store, message) = (Arc::clone(&store), message.clone());
            racers.spawn(async move { store.claim(message).await });
        }
        let mut fresh = 0;
        for outcome in racers.join_all().await {
            match outcome? {
                ClaimOutcome::Fresh => fresh += 1,
                other => assert_eq!(other, NO_RESPONSE),
            }
        }
        assert_eq!(fresh, 1);
    }
    store.close().await;
    Ok(())
}

/// F16: what was sent once is what is sent again.
pub async fn the_first_kept_response_stays(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let message = claim(&peer(1)?, 1, 60);
    store.claim(message.clone()).await?;
    for response in [b"first".to_vec(), b"second".to_vec()] {
        store
            .keep_response(&message.peer, message.message_id, response)
            .await?;
    }
    assert_eq!(store.claim(message).await?, repeated(b"first"));
    store.close().await;
    Ok(())
}

/// F22: responses grow no further than the claims that bound them.
pub async fn a_response_needs_a_claim_and_has_a_bound(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_response_bytes: 16,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let unclaimed = store
        .keep_response(&peer(1)?, MessageId::generate(), b"x".to_vec())
        .await;
    assert!(
        matches!(unclaimed, Err(StoreError::NotFound)),
        "{unclaimed:?}"
    );
    let message = claim(&peer(1)?, 1, 60);
    store.claim(message.clone()).await?;
    let long = store
        .keep_response(&message.peer, message.message_id, vec![0; 17])
        .await;
    assert!(matches!(long, Err(StoreError::TooLarge { .. })), "{long:?}");
    assert_eq!(store.claim(message).await?, NO_RESPONSE);
    store.close().await;
    Ok(())
}
