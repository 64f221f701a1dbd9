//! Live events: across a hub that goes and comes back, and across a connection that is suspended.

use mosaic_e2e::{
    api::{SentEvent, eventually},
    system::{FOREVER, World},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

#[tokio::test]
async fn a_stream_resumes_after_the_hub_was_gone_with_nothing_twice_and_nothing_missing() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    // A line at a time, as the test says, so that some come while nobody listens.
    let script = "n=0; while test $n -lt 60; do n=$((n+1)); echo line-$n; \
                  case $n in 20|40) while ! test -e go-$n; do sleep 0.02; done;; esac; done";
    let agent = world.spawn(&hub, &connection, script).await;
    let go = |number: u32| {
        let tree = spoke.data_dir.join(format!("agents/{agent}/work"));
        std::fs::write(tree.join(format!("go-{number}")), "").unwrap();
    };
    let mut seen: Vec<SentEvent> = Vec::new();
    let mut events = hub.events(agent, None).await;
    while seen.last().and_then(SentEvent::line) != Some("line-10") {
        seen.push(events.next().await.expect("more events"));
    }
    world.crash("hub");
    // What was on its way may still come, and then the stream ends.
    while let Some(event) = events.next().await {
        seen.push(event);
    }
    go(20);
    spoke.wrote(agent, "line-40").await;
    world.restart(&hub).await;

    let last = seen.last().unwrap().id.clone();
    let mut events = hub.events(agent, Some(&last)).await;
    while seen.last().and_then(SentEvent::line) != Some("line-40") {
        seen.push(events.next().await.expect("more events"));
    }
    // In order this time: the stream is ended, not cut.
    world.signal("hub", rustix::process::Signal::TERM);
    while let Some(event) = events.next().await {
        seen.push(event);
    }
    assert_eq!(world.ended("hub").await, Some(0));
    go(40);
    spoke.finished(agent).await;
    world.restart(&hub).await;
    let last = seen
        .iter()
        .rev()
        .find(|event| !event.id.is_empty())
        .unwrap()
        .id
        .clone();
    let rest = hub.events(agent, Some(&last)).await.to_the_end().await;
    seen.extend(rest);

    let lines: Vec<_> = seen
        .iter()
        .filter_map(SentEvent::line)
        .map(str::to_owned)
        .collect();
    let expected: Vec<_> = (1..=60).map(|number| format!("line-{number}")).collect();
    assert_eq!(lines, expected);
    let mut states: Vec<_> = seen.iter().filter_map(SentEvent::state).collect();
    states.dedup();
    assert_eq!(states.last(), Some(&"completed"), "{states:?}");
    assert!(
        states.iter().filter(|state| **state == "running").count() <= 1,
        "{states:?}"
    );
    // And all of it at once is the same as its parts.
    let ids: Vec<_> = seen
        .iter()
        .filter(|event| event.line().is_some())
        .map(|event| &event.id)
        .collect();
    let mut unique = ids.clone();
    unique.dedup();
    assert_eq!(ids, unique);
    let whole = hub.events(agent, None).await.to_the_end().await;
    let whole: Vec<_> = whole
        .iter()
        .filter_map(SentEvent::line)
        .map(str::to_owned)
        .collect();
    assert_eq!(whole, expected);
    world.stop().await;
}

#[tokio::test]
async fn f15_a_suspended_connection_hears_no_more_and_commands_nothing_until_it_is_resumed() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let [watched, other] = [
        world.spawn(&hub, &connection, "echo at-work; while ! test -e go; do sleep 0.02; done; echo secret; exec sleep 100000").await,
        world.spawn(&hub, &connection, FOREVER).await,
    ];
    let mut events = hub.events(watched, None).await;
    events.until(|event| event.line() == Some("at-work")).await;
    hub.wrote(other, "at-work").await;

    let listed = world
        .cli_at(&spoke, &["--json", "connections"])
        .await
        .expect(0)
        .json();
    let at_spoke = listed["connections"]
        .as_array()
        .or(listed.as_array())
        .unwrap()[0]["connectionId"]
        .as_str()
        .unwrap()
        .to_owned();
    world
        .cli_at(&spoke, &["connections", "suspend", &at_spoke])
        .await
        .expect(0);
    std::fs::write(spoke.data_dir.join(format!("agents/{watched}/work/go")), "").unwrap();
    spoke.wrote(watched, "secret").await;

    // The spoke does not know the hub any more, and says nothing else.
    let body = world.spawn_body(Some(&connection), AgentId::generate(), "true");
    hub.spawn(&body).await.problem(502, "peer-unreachable");
    assert_eq!(hub.status(watched).await["state"], "unknown");
    let report = hub.kill_all(json!({})).await;
    assert_eq!(
        (&report["complete"], &report["unreachable"]),
        (&json!(false), &json!(1)),
        "{report:#}"
    );
    hub.kill(other).await.problem(502, "peer-unreachable");
    assert_eq!(
        spoke.status(other).await["state"],
        "running",
        "the hub commands nothing"
    );
    let listed = hub.call("GET", hub.agents_path(), None).await.ok();
    assert_eq!(listed["unreachable"], json!([connection]));

    // All this while the hub heard nothing: it keeps its reader waiting, since unreachable is not ended.
    let seen = events.drain(std::time::Duration::from_millis(200)).await;
    assert!(
        !seen.iter().any(|event| event.line() == Some("secret")),
        "{seen:#?}"
    );

    // What the hub ordered would come true when it is heard again: its operator takes it back.
    let kills = hub.call("GET", "/api/v1/federation/kills", None).await.ok();
    let kills = kills["kills"].as_array().unwrap().clone();
    assert_eq!(kills.len(), 2, "{kills:#?}");
    for kill in &kills {
        let id = kill["intentId"].as_str().unwrap();
        let cancelled = world.cli_at(&hub, &["--json", "kills", "cancel", id]).await;
        assert_eq!(cancelled.expect(0).json()["state"], "cancelled");
    }

    // The spoke's own operator kills all the same.
    assert_eq!(spoke.kill(other).await.ok()["outcome"], "killed");

    world
        .cli_at(&spoke, &["connections", "resume", &at_spoke])
        .await
        .expect(0);
    eventually("the hub is heard again", async || {
        (hub.status(watched).await["state"] == "running").then_some(())
    })
    .await;
    // Whoever waited hears the rest.
    events.until(|event| event.line() == Some("secret")).await;
    let agent = world.spawn(&hub, &connection, "true").await;
    assert_eq!(hub.finished(agent).await["state"], "completed");
    assert_eq!(hub.kill(watched).await.ok()["outcome"], "killed");
    world.stop().await;
}

/// Suspended at the hub: the hub asks for nothing more, but a kill is always tried.
#[tokio::test]
async fn f15_a_connection_suspended_at_the_hub_ends_streams_and_still_kills() {
    let mut world = World::new();
    let (hub, spokes) = world.dev(1).await;
    let (_, connection) = &spokes[0];
    let agent = world.spawn(&hub, connection, FOREVER).await;
    let mut events = hub.events(agent, None).await;
    events.until(|event| event.line() == Some("at-work")).await;
    let suspend = format!("/api/v1/federation/connections/{connection}/suspend");
    hub.call("POST", &suspend, None).await.ok();
    let seen = events.to_the_end().await;
    let last = seen.last().unwrap();
    assert_eq!(
        (last.event.as_str(), &last.data["code"]),
        ("error", &json!("connection-not-active")),
        "{seen:#?}"
    );
    let body = world.spawn_body(Some(connection), AgentId::generate(), "true");
    hub.spawn(&body).await.problem(409, "connection-not-active");
    let report: Value = hub.kill_all(json!({})).await;
    assert_eq!(
        (&report["complete"], &report["killed"]),
        (&json!(true), &json!(1)),
        "{report:#}"
    );
    world.stop().await;
}
