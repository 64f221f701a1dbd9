//! Many agents, and one order.

use std::collections::BTreeMap;

use mosaic_e2e::{
    api::{Node, PATIENCE, eventually},
    system::{FOREVER, World, processes_with},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

fn agents_of(report: &Value) -> BTreeMap<String, Value> {
    report["spokes"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|spoke| {
            spoke["report"]["agents"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        })
        .map(|agent| (agent["agentId"].as_str().unwrap().to_owned(), agent))
        .collect()
}

/// Starts agents at each spoke and waits until the last one of each runs.
async fn crowd(world: &World, hub: &Node, spokes: &[(Node, String)], each: usize) -> Vec<AgentId> {
    let bodies: Vec<_> = spokes
        .iter()
        .flat_map(|(_, connection)| {
            (0..each).map(move |_| {
                let agent = AgentId::generate();
                (agent, world.spawn_body(Some(connection), agent, FOREVER))
            })
        })
        .collect();
    let spawns = bodies.iter().map(|(_, body)| hub.spawn(body));
    for answer in futures_util::future::join_all(spawns).await {
        answer.ok();
    }
    let started = bodies.iter().map(|(agent, _)| hub.wrote(*agent, "at-work"));
    futures_util::future::join_all(started).await;
    bodies.into_iter().map(|(agent, _)| agent).collect()
}

/// A11, A9: whatever a kill-all meets on its way to life ends too.
#[tokio::test]
async fn a11_a_kill_all_in_the_midst_of_spawns_leaves_nothing_alive() {
    let mut world = World::new();
    let (hub, spokes) = world.dev(2).await;
    let running = crowd(&world, &hub, &spokes, 15).await;

    let late: Vec<_> = (0..10)
        .map(|number| {
            let agent = AgentId::generate();
            let connection = &spokes[number % 2].1;
            (agent, world.spawn_body(Some(connection), agent, FOREVER))
        })
        .collect();
    let spawns: Vec<_> = late
        .iter()
        .map(|(agent, body)| {
            let (hub, agent, body) = (hub.clone(), *agent, body.clone());
            tokio::spawn(async move { (agent, hub.spawn(&body).await) })
        })
        .collect();
    let request = json!({"hold": true, "reason": "as tested"});
    let report = hub.kill_all(request).await;
    assert_eq!(
        (&report["complete"], &report["unverified"]),
        (&json!(true), &json!(0)),
        "{report:#}"
    );
    let killed = agents_of(&report);
    for agent in &running {
        assert_eq!(killed[&agent.to_string()]["outcome"], "killed");
    }

    // Every spawn was accepted, or refused because of the hold; whoever was accepted ends.
    let mut accepted = Vec::new();
    for spawn in spawns {
        let (agent, answer) = spawn.await.unwrap();
        match answer.status {
            202 => accepted.push(agent),
            // Overtaken by the kill-all, or held.
            400 => assert_eq!(answer.problem(400, "expired"), None),
            _ => assert_eq!(answer.problem(409, "held"), None),
        }
    }
    for agent in &running {
        assert_eq!(hub.finished(*agent).await["state"], "killed");
    }
    for agent in &accepted {
        // With the hold set first, nobody starts and is not killed: each has ended, or waits for the hold's end.
        eventually("an end, or a wait", async || {
            let status = hub.status(*agent).await;
            let state = status["state"].as_str().unwrap();
            assert_ne!(state, "completed");
            ["killed", "failed", "queued"]
                .contains(&state)
                .then_some(())
        })
        .await;
    }
    for (spoke, _) in &spokes {
        let left = processes_with(&format!("{}/agents/", spoke.data_dir.display()));
        assert!(left.is_empty(), "alive at {}: {left:?}", spoke.name);
    }

    // The hold refuses whatever comes, at each spoke, until its operator releases it.
    for (spoke, connection) in &spokes {
        let body = world.spawn_body(Some(connection), AgentId::generate(), "true");
        hub.spawn(&body).await.problem(409, "held");
        let hold = spoke.call("GET", "/hold", None).await.ok();
        assert_ne!(hold, json!({"all": false, "connections": []}));
        let node = ["--json", "--node", &spoke.name, "hold", "release"];
        let released = world.cli(&node).await.expect(0).json();
        assert_eq!(released, json!({"all": false, "connections": []}));
        let agent = world.spawn(&hub, connection, "echo after").await;
        assert_eq!(hub.finished(agent).await["state"], "completed");
    }
    world.stop().await;
}

/// A22: all of it, for every one of many.
#[tokio::test]
async fn a22_a_kill_all_loses_nobodys_work() {
    let mut world = World::new();
    let (hub, spokes) = world.dev(1).await;
    let (_, connection) = &spokes[0];
    let mut agents = Vec::new();
    for number in 0..5 {
        let script = format!(
            "echo committed-{number} > a; git add a; git commit -qm one; echo loose-{number} > b; echo written; exec sleep 100000"
        );
        agents.push((number, world.spawn(&hub, connection, &script).await));
    }
    for (_, agent) in &agents {
        hub.wrote(*agent, "written").await;
    }
    let report = hub.kill_all(json!({})).await;
    assert_eq!(report["killed"], 5, "{report:#}");
    for (number, agent) in &agents {
        let status = hub.finished(*agent).await;
        assert!(
            status["cleanup"]
                .as_array()
                .unwrap()
                .iter()
                .all(|step| step["ok"] == true),
            "{status:#}"
        );
        let path = format!("{}/{agent}/result", hub.agents_path());
        let result = hub.call("GET", &path, None).await.ok();
        let patch = result["patch"]["content"].as_str().unwrap();
        for line in [format!("+committed-{number}"), format!("+loose-{number}")] {
            assert!(patch.contains(&line), "{line} is not in {patch}");
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn a_kill_all_of_one_task_leaves_the_others() {
    let mut world = World::new();
    let (hub, spokes) = world.dev(1).await;
    let (_, connection) = &spokes[0];
    let mut agents = Vec::new();
    for task in ["T-1", "T-2"] {
        let agent = AgentId::generate();
        let mut body = world.spawn_body(Some(connection), agent, FOREVER);
        body["taskId"] = json!(task);
        hub.spawn(&body).await.ok();
        hub.wrote(agent, "at-work").await;
        agents.push(agent);
    }
    let report = hub.kill_all(json!({"taskId": "T-2"})).await;
    assert_eq!(
        agents_of(&report).into_keys().collect::<Vec<_>>(),
        [agents[1].to_string()]
    );
    assert_eq!(hub.status(agents[0]).await["state"], "running");
    world.stop().await;
}

/// A9: what was on its way to a spoke when its operator killed everything does not start after that. The spoke's store hangs,
/// so the spawn has come and is not admitted; that it has come is told by the quota, which it has used up.
#[tokio::test]
async fn a9_an_operators_kill_all_overtakes_a_spawn_that_waits_for_the_store() {
    let mut world = World::new();
    for expected in ["store failed", "not stored yet", "failed to"] {
        world.expect_log(expected);
    }
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let invite = ["--repository", "**", "--max-agents", "1"];
    let connection = world.peer(&hub, &spoke, &invite).await;
    let body = || world.spawn_body(Some(&connection), AgentId::generate(), FOREVER);
    let (one, other) = (body(), body());
    let lock = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    lock.busy_timeout(PATIENCE).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let (mut one, mut other) = (Box::pin(hub.spawn(&one)), Box::pin(hub.spawn(&other)));
    let (refused, waiting) = tokio::select! {
        refused = &mut one => (refused, other),
        refused = &mut other => (refused, one),
    };
    refused.problem(429, "quota-exceeded");
    let report = spoke.kill_all(json!({})).await;
    assert_eq!(report["killed"], 0, "{report:#}");
    drop(lock);
    waiting.await.problem(400, "expired");
    assert_eq!(spoke.agents().await, Vec::<Value>::new());
    world.stop().await;
}
