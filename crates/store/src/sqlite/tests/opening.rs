//! Opening: whose folder, whose file, which schema.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use mosaic_types::{
    UtcDay,
    agent::AgentState,
    kill::{KillIntentState, KillTarget},
};
use rusqlite::Connection;

use super::support::TempBackend;
use crate::{
    ClaimOutcome, LeaseRecord, Limits, Spent, Store, StoreError,
    audit::verify,
    contract::samples::{at, claim, event, peer},
    records::Claim,
    sqlite::{SqliteStore, schema},
};

const FIXTURE_V1: &str = include_str!("../schema/fixture_v1.sql");
const FIXTURE_V2: &str = include_str!("../schema/fixture_v2.sql");
const FIXTURE_V3: &str = include_str!("../schema/fixture_v3.sql");
const FIXTURE_V4: &str = include_str!("../schema/fixture_v4.sql");

fn user_version(backend: &TempBackend) -> i64 {
    Connection::open(backend.database())
        .unwrap()
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap()
}

#[tokio::test]
async fn a_folder_belongs_to_one_store() {
    let backend = TempBackend::fresh();
    let store = backend.store().unwrap();
    let second = backend.store();
    assert!(
        matches!(second, Err(StoreError::InUse { .. })),
        "{second:?}"
    );
    store.append_audit(event("still mine")).await.unwrap();
    store.close().await;
    let third = backend.store().unwrap();
    drop(third);
    backend.store().unwrap().close().await;
}

/// Secrets' hashes and signed messages are nobody else's business.
#[tokio::test]
async fn files_are_readable_by_their_owner_only() {
    let backend = TempBackend::fresh();
    fs::write(backend.database(), "").unwrap();
    fs::set_permissions(backend.database(), fs::Permissions::from_mode(0o644)).unwrap();
    let store = backend.store().unwrap();
    store.append_audit(event("x")).await.unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(backend.folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    let expected = ["store.db", "store.db-shm", "store.db-wal", "store.lock"];
    assert_eq!(names, expected);
    store.close().await;
}

#[tokio::test]
async fn a_missing_folder_is_made_for_its_owner_only() {
    let backend = TempBackend::fresh();
    let folder = backend.folder.path().join("a/b");
    let store = SqliteStore::open(&folder, Limits::default()).unwrap();
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    store.close().await;
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let backend = TempBackend::fresh();
    let file = backend.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let unwritable = SqliteStore::open(&file.join("data"), Limits::default());
    let error = unwrap_error(unwritable);
    assert!(matches!(error, StoreError::Prepare { .. }), "{error:?}");
    assert!(error.to_string().contains("file/data"), "{error}");
    // No one may write there, not even root.
    let proc = backend.folder.path().join("proc");
    symlink("/proc/self", &proc).unwrap();
    let error = unwrap_error(SqliteStore::open(&proc, Limits::default()));
    assert!(matches!(error, StoreError::Prepare { .. }), "{error:?}");
}

fn unwrap_error(opened: Result<SqliteStore, StoreError>) -> StoreError {
    opened.map(drop).unwrap_err()
}

#[test]
fn a_later_schema_is_refused_and_left_alone() {
    let backend = TempBackend::fresh();
    drop(backend.store().unwrap());
    let known = i64::try_from(schema::STEPS.len()).unwrap();
    Connection::open(backend.database())
        .unwrap()
        .pragma_update(None, "user_version", known + 1)
        .unwrap();
    let error = unwrap_error(backend.store());
    assert!(
        matches!(error, StoreError::SchemaTooNew { found, known: k } if (found, k) == (known + 1, known)),
        "{error:?}"
    );
    assert_eq!(user_version(&backend), known + 1);
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_left_alone() {
    let backend = TempBackend::fresh();
    let other = Connection::open(backend.database()).unwrap();
    other.execute_batch("CREATE TABLE theirs (x)").unwrap();
    other.close().unwrap();
    let before = fs::read(backend.database()).unwrap();
    let error = unwrap_error(backend.store());
    assert!(matches!(error, StoreError::NotOurs { .. }), "{error:?}");
    assert_eq!(fs::read(backend.database()).unwrap(), before);

    let backend = TempBackend::fresh();
    let text = "not a database at all, but long enough to have a header ".repeat(40);
    fs::write(backend.database(), &text).unwrap();
    let error = unwrap_error(backend.store());
    assert!(matches!(error, StoreError::NotOurs { .. }), "{error:?}");
    assert_eq!(fs::read_to_string(backend.database()).unwrap(), text);
}

/// The first release's file opens in every later one, with all that is in it.
#[tokio::test]
async fn a_file_of_schema_1_opens_with_everything_in_it() {
    let backend = TempBackend::fresh();
    let old = Connection::open(backend.database()).unwrap();
    old.execute_batch(FIXTURE_V1).unwrap();
    let (message_id, digest): (Vec<u8>, [u8; 32]) = old
        .query_row("SELECT message_id, digest FROM claims", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    old.close().unwrap();

    let store = backend.store().unwrap();
    let hex = data_encoding::HEXLOWER.encode(&message_id);
    let message_id = format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    let again = Claim {
        peer: peer(1).unwrap(),
        message_id: message_id.parse().unwrap(),
        digest,
        expires_at: at(60),
    };
    let response = Some(b"kept".to_vec());
    assert_eq!(
        store.claim(again).await.unwrap(),
        ClaimOutcome::Repeated { response }
    );
    assert_eq!(store.connections().await.unwrap().len(), 1);
    assert!(store.invite([7; 32]).await.unwrap().is_some());
    let active = store.active_agents().await.unwrap();
    assert_eq!(active.len(), 1);
    assert_eq!(active[0].state, AgentState::Running);
    assert_eq!(store.pending_cleanups().await.unwrap().len(), 1);
    let remote = store.remote_agents(None, None, None, 10).await.unwrap();
    assert_eq!(remote.len(), 1);
    assert_eq!(store.tokens().await.unwrap()[0].name, "admin");
    assert_eq!(store.witnessed_heads().await.unwrap().len(), 1);
    assert_eq!(store.contradicted_heads().await.unwrap().len(), 1);
    let verdict = verify(&store, []).await.unwrap();
    assert!(verdict.valid && verdict.entries == 5, "{verdict:?}");
    store.close().await;
    let known = i64::try_from(schema::STEPS.len()).unwrap();
    assert_eq!(user_version(&backend), known);
}

fn layout(connection: &Connection) -> Vec<(String, String)> {
    connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

/// A file with spending in it goes on counting where it was.
#[tokio::test]
async fn a_file_of_schema_2_opens_with_what_was_spent() {
    let backend = TempBackend::fresh();
    let old = Connection::open(backend.database()).unwrap();
    old.execute_batch(FIXTURE_V2).unwrap();
    old.close().unwrap();
    let store = backend.store().unwrap();
    let spent = Spent {
        micro_usd: 2_500_000,
        tokens: 4_000,
    };
    let of_day = store.spending(UtcDay::from_number(20_775)).await.unwrap();
    assert_eq!((of_day.len(), of_day[0].spent), (1, spent));
    let active = store.active_agents().await.unwrap();
    assert_eq!(
        store.active_spending().await.unwrap(),
        [(active[0].agent_id, spent)]
    );
    assert_eq!(store.leases().await.unwrap(), []);
    assert_eq!(store.kill_intents().await.unwrap(), []);
    store.close().await;
    let known = i64::try_from(schema::STEPS.len()).unwrap();
    assert_eq!(user_version(&backend), known);
}

/// A hub goes on with the kills that it kept, a spoke with the leases of its agents.
#[tokio::test]
async fn a_file_of_schema_3_opens_with_kept_kills_and_leases() {
    let backend = TempBackend::fresh();
    let old = Connection::open(backend.database()).unwrap();
    old.execute_batch(FIXTURE_V3).unwrap();
    old.close().unwrap();
    let store = backend.store().unwrap();
    let active = store.active_agents().await.unwrap();
    let lease = LeaseRecord {
        agent_id: active[0].agent_id,
        boot_id: "a boot".to_owned(),
        boot_deadline_ms: 60_000,
        deadline: at(60),
    };
    assert_eq!(store.leases().await.unwrap(), [lease]);
    let kept = store.kill_intents().await.unwrap();
    let states: Vec<_> = kept.iter().map(|kill| (kill.state, kill.hold)).collect();
    let expected = [
        (KillIntentState::Pending, true),
        (KillIntentState::Proven, false),
    ];
    assert_eq!(states, expected);
    let team = KillTarget::All {
        task_id: Some("MOS-1".parse().unwrap()),
        label: Some("team=core".parse().unwrap()),
    };
    assert_eq!(kept[0].target, team);
    assert_eq!(store.active_spending().await.unwrap().len(), 1);
    store.close().await;
    let known = i64::try_from(schema::STEPS.len()).unwrap();
    assert_eq!(user_version(&backend), known);
}

/// A clock that is set back across an update makes nothing fresh again, either.
#[tokio::test]
async fn a_file_of_schema_4_opens_with_what_was_forgotten() {
    let backend = TempBackend::fresh();
    let old = Connection::open(backend.database()).unwrap();
    old.execute_batch(FIXTURE_V4).unwrap();
    old.close().unwrap();
    let store = backend.store().unwrap();
    let forgotten = claim(&peer(1).unwrap(), 1, 30);
    assert_eq!(
        store.claim(forgotten).await.unwrap(),
        ClaimOutcome::Forgotten
    );
    let fresh = claim(&peer(1).unwrap(), 1, 31);
    assert_eq!(store.claim(fresh).await.unwrap(), ClaimOutcome::Fresh);
    assert_eq!(store.leases().await.unwrap().len(), 1);
    store.close().await;
    let known = i64::try_from(schema::STEPS.len()).unwrap();
    assert_eq!(user_version(&backend), known);
}

/// Steps that were released: whoever edits one breaks every file that took it.
#[test]
fn each_step_makes_what_its_release_made() {
    let backend = TempBackend::fresh();
    for (steps, fixture) in [
        (1, FIXTURE_V1),
        (2, FIXTURE_V2),
        (3, FIXTURE_V3),
        (4, FIXTURE_V4),
    ] {
        let mut fresh = Connection::open_in_memory().unwrap();
        schema::migrate(&mut fresh, &backend.database(), &schema::STEPS[..steps]).unwrap();
        let old = Connection::open_in_memory().unwrap();
        old.execute_batch(fixture).unwrap();
        assert_eq!(layout(&fresh), layout(&old), "step {steps}");
    }
}

#[test]
fn steps_are_taken_in_order_and_a_failed_one_leaves_the_file_as_it_was() {
    let backend = TempBackend::fresh();
    let mut connection = Connection::open(backend.database()).unwrap();
    connection.execute_batch(FIXTURE_V1).unwrap();
    let broken = [
        schema::STEPS[0],
        "ALTER TABLE health ADD COLUMN note TEXT",
        "ALTER TABLE health ADD COLUMN more TEXT; INSERT INTO nowhere VALUES (1)",
    ];
    let path = backend.database();
    let error = schema::migrate(&mut connection, &path, &broken).unwrap_err();
    assert!(
        matches!(error, StoreError::Migrate { to: 3, .. }),
        "{error:?}"
    );
    assert_eq!(user_version(&backend), 2);
    let columns = "SELECT count(*) FROM pragma_table_info('health')";
    let count = |connection: &Connection| -> i64 {
        connection.query_row(columns, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&connection), 3);
    let mended = [
        broken[0],
        broken[1],
        "ALTER TABLE health ADD COLUMN more TEXT",
    ];
    schema::migrate(&mut connection, &path, &mended).unwrap();
    assert_eq!((user_version(&backend), count(&connection)), (3, 4));
}
