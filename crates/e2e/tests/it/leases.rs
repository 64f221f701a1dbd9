//! Leases: an agent outlives its hub for as long as it was lent, and not longer.

use mosaic_e2e::{
    api::{Node, eventually},
    system::{FOREVER, World, processes_with},
};
use mosaic_types::AgentId;
use serde_json::json;

const SHORT: &str = "[limits]\nmin-lease-secs = 1\n";

fn processes_of(spoke: &Node, agent: AgentId) -> Vec<u32> {
    processes_with(&format!("{}/agents/{agent}", spoke.data_dir.display()))
}

async fn leased(world: &World, hub: &Node, connection: &str, secs: u64) -> AgentId {
    let agent = AgentId::generate();
    let mut body = world.spawn_body(Some(connection), agent, FOREVER);
    body["options"] = json!({ "leaseSecs": secs });
    hub.spawn(&body).await.ok();
    hub.wrote(agent, "at-work").await;
    agent
}

/// How far the lease reaches, as written down.
fn deadline(spoke: &Node, agent: AgentId) -> Option<i64> {
    let store = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    store.busy_timeout(mosaic_e2e::api::PATIENCE).unwrap();
    let sql = "SELECT boot_deadline FROM leases WHERE agent_id = ?1";
    store
        .query_row(sql, [agent.to_string()], |row| row.get(0))
        .ok()
}

/// A37: it goes on over a crash of the spoke, too.
#[tokio::test]
async fn a37_an_agent_whose_hub_is_gone_is_stopped_at_the_end_of_its_lease() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", SHORT).await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let first = leased(&world, &hub, &connection, 4).await;
    let second = leased(&world, &hub, &connection, 4).await;
    world.crash("hub");
    world.crash("spoke");
    world.restart(&spoke).await;
    for agent in [first, second] {
        let status = spoke.finished(agent).await;
        assert_eq!(
            (&status["state"], &status["reason"]),
            (&json!("killed"), &json!("lease-expired")),
            "{status:#}"
        );
        assert_eq!(processes_of(&spoke, agent), Vec::<u32>::new());
    }
    world.restart(&hub).await;
    assert_eq!(hub.finished(first).await["reason"], "lease-expired");
    world.stop().await;
}

/// A37: a hub that is back in time keeps its agents alive, from what it has on record.
#[tokio::test]
async fn a37_a_hub_that_returns_renews_what_it_had() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let agent = leased(&world, &hub, &connection, 20).await;
    eventually("a lease on disk", async || deadline(&spoke, agent)).await;
    world.crash("hub");
    let before = deadline(&spoke, agent);
    world.restart(&hub).await;
    eventually("a renewal", async || {
        (deadline(&spoke, agent) > before).then_some(())
    })
    .await;
    assert_eq!(hub.status(agent).await["state"], "running");
    hub.kill(agent).await.ok();
    hub.finished(agent).await;
    world.stop().await;
}

/// A37: with the spoke's store locked by somebody else.
#[tokio::test]
async fn a37_a_lease_ends_with_the_store_locked() {
    let mut world = World::new();
    for expected in [
        "store failed",
        "the store failed",
        "SQLITE",
        "not stored yet",
        "failed to",
        "leases are not written down",
        "leases were not renewed",
    ] {
        world.expect_log(expected);
    }
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", SHORT).await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let agent = leased(&world, &hub, &connection, 3).await;
    assert!(!processes_of(&spoke, agent).is_empty());
    let lock = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    lock.busy_timeout(mosaic_e2e::api::PATIENCE).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    world.crash("hub");
    eventually("the agent's death", async || {
        processes_of(&spoke, agent).is_empty().then_some(())
    })
    .await;
    drop(lock);
    assert_eq!(spoke.finished(agent).await["reason"], "lease-expired");
    world.restart(&hub).await;
    world.stop().await;
}

/// A37: nor does it wait for the agent's driver, which waits for the store; and no further attempt is made.
#[tokio::test]
async fn a37_a_lease_ends_an_agent_whose_driver_waits_for_the_store() {
    let mut world = World::new();
    for expected in [
        "store failed",
        "the store failed",
        "SQLITE",
        "not stored yet",
        "failed to",
        "leases are not written down",
        "leases were not renewed",
    ] {
        world.expect_log(expected);
    }
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", SHORT).await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let agent = AgentId::generate();
    let script = "echo at-work; while ! test -e go; do sleep 0.05; done; exit 3";
    let mut body = world.spawn_body(Some(&connection), agent, script);
    body["options"] = json!({"leaseSecs": 5, "maxRetries": 3});
    hub.spawn(&body).await.ok();
    hub.wrote(agent, "at-work").await;
    let lock = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    lock.busy_timeout(mosaic_e2e::api::PATIENCE).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let go = spoke.data_dir.join(format!("agents/{agent}/work/go"));
    std::fs::write(go, "").unwrap();
    eventually("the end of the attempt", async || {
        processes_of(&spoke, agent).is_empty().then_some(())
    })
    .await;
    world.crash("hub");
    eventually("the end of the lease", async || {
        (spoke.status(agent).await["state"] == "killing").then_some(())
    })
    .await;
    drop(lock);
    let status = spoke.finished(agent).await;
    assert_eq!(
        (&status["state"], &status["reason"], &status["attempt"]),
        (&json!("killed"), &json!("lease-expired"), &json!(1)),
        "{status:#}"
    );
    world.restart(&hub).await;
    world.stop().await;
}
