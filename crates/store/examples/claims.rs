//! Claims and kept responses a second, at 64 in flight: `cargo run -p mosaic-store --example claims [FOLDER]`.

use std::{error::Error, path::PathBuf, sync::Arc, time::Instant};

use mosaic_store::{Claim, ClaimOutcome, Limits, Store, sqlite::SqliteStore};
use mosaic_types::{InstanceId, MessageId, Timestamp};
use tokio::task::JoinSet;

const IN_FLIGHT: u32 = 64;
const EACH: u32 = 500;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (_temporary, folder) = match std::env::args_os().nth(1) {
        Some(folder) => (None, PathBuf::from(folder)),
        None => {
            let temporary = tempfile::tempdir()?;
            let folder = temporary.path().to_owned();
            (Some(temporary), folder)
        }
    };
    let store = Arc::new(SqliteStore::open(&folder, Limits::default())?);
    run(&store, "claims", false).await?;
    run(&store, "claims with a 1 KiB response each", true).await?;
    let begun = Instant::now();
    let far = Timestamp::from_unix_millis(i64::MAX);
    let swept = store.sweep_claims(far).await?;
    println!("swept {swept} in {:?}", begun.elapsed());
    store.close().await;
    Ok(())
}

async fn run(store: &Arc<SqliteStore>, what: &str, respond: bool) -> Result<(), Box<dyn Error>> {
    let peer: InstanceId = format!("mi1{}", "a".repeat(32)).parse()?;
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (store, peer) = (Arc::clone(store), peer.clone());
        workers.spawn(async move {
            let mut latencies = Vec::new();
            for _ in 0..EACH {
                let message_id = MessageId::generate();
                let claim = Claim {
                    peer: peer.clone(),
                    message_id,
                    digest: [7; 32],
                    expires_at: Timestamp::now(),
                };
                let begun = Instant::now();
                let outcome = store.claim(claim).await?;
                latencies.push(begun.elapsed());
                assert_eq!(outcome, ClaimOutcome::Fresh);
                if respond {
                    store
                        .keep_response(&peer, message_id, vec![7; 1024])
                        .await?;
                }
            }
            Ok::<_, mosaic_store::StoreError>(latencies)
        });
    }
    let mut latencies = Vec::new();
    for worker in workers.join_all().await {
        latencies.extend(worker?);
    }
    let elapsed = begun.elapsed();
    latencies.sort();
    println!(
        "{what}: {:.0} a second; claim p50 {:?}, p99 {:?}",
        f64::from(IN_FLIGHT * EACH) / elapsed.as_secs_f64(),
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
    );
    Ok(())
}
