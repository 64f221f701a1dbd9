//! Deaths that were proven to the hub, and spawns that were refused: known for good, and in nobody's way.

use mosaic_types::{AgentId, ErrorCode, agent::ObservedState};
use serde_json::{Value, json};

use crate::{pending::proven, support::World};

const KILL_ALL: &str = "/federation/agents/kill-all";

fn status(agent: AgentId) -> String {
    format!("/federation/agents/{agent}/status")
}

async fn known_dead(world: &World, agent: AgentId) -> Value {
    let is_killed = |status: &Value| status["state"] == "killed";
    let status = world.until(&status(agent), is_killed).await;
    assert_eq!(status["death"]["method"], "pidfd");
    status
}

/// A8: a proof is remembered, by whatever order it came: with its spoke gone the agent is dead, and not unknown.
#[tokio::test]
async fn a8_a_death_that_was_proven_is_known_with_the_spoke_gone() {
    let world = World::start(3).await;
    let (one, kept, lost) = (
        world.spawn(0).await,
        world.spawn(1).await,
        world.spawn(2).await,
    );
    world.spokes[1].link.cut();
    let path = format!("/federation/agents/{kept}/kill");
    world
        .post(&path, json!({}))
        .await
        .refused(502, "peer-unreachable", None);
    world.spokes[1].link.mend();
    proven(&world, 1).await;
    let path = format!("/federation/agents/{one}/kill");
    assert_eq!(world.post(&path, json!({})).await.ok()["outcome"], "killed");
    let all = world.post(KILL_ALL, json!({})).await.ok();
    assert_eq!(
        (&all["complete"], &all["killed"]),
        (&json!(true), &json!(1))
    );

    for spoke in &world.spokes {
        spoke.link.cut();
    }
    for agent in [one, kept, lost] {
        known_dead(&world, agent).await;
    }
    // So a spoke that is gone for good has nobody left who might live.
    for spoke in 0..3 {
        world.disconnect(spoke).await;
    }
    for scope in [json!({}), json!({"taskId": "MOS-1"})] {
        assert_eq!(world.post(KILL_ALL, scope).await.ok()["complete"], true);
    }
    let world = world.again().await;
    assert_eq!(world.post(KILL_ALL, json!({})).await.ok()["complete"], true);
    known_dead(&world, one).await;
    world.stop().await;
}

/// What the spoke tells of the dead afterwards is taken, and that it was still killing is no news.
#[tokio::test]
async fn what_is_told_of_the_dead_after_the_proof_is_kept() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let path = format!("/federation/agents/{agent}/kill");
    world.post(&path, json!({})).await.ok();
    let tells = |world: &World, state, summary: Option<&str>| {
        let mut agents = world.spokes[0].handler.agents.lock().unwrap();
        let paper = agents.known.get_mut(&agent).unwrap();
        paper.status.state = state;
        paper.status.summary = summary.map(str::to_owned);
    };
    tells(&world, ObservedState::Killing, None);
    assert_eq!(
        world.get(&status(agent)).await.ok()["state"],
        json!("killing")
    );
    world.spokes[0].link.cut();
    known_dead(&world, agent).await;
    let world = world.again().await;
    world.spokes[0].link.mend();
    tells(&world, ObservedState::Killed, Some("cleaned up"));
    assert_eq!(
        world.get(&status(agent)).await.ok()["summary"],
        "cleaned up"
    );
    world.spokes[0].link.cut();
    let is_taken = |status: &Value| status["summary"] == "cleaned up";
    let kept = world.until(&status(agent), is_taken).await;
    assert_eq!(kept["state"], "killed");
    world.stop().await;
}

/// F22: a spawn that was refused makes room for others, and may be asked for again all the same.
#[tokio::test]
async fn f22_a_refused_spawn_is_kept_as_over_until_it_is_asked_for_again() {
    let world = World::start(1).await;
    let agent = AgentId::generate();
    let mut order = world.order(0);
    order["agentId"] = json!(agent);
    let refuse = |code| {
        world.spokes[0]
            .handler
            .agents
            .lock()
            .unwrap()
            .refuses_spawns = code
    };
    let is_over = || async {
        let store = world.hub.node().store();
        store.remote_agent(agent).await.unwrap().unwrap().terminal
    };
    let spawn = "/federation/agents/spawn";
    for _ in 0..2 {
        refuse(Some(ErrorCode::NotGranted));
        world
            .post(spawn, order.clone())
            .await
            .refused(403, "not-granted", None);
        assert!(is_over().await);
    }
    refuse(None);
    world.post(spawn, order).await.accepted();
    assert!(!is_over().await);
    world.stop().await;
}
