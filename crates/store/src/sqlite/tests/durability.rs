//! Power cuts, full disks, failed commits, panics and full queues.

use std::{
    fs,
    future::Future,
    pin::Pin,
    sync::mpsc::{Sender, channel},
    task::{Context, Waker},
};

use mosaic_types::agent::AgentState;

use super::support::TempBackend;
use crate::{
    ClaimOutcome, InsertAgent, Limits, Store, StoreError,
    audit::verify,
    contract::samples::{agent, claim, connection, event, invite, peer},
    sqlite::{
        DATABASE_FILE, QUEUE_PEERS_WRITES, QUEUE_WRITES, Share, SqliteStore, folder::Folder,
        open_writer,
    },
};

type Verb<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Polls once, which puts the verb into the queue.
fn queue<'a, T>(verb: impl Future<Output = Result<T, StoreError>> + Send + 'a) -> Verb<'a, T> {
    let mut verb: Verb<'a, T> = Box::pin(verb);
    let mut context = Context::from_waker(Waker::noop());
    assert!(verb.as_mut().poll(&mut context).is_pending());
    verb
}

/// Holds the writer up until the sender is dropped, so that what is queued meanwhile becomes one group.
async fn hold_writer(store: &SqliteStore) -> (Sender<()>, Verb<'_, ()>) {
    let (release, released) = channel::<()>();
    let (held, is_held) = tokio::sync::oneshot::channel();
    let verb = queue(store.write(Share::Whole, move |_| {
        held.send(()).unwrap();
        let _released = released.recv();
        Ok(())
    }));
    is_held.await.unwrap();
    (release, verb)
}

fn copy(backend: &TempBackend) -> TempBackend {
    let copy = TempBackend::fresh();
    for entry in fs::read_dir(backend.folder.path()).unwrap() {
        let entry = entry.unwrap();
        // The shared index is rebuilt from the log, as after a power cut.
        if !entry.file_name().to_str().unwrap().ends_with("-shm") {
            fs::copy(entry.path(), copy.folder.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

/// F10: the files as they are the moment a verb has answered hold what it answered.
#[tokio::test]
async fn what_was_answered_is_in_the_files() {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    let message = claim(&peer(1).unwrap(), 1, 60);
    assert_eq!(
        store.claim(message.clone()).await.unwrap(),
        ClaimOutcome::Fresh
    );
    let after_claim = copy(&backend);
    let record = agent(AgentState::Queued).unwrap();
    store
        .insert_agent(record.clone(), event("agent.spawn"))
        .await
        .unwrap();
    let after_insert = copy(&backend);
    let head = store.append_audit(event("x")).await.unwrap();
    let after_append = copy(&backend);

    let crashed = after_claim.store().unwrap();
    let again = crashed.claim(message.clone()).await.unwrap();
    assert_eq!(again, ClaimOutcome::Repeated { response: None });
    assert_eq!(crashed.audit_head().seq, 0);
    let crashed = after_insert.store().unwrap();
    assert_eq!(crashed.active_agents().await.unwrap(), [record]);
    assert_eq!(crashed.audit_head().seq, 1);
    let crashed = after_append.store().unwrap();
    assert_eq!(crashed.audit_head(), head);
    assert!(verify(&crashed, []).await.unwrap().valid);
    store.close().await;
}

/// A copied file proves that it was written, this that it was flushed.
#[tokio::test]
async fn every_commit_is_flushed() {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    let settings = store
        .write(Share::Whole, |tx| {
            let setting = |sql: &str| {
                tx.connection
                    .query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0))
                    .map_err(StoreError::of(StoreError::Check))
            };
            Ok([
                setting("PRAGMA journal_mode")?,
                setting("PRAGMA synchronous")?,
                setting("PRAGMA foreign_keys")?,
            ])
        })
        .await
        .unwrap();
    assert_eq!(settings, ["wal".to_owned().into(), 2.into(), 1.into()]);
    store.close().await;
}

/// One group: a verb that fails after writing, and one that panics after writing, leave nothing behind, and
/// those around them are done.
#[tokio::test]
async fn a_failing_verb_is_undone_alone() {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    let (release, holding) = hold_writer(&store).await;
    let first = queue(store.append_audit(event("first")));
    let mut misfit = connection(mosaic_types::connection::ConnectionState::Active).unwrap();
    misfit.version = 7;
    let invitation = invite(1);
    let invite_id = invitation.invite_id;
    let saved = queue(store.save_invite(invitation, event("invite")));
    let at = crate::contract::samples::at(1);
    let failed = queue(store.redeem_invite(invite_id, at, misfit, event("redeem")));
    let panicked = queue(store.write::<()>(Share::Whole, |tx| {
        super::super::audit_trail::append(tx, &event("never")).unwrap();
        panic!("as planned");
    }));
    let last = queue(store.append_audit(event("last")));
    drop(release);
    holding.await.unwrap();
    assert_eq!(first.await.unwrap().seq, 1);
    saved.await.unwrap();
    let failed = failed.await;
    assert!(
        matches!(failed, Err(StoreError::VersionConflict)),
        "{failed:?}"
    );
    let panicked = panicked.await;
    assert!(
        matches!(panicked, Err(StoreError::Panicked)),
        "{panicked:?}"
    );
    assert_eq!(last.await.unwrap().seq, 3);
    let invitation = store.invite([1; 32]).await.unwrap().unwrap();
    assert_eq!(invitation.used_by, None);
    assert!(verify(&store, []).await.unwrap().valid);
    store.close().await;
}

/// A commit that fails: everyone of the group is told, nothing of it is stored, in memory neither, and the
/// next group is served.
#[tokio::test]
async fn a_failed_commit_is_everyones() {
    let backend = TempBackend::fresh();
    let limits = Limits {
        max_claims: 1,
        ..Limits::default()
    };
    let store = SqliteStore::open(backend.folder.path(), limits).unwrap();
    let message = claim(&peer(1).unwrap(), 1, 60);
    let (release, holding) = hold_writer(&store).await;
    let claimed = queue(store.claim(message.clone()));
    let appended = queue(store.append_audit(event("x")));
    // A row whose parent is missing is found by the commit only.
    let culprit = queue(store.write(Share::Whole, |tx| {
        tx.connection
            .execute_batch(
                "PRAGMA defer_foreign_keys = ON;
                 INSERT INTO responses VALUES ('nobody', x'00', x'00');",
            )
            .map_err(StoreError::of(StoreError::Responses))
    }));
    let repeated = queue(store.claim(message.clone()));
    drop(release);
    let held = holding.await;
    let (claimed, appended) = (claimed.await, appended.await);
    let (culprit, repeated) = (culprit.await, repeated.await);
    // The verb that held the writer up was a group of its own.
    assert!(held.is_ok(), "{held:?}");
    assert!(matches!(claimed, Err(StoreError::Commit(_))), "{claimed:?}");
    assert!(
        matches!(appended, Err(StoreError::Commit(_))),
        "{appended:?}"
    );
    assert!(matches!(culprit, Err(StoreError::Commit(_))), "{culprit:?}");
    assert!(
        matches!(repeated, Err(StoreError::Commit(_))),
        "{repeated:?}"
    );
    assert_eq!(store.audit_head().seq, 0);
    // Its place in the bounded table was given back too.
    assert_eq!(store.claim(message).await.unwrap(), ClaimOutcome::Fresh);
    assert_eq!(store.append_audit(event("x")).await.unwrap().seq, 1);
    assert!(verify(&store, []).await.unwrap().valid);
    store.close().await;
}

/// A26: a full disk is a clear error, nothing is half done, reading goes on, and writing when there is room.
#[tokio::test]
async fn a_full_disk_is_told_and_got_over() {
    let backend = TempBackend::fresh();
    let folder = Folder::take(backend.folder.path()).unwrap();
    let writer = open_writer(&folder.database).unwrap();
    let store = SqliteStore::start(writer, folder, Limits::default()).unwrap();
    let limit_pages = |more: u32| {
        store.write(Share::Whole, move |tx| {
            let pages: u32 = tx
                .connection
                .query_row("PRAGMA page_count", [], |row| row.get(0))
                .map_err(StoreError::of(StoreError::Check))?;
            tx.connection
                .pragma_update_and_check(None, "max_page_count", pages + more, |_| Ok(()))
                .map_err(StoreError::of(StoreError::Check))
        })
    };
    limit_pages(10).await.unwrap();
    let mut inserted = 0;
    let (record, error) = loop {
        let mut record = agent(AgentState::Queued).unwrap();
        record.request.context.instructions = Some("x".repeat(3_000));
        match store.insert_agent(record.clone(), event("x")).await {
            Ok(outcome) => assert_eq!(outcome, InsertAgent::Inserted),
            Err(error) => break (record, error),
        }
        inserted += 1;
        assert!(inserted < 100, "the disk never filled up");
    };
    assert!(matches!(error, StoreError::DiskFull(_)), "{error:?}");
    assert!(inserted > 0);
    assert_eq!(store.audit_head().seq, inserted);
    assert_eq!(store.agent(record.agent_id).await.unwrap(), None);
    let active = store.active_agents().await.unwrap();
    assert_eq!(active.len() as u64, inserted);
    limit_pages(1_000).await.unwrap();
    let outcome = store.insert_agent(record, event("x")).await.unwrap();
    assert_eq!(outcome, InsertAgent::Inserted);
    assert_eq!(store.audit_head().seq, inserted + 1);
    assert!(verify(&store, []).await.unwrap().valid);
    store.close().await;
}

/// A transaction that SQLite rolls back under a verb is lost for those before it in the group, not for those
/// after it.
#[tokio::test]
async fn a_lost_transaction_takes_only_those_who_were_in_it() {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    let (release, holding) = hold_writer(&store).await;
    let before = queue(store.append_audit(event("before")));
    let culprit = queue(store.write::<()>(Share::Whole, |tx| {
        tx.connection.execute_batch("ROLLBACK").unwrap();
        Err(StoreError::RolledBack)
    }));
    let after = queue(store.append_audit(event("after")));
    drop(release);
    holding.await.unwrap();
    let (before, culprit) = (before.await, culprit.await);
    assert!(matches!(before, Err(StoreError::RolledBack)), "{before:?}");
    assert!(
        matches!(culprit, Err(StoreError::RolledBack)),
        "{culprit:?}"
    );
    let head = after.await.unwrap();
    assert_eq!((head.seq, store.audit_head()), (1, head));
    assert!(verify(&store, []).await.unwrap().valid);
    store.close().await;
}

/// F22: a flood of claims is refused at once, and leaves room for what the node itself must record.
#[tokio::test]
async fn a_full_queue_refuses_and_keeps_room_for_our_own() {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    let one = peer(1).unwrap();
    let (release, holding) = hold_writer(&store).await;
    let claims: Vec<_> = (0..QUEUE_PEERS_WRITES)
        .map(|_| queue(store.claim(claim(&one, 1, 60))))
        .collect();
    for _ in 0..3 {
        let refused = store.claim(claim(&one, 1, 60)).await;
        assert!(matches!(refused, Err(StoreError::Busy)), "{refused:?}");
    }
    let appends: Vec<_> = (QUEUE_PEERS_WRITES..QUEUE_WRITES)
        .map(|_| queue(store.append_audit(event("x"))))
        .collect();
    let refused = store.append_audit(event("x")).await;
    assert!(matches!(refused, Err(StoreError::Busy)), "{refused:?}");
    drop(release);
    holding.await.unwrap();
    for claimed in claims {
        assert_eq!(claimed.await.unwrap(), ClaimOutcome::Fresh);
    }
    for appended in appends {
        appended.await.unwrap();
    }
    // Every place was given back.
    let (release, holding) = hold_writer(&store).await;
    let again: Vec<_> = (0..QUEUE_PEERS_WRITES)
        .map(|_| queue(store.claim(claim(&one, 1, 60))))
        .collect();
    drop(release);
    holding.await.unwrap();
    for claimed in again {
        claimed.await.unwrap();
    }
    store.close().await;
}

/// What was queued is done; the log is folded into the file, which then stands alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_drains_and_checkpoints() {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    let (release, holding) = hold_writer(&store).await;
    let appends: Vec<_> = (0..50)
        .map(|_| queue(store.append_audit(event("x"))))
        .collect();
    drop(release);
    store.close().await;
    holding.await.unwrap();
    for appended in appends {
        appended.await.unwrap();
    }
    let alone = TempBackend::fresh();
    fs::copy(backend.database(), alone.folder.path().join(DATABASE_FILE)).unwrap();
    assert_eq!(alone.store().unwrap().audit_head().seq, 50);
}
