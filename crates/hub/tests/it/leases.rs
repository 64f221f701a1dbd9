//! A hub keeps its agents alive: by leases that were asked for and by those that a grant imposes, before and after a
//! restart.

use mosaic_types::{
    AgentId, ErrorCode, agent::AgentState, api::InviteRequest, audit::Actor, grant::Grants,
};
use serde_json::json;

use crate::{spoke::Spoke, support::World};

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

/// A37: the answer to a spawn is lost, and with it the word of the lease that the grant imposes.
#[tokio::test]
async fn a37_an_imposed_lease_is_renewed_though_the_spawns_answer_was_lost() {
    let mut world = World::start(0).await;
    let spoke = Spoke::start("spoke").await;
    let mut grants = Grants::full(vec!["**".to_owned()]);
    grants.caps.max_lease_secs = Some(1);
    let request = InviteRequest {
        grants,
        ttl_secs: None,
    };
    let token = spoke.node.invite(request, Actor::System).await.unwrap();
    let body = json!({ "token": token.token });
    let connected = world.post("/federation/connections", body).await.created();
    let id = connected["connectionId"].as_str().unwrap();
    world.connections.push(id.parse().unwrap());
    spoke.handler.agents.lock().unwrap().refuses_spawns = Some(ErrorCode::OutcomeUnknown);
    world.spokes.push(spoke);
    let agent = AgentId::generate();
    let mut order = world.order(0);
    order["agentId"] = json!(agent);
    let answer = world.post("/federation/agents/spawn", order).await;
    answer.refused(409, "outcome-unknown", None);
    renewed(&world, &[agent]).await;
    // And if the hub ends there.
    let world = world.again().await;
    renewed(&world, &[agent]).await;
    world.stop().await;
}

/// A37: agents go on when their spoke's connection is made anew.
#[tokio::test]
async fn a37_what_came_by_an_earlier_connection_is_renewed_by_the_new_one() {
    let mut world = World::start(1).await;
    let agent = leased(&world, 1).await;
    let earlier = world.connections.remove(0);
    let path = format!("/federation/connections/{earlier}/disconnect");
    world.post(&path, json!({})).await.ok();
    let spoke = world.spokes.remove(0);
    world.join(spoke).await;
    assert_ne!(world.connections[0], earlier);
    renewed(&world, &[agent]).await;
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
