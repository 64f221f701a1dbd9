//! A file system that is really full, in a mount namespace of its own.

use std::{env, fs, path::PathBuf, process::Command};

use super::support::TempBackend;
use crate::{
    ClaimOutcome, Limits, Store, StoreError,
    audit::verify,
    contract::samples::{claim, event, peer},
    sqlite::SqliteStore,
};

const FOLDER: &str = "MOSAIC_STORE_TEST_TMPFS";
const INSIDE: &str = "sqlite::tests::disk_full::inside_a_small_file_system";

/// A26: runs the test below with its folder on a file system of 4 MiB.
#[test]
fn a_full_file_system_is_told_and_got_over() {
    let backend = TempBackend::fresh();
    let mount = "mount -t tmpfs -o size=4m tmpfs \"$0\"";
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .arg(backend.folder.path())
            .arg(env::current_exe().unwrap())
            .args([INSIDE, "--exact", "--ignored"])
            .env(FOLDER, backend.folder.path());
        command.output()
    };
    if !unshare(mount).is_ok_and(|output| output.status.success()) {
        assert!(
            env::var_os("MOSAIC_REQUIRE_ALL").is_none(),
            "no mount namespace can be made here"
        );
        eprintln!("skipped: no mount namespace can be made here");
        return;
    }
    let output = unshare(&format!("{mount} && exec \"$@\"")).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "is run by the test above, on a file system of its own"]
async fn inside_a_small_file_system() {
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let store = SqliteStore::open(&folder, Limits::default()).unwrap();
    let one = peer(1).unwrap();
    let early = claim(&one, 1, 60);
    store.claim(early.clone()).await.unwrap();
    let filler = folder.join("filler");
    // Takes what there is, to the last page.
    let mut size = 4 << 20;
    while size >= 4096 {
        let full = fs::read(&filler).unwrap_or_default();
        if fs::write(&filler, vec![0; full.len() + size]).is_err() {
            fs::write(&filler, &full).unwrap();
            size /= 2;
        }
    }
    let mut appended = 0;
    let error = loop {
        match store.append_audit(event(&"x".repeat(1_000))).await {
            Ok(head) => appended = head.seq,
            Err(error) => break error,
        }
        assert!(appended < 10_000, "the file system never filled up");
    };
    assert!(matches!(error, StoreError::DiskFull(_)), "{error:?}");
    assert_eq!(store.audit_head().seq, appended);
    let refused = store.claim(claim(&one, 2, 60)).await;
    assert!(
        matches!(refused, Err(StoreError::DiskFull(_))),
        "{refused:?}"
    );
    let entries = store.audit_entries(0, 1_000).await.unwrap();
    assert_eq!(entries.len() as u64, appended);

    fs::remove_file(&filler).unwrap();
    let head = store.append_audit(event("room again")).await.unwrap();
    assert_eq!(head.seq, appended + 1);
    let repeated = ClaimOutcome::Repeated { response: None };
    assert_eq!(store.claim(early.clone()).await.unwrap(), repeated);
    assert!(verify(&store, []).await.unwrap().valid);
    store.close().await;
    let store = SqliteStore::open(&folder, Limits::default()).unwrap();
    assert_eq!(store.audit_head(), head);
    assert_eq!(store.claim(early).await.unwrap(), repeated);
    store.close().await;
}
