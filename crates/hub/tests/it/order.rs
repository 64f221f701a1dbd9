//! What comes first at a spoke, of that which is under way at the hub at once.

use mosaic_types::AgentId;
use serde_json::{Value, json};

use crate::{
    pending::{KILLS, proven, states},
    support::World,
};

const SPAWN: &str = "/federation/agents/spawn";
const KILL_ALL: &str = "/federation/agents/kill-all";

fn kill(agent: AgentId) -> String {
    format!("/federation/agents/{agent}/kill")
}

fn events(agent: AgentId) -> String {
    format!("/federation/agents/{agent}/events?follow=false")
}

async fn executed(world: &World, command: &str, times: usize) {
    while world.spokes[0].executed(command) < times {
        tokio::task::yield_now().await;
    }
}

fn kept(kills: &Value) -> bool {
    kills["kills"][0]["durable"] == true
}

/// A9: a spawn is of the time when it was asked for, however long the hub has it: one that is still there when a kill-all is
/// ordered does not start after that.
#[tokio::test]
async fn a9_a_kill_overtakes_a_spawn_that_waits_at_the_hub() {
    let world = World::start(1).await;
    let one = world.spawn(0).await;
    let spoke = &world.spokes[0];
    spoke.handler.gate_open.send_replace(false);
    let first = world.posting(&kill(one), &json!({}));
    world.until(KILLS, kept).await;
    let late = AgentId::generate();
    let mut order = world.order(0);
    order["agentId"] = json!(late);
    let spawn = world.posting(SPAWN, &order);
    // It is there, and has the kill that it waits for sent again.
    executed(&world, "agent.kill", 2).await;
    let all = world.posting(KILL_ALL, &json!({"taskId": "MOS-1"}));
    executed(&world, "agent.killAll", 1).await;
    spoke.handler.gate_open.send_replace(true);
    assert_eq!(all.await.unwrap().ok()["complete"], true);
    first.await.unwrap().ok();
    spawn.await.unwrap().refused(400, "expired", None);
    let status = format!("/federation/agents/{late}/status");
    assert!(
        !spoke
            .handler
            .agents
            .lock()
            .unwrap()
            .known
            .contains_key(&late)
    );
    spoke.link.cut();
    assert_eq!(world.get(&status).await.ok()["state"], "failed");
    world.stop().await;
}

/// A38: a kill that is under way goes before a spawn, and holds up nothing else.
#[tokio::test]
async fn a38_a_kill_under_way_goes_before_a_spawn() {
    let world = World::start(1).await;
    let one = world.spawn(0).await;
    let spoke = &world.spokes[0];
    spoke.handler.gate_open.send_replace(false);
    let all = world.posting(KILL_ALL, &json!({}));
    world.until(KILLS, kept).await;
    let spawn = world.posting(SPAWN, &world.order(0));
    executed(&world, "agent.killAll", 2).await;
    let status = format!("/federation/agents/{one}/status");
    assert_eq!(world.get(&status).await.ok()["state"], "killed");
    assert_eq!(spoke.executed("agent.spawn"), 1);
    spoke.handler.gate_open.send_replace(true);
    assert_eq!(all.await.unwrap().ok()["complete"], true);
    spawn.await.unwrap().accepted();
    proven(&world, 1).await;
    world.stop().await;
}

/// A38: one that was lost is sent again as soon as the spoke is heard, and not only once it was waited for in vain.
#[tokio::test]
async fn a38_a_kill_that_was_lost_is_sent_again_when_the_spoke_is_heard() {
    let world = World::start(1).await;
    let (one, other) = (world.spawn(0).await, world.spawn(0).await);
    let spoke = &world.spokes[0];
    spoke.handler.agents.lock().unwrap().loses_kills = 1;
    let lost = world.posting(&kill(one), &json!({}));
    world.until(KILLS, kept).await;
    assert_eq!(spoke.executed("agent.kill"), 0);
    world
        .get(&format!("/federation/agents/{other}/status"))
        .await
        .ok();
    proven(&world, 1).await;
    spoke.handler.gives_up.send_replace(true);
    let answer = lost.await.unwrap();
    let told = answer.body["detail"].as_str().unwrap();
    assert!(told.contains("has been proven meanwhile"), "{told}");
    answer.refused(503, "overloaded", None);
    world.stop().await;
}

/// A38: a stream is a command as any other: it comes after what is kept.
#[tokio::test]
async fn a38_a_stream_is_opened_after_a_kept_kill() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let spoke = &world.spokes[0];
    spoke.link.cut();
    world
        .post(&kill(agent), json!({}))
        .await
        .refused(502, "peer-unreachable", None);
    world
        .get(&events(agent))
        .await
        .refused(502, "peer-unreachable", None);
    spoke.link.mend();
    assert_eq!(world.get(&events(agent)).await.status, 200);
    let executed = spoke.handler.agents.lock().unwrap().executed.clone();
    assert_eq!(executed, ["agent.spawn", "agent.kill", "agent.watch"]);
    world.stop().await;
}

/// F23: and by its answer the spoke is heard.
#[tokio::test]
async fn f23_a_stream_that_is_opened_is_word_of_the_spoke() {
    let world = World::start(1).await;
    let (one, other) = (world.spawn(0).await, world.spawn(0).await);
    let spoke = &world.spokes[0];
    spoke.handler.agents.lock().unwrap().loses_kills = 1;
    let lost = world.posting(&kill(one), &json!({}));
    world.until(KILLS, kept).await;
    assert_eq!(world.get(&events(other)).await.status, 200);
    proven(&world, 1).await;
    assert!(!lost.is_finished(), "it was not waited for in vain");
    spoke.handler.gives_up.send_replace(true);
    lost.await.unwrap();
    world.stop().await;
}

/// Shows an agent at the second spoke of which the hub has never heard.
async fn stranger(world: &World) -> AgentId {
    let known = world.spawn(1).await;
    let stranger = AgentId::generate();
    let mut agents = world.spokes[1].handler.agents.lock().unwrap();
    let mut paper = agents.known[&known].clone();
    paper.status.agent_id = stranger;
    agents.known.insert(stranger, paper);
    stranger
}

/// A38: of unknown place or not, what takes long is kept while its answer is out, and an answer that leaves it open says so.
#[tokio::test]
async fn a38_a_kill_of_unknown_place_is_kept_while_it_is_under_way_and_named() {
    let world = World::start(2).await;
    let agent = stranger(&world).await;
    let spoke = &world.spokes[1];
    spoke.handler.gate_open.send_replace(false);
    spoke.handler.agents.lock().unwrap().kills_unverified = true;
    let answer = world.posting(&kill(agent), &json!({}));
    let kills = world.until(KILLS, kept).await;
    assert_eq!(kills["kills"].as_array().unwrap().len(), 1);
    assert_eq!(
        kills["kills"][0]["connectionId"],
        world.connections[1].to_string()
    );
    spoke.handler.gate_open.send_replace(true);
    let report = answer.await.unwrap().ok();
    assert_eq!(report["outcome"], "unverified");
    let detail = report["detail"].as_str().unwrap();
    let id = kills["kills"][0]["intentId"].as_str().unwrap();
    assert!(detail.contains(&format!("is pending as {id}")), "{detail}");
    spoke.handler.agents.lock().unwrap().kills_unverified = false;
    proven(&world, 1).await;
    world.stop().await;
}

/// Of what another spoke has proven nothing stays pending.
#[tokio::test]
async fn a_kill_of_unknown_place_that_one_spoke_proves_is_not_needed_at_the_others() {
    let world = World::start(2).await;
    let agent = stranger(&world).await;
    let (silent, has_it) = (&world.spokes[0].handler, &world.spokes[1].handler);
    silent.agents.lock().unwrap().loses_kills = 1;
    has_it.gate_open.send_replace(false);
    let answer = world.posting(&kill(agent), &json!({}));
    let both = |kills: &Value| states(kills) == ["pending", "pending"];
    world.until(KILLS, both).await;
    has_it.gate_open.send_replace(true);
    assert_eq!(answer.await.unwrap().ok()["outcome"], "killed");
    silent.gives_up.send_replace(true);
    let settled = |kills: &Value| {
        let mut states = states(kills);
        states.sort_unstable();
        states == ["cancelled", "proven"]
    };
    world.until(KILLS, settled).await;
    world.stop().await;
}
