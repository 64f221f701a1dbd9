//! Spawning, looking, listing.

use mosaic_node::{CommandCall, PeerError};
use mosaic_types::{
    AgentId, ErrorCode,
    agent::AgentState,
    command::{AgentPage, CommandType, ListPayload},
    connection::NodeRole,
};
use serde_json::json;

use crate::{spoke::Spoke, support::World};

#[tokio::test]
async fn a_spawn_is_forwarded_recorded_and_audited() {
    let world = World::start(1).await;
    let answer = world
        .post("/federation/agents/spawn", world.order(0))
        .await
        .accepted();
    assert_eq!(answer["state"], "running");
    assert_eq!(answer["existing"], false);
    assert_eq!(answer["connectionId"], world.connections[0].to_string());
    let agent = answer["agentId"].as_str().unwrap();

    let status = world
        .get(&format!("/federation/agents/{agent}/status"))
        .await
        .ok();
    assert_eq!(status["state"], "running");
    assert_eq!(status["spoke"], "spoke-1");
    assert_eq!(status["connectionId"], world.connections[0].to_string());

    let audit = world.get("/audit").await.ok();
    let entries = audit["entries"].as_array().unwrap();
    let last: serde_json::Value =
        serde_json::from_str(entries.last().unwrap()["eventJson"].as_str().unwrap()).unwrap();
    assert_eq!(last["action"], "agent.spawn");
    assert_eq!(last["subject"], agent);
    assert_eq!(last["outcome"], "ok");
    assert_eq!(last["actor"]["token"], "admin");

    let message = answer["messageId"].as_str().unwrap().to_owned();
    let record = recorded(&world, &message).await;
    assert_eq!(record["state"], "succeeded");
    assert_eq!(record["commandType"], "agent.spawn");
    assert_eq!(record["agentId"], agent);
    world.stop().await;
}

/// The record of a command once its outcome is on it.
async fn recorded(world: &World, message: &str) -> serde_json::Value {
    loop {
        let record = world
            .get(&format!("/federation/commands/{message}"))
            .await
            .ok();
        if record["state"] != "sent" {
            return record;
        }
        tokio::task::yield_now().await;
    }
}

// A4: a reply that was lost must not make a second agent.
#[tokio::test]
async fn a4_the_same_spawn_twice_is_one_agent_and_another_is_a_conflict() {
    let world = World::start(2).await;
    let mut order = world.order(0);
    order["agentId"] = json!(AgentId::generate());
    let first = world
        .post("/federation/agents/spawn", order.clone())
        .await
        .accepted();
    let second = world
        .post("/federation/agents/spawn", order.clone())
        .await
        .accepted();
    assert_eq!(first["agentId"], second["agentId"]);
    assert_eq!(second["existing"], true);
    assert_eq!(
        world.spokes[0].handler.agents.lock().unwrap().known.len(),
        1
    );

    let mut other = order.clone();
    other["taskId"] = json!("MOS-2");
    let path = "/federation/agents/spawn";
    world
        .post(path, other)
        .await
        .refused(409, "conflict", Some("agentId"));
    let mut elsewhere = order;
    elsewhere["connectionId"] = json!(world.connections[1]);
    world
        .post(path, elsewhere)
        .await
        .refused(409, "conflict", Some("agentId"));
    // Neither was sent.
    assert_eq!(world.spokes[0].executed("agent.spawn"), 2);
    assert_eq!(world.spokes[1].executed("agent.spawn"), 0);
    world.stop().await;
}

// A3: unreachable is not dead, and not alive either.
#[tokio::test]
async fn a3_a_spawn_without_an_answer_is_unknown_until_the_spoke_is_heard() {
    let world = World::start(1).await;
    let mut order = world.order(0);
    let agent = AgentId::generate();
    order["agentId"] = json!(agent);
    world.spokes[0].link.cut();
    let path = "/federation/agents/spawn";
    world
        .post(path, order.clone())
        .await
        .refused(502, "peer-unreachable", None);

    let status = world
        .get(&format!("/federation/agents/{agent}/status"))
        .await
        .ok();
    assert_eq!(status["state"], "unknown");
    assert_eq!(status["repository"], "file:///srv/repository");
    assert_eq!(status["agentBranch"], format!("mosaic/{agent}"));
    assert!(status["detail"].as_str().unwrap().contains("no word"));

    world.spokes[0].link.mend();
    let answer = world.post(path, order).await.accepted();
    assert_eq!(answer["existing"], false);
    let status = world
        .get(&format!("/federation/agents/{agent}/status"))
        .await
        .ok();
    assert_eq!(status["state"], "running");
    world.stop().await;
}

#[tokio::test]
async fn a_refused_spawn_passes_the_spokes_refusal_on_and_is_never_unknown() {
    let world = World::start(1).await;
    let mut order = world.order(0);
    let agent = AgentId::generate();
    order["agentId"] = json!(agent);
    order["context"]["branch"] = json!("missing");
    let path = "/federation/agents/spawn";
    world
        .post(path, order)
        .await
        .refused(400, "unknown-branch", Some("context.branch"));
    let status = format!("/federation/agents/{agent}/status");
    world
        .get(&status)
        .await
        .refused(404, "unknown-agent", Some("agentId"));
    world.spokes[0].link.cut();
    let seen = world.get(&status).await.ok();
    assert_eq!(seen["state"], "failed");
    assert_eq!(seen["reason"], "spawn-failed");
    world.stop().await;
}

#[tokio::test]
async fn a_list_merges_all_spokes_newest_first_and_pages() {
    let world = World::start(2).await;
    let mut spawned = Vec::new();
    for number in 0..5 {
        spawned.push(world.spawn(number % 2).await.to_string());
    }
    spawned.reverse();
    let ids = |page: &serde_json::Value| -> Vec<String> {
        let agents = page["agents"].as_array().unwrap();
        agents
            .iter()
            .map(|agent| agent["agentId"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = world.get("/federation/agents").await.ok();
    assert_eq!(ids(&all), spawned);
    assert_eq!(all["more"], false);
    let first = world.get("/federation/agents?limit=2").await.ok();
    assert_eq!(ids(&first), spawned[..2]);
    assert_eq!(first["more"], true);
    let next = format!("/federation/agents?limit=2&before={}", spawned[1]);
    assert_eq!(ids(&world.get(&next).await.ok()), spawned[2..4]);
    let one = format!("/federation/agents?connectionId={}", world.connections[1]);
    assert_eq!(
        ids(&world.get(&one).await.ok()),
        [spawned[1].clone(), spawned[3].clone()]
    );
    world.stop().await;
}

// A3
#[tokio::test]
async fn a3_an_unreachable_spoke_is_named_and_its_agents_are_unknown_unless_seen_to_end() {
    let world = World::start(2).await;
    let (here, runs, ended) = (
        world.spawn(0).await,
        world.spawn(1).await,
        world.spawn(1).await,
    );
    world.spokes[1].handler.enter(ended, AgentState::Completed);
    world
        .get(&format!("/federation/agents/{runs}/status"))
        .await
        .ok();
    world
        .get(&format!("/federation/agents/{ended}/status"))
        .await
        .ok();
    world.spokes[1].link.cut();
    let path = format!("/federation/agents/{ended}/status");
    // What was seen is written behind the answer.
    while world.get(&path).await.ok()["state"] != "completed" {
        tokio::task::yield_now().await;
    }
    let list = world.get("/federation/agents").await.ok();
    assert_eq!(list["unreachable"], json!([world.connections[1]]));
    let state = |agent: AgentId| {
        let agents = list["agents"].as_array().unwrap();
        let found = agents
            .iter()
            .find(|one| one["agentId"] == agent.to_string())
            .unwrap();
        found["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state(here), "running");
    assert_eq!(state(runs), "unknown");
    assert_eq!(state(ended), "completed");
    let active = world.get("/federation/agents?active=true").await.ok();
    assert_eq!(active["agents"].as_array().unwrap().len(), 2);
    world.stop().await;
}

#[tokio::test]
async fn the_hub_tells_of_itself_and_of_its_spokes() {
    let world = World::start(1).await;
    let instance = world.get("/instance").await.ok();
    assert_eq!(instance["role"], "hub");
    assert_eq!(instance["connections"][0][1], "active");
    let id = world.connections[0];
    let pong = world
        .get(&format!("/federation/connections/{id}/ping"))
        .await
        .ok();
    assert_eq!(pong["name"], "paper");
    world.spokes[0].link.cut();
    let path = format!("/federation/connections/{id}/ping");
    world
        .get(&path)
        .await
        .refused(502, "peer-unreachable", None);
    world.stop().await;
}

// F14: a peer that was granted nothing gets nothing, by the strict configuration that is the default.
#[tokio::test]
async fn f14_a_spoke_may_ask_its_hub_for_nothing() {
    let world = World::start(1).await;
    let node = &world.spokes[0].node;
    let to_hub = node.connections().list().remove(0);
    let payload = ListPayload::default();
    let call = CommandCall {
        message_id: None,
        command_type: CommandType::AgentList,
        payload: &payload,
        timeout: std::time::Duration::from_secs(5),
        issued_at: None,
    };
    let error = node
        .peers()
        .command::<AgentPage, _>(&to_hub, call)
        .await
        .unwrap_err();
    assert!(matches!(error, PeerError::Refused(_)), "{error}");
    assert_eq!(error.refusal().code, ErrorCode::NotGranted);
    world.stop().await;
}

// F8: a spoke speaks for its own agents, whatever it says.
#[tokio::test]
async fn f8_a_spoke_that_claims_anothers_agent_changes_nothing() {
    let world = World::start(2).await;
    let agent = world.spawn(0).await;
    // The second spoke shows the first one's agent as its own, and as dead.
    {
        let mut paper = world.spokes[0].handler.agents.lock().unwrap().known[&agent].clone();
        paper.status.state = mosaic_types::agent::ObservedState::Killed;
        world.spokes[1]
            .handler
            .agents
            .lock()
            .unwrap()
            .known
            .insert(agent, paper);
    }
    let list = world.get("/federation/agents").await.ok();
    assert_eq!(list["agents"].as_array().unwrap().len(), 1);
    assert_eq!(list["agents"][0]["spoke"], "spoke-1");
    let report = world
        .post(&format!("/federation/agents/{agent}/kill"), json!({}))
        .await
        .ok();
    assert_eq!(report["outcome"], "killed");
    assert_eq!(world.spokes[0].executed("agent.kill"), 1);
    assert_eq!(world.spokes[1].executed("agent.kill"), 0);
    world.stop().await;
}

#[tokio::test]
async fn f8_an_answer_about_another_agent_is_no_answer() {
    let world = World::start(1).await;
    let (asked, other) = (world.spawn(0).await, world.spawn(0).await);
    {
        let mut agents = world.spokes[0].handler.agents.lock().unwrap();
        let paper = agents.known[&other].clone();
        agents.known.insert(asked, paper);
    }
    let status = world
        .get(&format!("/federation/agents/{asked}/status"))
        .await
        .ok();
    assert_eq!(status["state"], "unknown");
    assert_eq!(status["agentId"], asked.to_string());
    let kill = world
        .post(&format!("/federation/agents/{asked}/kill"), json!({}))
        .await;
    kill.refused(502, "peer-unreachable", None);
    let result = world
        .get(&format!("/federation/agents/{asked}/result"))
        .await;
    result.refused(502, "peer-unreachable", None);
    world.stop().await;
}

// A4: what a retry is told says nothing about the attempt before, whose answer was lost.
#[tokio::test]
async fn a4_a_vague_or_late_refusal_is_never_written_over_an_agent_that_may_run() {
    let world = World::start(1).await;
    let path = "/federation/agents/spawn";
    let spoke = &world.spokes[0];
    let refuse = |code| spoke.handler.agents.lock().unwrap().refuses_spawns = code;
    for vague in [
        ErrorCode::OutcomeUnknown,
        ErrorCode::Internal,
        ErrorCode::QuotaExceeded,
    ] {
        let mut order = world.order(0);
        let agent = AgentId::generate();
        order["agentId"] = json!(agent);
        let status = format!("/federation/agents/{agent}/status");
        refuse(Some(vague));
        let answer = world.post(path, order.clone()).await;
        assert_eq!(answer.body["code"], vague.as_str());
        spoke.link.cut();
        assert_eq!(world.get(&status).await.ok()["state"], "unknown", "{vague}");
        spoke.link.mend();
        // By now it runs; and the retry is refused for good.
        refuse(Some(ErrorCode::NotGranted));
        let answer = world.post(path, order.clone()).await;
        assert_eq!(answer.body["code"], "not-granted");
        spoke.link.cut();
        assert_eq!(world.get(&status).await.ok()["state"], "unknown", "{vague}");
        spoke.link.mend();
    }
    world.stop().await;
}

#[tokio::test]
async fn a4_a_refused_spawn_that_is_asked_for_again_may_run() {
    let world = World::start(1).await;
    let path = "/federation/agents/spawn";
    let spoke = &world.spokes[0];
    let refuse = |code| spoke.handler.agents.lock().unwrap().refuses_spawns = code;
    let mut order = world.order(0);
    let agent = AgentId::generate();
    order["agentId"] = json!(agent);
    let status = format!("/federation/agents/{agent}/status");
    refuse(Some(ErrorCode::NotGranted));
    world.post(path, order.clone()).await;
    spoke.link.cut();
    assert_eq!(world.get(&status).await.ok()["state"], "failed");
    let all = "/federation/agents/kill-all";
    spoke.link.mend();
    refuse(None);
    world.post(path, order).await.accepted();
    spoke.link.cut();
    assert_eq!(world.get(&status).await.ok()["state"], "unknown");
    let id = world.connections[0];
    let disconnect = format!("/federation/connections/{id}/disconnect");
    world.post(&disconnect, json!({})).await.ok();
    assert_eq!(world.post(all, json!({})).await.ok()["complete"], false);
    world.stop().await;
}

// What a kill-all would not ask must not be given agents.
#[tokio::test]
async fn a_peer_that_is_no_spoke_is_given_no_agents() {
    let mut world = World::start(0).await;
    world
        .join(Spoke::start_as("other", NodeRole::Hub).await)
        .await;
    let answer = world.post("/federation/agents/spawn", world.order(0)).await;
    answer.refused(400, "invalid-request", Some("connectionId"));
    assert_eq!(world.spokes[0].executed("agent.spawn"), 0);
    world.stop().await;
}
