//! Events: in order, without a gap, without a repeat, whatever breaks in between.

use eventsource_stream::{Event, Eventsource};
use futures_util::{Stream, StreamExt};
use mosaic_types::{AgentId, agent::AgentState, event::EventCursor};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, World};

pub(crate) async fn open(
    world: &World,
    agent: AgentId,
    query: &str,
    last_event_id: Option<&str>,
) -> impl Stream<Item = Event> + Unpin + use<> {
    let path = format!("/federation/agents/{agent}/events{query}");
    let mut request = world.raw(Method::GET, &path);
    if let Some(id) = last_event_id {
        request = request.header("last-event-id", id);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    response
        .bytes_stream()
        .eventsource()
        .map(Result::unwrap)
        .boxed()
}

pub(crate) fn text(event: &Event) -> String {
    let data: Value = serde_json::from_str(&event.data).unwrap();
    assert_eq!(data["id"], event.id);
    assert_eq!(data["type"], event.event);
    match event.event.as_str() {
        "output" => data["line"].as_str().unwrap().to_owned(),
        "status" => {
            // The spoke's own connection means nothing to an operator of the hub.
            assert_eq!(data["status"]["connectionId"], Value::Null);
            data["status"]["state"].as_str().unwrap().to_owned()
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_stream_tells_all_and_ends_with_the_agent() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let handler = &world.spokes[0].handler;
    handler.write(agent, "one");
    let mut events = open(&world, agent, "", None).await;
    assert_eq!(text(&events.next().await.unwrap()), "running");
    assert_eq!(text(&events.next().await.unwrap()), "one");
    handler.write(agent, "two");
    assert_eq!(text(&events.next().await.unwrap()), "two");
    handler.enter(agent, AgentState::Completed);
    assert_eq!(text(&events.next().await.unwrap()), "completed");
    assert!(events.next().await.is_none());
    world.stop().await;
}

#[tokio::test]
async fn a_cut_between_hub_and_spoke_costs_no_event_and_repeats_none() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let spoke = &world.spokes[0];
    spoke.handler.write(agent, "one");
    let mut events = open(&world, agent, "", None).await;
    assert_eq!(text(&events.next().await.unwrap()), "running");
    assert_eq!(text(&events.next().await.unwrap()), "one");
    // Broken, and for a while there is no way at all.
    let before = spoke.link.accepted();
    spoke.link.cut();
    spoke.handler.write(agent, "two");
    while spoke.link.accepted() == before {
        tokio::task::yield_now().await;
    }
    spoke.link.mend();
    assert_eq!(text(&events.next().await.unwrap()), "two");
    // Broken once more, and at once whole again.
    spoke.link.blip();
    spoke.handler.write(agent, "three");
    assert_eq!(text(&events.next().await.unwrap()), "three");
    spoke.handler.enter(agent, AgentState::Failed);
    assert_eq!(text(&events.next().await.unwrap()), "failed");
    assert!(events.next().await.is_none());
    let after = spoke.handler.agents.lock().unwrap().watched_after.clone();
    assert_eq!(after[0], None);
    assert_eq!(
        after[1],
        Some(EventCursor {
            moves: 1,
            output: 4
        })
    );
    world.stop().await;
}

#[tokio::test]
async fn a_client_resumes_where_it_left_off() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let handler = &world.spokes[0].handler;
    for line in ["one", "two", "three"] {
        handler.write(agent, line);
    }
    let mut events = open(&world, agent, "?follow=false", Some("m1-o4")).await;
    assert_eq!(text(&events.next().await.unwrap()), "two");
    let third = events.next().await.unwrap();
    assert_eq!(text(&third), "three");
    assert!(events.next().await.is_none());
    // By the query; and the header goes before it.
    let mut events = open(&world, agent, "?follow=false&after=m1-o8", None).await;
    assert_eq!(text(&events.next().await.unwrap()), "three");
    let query = "?follow=false&after=m0-o0";
    let mut events = open(&world, agent, query, Some(&third.id)).await;
    assert!(events.next().await.is_none());
    world.stop().await;
}

#[tokio::test]
async fn resuming_after_the_end_ends() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    world.spokes[0].handler.enter(agent, AgentState::Completed);
    let mut events = open(&world, agent, "", Some("m2-o0")).await;
    assert!(events.next().await.is_none());
    world.stop().await;
}

// F15: suspension takes effect at once, on open streams too.
#[tokio::test]
async fn f15_a_suspended_connection_ends_its_streams_and_says_why() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let mut events = open(&world, agent, "", None).await;
    assert_eq!(text(&events.next().await.unwrap()), "running");
    let id = world.connections[0];
    world
        .post(&format!("/federation/connections/{id}/suspend"), json!({}))
        .await
        .ok();
    let last = events.next().await.unwrap();
    assert_eq!(last.event, "error");
    let problem: Value = serde_json::from_str(&last.data).unwrap();
    assert_eq!(problem["code"], "connection-not-active");
    assert!(events.next().await.is_none());
    world.stop().await;
}

#[tokio::test]
async fn streams_end_when_the_hub_stops() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let mut events = open(&world, agent, "", None).await;
    assert_eq!(text(&events.next().await.unwrap()), "running");
    world.stop().await;
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn what_cannot_be_opened_is_a_problem_and_no_stream() {
    let world = World::start(1).await;
    let path = format!("/federation/agents/{}/events", AgentId::generate());
    world
        .get(&path)
        .await
        .refused(404, "unknown-agent", Some("agentId"));
    let agent = world.spawn(0).await;
    let path = format!("/federation/agents/{agent}/events");
    let bad = world
        .raw(Method::GET, &path)
        .header("last-event-id", "7")
        .send()
        .await
        .unwrap();
    Answer::of(bad)
        .await
        .refused(400, "invalid-request", Some("Last-Event-ID"));
    world.spokes[0].link.cut();
    world
        .get(&path)
        .await
        .refused(502, "peer-unreachable", None);
    world.stop().await;
}

// A30: however many watch, a kill finds room.
#[tokio::test]
async fn a30_watchers_are_bounded_and_a_kill_is_not() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let path = format!("/federation/agents/{agent}/events");
    let mut watching = Vec::new();
    let refused = loop {
        let response = world.raw(Method::GET, &path).send().await.unwrap();
        if response.status() != 200 {
            break response;
        }
        watching.push(response);
        assert!(watching.len() <= 64);
    };
    Answer::of(refused).await.refused(503, "overloaded", None);
    let kill = format!("/federation/agents/{agent}/kill");
    let report = world.post(&kill, json!({})).await.ok();
    assert_eq!(report["outcome"], "killed");
    // The agent's end ends the streams, and gives their places back.
    for response in watching {
        response.bytes().await.unwrap();
    }
    drop(open(&world, agent, "?follow=false", None).await);
    world.stop().await;
}
