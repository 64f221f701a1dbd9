//! The audit trail, and the store's own health.

use std::{collections::BTreeSet, sync::Arc};

use mosaic_types::{
    agent::AgentState,
    audit::{AuditEvent, AuditHead},
    connection::ConnectionState,
};
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    Backend, Outcome,
    samples::{agent, at, claim, connection, connection_moved, event, invite, moved, peer, token},
};
use crate::{AgentMove, Limits, StoreError, audit::verify};

/// A thousand appends at once: each has a number of its own, without gaps, in one chain.
pub async fn concurrent_appends_make_one_sound_chain(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let mut tasks = JoinSet::new();
    for worker in 0..50 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut heads = Vec::new();
            for number in 0..20 {
                let mut event = event("test.append");
                event.subject = Some(format!("{worker}/{number}"));
                heads.push(store.append_audit(event).await?);
            }
            Ok::<_, StoreError>(heads)
        });
    }
    let mut seqs = BTreeSet::new();
    let mut witnessed = Vec::new();
    for heads in tasks.join_all().await {
        let heads = heads?;
        seqs.extend(heads.iter().map(|head| head.seq));
        witnessed.extend(heads);
    }
    assert_eq!(seqs, (1..=1_000).collect());
    assert_eq!(store.audit_head().seq, 1_000);
    let verdict = verify(&*store, witnessed).await?;
    assert!(verdict.valid, "{verdict:?}");
    assert_eq!((verdict.entries, verdict.head), (1_000, store.audit_head()));
    let page = store.audit_entries(998, 1_000).await?;
    assert_eq!(page.len(), 2);
    assert_eq!((page[0].seq, page[1].seq), (999, 1_000));
    assert_eq!(page[1].prev_hash, page[0].hash);
    store.close().await;
    Ok(())
}

/// From memory, and the same after a restart.
pub async fn the_head_is_that_of_the_last_entry_and_survives_a_restart(
    backend: &dyn Backend,
) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.audit_head(), AuditHead::empty());
    assert!(verify(&*store, []).await?.valid);
    store.append_audit(event("one")).await?;
    let head = store.append_audit(event("two")).await?;
    assert_eq!(store.audit_head(), head);
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.audit_head(), head);
    let entries = store.audit_entries(0, 10).await?;
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1].hash, head.hash);
    let stored: AuditEvent = serde_json::from_str(&entries[0].event_json)
        .map_err(|_| StoreError::Malformed { what: "event" })?;
    assert_eq!(stored, event("one"));
    assert_eq!(store.append_audit(event("three")).await?.seq, 3);
    assert!(verify(&*store, [head]).await?.valid);
    store.close().await;
    Ok(())
}

/// A refused verb in the middle of a group of others: its entry is not there, theirs are.
pub async fn what_was_refused_leaves_no_entry(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    for secret in 0..60 {
        store.save_invite(invite(secret), event("invite")).await?;
    }
    let mut tasks = JoinSet::new();
    for secret in 0..60 {
        let store = Arc::clone(&store);
        let invite_id = store.invite([secret; 32]).await?.map(|one| one.invite_id);
        let invite_id = invite_id.ok_or(StoreError::NotFound)?;
        let refused = secret % 3 == 0;
        let mut made = connection(ConnectionState::Active)?;
        if refused {
            // The invitation's row is written before this fails, and must be as it was.
            made.version = 5;
        }
        tasks.spawn(async move {
            let redeemed = store.redeem_invite(invite_id, at(1), made, event("redeem"));
            (refused, secret, redeemed.await)
        });
    }
    for (refused, secret, outcome) in tasks.join_all().await {
        assert_eq!(outcome.is_err(), refused, "{outcome:?}");
        let used_by = store.invite([secret; 32]).await?.map(|one| one.used_by);
        assert_eq!(used_by == Some(None), refused);
    }
    assert_eq!(store.connections().await?.len(), 40);
    assert_eq!(store.audit_head().seq, 60 + 40);
    assert!(verify(&*store, []).await?.valid);
    store.close().await;
    Ok(())
}

/// A witness saw more than there is, or something else than there is.
pub async fn a_cut_trail_is_found_by_its_witness(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let first = store.append_audit(event("one")).await?;
    let second = store.append_audit(event("two")).await?;
    assert!(
        verify(&*store, [first.clone(), second.clone()])
            .await?
            .valid
    );
    let beyond = AuditHead {
        seq: 5,
        hash: "a".repeat(64),
    };
    let verdict = verify(&*store, [beyond]).await?;
    assert!(!verdict.valid);
    assert_eq!(verdict.first_bad_seq, Some(3));
    let differing = AuditHead {
        seq: 1,
        hash: "a".repeat(64),
    };
    let verdict = verify(&*store, [second, differing]).await?;
    assert!(!verdict.valid);
    assert_eq!(verdict.first_bad_seq, Some(1));
    store.close().await;
    Ok(())
}

/// What is appended together is on the trail together, in order, and chained like what is appended singly.
pub async fn events_are_appended_together_in_order(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    store.append_audit(event("first")).await?;
    let names: Vec<String> = (0..300).map(|number| format!("action.{number}")).collect();
    let events = names.iter().map(|name| event(name)).collect();
    store.append_audits(events).await?;
    store.append_audits(Vec::new()).await?;
    assert_eq!(store.append_audit(event("last")).await?.seq, 302);
    let entries = store.audit_entries(1, 300).await?;
    for (entry, name) in entries.iter().zip(&names) {
        let stored = &entry.event_json;
        assert!(stored.contains(&format!("\"{name}\"")), "{stored}");
    }
    assert_eq!(entries.len(), 300);
    assert!(verify(&*store, []).await?.valid);
    store.close().await;
    Ok(())
}

/// F21, F22: what is too large is stored without its detail, with what was done; the largest that fits, whole.
pub async fn no_verb_is_refused_for_the_size_of_its_entry(backend: &dyn Backend) -> Outcome {
    let limits = Limits::default();
    let store = backend.open(limits.clone()).await?;
    let largest = sized("largest", limits.max_event_bytes)?;
    store.append_audit(largest.clone()).await?;
    let large = |action: &str| sized(action, limits.max_event_bytes + 1);
    store.append_audit(large("append")?).await?;
    let pending = connection(ConnectionState::Pending)?;
    let active = connection_moved(&pending, ConnectionState::Active);
    store.save_connection(pending, large("ask")?).await?;
    store
        .save_connection(active.clone(), large("accept")?)
        .await?;
    let invitation = invite(1);
    let invite_id = invitation.invite_id;
    store.save_invite(invitation, large("invite")?).await?;
    let invited = connection(ConnectionState::Active)?;
    store
        .redeem_invite(invite_id, at(1), invited.clone(), large("redeem")?)
        .await?;
    let queued = agent(AgentState::Queued)?;
    store.insert_agent(queued.clone(), large("spawn")?).await?;
    let change = AgentMove {
        record: moved(&queued, AgentState::Killing),
        audit: Some(large("move")?),
    };
    store.move_agent(change.clone()).await?;
    store.save_token(token("a", 1), large("token")?).await?;
    store.delete_token("a", large("token gone")?).await?;

    assert_eq!(store.connections().await?, [active, invited]);
    assert_eq!(store.active_agents().await?, [change.record]);
    assert_eq!(store.tokens().await?, []);
    let entries = store.audit_entries(0, 100).await?;
    let told = entries
        .iter()
        .map(|entry| serde_json::from_str(&entry.event_json))
        .collect::<Result<Vec<AuditEvent>, _>>()
        .map_err(|_| StoreError::Malformed { what: "event" })?;
    let (first, others) = told.split_first().ok_or(StoreError::NotFound)?;
    assert_eq!(*first, largest);
    let actions: Vec<_> = others.iter().map(|event| event.action.as_str()).collect();
    assert_eq!(
        actions,
        [
            "append",
            "ask",
            "accept",
            "invite",
            "redeem",
            "spawn",
            "move",
            "token",
            "token gone"
        ]
    );
    for event in others {
        let omitted = large(&event.action)?.detail.to_string().len();
        assert_eq!(event.detail, json!({ "omittedBytes": omitted }));
    }
    assert!(verify(&*store, [store.audit_head()]).await?.valid);
    store.close().await;
    Ok(())
}

/// An event of so many bytes of JSON.
fn sized(action: &str, bytes: usize) -> Result<AuditEvent, StoreError> {
    let with = |padding: usize| AuditEvent {
        detail: json!("x".repeat(padding)),
        ..event(action)
    };
    let bare =
        serde_json::to_string(&with(0)).map_err(|_| StoreError::Malformed { what: "sample" })?;
    Ok(with(bytes.saturating_sub(bare.len())))
}

/// What was queued before the close is done; what comes after is told.
pub async fn a_closed_store_refuses(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let head = store.append_audit(event("x")).await?;
    store.close().await;
    store.close().await;
    let write = store.claim(claim(&peer(1)?, 1, 60)).await;
    assert!(matches!(write, Err(StoreError::Closed)), "{write:?}");
    let read = store.connections().await;
    assert!(matches!(read, Err(StoreError::Closed)), "{read:?}");
    let check = store.check().await;
    assert!(matches!(check, Err(StoreError::Closed)), "{check:?}");
    assert_eq!(store.audit_head(), head);
    Ok(())
}

/// Again and again, and after a restart.
pub async fn a_healthy_store_checks_out(backend: &dyn Backend) -> Outcome {
    for _ in 0..2 {
        let store = backend.open(Limits::default()).await?;
        store.check().await?;
        store.check().await?;
        store.close().await;
    }
    Ok(())
}
