//! Kills: forwarded whatever else is broken, and never glossed over.

use mosaic_node::HttpLimits;
use mosaic_types::agent::AgentState;
use serde_json::{Value, json};

use crate::support::World;

/// The audited events of an action, once there are as many.
async fn audited_times(world: &World, action: &str, times: usize) -> Vec<Value> {
    loop {
        let events = audited(world, action).await;
        if events.len() >= times {
            return events;
        }
        tokio::task::yield_now().await;
    }
}

async fn audited(world: &World, action: &str) -> Vec<Value> {
    let audit = world.get("/audit?limit=1000").await.ok();
    let entries = audit["entries"].as_array().unwrap().iter();
    entries
        .map(|entry| serde_json::from_str::<Value>(entry["eventJson"].as_str().unwrap()).unwrap())
        .filter(|event| event["action"] == action)
        .collect()
}

// A30: success means proof.
#[tokio::test]
async fn a30_a_kill_answers_with_the_spokes_proof_and_is_recorded() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let path = format!("/federation/agents/{agent}/kill");
    let report = world.post(&path, json!({ "reason": "enough" })).await.ok();
    assert_eq!(report["outcome"], "killed");
    assert_eq!(report["proof"]["method"], "pidfd");
    // Again, with no body at all.
    let again = world
        .raw(reqwest::Method::POST, &path)
        .send()
        .await
        .unwrap();
    let again: Value = again.json().await.unwrap();
    assert_eq!(again["outcome"], "already-ended");
    let events = loop {
        let events = audited(&world, "agent.kill").await;
        if events.len() == 2 {
            break events;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(events[0]["subject"], agent.to_string());
    assert_eq!(events[0]["detail"]["reason"], "enough");
    world.stop().await;
}

#[tokio::test]
async fn an_unverified_kill_is_passed_on_as_such() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    world.spokes[0]
        .handler
        .agents
        .lock()
        .unwrap()
        .kills_unverified = true;
    let report = world
        .post(&format!("/federation/agents/{agent}/kill"), json!({}))
        .await
        .ok();
    assert_eq!(report["outcome"], "unverified");
    assert_eq!(report["proof"], Value::Null);
    let all = world
        .post("/federation/agents/kill-all", json!({}))
        .await
        .ok();
    assert_eq!(all["complete"], false);
    assert_eq!((&all["killed"], &all["unverified"]), (&json!(0), &json!(1)));
    world.stop().await;
}

#[tokio::test]
async fn kills_need_no_store() {
    let world = World::start(2).await;
    let (known, forgotten) = (world.spawn(0).await, world.spawn(1).await);
    // One that this hub has never heard of, so that neither memory nor store knows where it is.
    let stranger = {
        let mut agents = world.spokes[1].handler.agents.lock().unwrap();
        let mut paper = agents.known[&forgotten].clone();
        let stranger = mosaic_types::AgentId::generate();
        paper.status.agent_id = stranger;
        agents.known.insert(stranger, paper);
        stranger
    };
    world.hub.node().store().close().await;
    for agent in [known, stranger] {
        let report = world
            .post(&format!("/federation/agents/{agent}/kill"), json!({}))
            .await
            .ok();
        assert_eq!(report["outcome"], "killed");
        // Who is known to be at one spoke is not looked for at the other.
        let asked = world.spokes[1].executed("agent.kill");
        assert_eq!(asked, usize::from(agent == stranger));
    }
    let all = world
        .post("/federation/agents/kill-all", json!({}))
        .await
        .ok();
    assert_eq!(all["complete"], true);
    assert_eq!(all["killed"], 1);
    world.stop().await;
}

#[tokio::test]
async fn an_agent_that_nobody_has_is_unknown_only_if_every_spoke_says_so() {
    let world = World::start(2).await;
    let path = format!(
        "/federation/agents/{}/kill",
        mosaic_types::AgentId::generate()
    );
    world
        .post(&path, json!({}))
        .await
        .refused(404, "unknown-agent", Some("agentId"));
    world.spokes[1].link.cut();
    let answer = world.post(&path, json!({})).await;
    assert!(
        answer.body["detail"].as_str().unwrap().contains("spoke-2"),
        "{}",
        answer.body
    );
    answer.refused(502, "peer-unreachable", Some("agentId"));
    world.stop().await;
}

#[tokio::test]
async fn a_kill_all_reaches_every_spoke_and_names_the_one_it_does_not() {
    let world = World::start(3).await;
    for spoke in [0, 0, 1, 2] {
        world.spawn(spoke).await;
    }
    let ended = world.spawn(0).await;
    world.spokes[0].handler.enter(ended, AgentState::Completed);
    world.spokes[1].link.cut();
    let all = world
        .post("/federation/agents/kill-all", json!({ "hold": true }))
        .await
        .ok();
    assert_eq!(all["complete"], false);
    assert_eq!(
        (&all["killed"], &all["unreachable"]),
        (&json!(3), &json!(1))
    );
    let spokes = all["spokes"].as_array().unwrap();
    assert_eq!(spokes.len(), 3);
    let silent = spokes
        .iter()
        .find(|spoke| spoke["name"] == "spoke-2")
        .unwrap();
    assert_eq!(silent["connectionId"], world.connections[1].to_string());
    assert_eq!(silent["error"]["code"], "peer-unreachable");
    assert_eq!(silent["report"], Value::Null);
    assert_eq!(spokes[0]["report"]["held"], true);

    world.spokes[1].link.mend();
    let all = world
        .post("/federation/agents/kill-all", json!({}))
        .await
        .ok();
    assert_eq!(all["complete"], true);
    assert_eq!(all["killed"], 1);
    world.stop().await;
}

#[tokio::test]
async fn a_kill_all_keeps_to_its_scope() {
    let world = World::start(2).await;
    world.spawn(0).await;
    let here = world.spawn(1).await;
    let mut order = world.order(1);
    order["taskId"] = json!("MOS-2");
    world
        .post("/federation/agents/spawn", order)
        .await
        .accepted();
    let path = "/federation/agents/kill-all";
    let body = json!({ "connectionId": world.connections[1], "taskId": "MOS-2" });
    let all = world.post(path, body).await.ok();
    assert_eq!(
        (&all["killed"], all["spokes"].as_array().unwrap().len()),
        (&json!(1), 1)
    );
    assert_eq!(world.spokes[0].executed("agent.killAll"), 0);
    let status = world
        .get(&format!("/federation/agents/{here}/status"))
        .await
        .ok();
    assert_eq!(status["state"], "running");
    world.stop().await;
}

#[tokio::test]
async fn a_suspended_connection_takes_kills_and_nothing_else() {
    let world = World::start(1).await;
    let (one, _other) = (world.spawn(0).await, world.spawn(0).await);
    let id = world.connections[0];
    world
        .post(&format!("/federation/connections/{id}/suspend"), json!({}))
        .await
        .ok();
    let report = world
        .post(&format!("/federation/agents/{one}/kill"), json!({}))
        .await
        .ok();
    assert_eq!(report["outcome"], "killed");
    let all = world
        .post("/federation/agents/kill-all", json!({}))
        .await
        .ok();
    assert_eq!(
        (&all["complete"], &all["killed"]),
        (&json!(true), &json!(1))
    );
    let spawn = world.post("/federation/agents/spawn", world.order(0)).await;
    spawn.refused(409, "connection-not-active", Some("connectionId"));
    let list = world.get("/federation/agents").await.ok();
    assert_eq!(list["unreachable"], json!([id]));

    world
        .post(
            &format!("/federation/connections/{id}/disconnect"),
            json!({}),
        )
        .await
        .ok();
    let gone = world
        .post(&format!("/federation/agents/{one}/kill"), json!({}))
        .await;
    gone.refused(409, "connection-not-active", Some("connectionId"));
    world.stop().await;
}

#[tokio::test]
async fn a_kill_is_carried_through_when_the_operator_hangs_up() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let path = format!("/federation/agents/{agent}/kill");
    let spoke = &world.spokes[0];
    spoke.handler.gate_open.send_replace(false);
    let request = world.raw(reqwest::Method::POST, &path).send();
    let operator = tokio::spawn(request);
    while spoke.executed("agent.kill") == 0 {
        tokio::task::yield_now().await;
    }
    operator.abort();
    assert!(operator.await.unwrap_err().is_cancelled());
    // A request after the hang-up: by its answer the hub has had the time to notice.
    world.get("/instance").await.ok();
    spoke.handler.gate_open.send_replace(true);
    let events = loop {
        let events = audited(&world, "agent.kill").await;
        if !events.is_empty() {
            break events;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(events[0]["outcome"], "ok");
    world.stop().await;
}

// A30: a spoke that does not know better must not answer for the one that has the agent and is silent.
#[tokio::test]
async fn a30_that_it_had_ended_counts_only_if_no_spoke_is_silent() {
    let world = World::start(2).await;
    world.spokes[0].handler.agents.lock().unwrap().claims_ended = true;
    let path = format!(
        "/federation/agents/{}/kill",
        mosaic_types::AgentId::generate()
    );
    let report = world.post(&path, json!({})).await.ok();
    assert_eq!(report["outcome"], "already-ended");

    world.spokes[1].link.cut();
    let answer = world.post(&path, json!({})).await;
    let detail = answer.body["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("spoke-2"), "{detail}");
    answer.refused(502, "peer-unreachable", Some("agentId"));
    world.stop().await;
}

#[tokio::test]
async fn a30_the_one_that_proves_the_death_goes_before_the_one_that_says_it_had_ended() {
    let world = World::start(2).await;
    let agent = world.spawn(1).await;
    let stranger = mosaic_types::AgentId::generate();
    {
        let mut agents = world.spokes[1].handler.agents.lock().unwrap();
        let mut paper = agents.known[&agent].clone();
        paper.status.agent_id = stranger;
        agents.known.insert(stranger, paper);
    }
    world.spokes[0].handler.agents.lock().unwrap().claims_ended = true;
    let path = format!("/federation/agents/{stranger}/kill");
    let report = world.post(&path, json!({})).await.ok();
    assert_eq!(report["outcome"], "killed");
    world.stop().await;
}

#[tokio::test]
async fn a30_a_death_without_a_proof_is_not_proven() {
    let world = World::start(1).await;
    let (one, _other) = (world.spawn(0).await, world.spawn(0).await);
    world.spokes[0].handler.agents.lock().unwrap().no_proofs = true;
    let path = format!("/federation/agents/{one}/kill");
    let report = world.post(&path, json!({})).await.ok();
    assert_eq!(report["outcome"], "unverified");
    let path = "/federation/agents/kill-all";
    let all = world.post(path, json!({})).await.ok();
    assert_eq!(all["complete"], false);
    assert_eq!((&all["killed"], &all["unverified"]), (&json!(0), &json!(1)));
    world.stop().await;
}

#[tokio::test]
async fn a_kill_all_names_the_disconnected_spoke_whose_agents_were_not_seen_to_end() {
    let world = World::start(2).await;
    let (lost, ended) = (world.spawn(0).await, world.spawn(1).await);
    world.spokes[1].handler.enter(ended, AgentState::Completed);
    let status = format!("/federation/agents/{ended}/status");
    assert_eq!(world.get(&status).await.ok()["state"], "completed");
    for id in &world.connections {
        let path = format!("/federation/connections/{id}/disconnect");
        world.post(&path, json!({})).await.ok();
    }
    let path = "/federation/agents/kill-all";
    let all = world.post(path, json!({})).await.ok();
    assert_eq!(
        (&all["complete"], &all["unreachable"]),
        (&json!(false), &json!(1))
    );
    let spokes = all["spokes"].as_array().unwrap();
    assert_eq!(spokes.len(), 1);
    assert_eq!(spokes[0]["connectionId"], world.connections[0].to_string());
    assert_eq!(spokes[0]["error"]["code"], "connection-not-active");

    // By task; and with the store gone it may be any.
    let scope = |task: &str| world.post(path, json!({ "taskId": task }));
    assert_eq!(scope("MOS-1").await.ok()["complete"], false);
    assert_eq!(scope("MOS-2").await.ok()["complete"], true);
    world.hub.node().store().close().await;
    assert_eq!(scope("MOS-2").await.ok()["complete"], false);
    let kill = format!("/federation/agents/{lost}/kill");
    world
        .post(&kill, json!({}))
        .await
        .refused(409, "connection-not-active", Some("connectionId"));
    world.stop().await;
}

#[tokio::test]
async fn orders_that_were_not_sent_are_audited_too() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let (id, unknown) = (world.connections[0], mosaic_types::ConnectionId::generate());
    let path = format!("/federation/connections/{id}/disconnect");
    world.post(&path, json!({})).await.ok();
    let kill = format!("/federation/agents/{agent}/kill");
    assert_eq!(world.post(&kill, json!({})).await.status, 409);
    // Nobody is left to ask.
    let kill = format!(
        "/federation/agents/{}/kill",
        mosaic_types::AgentId::generate()
    );
    assert_eq!(world.post(&kill, json!({})).await.status, 404);
    let path = "/federation/agents/kill-all";
    let body = json!({ "connectionId": unknown });
    assert_eq!(world.post(path, body).await.status, 404);
    world.post(path, json!({})).await.ok();
    let path = "/federation/agents/spawn";
    assert_eq!(world.post(path, world.order(0)).await.status, 409);

    let outcomes = |events: Vec<Value>| -> Vec<String> {
        let outcome = |event: &Value| event["outcome"].as_str().unwrap().to_owned();
        events.iter().map(outcome).collect()
    };
    let kills = audited_times(&world, "agent.kill", 2).await;
    assert_eq!(kills[0]["subject"], agent.to_string());
    assert_eq!(kills[0]["detail"]["sent"], false);
    assert_eq!(outcomes(kills), ["connection-not-active", "unknown-agent"]);
    let all = audited_times(&world, "agent.killAll", 2).await;
    assert_eq!(outcomes(all), ["unknown-connection", "ok"]);
    let spawns = audited_times(&world, "agent.spawn", 2).await;
    assert_eq!(outcomes(spawns), ["ok", "connection-not-active"]);
    world.stop().await;
}

// A30: what an operator asks during a kill goes out once the kill has its answer; other kills go on, and so do spawns.
#[tokio::test]
async fn a30_what_is_asked_during_a_kill_goes_out_after_it() {
    let hour = std::time::Duration::from_secs(3600);
    let limits = HttpLimits {
        kill_permit_hold: hour,
        stand_aside: hour,
        ..HttpLimits::default()
    };
    let world = World::start_limited(2, limits).await;
    let (slow, other) = (world.spawn(0).await, world.spawn(1).await);
    let kill_of = |agent| format!("/federation/agents/{agent}/kill");
    let status = format!("/federation/agents/{other}/status");
    let kill_all = "/federation/agents/kill-all".to_owned();
    let kills = [(kill_of(slow), "agent.kill"), (kill_all, "agent.killAll")];
    for (round, (path, command)) in kills.into_iter().enumerate() {
        world.spokes[0].handler.gate_open.send_replace(false);
        let killing = world.posting(&path, &json!({}));
        while world.spokes[0].executed(command) == 0 {
            tokio::task::yield_now().await;
        }
        let asking = tokio::spawn(world.raw(reqwest::Method::GET, &status).send());
        // Nobody's turn is taken by who is no operator: it is told so at once.
        let unknown = world.request(None, reqwest::Method::GET, &status, None);
        assert_eq!(unknown.await.status(), 401);
        // While these come and go, so could the question.
        for _ in 0..16 {
            world.post(&kill_of(other), json!({})).await.ok();
        }
        world.spawn(1).await;
        assert_eq!(world.spokes[1].executed("agent.status"), round);
        world.spokes[0].handler.gate_open.send_replace(true);
        killing.await.unwrap().ok();
        let answer = asking.await.unwrap().unwrap();
        assert_eq!(answer.status(), reqwest::StatusCode::OK);
    }
    world.stop().await;
}
