//! The audit trail as an operator checks it: whatever was done to it behind the node's back, `mosaic audit verify` finds
//! it and names the first entry that is wrong; and what could not be stored comes later, in its order.

use std::{fs, path::Path};

use mosaic_e2e::{
    api::{Node, PATIENCE, eventually},
    system::{FOREVER, World},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

fn database(spoke: &Node) -> rusqlite::Connection {
    let store = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    store.busy_timeout(PATIENCE).unwrap();
    store
}

async fn verify(world: &World, spoke: &Node, more: &[&str], code: i32) -> Value {
    let verify = [&["--json", "audit", "verify"], more].concat();
    world.cli_at(spoke, &verify).await.expect(code).json()
}

#[tokio::test]
async fn audit_verify_names_the_first_entry_that_is_wrong_whatever_was_done() {
    let mut world = World::new();
    // A node that notices says so.
    world.expect_log("audit");
    let spoke = world.spoke("spoke", "").await;
    let agent = AgentId::generate();
    spoke
        .spawn(&world.spawn_body(None, agent, "true"))
        .await
        .ok();
    spoke.finished(agent).await;
    let before = verify(&world, &spoke, &[], 0).await;
    let last = before["entries"].as_u64().unwrap();
    assert!(last >= 5, "{before}");
    let store = database(&spoke);
    store
        .execute_batch(
            "PRAGMA ignore_check_constraints = ON;
             DROP TRIGGER audit_is_not_edited; DROP TRIGGER audit_is_not_cut;
             CREATE TEMP TABLE kept AS SELECT * FROM audit",
        )
        .unwrap();
    let close_up = "UPDATE audit SET seq = -seq WHERE seq > 2;
                    UPDATE audit SET seq = -seq - 1 WHERE seq < 0";
    let cases = [
        ("edit", "UPDATE audit SET event = replace(event, 'ok', 'no') WHERE seq = 3".to_owned(), 3),
        ("removal", "DELETE FROM audit WHERE seq = 2".to_owned(), 2),
        ("closed removal", format!("DELETE FROM audit WHERE seq = 2; {close_up}"), 2),
        (
            "reordering",
            "UPDATE audit SET seq = -3 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4;
             UPDATE audit SET seq = 4 WHERE seq = -3"
                .to_owned(),
            3,
        ),
        (
            "insertion",
            "UPDATE audit SET seq = -seq WHERE seq > 3; UPDATE audit SET seq = -seq + 1 WHERE seq < 0;
             INSERT INTO audit SELECT 4, prev_hash, hash, event FROM audit WHERE seq = 3"
                .to_owned(),
            4,
        ),
        ("truncation", format!("DELETE FROM audit WHERE seq = {last}"), last),
    ];
    for (name, sql, first_bad) in cases {
        store.execute_batch(&sql).unwrap();
        // Truncation is found by whoever saw the head: here the node itself, which remembers it.
        let verdict = verify(&world, &spoke, &[], 7).await;
        assert_eq!(
            (&verdict["valid"], &verdict["firstBadSeq"]),
            (&json!(false), &json!(first_bad)),
            "{name}: {verdict}"
        );
        store
            .execute_batch("DELETE FROM audit; INSERT INTO audit SELECT * FROM kept")
            .unwrap();
    }
    verify(&world, &spoke, &[], 0).await;
    drop(store);
    world.stop().await;
}

#[tokio::test]
async fn a_trail_that_was_cut_while_its_node_was_down_is_found_by_a_peers_witness() {
    let mut world = World::new();
    world.expect_log("audit");
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let agent = world.spawn(&hub, &connection, "true").await;
    hub.finished(agent).await;
    hub.status(agent).await;
    let file = world.path("witnessed.json");
    let before = witnessed_beyond(&world, &hub, 4, &file).await;
    world.crash("spoke");
    let store = database(&spoke);
    store
        .execute_batch("DROP TRIGGER audit_is_not_cut; DELETE FROM audit WHERE seq > 3")
        .unwrap();
    drop(store);
    world.restart(&spoke).await;
    let verdict = verify(&world, &spoke, &["--witnessed", file.to_str().unwrap()], 7).await;
    let first_bad = verdict["firstBadSeq"].as_u64().unwrap();
    assert!((4..=before).contains(&first_bad), "{verdict}");
    // Nor is it hidden by growing beyond what was shown before it was cut.
    for number in 0..=before {
        spoke.make_token(&format!("token-{number}"), "viewer").await;
    }
    hub.status(agent).await;
    witnessed_beyond(&world, &hub, before, &file).await;
    let verdict = verify(&world, &spoke, &["--witnessed", file.to_str().unwrap()], 7).await;
    let first_bad = verdict["firstBadSeq"].as_u64().unwrap();
    assert!((4..=before).contains(&first_bad), "{verdict}");
    world.stop().await;
}

/// Waits until a node was shown a head beyond this one, and keeps what it says. The highest that it says.
async fn witnessed_beyond(world: &World, node: &Node, seq: u64, file: &Path) -> u64 {
    eventually("a head that was shown", async || {
        let seen = world
            .cli_at(node, &["--json", "audit", "witnessed"])
            .await
            .expect(0);
        let heads = seen.json();
        let heads = heads.as_array()?.iter();
        let highest = heads
            .filter_map(|seen| seen["head"]["seq"].as_u64())
            .max()?;
        fs::write(file, &seen.stdout).ok()?;
        (highest > seq).then_some(highest)
    })
    .await
}

/// Every request, its author and what came of it: kept while the store takes nothing, and stored in order, a crash in
/// between or not.
#[tokio::test]
async fn kills_that_could_not_be_recorded_are_on_the_trail_later_in_their_order() {
    let mut world = World::new();
    for expected in [
        "store failed",
        "the store failed",
        "SQLITE",
        "failed to",
        "audit trail",
    ] {
        world.expect_log(expected);
    }
    let spoke = world.spoke("spoke", "").await;
    let mut agents = Vec::new();
    for _ in 0..3 {
        let agent = AgentId::generate();
        spoke
            .spawn(&world.spawn_body(None, agent, FOREVER))
            .await
            .ok();
        spoke.wrote(agent, "at-work").await;
        agents.push(agent);
    }
    let lock = database(&spoke);
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    for agent in &agents {
        assert_eq!(spoke.kill(*agent).await.ok()["outcome"], "killed");
    }
    let spill = spoke.data_dir.join("audit.spill");
    eventually("the kills, kept on disk", async || {
        (kills_in(&spill).len() == agents.len()).then_some(())
    })
    .await;
    world.crash("spoke");
    drop(lock);
    world.restart(&spoke).await;
    for agent in &agents {
        assert_eq!(spoke.finished(*agent).await["state"], "killed");
    }
    let trail = world
        .cli_at(
            &spoke,
            &["--json", "audit", "--after", "0", "--limit", "500"],
        )
        .await
        .expect(0);
    let events: Vec<Value> = trail
        .stdout
        .lines()
        .flat_map(|line| entries_of(&serde_json::from_str(line).unwrap()))
        .collect();
    let kills: Vec<&Value> = events
        .iter()
        .filter(|event| event["action"] == "killswitch.kill")
        .collect();
    let subjects: Vec<&str> = kills
        .iter()
        .map(|kill| kill["subject"].as_str().unwrap())
        .collect();
    let wanted: Vec<String> = agents.iter().map(ToString::to_string).collect();
    assert_eq!(subjects, wanted);
    for kill in kills {
        assert_eq!(kill["actor"]["kind"], "operator", "who: {kill}");
        assert!(kill["at"].is_string(), "when: {kill}");
        assert_eq!(kill["outcome"], "ok", "what came of it: {kill}");
        assert!(
            kill["detail"]["told"]["elapsedMicros"].is_u64(),
            "how fast: {kill}"
        );
    }
    verify(&world, &spoke, &[], 0).await;
    world.stop().await;
}

fn kills_in(spill: &Path) -> Vec<Value> {
    let text = fs::read_to_string(spill).unwrap_or_default();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|event: &Value| event["action"] == "killswitch.kill")
        .collect()
}

/// The events in a page of the trail, or in one entry of it.
fn entries_of(told: &Value) -> Vec<Value> {
    let entries = told["entries"].as_array().cloned();
    let entries = entries.unwrap_or_else(|| vec![told.clone()]);
    let event = |entry: &Value| match entry["eventJson"].as_str() {
        Some(text) => serde_json::from_str(text).unwrap(),
        None => entry["event"].clone(),
    };
    entries.iter().map(event).collect()
}
