//! The audit trail, and the store's own health.

use std::{collections::BTreeSet, sync::Arc};

use mosaic_types::{agent::AgentState, audit::AuditHead};
use tokio::task::JoinSet;

use super::{
    Backend, Outcome,
    samples::{agent, claim, event, peer},
};
use crate::{Limits, StoreError, audit::verify};

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
    let stored: mosaic_types::audit::AuditEvent = serde_json::from_str(&entries[0].event_json)
        .map_err(|_| StoreError::Malformed { what: "event" })?;
    assert_eq!(stored, event("one"));
    assert_eq!(store.append_audit(event("three")).await?.seq, 3);
    assert!(verify(&*store, [head]).await?.valid);
    store.close().await;
    Ok(())
}

/// A refused verb in the middle of a group of others: its entry is not there, theirs are.
pub async fn what_was_refused_leaves_no_entry(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_event_bytes: 1_000,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let mut tasks = JoinSet::new();
    for number in 0..60 {
        let store = Arc::clone(&store);
        let record = agent(AgentState::Queued)?;
        let id = record.agent_id;
        let refused = number % 3 == 0;
        let mut audit = event("agent.spawn");
        if refused {
            // The agent's row is written before this fails, and must go with it.
            audit.outcome = "x".repeat(1_000);
        }
        tasks.spawn(async move { (refused, id, store.insert_agent(record, audit).await) });
    }
    for (refused, id, outcome) in tasks.join_all().await {
        assert_eq!(outcome.is_err(), refused, "{outcome:?}");
        assert_eq!(store.agent(id).await?.is_none(), refused);
    }
    assert_eq!(store.audit_head().seq, 40);
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

/// F22.
pub async fn an_oversized_event_is_refused(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let mut long = event("x");
    long.detail = serde_json::Value::String("x".repeat(Limits::default().max_event_bytes));
    let refused = store.append_audit(long).await;
    assert!(
        matches!(refused, Err(StoreError::TooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(store.audit_head(), AuditHead::empty());
    store.close().await;
    Ok(())
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
