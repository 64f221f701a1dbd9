//! Connections, invitations and operators' tokens.

use std::sync::Arc;

use mosaic_types::connection::{Connection, ConnectionState};
use tokio::task::JoinSet;

use super::{
    Backend, Outcome,
    samples::{at, connection, event, invite, peer, token},
};
use crate::{Limits, StoreError};

fn next(stored: &Connection, state: ConnectionState) -> Connection {
    Connection {
        state,
        version: stored.version + 1,
        ..stored.clone()
    }
}

/// A change names the version that it was made to.
pub async fn a_connection_is_saved_at_its_next_version_only(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let pending = connection(ConnectionState::Pending)?;
    let skipped = Connection {
        version: 2,
        ..pending.clone()
    };
    let refused = store.save_connection(skipped, event("x")).await;
    assert!(
        matches!(refused, Err(StoreError::VersionConflict)),
        "{refused:?}"
    );
    store.save_connection(pending.clone(), event("x")).await?;
    let again = store.save_connection(pending.clone(), event("x")).await;
    assert!(
        matches!(again, Err(StoreError::VersionConflict)),
        "{again:?}"
    );
    let active = next(&pending, ConnectionState::Active);
    store.save_connection(active.clone(), event("x")).await?;
    let other = connection(ConnectionState::Pending)?;
    let head = store.save_connection(other.clone(), event("x")).await?;
    assert_eq!(head, store.audit_head());
    assert_eq!(head.seq, 3);
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.connections().await?, [active, other]);
    store.close().await;
    Ok(())
}

/// Two operators change the same connection at once: one of them is told.
pub async fn one_of_two_racing_changes_wins(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let stored = connection(ConnectionState::Active)?;
    store.save_connection(stored.clone(), event("x")).await?;
    let mut racers = JoinSet::new();
    for number in 0..8 {
        let store = Arc::clone(&store);
        let mut change = next(&stored, ConnectionState::Suspended);
        change.name = format!("racer {number}");
        racers.spawn(async move { store.save_connection(change, event("x")).await });
    }
    let outcomes = racers.join_all().await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 1, "{outcomes:?}");
    assert_eq!(store.audit_head().seq, 2);
    assert_eq!(store.connections().await?[0].version, 2);
    store.close().await;
    Ok(())
}

/// F15: no race brings an ended connection back.
pub async fn a_disconnected_connection_stays_so(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let active = connection(ConnectionState::Active)?;
    store.save_connection(active.clone(), event("x")).await?;
    let ended = next(&active, ConnectionState::Disconnected);
    store.save_connection(ended.clone(), event("x")).await?;
    let revived = next(&ended, ConnectionState::Active);
    let refused = store.save_connection(revived, event("x")).await;
    assert!(
        matches!(refused, Err(StoreError::IllegalConnectionMove { .. })),
        "{refused:?}"
    );
    assert_eq!(store.connections().await?, [ended]);
    assert_eq!(store.audit_head().seq, 2);
    store.close().await;
    Ok(())
}

/// F22: strangers who ask to connect fill a bounded table, and throw nobody out of it.
pub async fn a_full_table_forgets_disconnected_ones_only(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let first = connection(ConnectionState::Active)?;
    let second = connection(ConnectionState::Pending)?;
    let third = connection(ConnectionState::Pending)?;
    store.save_connection(first.clone(), event("x")).await?;
    store.save_connection(second.clone(), event("x")).await?;
    let refused = store.save_connection(third.clone(), event("x")).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    let rejected = next(&second, ConnectionState::Disconnected);
    store.save_connection(rejected, event("x")).await?;
    store.save_connection(third.clone(), event("x")).await?;
    assert_eq!(store.connections().await?, [first, third]);
    store.close().await;
    Ok(())
}

/// Sixteen who hold the same token: one connection.
pub async fn an_invite_is_used_once_by_one_of_many(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let invitation = invite(7);
    store
        .save_invite(invitation.clone(), event("invite"))
        .await?;
    assert_eq!(store.invite([7; 32]).await?.as_ref(), Some(&invitation));
    assert_eq!(store.invite([8; 32]).await?, None);
    let mut racers = JoinSet::new();
    for number in 0..16 {
        let store = Arc::clone(&store);
        let mut wanted = connection(ConnectionState::Active)?;
        wanted.peer = peer(number)?;
        let invite_id = invitation.invite_id;
        racers.spawn(async move {
            let outcome = store
                .redeem_invite(invite_id, at(1), wanted.clone(), event("redeem"))
                .await;
            (wanted, outcome)
        });
    }
    let mut winners = Vec::new();
    for (wanted, outcome) in racers.join_all().await {
        match outcome {
            Ok(()) => winners.push(wanted),
            refused => assert!(
                matches!(refused, Err(StoreError::InviteSpent)),
                "{refused:?}"
            ),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(store.connections().await?, winners);
    assert_eq!(store.audit_head().seq, 2);
    let used = store.invite([7; 32]).await?;
    let used_by = used.and_then(|invitation| invitation.used_by);
    assert_eq!(used_by, Some(winners[0].connection_id));
    store.close().await;
    Ok(())
}

/// It is spent at the moment of its expiry, not after it.
pub async fn an_expired_invite_makes_no_connection(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let invitation = invite(7);
    store
        .save_invite(invitation.clone(), event("invite"))
        .await?;
    let wanted = connection(ConnectionState::Active)?;
    let refused = store
        .redeem_invite(invitation.invite_id, at(100), wanted.clone(), event("x"))
        .await;
    assert!(
        matches!(refused, Err(StoreError::InviteSpent)),
        "{refused:?}"
    );
    assert!(store.connections().await?.is_empty());
    let unknown = store
        .redeem_invite(invite(1).invite_id, at(1), wanted.clone(), event("x"))
        .await;
    assert!(matches!(unknown, Err(StoreError::NotFound)), "{unknown:?}");
    store
        .redeem_invite(invitation.invite_id, at(99), wanted, event("x"))
        .await?;
    store.close().await;
    Ok(())
}

/// Both or neither: the connection could not be saved, so the token is still good.
pub async fn an_invite_survives_a_redemption_that_failed(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let invitation = invite(7);
    store
        .save_invite(invitation.clone(), event("invite"))
        .await?;
    let mut wanted = connection(ConnectionState::Active)?;
    wanted.version = 5;
    let refused = store
        .redeem_invite(invitation.invite_id, at(1), wanted.clone(), event("x"))
        .await;
    assert!(
        matches!(refused, Err(StoreError::VersionConflict)),
        "{refused:?}"
    );
    wanted.version = 1;
    store
        .redeem_invite(invitation.invite_id, at(1), wanted, event("x"))
        .await?;
    store.close().await;
    Ok(())
}

/// And no entry is made for what was not done.
pub async fn tokens_are_unique_by_name_and_can_be_deleted(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let (admin, viewer) = (token("admin", 1), token("viewer", 2));
    store.save_token(admin.clone(), event("x")).await?;
    store.save_token(viewer.clone(), event("x")).await?;
    let taken = store.save_token(token("admin", 3), event("x")).await;
    assert!(matches!(taken, Err(StoreError::Conflict)), "{taken:?}");
    assert_eq!(store.tokens().await?, [admin, viewer.clone()]);
    store.delete_token("admin", event("x")).await?;
    let gone = store.delete_token("admin", event("x")).await;
    assert!(matches!(gone, Err(StoreError::NotFound)), "{gone:?}");
    assert_eq!(store.tokens().await?, [viewer]);
    assert_eq!(store.audit_head().seq, 3);
    store.close().await;
    Ok(())
}
