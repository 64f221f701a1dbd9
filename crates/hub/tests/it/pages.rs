//! Lists whose spokes are away, give short pages, or lie: nobody who may live is left out.

use mosaic_types::{AgentId, agent::AgentState};
use serde_json::{Value, json};

use crate::support::World;

fn ids(page: &Value) -> Vec<String> {
    let agents = page["agents"].as_array().unwrap();
    let id = |agent: &Value| agent["agentId"].as_str().unwrap().to_owned();
    agents.iter().map(id).collect()
}

/// All agents, page by page, as the list says how.
async fn walk(world: &World, query: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for _ in 0..20 {
        let before = all
            .last()
            .map_or(String::new(), |id| format!("&before={id}"));
        let path = format!("/federation/agents?{query}{before}");
        let page = world.get(&path).await.ok();
        all.extend(ids(&page));
        if page["more"] == false {
            return all;
        }
        assert!(!ids(&page).is_empty(), "there is nothing to go on from");
    }
    panic!("the list has no end: {all:?}");
}

async fn labelled(world: &World, spoke: usize) -> AgentId {
    let mut order = world.order(spoke);
    order["labels"] = json!({ "team": "a" });
    let answer = world.post("/federation/agents/spawn", order).await;
    let answer = answer.accepted();
    answer["agentId"].as_str().unwrap().parse().unwrap()
}

// A3
#[tokio::test]
async fn a3_who_may_live_is_listed_however_many_have_ended_since() {
    let world = World::start(2).await;
    let elsewhere = world.spawn(1).await.to_string();
    let lives = labelled(&world, 0).await.to_string();
    let mut ended = Vec::new();
    for _ in 0..3 {
        let agent = world.spawn(0).await;
        let handler = &world.spokes[0].handler;
        handler.enter(agent, AgentState::Completed);
        ended.push(format!("/federation/agents/{agent}/status"));
    }
    for status in &ended {
        world.get(status).await.ok();
    }
    world.spokes[0].link.cut();
    for status in &ended {
        // As soon as the hub has it on record, which is behind its answers.
        world
            .until(status, |told| told["state"] == "completed")
            .await;
    }
    let page = world.get("/federation/agents?active=true&limit=1").await;
    let page = page.ok();
    assert_eq!(ids(&page), std::slice::from_ref(&lives));
    assert_eq!(page["agents"][0]["state"], "unknown");
    assert_eq!(page["more"], true);
    assert_eq!(
        walk(&world, "active=true&limit=1").await,
        [lives.clone(), elsewhere]
    );
    let page = world.get("/federation/agents?label=team=a&limit=1").await;
    let page = page.ok();
    assert_eq!(ids(&page), [lives]);
    assert_eq!(page["more"], false);
    world.stop().await;
}

#[tokio::test]
async fn what_a_short_page_leaves_for_the_next_comes_with_the_next() {
    let world = World::start(2).await;
    let mut spawned = Vec::new();
    for number in 0..6 {
        spawned.push(world.spawn(number % 2).await.to_string());
    }
    spawned.reverse();
    let agents = &world.spokes[0].handler.agents;
    agents.lock().unwrap().page_agents = Some(1);
    assert_eq!(walk(&world, "limit=10").await, spawned);
    assert_eq!(walk(&world, "limit=2").await, spawned);
    world.stop().await;
}

// F8: a spoke speaks for its own agents, and hides nobody else's.
#[tokio::test]
async fn f8_a_spoke_that_gives_the_same_page_for_ever_hides_nobody() {
    let world = World::start(2).await;
    let mut spawned = Vec::new();
    for spoke in [0, 0, 1, 1, 1] {
        spawned.push(world.spawn(spoke).await.to_string());
    }
    spawned.reverse();
    let agents = &world.spokes[1].handler.agents;
    agents.lock().unwrap().repeats_pages = true;
    assert_eq!(walk(&world, "limit=2").await, spawned);
    // What it says is no answer, and it is named for it.
    let next = format!("/federation/agents?limit=2&before={}", spawned[1]);
    let page = world.get(&next).await.ok();
    assert_eq!(page["unreachable"], json!([world.connections[1]]));
    assert_eq!(page["agents"][0]["state"], "unknown");
    world.stop().await;
}

#[tokio::test]
async fn what_came_by_an_earlier_connection_to_a_spoke_is_listed_with_it() {
    let mut world = World::start(1).await;
    let agent = world.spawn(0).await.to_string();
    let earlier = world.connections[0];
    let path = format!("/federation/connections/{earlier}/disconnect");
    world.post(&path, json!({})).await.ok();
    let spoke = world.spokes.remove(0);
    world.join(spoke).await;
    assert_ne!(world.connections[1], earlier);
    let page = world.get("/federation/agents").await.ok();
    assert_eq!(ids(&page), [agent]);
    assert_eq!(
        page["agents"][0]["connectionId"],
        world.connections[1].to_string()
    );
    world.stop().await;
}
