//! Connections, invitations and operators' tokens.

use std::sync::Arc;

use mosaic_types::{
    agent::AgentState,
    connection::{Connection, ConnectionState},
};
use tokio::task::JoinSet;

use super::{
    Backend, Outcome,
    samples::{
        agent, at, connected, connection, connection_moved as next, event, invite, moved, peer,
        remote_agent, token,
    },
};
use crate::{AgentMove, Limits, SharedStore, StoreError};

/// Ends a connection that is on record.
async fn end(store: &SharedStore, stored: &Connection) -> Result<Connection, StoreError> {
    let ended = next(stored, ConnectionState::Disconnected);
    store.save_connection(ended.clone(), event("x")).await?;
    Ok(ended)
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
    store.save_connection(other.clone(), event("x")).await?;
    assert_eq!(store.audit_head().seq, 3);
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
    end(&store, &second).await?;
    let forgotten = store.save_connection(third.clone(), event("x")).await?;
    assert_eq!(forgotten, Some(second.connection_id));
    assert_eq!(store.connections().await?, [first, third]);
    store.close().await;
    Ok(())
}

/// A38: by what is on record of an ended connection its peer is known to be who left an agent behind.
pub async fn a_full_table_keeps_the_connections_of_agents_that_have_not_ended(
    backend: &dyn Backend,
) -> Outcome {
    let limits = Limits {
        max_connections: 3,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let (here, elsewhere) = (connected(&store).await?, connected(&store).await?);
    let unneeded = connected(&store).await?;
    let mut running = agent(AgentState::Running)?;
    running.connection_id = Some(here.connection_id);
    store.insert_agent(running.clone(), event("x")).await?;
    // One that has ended needs nothing, of whichever connection.
    let mut completed = agent(AgentState::Completed)?;
    completed.connection_id = Some(unneeded.connection_id);
    store.insert_agent(completed, event("x")).await?;
    let remote = remote_agent(elsewhere.connection_id)?;
    store.save_remote_agent(remote.clone()).await?;
    let here = end(&store, &here).await?;
    let elsewhere = end(&store, &elsewhere).await?;
    let unneeded = end(&store, &unneeded).await?;

    // The oldest two are needed.
    let new = connection(ConnectionState::Active)?;
    let forgotten = store.save_connection(new.clone(), event("x")).await?;
    assert_eq!(forgotten, Some(unneeded.connection_id));
    let kept = [here.clone(), elsewhere.clone(), new];
    assert_eq!(store.connections().await?, kept);

    // All are needed: whoever comes with an invitation is refused, and may come again with it.
    let killing = moved(&running, AgentState::Killing);
    let killed = moved(&killing, AgentState::Killed);
    let unaudited = |record| AgentMove {
        record,
        audit: None,
    };
    store.move_agent(unaudited(killing)).await?;
    let invitation = invite(1);
    let invite_id = invitation.invite_id;
    store.save_invite(invitation, event("x")).await?;
    let invited = connection(ConnectionState::Active)?;
    let redeem = || store.redeem_invite(invite_id, at(1), invited.clone(), event("x"));
    let refused = redeem().await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    assert_eq!(store.connections().await?, kept);

    store.move_agent(unaudited(killed)).await?;
    assert_eq!(redeem().await?, Some(here.connection_id));
    let ended = r#"{"state":"completed"}"#.to_owned();
    let seen = store.observe_remote_agent(remote.agent_id, ended, true, at(1));
    seen.await?;
    let last = connection(ConnectionState::Active)?;
    let forgotten = store.save_connection(last, event("x")).await?;
    assert_eq!(forgotten, Some(elsewhere.connection_id));
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
            Ok(_) => winners.push(wanted),
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
