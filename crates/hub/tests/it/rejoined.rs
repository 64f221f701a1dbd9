//! A spoke that the hub was connected to anew: what was started there before can still be killed.

use serde_json::{Value, json};

use crate::{
    pending::{KILLS, proven},
    support::World,
};

/// A38: a kept kill goes by the connection that leads to its spoke now, and before anything else that goes there.
#[tokio::test]
async fn a38_a_kept_kill_goes_by_whatever_connection_leads_to_its_spoke() {
    let mut world = World::start(1).await;
    let (agent, other) = (world.spawn(0).await, world.spawn(0).await);
    world.spokes[0].link.cut();
    let kill = |agent| format!("/federation/agents/{agent}/kill");
    world
        .post(&kill(agent), json!({}))
        .await
        .refused(502, "peer-unreachable", None);
    world.disconnect(0).await;
    // As long as nothing leads there nothing is kept.
    world.post(&kill(other), json!({})).await.refused(
        409,
        "connection-not-active",
        Some("connectionId"),
    );
    world.spokes[0].link.mend();
    let before = world.connections[0];
    world.rejoin(0).await;

    let new = world.spawn(0).await;
    let executed = world.spokes[0]
        .handler
        .agents
        .lock()
        .unwrap()
        .executed
        .clone();
    assert_eq!(
        executed,
        ["agent.spawn", "agent.spawn", "agent.kill", "agent.spawn"]
    );
    let kills = proven(&world, 1).await;
    assert_eq!(kills["kills"][0]["connectionId"], before.to_string());
    let status = format!("/federation/agents/{new}/status");
    assert_eq!(world.get(&status).await.ok()["state"], "running");
    world.stop().await;
}

/// A38: one that is ordered after that goes there too, and is kept as any other.
#[tokio::test]
async fn a38_an_agent_that_came_by_an_ended_connection_is_killed_by_the_next() {
    let mut world = World::start(1).await;
    let agents = [
        world.spawn(0).await,
        world.spawn(0).await,
        world.spawn(0).await,
    ];
    world.disconnect(0).await;
    world.rejoin(0).await;
    let kill = |agent| format!("/federation/agents/{agent}/kill");
    let report = world.post(&kill(agents[0]), json!({})).await.ok();
    assert_eq!(report["outcome"], "killed");

    world.spokes[0].link.cut();
    world
        .post(&kill(agents[1]), json!({}))
        .await
        .refused(502, "peer-unreachable", None);
    let status = |agent| format!("/federation/agents/{agent}/status");
    let waiting = world.get(&status(agents[1])).await.ok();
    assert_eq!(
        (&waiting["state"], &waiting["killPending"]),
        (&json!("unknown"), &json!(true))
    );
    world.spokes[0].link.mend();
    proven(&world, 1).await;

    // A kill-all takes who is left, and is told as complete: nobody is out of reach.
    let all = world
        .post("/federation/agents/kill-all", json!({}))
        .await
        .ok();
    assert_eq!(
        (
            &all["complete"],
            &all["killed"],
            &all["spokes"].as_array().unwrap().len()
        ),
        (&json!(true), &json!(1), &1)
    );
    for agent in agents {
        let is_killed = |status: &Value| status["state"] == "killed";
        let status = world.until(&status(agent), is_killed).await;
        assert_eq!(status["killPending"], Value::Null);
    }
    assert!(
        world.get(KILLS).await.ok()["kills"]
            .as_array()
            .unwrap()
            .len()
            == 1
    );
    world.stop().await;
}
