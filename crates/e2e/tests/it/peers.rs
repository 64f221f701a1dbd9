//! What passes between peers: repetitions, forgeries, answers that are lost, and other peers' agents.

use mosaic_e2e::{
    api::{Answer, Node, eventually, http_client},
    chaos::{Proxy, Weather},
    system::{FOREVER, World, free_port},
};
use mosaic_federation::{command::CommandBuilder, identity::Identity};
use mosaic_types::{AgentId, InstanceId, Timestamp, command::CommandType};
use serde_json::{Value, json};

async fn post(spoke: &Node, bytes: Vec<u8>) -> Answer {
    let url = format!("{}/federation/v1/commands", spoke.url);
    mosaic_e2e::api::read(http_client().post(url).body(bytes))
        .await
        .unwrap()
}

async fn instance_id(node: &Node) -> InstanceId {
    let info = node.call("GET", "/api/v1/instance", None).await.ok();
    info["instanceId"].as_str().unwrap().parse().unwrap()
}

/// How often the trail tells that the agent came to be. Commands are told of by the same word, with their message's id.
async fn spawned(spoke: &Node, agent: AgentId) -> usize {
    let events = spoke.audit().await;
    let entered = events.iter().filter(|event| {
        event["action"] == "agent.spawn"
            && event["subject"] == json!(agent)
            && event["detail"]["repository"].is_string()
    });
    entered.count()
}

/// F10: what somebody on the way kept, byte for byte, and sends again.
#[tokio::test]
async fn f10_a_replayed_command_is_executed_once_and_a_tampered_one_never() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    world.peer(&hub, &spoke, &["--repository", "**"]).await;
    // The hub's key is enough to be the hub: a peer is its key.
    let identity = Identity::load_or_create(&hub.data_dir).unwrap();
    let to = instance_id(&spoke).await;
    let agent = AgentId::generate();
    let body = world.spawn_body(None, agent, "echo once");
    let seal = |kind, payload: &Value| {
        CommandBuilder::new(&to, kind)
            .seal(&identity, payload, Timestamp::now())
            .unwrap()
    };
    let spawn = seal(CommandType::AgentSpawn, &body);
    let first = post(&spoke, spawn.bytes.clone()).await;
    assert_eq!(first.status, 200, "{}", first.body);
    spoke.finished(agent).await;
    for _ in 0..3 {
        assert_eq!(post(&spoke, spawn.bytes.clone()).await.bytes, first.bytes);
    }
    // After a crash too: the claim was durable before the command was executed.
    world.crash("spoke");
    world.restart(&spoke).await;
    assert_eq!(post(&spoke, spawn.bytes.clone()).await.bytes, first.bytes);
    assert_eq!(spoke.agents().await.len(), 1);
    assert_eq!(spawned(&spoke, agent).await, 1);

    // Each tampered envelope gets the one answer for strangers.
    let constant = post(&spoke, b"{}".to_vec()).await;
    constant.problem(401, "unauthorized");
    let killing = seal(CommandType::AgentKillAll, &json!({"hold": true}));
    let honest: Value = serde_json::from_slice(&killing.bytes).unwrap();
    let other: Value = serde_json::from_slice(&spawn.bytes).unwrap();
    for (pointer, value) in [
        ("/payload", other["payload"].clone()),
        (
            "/payloadType",
            json!("application/vnd.mosaic.response.v1+json"),
        ),
        ("/signatures/0/sig", other["signatures"][0]["sig"].clone()),
        (
            "/signatures/0/keyid",
            json!("mk1aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        ),
        (
            "/signatures",
            json!([honest["signatures"][0], honest["signatures"][0]]),
        ),
        ("/signatures", json!([])),
    ] {
        let mut forged = honest.clone();
        *forged.pointer_mut(pointer).unwrap() = value;
        let answer = post(&spoke, serde_json::to_vec(&forged).unwrap()).await;
        assert_eq!(
            (answer.status, &answer.bytes),
            (401, &constant.bytes),
            "{pointer}"
        );
    }
    let hold = spoke.call("GET", "/hold", None).await.ok();
    assert_eq!(
        hold,
        json!({"all": false, "connections": []}),
        "nothing of it was executed"
    );
    // To somebody else, though signed well.
    let elsewhere = instance_id(&hub).await;
    let stray = CommandBuilder::new(&elsewhere, CommandType::AgentKillAll)
        .seal(&identity, &json!({"hold": true}), Timestamp::now())
        .unwrap();
    let answer = post(&spoke, stray.bytes).await;
    assert_ne!(answer.status, 202);
    let hold = spoke.call("GET", "/hold", None).await.ok();
    assert_eq!(hold, json!({"all": false, "connections": []}));
    world.stop().await;
}

#[tokio::test]
async fn a_peer_sees_and_kills_its_own_agents_only() {
    let mut world = World::new();
    let one = world.hub("hub-one").await;
    let two = world.hub("hub-two").await;
    let spoke = world.spoke("spoke", "").await;
    let to_one = world.peer(&one, &spoke, &["--repository", "**"]).await;
    let to_two = world.peer(&two, &spoke, &["--repository", "**"]).await;
    let of_one = world.spawn(&one, &to_one, FOREVER).await;
    let of_two = world.spawn(&two, &to_two, FOREVER).await;
    one.wrote(of_one, "at-work").await;
    two.wrote(of_two, "at-work").await;
    let ids = |agents: Vec<Value>| -> Vec<Value> {
        agents
            .into_iter()
            .map(|agent| agent["agentId"].clone())
            .collect()
    };
    assert_eq!(ids(one.agents().await), [json!(of_one)]);
    assert_eq!(ids(two.agents().await), [json!(of_two)]);
    assert_eq!(spoke.agents().await.len(), 2);
    for tail in ["status", "events", "result"] {
        let path = format!("/api/v1/federation/agents/{of_one}/{tail}");
        two.call("GET", &path, None)
            .await
            .problem(404, "unknown-agent");
    }
    two.kill(of_one).await.problem(404, "unknown-agent");
    // Nor by way of the same id: it is taken, and nothing about whose it is.
    let body = world.spawn_body(Some(&to_two), of_one, FOREVER);
    two.spawn(&body).await.problem(409, "conflict");
    // And now that this hub believes that the agent might be there, the spoke still knows better.
    two.kill(of_one).await.problem(404, "unknown-agent");
    let path = format!("/api/v1/federation/agents/{of_one}/status");
    two.call("GET", &path, None)
        .await
        .problem(404, "unknown-agent");
    let report = two.kill_all(json!({"hold": true})).await;
    assert_eq!(
        (&report["complete"], &report["killed"]),
        (&json!(true), &json!(1)),
        "{report:#}"
    );
    assert_eq!(one.status(of_one).await["state"], "running");
    // Its hold holds its own spawns, not the other's.
    let body = world.spawn_body(Some(&to_two), AgentId::generate(), "true");
    two.spawn(&body).await.problem(409, "held");
    let agent = world.spawn(&one, &to_one, "true").await;
    assert_eq!(one.finished(agent).await["state"], "completed");
    world.stop().await;
}

/// A4: the answer is lost, the operator asks again, and again.
#[tokio::test]
async fn a4_a_spawn_whose_answer_was_lost_is_one_agent_however_often_it_is_asked_for() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let inner = free_port();
    let proxy = Proxy::start(inner).await;
    let settings = format!("public-url = \"{}\"", proxy.url());
    let spoke = world.spoke_at("spoke", inner, &settings).await;
    // One agent at once: a retry needs no room of its own.
    let connection = world
        .peer(&hub, &spoke, &["--repository", "**", "--max-agents", "1"])
        .await;
    let agent = AgentId::generate();
    let body = world.spawn_body(Some(&connection), agent, FOREVER);
    proxy.set(Weather::AnswersLost);
    for _ in 0..2 {
        hub.spawn(&body).await.problem(502, "peer-unreachable");
    }
    assert!(proxy.lost() >= 2);
    // It runs, and the hub says that it cannot know.
    spoke.wrote(agent, "at-work").await;
    assert_eq!(hub.status(agent).await["state"], "unknown");
    let sent: Vec<Value> = hub
        .audit()
        .await
        .into_iter()
        .filter(|event| event["action"] == "agent.spawn")
        .collect();
    assert_eq!(sent.len(), 2, "{sent:#?}");
    for event in &sent {
        let id = event["detail"]["messageId"].as_str().unwrap();
        let record = eventually("the record of a command", async || {
            let record = hub
                .call("GET", &format!("/api/v1/federation/commands/{id}"), None)
                .await
                .ok();
            (record["state"] != "sent").then_some(record)
        })
        .await;
        // Not "refused", and not "succeeded": nobody knows.
        assert_eq!(record["state"], "unanswered", "{record:#}");
        assert_eq!(record["error"]["code"], "peer-unreachable");
        assert_eq!(record["agentId"], json!(agent));
    }

    proxy.set(Weather::Fair);
    let answer = hub.spawn(&body).await.ok();
    assert_eq!(
        (&answer["existing"], &answer["agentId"]),
        (&json!(true), &json!(agent))
    );
    let path = format!(
        "/api/v1/federation/commands/{}",
        answer["messageId"].as_str().unwrap()
    );
    eventually("the command's success on record", async || {
        (hub.call("GET", &path, None).await.ok()["state"] == "succeeded").then_some(())
    })
    .await;
    assert_eq!(spoke.agents().await.len(), 1);
    assert_eq!(spawned(&spoke, agent).await, 1);
    assert_eq!(hub.status(agent).await["state"], "running");

    // A kill whose answer is lost has killed all the same, and asking again tells of it.
    proxy.set(Weather::AnswersLost);
    hub.kill(agent).await.problem(502, "peer-unreachable");
    spoke.finished(agent).await;
    let report = hub.kill_all(json!({})).await;
    assert_eq!(
        (&report["complete"], &report["unreachable"]),
        (&json!(false), &json!(1))
    );
    proxy.set(Weather::Fair);
    assert_eq!(hub.kill(agent).await.ok()["outcome"], "already-ended");
    assert_eq!(hub.status(agent).await["state"], "killed");
    // Nobody is there at all.
    proxy.set(Weather::Down);
    let body = world.spawn_body(Some(&connection), AgentId::generate(), "true");
    hub.spawn(&body).await.problem(502, "peer-unreachable");
    assert_eq!(spoke.agents().await.len(), 1);
    world.stop().await;
}
