//! Somebody with the right to write the file, against `verify`.

use data_encoding::HEXLOWER;
use mosaic_types::{api::AuditVerdict, audit::AuditHead};
use rusqlite::Connection;

use super::support::TempBackend;
use crate::{
    Store,
    audit::{entry_hash, verify},
    contract::samples::event,
};

/// A store of ten entries that was closed, changed by `sql`, and opened again.
async fn verdict_after(sql: &str, witnessed: Vec<AuditHead>) -> AuditVerdict {
    let (backend, _) = trail_of_ten().await;
    tamper(&backend, sql);
    let store = backend.store().unwrap();
    let verdict = verify(&store, witnessed).await.unwrap();
    store.close().await;
    verdict
}

async fn trail_of_ten() -> (TempBackend, Vec<AuditHead>) {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    let mut heads = Vec::new();
    for number in 1..=10 {
        let head = store.append_audit(event(&format!("action.{number}"))).await;
        heads.push(head.unwrap());
    }
    store.close().await;
    (backend, heads)
}

fn tamper(backend: &TempBackend, sql: &str) {
    let connection = Connection::open(backend.database()).unwrap();
    connection
        .execute_batch(&format!(
            "DROP TRIGGER audit_is_not_edited; DROP TRIGGER audit_is_not_cut;
             PRAGMA ignore_check_constraints = ON; {sql}"
        ))
        .unwrap();
}

async fn first_bad(sql: &str) -> Option<u64> {
    let verdict = verdict_after(sql, Vec::new()).await;
    assert_eq!(verdict.valid, verdict.first_bad_seq.is_none());
    assert_eq!(verdict.valid, verdict.fault.is_none());
    verdict.first_bad_seq
}

#[tokio::test]
async fn an_untouched_trail_is_valid() {
    assert_eq!(first_bad("").await, None);
}

#[tokio::test]
async fn edits_are_found() {
    let edit = "UPDATE audit SET event = replace(event, 'ok', 'no') WHERE seq = 4";
    assert_eq!(first_bad(edit).await, Some(4));
    let edit = "UPDATE audit SET event = event || ' ' WHERE seq = 10";
    assert_eq!(first_bad(edit).await, Some(10));
    let edit = "UPDATE audit SET hash = zeroblob(32) WHERE seq = 4";
    assert_eq!(first_bad(edit).await, Some(4));
    let edit = "UPDATE audit SET prev_hash = zeroblob(32) WHERE seq = 4";
    assert_eq!(first_bad(edit).await, Some(4));
}

/// What cannot be read as an entry at all is a verdict too, not an error.
#[tokio::test]
async fn malformed_entries_are_found() {
    let edit = "UPDATE audit SET event = CAST(x'ff00fe' AS TEXT) WHERE seq = 4";
    assert_eq!(first_bad(edit).await, Some(4));
    let edit = "UPDATE audit SET hash = x'00' WHERE seq = 4";
    assert_eq!(first_bad(edit).await, Some(4));
}

#[tokio::test]
async fn removals_are_found() {
    assert_eq!(first_bad("DELETE FROM audit WHERE seq = 1").await, Some(1));
    assert_eq!(first_bad("DELETE FROM audit WHERE seq = 6").await, Some(6));
    let closed_up = "DELETE FROM audit WHERE seq = 6;
                     UPDATE audit SET seq = -seq WHERE seq > 6;
                     UPDATE audit SET seq = -seq - 1 WHERE seq < 0";
    assert_eq!(first_bad(closed_up).await, Some(6));
}

#[tokio::test]
async fn reorderings_are_found() {
    let swap_rows =
        "UPDATE audit SET seq = -3 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4;
                     UPDATE audit SET seq = 4 WHERE seq = -3";
    assert_eq!(first_bad(swap_rows).await, Some(3));
    let swap_events = "CREATE TEMP TABLE old AS SELECT * FROM audit;
                       UPDATE audit SET event = (SELECT event FROM old WHERE old.seq = 7 - audit.seq)
                       WHERE seq IN (3, 4)";
    assert_eq!(first_bad(swap_events).await, Some(3));
}

#[tokio::test]
async fn insertions_are_found() {
    let between = "UPDATE audit SET seq = -seq WHERE seq > 5;
                   UPDATE audit SET seq = -seq + 1 WHERE seq < 0;
                   INSERT INTO audit SELECT 6, prev_hash, hash, event FROM audit WHERE seq = 5";
    assert_eq!(first_bad(between).await, Some(6));
    let at_the_end = "INSERT INTO audit SELECT 11, hash, hash, event FROM audit WHERE seq = 10";
    assert_eq!(first_bad(at_the_end).await, Some(11));
}

/// Without a witness a cut made while the store was closed leaves a sound chain: that is why heads go out.
#[tokio::test]
async fn truncation_is_found_through_a_witness() {
    let cut = "DELETE FROM audit WHERE seq > 7";
    let (_, heads) = trail_of_ten().await;
    assert!(verdict_after(cut, Vec::new()).await.valid);
    let verdict = verdict_after(cut, vec![heads[4].clone(), heads[8].clone()]).await;
    assert!(!verdict.valid);
    assert_eq!((verdict.first_bad_seq, verdict.entries), (Some(8), 7));
    let verdict = verdict_after("DELETE FROM audit", vec![heads[0].clone()]).await;
    assert_eq!(verdict.first_bad_seq, Some(1));
}

/// A running store remembers its head, and does not write on past what somebody else has done to the file.
#[tokio::test]
async fn a_running_store_finds_truncation_by_itself() {
    let (backend, _) = trail_of_ten().await;
    let store = backend.store().unwrap();
    tamper(&backend, "DELETE FROM audit WHERE seq > 7");
    let verdict = verify(&store, []).await.unwrap();
    assert_eq!((verdict.valid, verdict.first_bad_seq), (false, Some(8)));
    store.append_audit(event("after")).await.unwrap();
    let verdict = verify(&store, []).await.unwrap();
    assert_eq!((verdict.valid, verdict.first_bad_seq), (false, Some(8)));
    store.close().await;
}

/// The end rewritten into a longer chain that is sound by itself.
#[tokio::test]
async fn a_running_store_finds_a_rewritten_end_by_itself() {
    let (backend, _) = trail_of_ten().await;
    let store = backend.store().unwrap();
    let ninth = store.audit_entries(8, 1).await.unwrap().remove(0);
    let hex = ninth.hash.as_bytes();
    let ninth: [u8; 32] = HEXLOWER.decode(hex).unwrap().try_into().unwrap();
    let tenth = entry_hash(10, &ninth, b"{}");
    let eleventh = entry_hash(11, &tenth, b"{}");
    let row = |seq: u32, previous: &[u8], hash: &[u8]| {
        let (previous, hash) = (HEXLOWER.encode(previous), HEXLOWER.encode(hash));
        format!("INSERT OR REPLACE INTO audit VALUES ({seq}, x'{previous}', x'{hash}', '{{}}');")
    };
    let rewrite = row(10, &ninth, &tenth) + &row(11, &tenth, &eleventh);
    tamper(&backend, &rewrite);
    let verdict = verify(&store, []).await.unwrap();
    assert_eq!((verdict.valid, verdict.first_bad_seq), (false, Some(10)));
    store.close().await;
}

/// The chain has no secret, so anybody can go on with it; but the node knows where it ended.
#[tokio::test]
async fn an_entry_that_was_forged_after_the_end_is_found() {
    let (backend, heads) = trail_of_ten().await;
    let store = backend.store().unwrap();
    let previous = &heads[9].hash;
    let tenth = HEXLOWER.decode(previous.as_bytes()).unwrap();
    let hash = HEXLOWER.encode(&entry_hash(11, &tenth.try_into().unwrap(), b"{}"));
    let insert = format!("INSERT INTO audit VALUES (11, x'{previous}', x'{hash}', '{{}}')");
    tamper(&backend, &insert);
    let verdict = verify(&store, []).await.unwrap();
    assert_eq!(
        (verdict.valid, verdict.first_bad_seq),
        (false, Some(11)),
        "{verdict:?}"
    );
    store.close().await;
}

#[tokio::test]
async fn an_entry_of_somebody_else_stops_the_trail() {
    let (backend, _) = trail_of_ten().await;
    let store = backend.store().unwrap();
    tamper(
        &backend,
        "INSERT INTO audit SELECT 11, hash, hash, event FROM audit WHERE seq = 10",
    );
    let refused = store.append_audit(event("after")).await;
    let expected = crate::StoreError::AuditDiverged { seq: 11 };
    assert_eq!(refused.unwrap_err().to_string(), expected.to_string());
    assert_eq!(store.audit_head().seq, 10);
    store.close().await;
}

/// Our own statements cannot do it either.
#[tokio::test]
async fn the_schema_refuses_edits_and_cuts() {
    let (backend, _) = trail_of_ten().await;
    let connection = Connection::open(backend.database()).unwrap();
    for sql in [
        "UPDATE audit SET event = '{}' WHERE seq = 1",
        "DELETE FROM audit WHERE seq = 10",
    ] {
        let refused = connection.execute_batch(sql).unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
}
