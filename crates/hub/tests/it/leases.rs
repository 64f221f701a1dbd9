//! A hub keeps its agents alive: by leases that were asked for and by those that a grant imposes, before and after a
//! restart.

use mosaic_types::{AgentId, agent::AgentState};
use serde_json::json;

use crate::support::World;

async fn leased(world: &World, secs: u64) -> AgentId {
    let mut order = world.order(0);
    order["options"] = json!({ "leaseSecs": secs });
    let answer = world.post("/federation/agents/spawn", order).await;
    answer.accepted()["agentId"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// Waits until all of them were renewed since the last time.
async fn renewed(world: &World, agents: &[AgentId]) {
    world.spokes[0]
        .handler
        .agents
        .lock()
        .unwrap()
        .renewed
        .clear();
    loop {
        let seen = world.spokes[0]
            .handler
            .agents
            .lock()
            .unwrap()
            .renewed
            .clone();
        if agents.iter().all(|agent| seen.contains(agent)) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a37_a_hub_renews_the_leases_of_its_agents_and_goes_on_after_a_restart() {
    let world = World::start(1).await;
    let agents = || world.spokes[0].handler.agents.lock().unwrap();
    let asked = leased(&world, 1).await;
    agents().imposes_lease = Some(1);
    let imposed = world.spawn(0).await;
    agents().imposes_lease = None;
    let unleased = world.spawn(0).await;
    renewed(&world, &[asked, imposed]).await;
    // Not once only.
    renewed(&world, &[asked, imposed]).await;
    let status = format!("/federation/agents/{imposed}/status");
    assert_eq!(world.get(&status).await.ok()["leaseSecs"], 1);

    let world = world.again().await;
    renewed(&world, &[asked, imposed]).await;
    // Through a cut as well.
    world.spokes[0].link.cut();
    world.get(&status).await.ok();
    world.spokes[0].link.mend();
    renewed(&world, &[asked, imposed]).await;

    let handler = &world.spokes[0].handler;
    handler.enter(asked, AgentState::Completed);
    renewed(&world, &[asked]).await;
    renewed(&world, &[imposed]).await;
    let seen = handler.agents.lock().unwrap().renewed.clone();
    assert!(!seen.contains(&asked), "it has ended");
    assert!(!seen.contains(&unleased), "it has no lease");
    world.stop().await;
}

/// A38: a kill that is pending is not undone by a renewal.
#[tokio::test]
async fn a38_an_agent_whose_kill_is_pending_is_not_kept_alive() {
    let world = World::start(1).await;
    let (doomed, other) = (leased(&world, 1).await, leased(&world, 1).await);
    world.spokes[0]
        .handler
        .agents
        .lock()
        .unwrap()
        .kills_unverified = true;
    let path = format!("/federation/agents/{doomed}/kill");
    let report = world.post(&path, json!({})).await.ok();
    assert_eq!(report["outcome"], "unverified");
    // One that was under way may still arrive; after it none.
    renewed(&world, &[other]).await;
    renewed(&world, &[other]).await;
    let seen = world.spokes[0]
        .handler
        .agents
        .lock()
        .unwrap()
        .renewed
        .clone();
    assert!(!seen.contains(&doomed));
    world.stop().await;
}
