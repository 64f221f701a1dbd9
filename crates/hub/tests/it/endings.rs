//! How streams end: with the last event, and never as if with it.

use eventsource_stream::Event;
use futures_util::StreamExt;
use mosaic_types::agent::AgentState;
use serde_json::Value;

use crate::{
    events::{open, text},
    support::World,
};

fn code(event: &Event) -> String {
    assert_eq!(event.event, "error");
    let problem: Value = serde_json::from_str(&event.data).unwrap();
    problem["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_stream_goes_on_to_the_clean_up_and_over_a_cut_before_it() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let spoke = &world.spokes[0];
    spoke.handler.agents.lock().unwrap().cleaning.insert(agent);
    let mut events = open(&world, agent, "", None).await;
    assert_eq!(text(&events.next().await.unwrap()), "running");
    spoke.handler.enter(agent, AgentState::Killed);
    assert_eq!(text(&events.next().await.unwrap()), "killed");
    spoke.link.blip();
    spoke.handler.clean_up(agent);
    let last = events.next().await.unwrap();
    assert_eq!(text(&last), "killed");
    let told: Value = serde_json::from_str(&last.data).unwrap();
    assert_eq!(told["status"]["cleanup"][0]["step"], "worktree");
    assert!(events.next().await.is_none());
    world.stop().await;
}

#[tokio::test]
async fn a_story_that_a_draining_spoke_cuts_off_does_not_end_as_if_it_were_whole() {
    let mut world = World::start(1).await;
    let agent = world.spawn(0).await;
    let spoke = world.spokes.remove(0);
    spoke.handler.agents.lock().unwrap().stalls_streams = true;
    let mut events = open(&world, agent, "?follow=false", None).await;
    assert_eq!(text(&events.next().await.unwrap()), "running");
    spoke.stop().await;
    assert_eq!(code(&events.next().await.unwrap()), "peer-unreachable");
    assert!(events.next().await.is_none());
    world.stop().await;
}

#[tokio::test]
async fn a_story_that_a_draining_hub_cuts_off_does_not_end_as_if_it_were_whole() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let agents = &world.spokes[0].handler.agents;
    agents.lock().unwrap().stalls_streams = true;
    let mut events = open(&world, agent, "?follow=false", None).await;
    assert_eq!(text(&events.next().await.unwrap()), "running");
    world.stop().await;
    assert_eq!(code(&events.next().await.unwrap()), "shutting-down");
    assert!(events.next().await.is_none());
}
