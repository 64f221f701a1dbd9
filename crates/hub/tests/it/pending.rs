//! Kills of spokes that are not heard: kept, shown, delivered before anything else, and proven.

use mosaic_types::{ErrorCode, api::Role};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, World};

pub(crate) const KILLS: &str = "/federation/kills";

pub(crate) fn states(kills: &Value) -> Vec<&str> {
    let kills = kills["kills"].as_array().unwrap().iter();
    kills.map(|kill| kill["state"].as_str().unwrap()).collect()
}

pub(crate) async fn proven(world: &World, count: usize) -> Value {
    let is_proven = |kills: &Value| states(kills) == vec!["proven"; count];
    world.until(KILLS, is_proven).await
}

async fn events(world: &World) -> Vec<Value> {
    let audit = world.get("/audit?limit=1000").await.ok();
    let entries = audit["entries"].as_array().unwrap().iter();
    entries
        .map(|entry| serde_json::from_str(entry["eventJson"].as_str().unwrap()).unwrap())
        .collect()
}

async fn audited_as(world: &World, action: &str) -> Vec<Value> {
    let mut events = events(world).await;
    events.retain(|event| event["action"] == action);
    events
}

/// The audited kills that were kept, without their prefix.
async fn audited(world: &World) -> Vec<String> {
    let events = events(world).await.into_iter();
    events
        .filter_map(|event| {
            let action = event["action"].as_str().unwrap();
            action.strip_prefix("kill-intent.").map(str::to_owned)
        })
        .collect()
}

async fn all_audited(world: &World, expected: &[&str]) {
    while audited(world).await != expected {
        tokio::task::yield_now().await;
    }
}

/// A38: the answer says that it is pending, and so does everything else, until the spoke has proven it.
#[tokio::test]
async fn a38_a_kill_of_a_silent_spoke_is_pending_until_it_is_proven() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    world.spokes[0].link.cut();
    let path = format!("/federation/agents/{agent}/kill");
    let answer = world.post(&path, json!({"reason": "enough"})).await;
    let detail = answer.body["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("the kill is pending as "), "{detail}");
    assert!(!detail.contains("for as long as"), "{detail}");
    answer.refused(502, "peer-unreachable", None);
    let kills = world.get(KILLS).await.ok();
    let kill = &kills["kills"][0];
    assert!(
        detail.contains(kill["intentId"].as_str().unwrap()),
        "{detail}"
    );
    assert_eq!(
        (&kill["state"], &kill["durable"], &kill["reason"]),
        (&json!("pending"), &json!(true), &json!("enough"))
    );
    assert_eq!(kill["target"], json!({"kind": "agent", "agentId": agent}));
    assert_eq!(
        kill["author"],
        json!({"kind": "operator", "token": "admin"})
    );
    assert_eq!(kill["lastError"]["code"], "peer-unreachable");
    assert!(kill["attempts"].as_u64().unwrap() >= 1);
    let status = format!("/federation/agents/{agent}/status");
    assert_eq!(world.get(&status).await.ok()["killPending"], true);
    let list = world.get("/federation/agents").await.ok();
    assert_eq!(list["agents"][0]["killPending"], true);
    // Ordered again it is still one.
    let again = world.post(&path, json!({})).await;
    again.refused(502, "peer-unreachable", None);
    assert_eq!(states(&world.get(KILLS).await.ok()), ["pending"]);

    world.spokes[0].link.mend();
    let kills = proven(&world, 1).await;
    assert_ne!(kills["kills"][0]["deliveredAt"], Value::Null);
    assert_eq!(kills["kills"][0]["lastError"], Value::Null);
    let status = world.get(&status).await.ok();
    assert_eq!(
        (&status["state"], &status["killPending"]),
        (&json!("killed"), &Value::Null)
    );
    all_audited(&world, &["ordered", "ordered", "delivered", "proven"]).await;
    world.stop().await;
}

/// A38: it outlives the hub.
#[tokio::test]
async fn a38_a_pending_kill_outlives_the_hub() {
    let world = World::start(2).await;
    let agent = world.spawn(0).await;
    world.spawn(1).await;
    for spoke in &world.spokes {
        spoke.link.cut();
    }
    let path = format!("/federation/agents/{agent}/kill");
    let answer = world.post(&path, json!({})).await;
    answer.refused(502, "peer-unreachable", None);
    let body = json!({"connectionId": world.connections[1], "hold": true});
    let path = "/federation/agents/kill-all";
    let all = world.post(path, body).await.ok();
    assert_eq!(
        (&all["complete"], &all["unreachable"], &all["pending"]),
        (&json!(false), &json!(1), &json!(1))
    );
    let before = world.get(KILLS).await.ok();
    assert_eq!(all["spokes"][0]["pending"], before["kills"][1]["intentId"]);

    let world = world.again().await;
    let after = world.get(KILLS).await.ok();
    for (before, after) in [(0, 0), (1, 1)].map(|(b, a)| (&before["kills"][b], &after["kills"][a]))
    {
        for member in ["intentId", "target", "orderedAt", "author", "hold"] {
            assert_eq!(before[member], after[member], "{member}");
        }
    }
    for spoke in &world.spokes {
        spoke.link.mend();
    }
    proven(&world, 2).await;
    let list = world.get("/federation/agents?active=true").await.ok();
    assert_eq!(list["agents"], json!([]));
    let world = world.again().await;
    assert_eq!(states(&world.get(KILLS).await.ok()), ["proven", "proven"]);
    world.stop().await;
}

/// A38: nothing goes to the spoke before the kill, and nobody who was asked for after the order is taken by it.
#[tokio::test]
async fn a38_a_kept_kill_goes_first_and_spares_who_came_after() {
    let world = World::start(1).await;
    let old = world.spawn(0).await;
    world.spokes[0].link.cut();
    let path = "/federation/agents/kill-all";
    world.post(path, json!({})).await.ok();
    // Not even a spawn that would be refused anyway is sent before it.
    let spawn = world.post("/federation/agents/spawn", world.order(0)).await;
    assert!(
        spawn.body["detail"]
            .as_str()
            .unwrap()
            .contains("goes first"),
        "{}",
        spawn.body
    );
    spawn.refused(502, "peer-unreachable", None);

    world.spokes[0].link.mend();
    let new = world.spawn(0).await;
    let executed: Vec<&str> = {
        let agents = world.spokes[0].handler.agents.lock().unwrap();
        let mut executed = agents.executed.clone();
        executed.retain(|command| *command != "agent.list");
        executed
    };
    assert_eq!(executed, ["agent.spawn", "agent.killAll", "agent.spawn"]);
    proven(&world, 1).await;
    for (agent, state) in [(old, "killed"), (new, "running")] {
        let status = format!("/federation/agents/{agent}/status");
        assert_eq!(world.get(&status).await.ok()["state"], state);
    }
    // The same order once more, as if its answer had been lost.
    let kept = world.get(KILLS).await.ok();
    let paper = world.spokes[0].handler.agents.lock().unwrap().known[&new].clone();
    let ordered_at = kept["kills"][0]["orderedAt"].as_str().unwrap();
    assert!(paper.issued_at > ordered_at.parse().unwrap());
    world.stop().await;
}

#[tokio::test]
async fn a_kill_that_is_not_proven_is_asked_for_again() {
    let world = World::start(1).await;
    let (one, other) = (world.spawn(0).await, world.spawn(0).await);
    let agents = || world.spokes[0].handler.agents.lock().unwrap();
    agents().kills_unverified = true;
    let path = format!("/federation/agents/{one}/kill");
    let report = world.post(&path, json!({})).await.ok();
    assert_eq!(report["outcome"], "unverified");
    assert!(report["detail"].as_str().unwrap().contains("is pending as"));
    let path = "/federation/agents/kill-all";
    let all = world.post(path, json!({})).await.ok();
    assert_eq!(
        (&all["complete"], &all["pending"]),
        (&json!(false), &json!(1))
    );
    // It was answered, so it holds nobody up.
    world
        .get(&format!("/federation/agents/{other}/status"))
        .await
        .ok();
    let kills = world.get(KILLS).await.ok();
    assert_eq!(states(&kills), ["pending", "pending"]);
    assert_eq!(kills["kills"][0]["lastError"]["code"], "outcome-unknown");
    agents().kills_unverified = false;
    proven(&world, 2).await;
    world.stop().await;
}

/// A9: a hold that was asked for and is not in force, or would be lost with a restart, is an order that is still open.
#[tokio::test]
async fn a9_a_kill_all_whose_hold_does_not_take_is_asked_for_again() {
    let world = World::start(1).await;
    world.spawn(0).await;
    let agents = || world.spokes[0].handler.agents.lock().unwrap();
    let path = "/federation/agents/kill-all";
    for (takes_no_hold, hold_durable, why) in [
        (true, None, "that spawns are held there"),
        (
            false,
            Some(false),
            "that the hold outlives a restart of the spoke",
        ),
    ] {
        agents().takes_no_hold = takes_no_hold;
        agents().hold_durable = hold_durable;
        let all = world.post(path, json!({"hold": true})).await.ok();
        assert_eq!(
            (&all["complete"], &all["unreachable"], &all["pending"]),
            (&json!(false), &json!(0), &json!(1)),
            "{all:#}"
        );
        let spoke = &all["spokes"][0];
        let told = spoke["error"]["message"].as_str().unwrap();
        assert!(told.contains(why), "{told}");
        assert!(told.contains("the kill is pending as "), "{told}");
        assert_ne!(spoke["report"], Value::Null);
        // It was answered, so it holds nobody up, and takes nobody who came after it.
        let new = world.spawn(0).await;
        let kills = world.get(KILLS).await.ok();
        assert_eq!(kills["kills"][0]["state"], "pending", "{kills:#}");
        assert_eq!(kills["kills"][0]["lastError"]["code"], "outcome-unknown");
        agents().takes_no_hold = false;
        agents().hold_durable = Some(true);
        let is_settled = |kills: &Value| kills["kills"][0]["state"] == "proven";
        world.until(KILLS, is_settled).await;
        let status = format!("/federation/agents/{new}/status");
        assert_eq!(world.get(&status).await.ok()["state"], "running");
    }
    // A spoke that says nothing of its disk is taken at its word; and without a hold nothing is asked of it.
    agents().hold_durable = None;
    let all = world.post(path, json!({"hold": true})).await.ok();
    assert_eq!(
        (&all["complete"], &all["pending"]),
        (&json!(true), &json!(0))
    );
    agents().takes_no_hold = true;
    let all = world.post(path, json!({})).await.ok();
    assert_eq!(all["complete"], true);
    world.stop().await;
}

/// F21: a kill that gets no usable answer, for a reason of its own, keeps none that comes after it from its spoke.
#[tokio::test]
async fn f21_a_kept_kill_that_cannot_be_proven_holds_up_no_other() {
    let world = World::start(1).await;
    let (one, other) = (world.spawn(0).await, world.spawn(0).await);
    world.spokes[0].handler.agents.lock().unwrap().confuses = Some(one);
    world.spokes[0].link.cut();
    for agent in [one, other] {
        let path = format!("/federation/agents/{agent}/kill");
        let answer = world.post(&path, json!({})).await;
        answer.refused(502, "peer-unreachable", None);
    }
    world.spokes[0].link.mend();
    let kills = world
        .until(KILLS, |kills| states(kills) == ["pending", "proven"])
        .await;
    assert_eq!(kills["kills"][0]["target"]["agentId"], one.to_string());
    world.spokes[0].handler.agents.lock().unwrap().confuses = None;
    proven(&world, 2).await;
    world.stop().await;
}

/// F21: no words make a kill too large to be sent: what a spoke would not keep of them is cut.
#[tokio::test]
async fn f21_a_kill_with_a_long_reason_is_kept_and_comes_true() {
    let world = World::start(1).await;
    let (one, other) = (world.spawn(0).await, world.spawn(0).await);
    // It fits a request to the hub, but not the envelope that the request would become.
    let long = json!({"reason": "é".repeat(400_000)});
    let cut = "é".repeat(500);
    let path = format!("/federation/agents/{one}/kill");
    let report = world.post(&path, long.clone()).await.ok();
    assert_eq!(report["outcome"], "killed");
    world.spokes[0].link.cut();
    let path = format!("/federation/agents/{other}/kill");
    let answer = world.post(&path, long.clone()).await;
    answer.refused(502, "peer-unreachable", None);
    world.post("/federation/agents/kill-all", long).await.ok();
    let kills = world.get(KILLS).await.ok();
    assert_eq!(states(&kills), ["pending", "pending"]);
    for kill in [&kills["kills"][0], &kills["kills"][1]] {
        assert_eq!(kill["reason"], cut);
    }
    world.spokes[0].link.mend();
    proven(&world, 2).await;
    for action in ["agent.kill", "agent.killAll", "kill-intent.ordered"] {
        let events = loop {
            let events = audited_as(&world, action).await;
            if !events.is_empty() {
                break events;
            }
            tokio::task::yield_now().await;
        };
        for event in events {
            assert_eq!(event["detail"]["reason"], cut, "{action}");
        }
    }
    world.stop().await;
}

/// A hub that dies while the answer is out does not forget: what takes long is on disk before it is answered, and is
/// not sent a second time while it is under way.
#[tokio::test]
async fn a38_a_kill_that_takes_long_is_kept_before_its_answer() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    let spoke = &world.spokes[0];
    spoke.handler.gate_open.send_replace(false);
    let path = format!("/federation/agents/{agent}/kill");
    let request = world.raw(Method::POST, &path).send();
    let operator = tokio::spawn(request);
    let is_kept = |kills: &Value| kills["kills"][0]["durable"] == true;
    let kills = world.until(KILLS, is_kept).await;
    assert_eq!(states(&kills), ["pending"]);
    spoke.handler.gate_open.send_replace(true);
    let report = Answer::of(operator.await.unwrap().unwrap()).await.ok();
    assert_eq!(report["outcome"], "killed");
    proven(&world, 1).await;
    assert_eq!(spoke.executed("agent.kill"), 1);
    world.stop().await;
}

#[tokio::test]
async fn an_operator_takes_a_pending_kill_back() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    world.spokes[0].link.cut();
    let path = format!("/federation/agents/{agent}/kill");
    world.post(&path, json!({})).await;
    let kills = world.get(KILLS).await.ok();
    let one = format!(
        "{KILLS}/{}",
        kills["kills"][0]["intentId"].as_str().unwrap()
    );
    let delete = async |role, path: &str| {
        let answer = world.request(Some(role), Method::DELETE, path, None).await;
        Answer::of(answer).await
    };
    delete(Role::Viewer, &one)
        .await
        .refused(403, "forbidden", None);
    let nobody = format!("{KILLS}/{}", mosaic_types::KillIntentId::generate());
    delete(Role::Operator, &nobody)
        .await
        .refused(404, "not-found", None);
    for _ in 0..2 {
        let cancelled = delete(Role::Operator, &one).await.ok();
        assert_eq!(cancelled["state"], "cancelled");
    }
    world.spokes[0].link.mend();
    let status = format!("/federation/agents/{agent}/status");
    let status = world.get(&status).await.ok();
    assert_eq!(
        (&status["state"], &status["killPending"]),
        (&json!("running"), &Value::Null)
    );
    assert_eq!(world.spokes[0].executed("agent.kill"), 0);
    all_audited(&world, &["ordered", "cancelled"]).await;
    let world = world.again().await;
    assert_eq!(states(&world.get(KILLS).await.ok()), ["cancelled"]);
    world.stop().await;
}

/// A30: with the store gone it is kept all the same, and the answer says for how long.
#[tokio::test]
async fn a30_what_is_not_on_disk_is_said_so() {
    let world = World::start(1).await;
    let agent = world.spawn(0).await;
    world.hub.node().store().close().await;
    world.spokes[0].link.cut();
    let path = format!("/federation/agents/{agent}/kill");
    let answer = world.post(&path, json!({})).await;
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains("for as long as this hub runs"), "{detail}");
    world.spokes[0].link.mend();
    proven(&world, 1).await;
    world.stop().await;
}

/// A30: what was on disk before a later order was taken in is not that order.
#[tokio::test]
async fn a30_a_later_order_that_is_not_on_disk_is_said_so() {
    let world = World::start(1).await;
    world.spokes[0].link.cut();
    let path = "/federation/agents/kill-all";
    let told = async |body: Value| {
        let all = world.post(path, body).await.ok();
        let told = &all["spokes"][0]["error"]["message"];
        told.as_str().unwrap().to_owned()
    };
    let first = told(json!({})).await;
    assert!(!first.contains("for as long as this hub runs"), "{first}");
    world.hub.node().store().close().await;
    let later = told(json!({"hold": true})).await;
    assert!(later.contains("for as long as this hub runs"), "{later}");
    let kills = world.get(KILLS).await.ok();
    let kill = &kills["kills"][0];
    assert_eq!(
        (&kill["hold"], &kill["durable"]),
        (&json!(true), &json!(false))
    );
    world.spokes[0].link.mend();
    proven(&world, 1).await;
    world.stop().await;
}

/// Of an agent whose place is not known, every spoke that was not heard is asked again.
#[tokio::test]
async fn a38_a_kill_of_an_agent_of_unknown_place_is_kept_for_each_silent_spoke() {
    let world = World::start(2).await;
    let agent = world.spawn(1).await;
    let stranger = mosaic_types::AgentId::generate();
    {
        let mut agents = world.spokes[1].handler.agents.lock().unwrap();
        let mut paper = agents.known[&agent].clone();
        paper.status.agent_id = stranger;
        agents.known.insert(stranger, paper);
    }
    for spoke in &world.spokes {
        spoke.link.cut();
    }
    let path = format!("/federation/agents/{stranger}/kill");
    let answer = world.post(&path, json!({})).await;
    answer.refused(502, "peer-unreachable", Some("agentId"));
    assert_eq!(states(&world.get(KILLS).await.ok()), ["pending", "pending"]);
    for spoke in &world.spokes {
        spoke.link.mend();
    }
    proven(&world, 2).await;
    let state = {
        let agents = world.spokes[1].handler.agents.lock().unwrap();
        agents.known[&stranger].status.state
    };
    assert_eq!(state.to_string(), "killed");
    world.stop().await;
}

#[tokio::test]
async fn labels_select_agents_at_every_spoke() {
    let world = World::start(2).await;
    let mut agents = Vec::new();
    for (spoke, team) in [(0, "core"), (0, "edge"), (1, "core")] {
        let mut order = world.order(spoke);
        order["labels"] = json!({ "team": team });
        let answer = world.post("/federation/agents/spawn", order).await;
        agents.push(answer.accepted()["agentId"].clone());
    }
    let mut bad = world.order(0);
    bad["labels"] = json!({"Team": "x"});
    let answer = world.post("/federation/agents/spawn", bad).await;
    answer.refused(400, "invalid-request", Some("labels"));
    let listed = async |label: &str| {
        let path = format!("/federation/agents?label={label}");
        let list = world.get(&path).await.ok();
        let agents = list["agents"].as_array().unwrap().iter();
        agents
            .map(|agent| agent["agentId"].clone())
            .collect::<Vec<_>>()
    };
    let both = [agents[2].clone(), agents[0].clone()];
    assert_eq!(listed("team%3Dcore").await, both);
    world
        .get("/federation/agents?label=team")
        .await
        .refused(400, "invalid-request", Some("query"));
    // Those of a spoke that cannot be asked, too.
    world.spokes[1].link.cut();
    assert_eq!(listed("team%3Dcore").await, both);

    let body = json!({"label": {"key": "team", "value": "core"}});
    let path = "/federation/agents/kill-all";
    let all = world.post(path, body).await.ok();
    assert_eq!((&all["killed"], &all["pending"]), (&json!(1), &json!(1)));
    let pending = |agent: &Value| {
        let path = format!("/federation/agents/{}/status", agent.as_str().unwrap());
        let world = &world;
        async move { world.get(&path).await.ok()["killPending"].clone() }
    };
    assert_eq!(pending(&agents[1]).await, Value::Null);
    assert_eq!(pending(&agents[2]).await, true);
    world.spokes[1].link.mend();
    proven(&world, 1).await;
    let list = world.get("/federation/agents?active=true").await.ok();
    assert_eq!(list["agents"][0]["agentId"], agents[1]);
    assert_eq!(list["agents"].as_array().unwrap().len(), 1);
    world.stop().await;
}

/// A38: a hub whose clock is behind is refused, and told so; its kills come true once the clocks agree.
#[tokio::test]
async fn a38_a_kill_that_is_refused_for_its_times_is_kept() {
    let world = World::start(2).await;
    let (agent, other) = (world.spawn(0).await, world.spawn(1).await);
    let refuse = |code: Option<ErrorCode>| {
        for spoke in &world.spokes {
            spoke.handler.agents.lock().unwrap().refuses_kills = code;
        }
    };
    refuse(Some(ErrorCode::Expired));
    let path = format!("/federation/agents/{agent}/kill");
    let answer = world.post(&path, json!({})).await;
    let detail = answer.body["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("the kill is pending as "), "{detail}");
    answer.refused(400, "expired", None);
    let body = json!({"connectionId": world.connections[1]});
    let all = world.post("/federation/agents/kill-all", body).await.ok();
    assert_eq!(
        (&all["complete"], &all["pending"]),
        (&json!(false), &json!(1)),
        "{all:#}"
    );
    assert_eq!(all["spokes"][0]["error"]["code"], "expired");
    assert_eq!(states(&world.get(KILLS).await.ok()), ["pending", "pending"]);
    refuse(None);
    proven(&world, 2).await;
    for agent in [agent, other] {
        let status = format!("/federation/agents/{agent}/status");
        assert_eq!(world.get(&status).await.ok()["state"], "killed");
    }
    world.stop().await;
}
