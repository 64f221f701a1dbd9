//! Kills of a spoke that cannot be reached: they come true when it is back, whatever else has died meanwhile.

use mosaic_e2e::{
    api::{Node, eventually},
    system::{FOREVER, World, processes_with},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

fn processes_of(spoke: &Node, agent: AgentId) -> Vec<u32> {
    processes_with(&format!("{}/agents/{agent}", spoke.data_dir.display()))
}

async fn kept(hub: &Node) -> Vec<Value> {
    let kills = hub.call("GET", "/api/v1/federation/kills", None).await;
    kills.ok()["kills"].as_array().unwrap().clone()
}

/// Waits until all that is kept is as it should be.
async fn all_kept(hub: &Node, what: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    eventually(what, async || {
        let kills = kept(hub).await;
        (!kills.is_empty() && kills.iter().all(&wanted)).then_some(kills)
    })
    .await
}

async fn told(node: &Node, action: &str, subject: &str) -> Value {
    eventually(action, async || {
        let events = node.audit().await;
        events
            .into_iter()
            .find(|event| event["action"] == action && event["subject"] == subject)
    })
    .await
}

async fn running(world: &World, hub: &Node, connection: &str) -> AgentId {
    let agent = world.spawn(hub, connection, FOREVER).await;
    hub.wrote(agent, "at-work").await;
    agent
}

/// A38: the spoke is frozen when the kill is ordered, the hub dies before it has answered, and the spoke dies too.
#[tokio::test]
async fn a38_a_kill_comes_true_after_hub_and_spoke_have_died() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let doomed = running(&world, &hub, &connection).await;
    let spared = running(&world, &hub, &connection).await;

    world.freeze("spoke");
    let ordered = {
        let hub = hub.clone();
        let path = format!("{}/{doomed}/kill", hub.agents_path());
        tokio::spawn(async move { hub.try_call("POST", &path, None).await.is_ok() })
    };
    let durable = |kill: &Value| kill["durable"] == true && kill["state"] == "pending";
    let before = all_kept(&hub, "a kept kill", durable).await;
    world.crash("hub");
    assert!(!ordered.await.unwrap(), "the hub died before it answered");
    world.crash("spoke");
    assert!(!processes_of(&spoke, doomed).is_empty());

    world.restart(&hub).await;
    let after = kept(&hub).await;
    assert_eq!(after[0]["intentId"], before[0]["intentId"]);
    assert_eq!(after[0]["state"], "pending");
    assert_eq!(hub.status(doomed).await["killPending"], true);
    let listed = world.cli_at(&hub, &["ps"]).await.expect(0).stdout;
    assert!(listed.contains("kill pending"), "{listed}");
    let listed = world.cli_at(&hub, &["kills"]).await.expect(0).stdout;
    assert!(listed.contains(&doomed.to_string()), "{listed}");

    world.restart(&spoke).await;
    all_kept(&hub, "a proven kill", |kill| kill["state"] == "proven").await;
    assert_eq!(processes_of(&spoke, doomed), Vec::<u32>::new());
    assert_eq!(spoke.finished(doomed).await["reason"], "kill-requested");
    let status = hub.finished(doomed).await;
    assert_eq!(
        (&status["state"], &status["killPending"]),
        (&json!("killed"), &Value::Null)
    );
    assert_eq!(hub.status(spared).await["state"], "running");
    let subject = doomed.to_string();
    for action in ["ordered", "delivered", "proven"] {
        told(&hub, &format!("kill-intent.{action}"), &subject).await;
    }
    let killed = told(&spoke, "killswitch.kill", &subject).await;
    assert_eq!(killed["actor"]["kind"], "peer");
    hub.kill(spared).await.ok();
    hub.finished(spared).await;
    world.stop().await;
}

/// A38: an old kill-all takes those who were there, with a hold if one was asked for, and nobody who came after it.
#[tokio::test]
async fn a38_an_old_kill_all_spares_who_came_after_it() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let old = running(&world, &hub, &connection).await;
    let local = AgentId::generate();
    let body = world.spawn_body(None, local, FOREVER);
    spoke.spawn(&body).await.ok();
    spoke.wrote(local, "at-work").await;

    world.crash("spoke");
    let killed = world.cli_at(&hub, &["--json", "kill", "--all"]).await;
    let report = killed.expect(5).json();
    assert_eq!(
        (&report["complete"], &report["pending"]),
        (&json!(false), &json!(1)),
        "{report:#}"
    );
    world.crash("hub");
    world.restart(&hub).await;
    world.restart(&spoke).await;
    // Without waiting for anything: the kill goes first.
    let new = eventually("a spawn after the kill", async || {
        let agent = AgentId::generate();
        let body = world.spawn_body(Some(&connection), agent, FOREVER);
        (hub.spawn(&body).await.status == 202).then_some(agent)
    })
    .await;
    hub.wrote(new, "at-work").await;
    all_kept(&hub, "a proven kill", |kill| kill["state"] == "proven").await;
    assert_eq!(processes_of(&spoke, old), Vec::<u32>::new());
    assert_eq!(hub.finished(old).await["reason"], "kill-all");
    for alive in [new, local] {
        assert_eq!(spoke.status(alive).await["state"], "running");
        spoke.kill(alive).await.ok();
        spoke.finished(alive).await;
    }
    world.stop().await;
}

/// By label, on the command line.
#[tokio::test]
async fn a_kill_all_by_label_leaves_the_others() {
    let mut world = World::new();
    let (hub, spokes) = world.dev(1).await;
    let (spoke, connection) = &spokes[0];
    let mut agents = Vec::new();
    for team in ["core", "edge"] {
        let label = format!("team={team}");
        let url = world.repository_url();
        let spawned = world
            .cli(&[
                "--json",
                "spawn",
                "--connection",
                connection,
                "--repository",
                &url,
                "--runtime",
                "shell",
                "--instructions",
                FOREVER,
                "--label",
                &label,
                "--label",
                "tier=1",
            ])
            .await;
        let agent = spawned.expect(0).json()["agentId"].clone();
        let agent: AgentId = serde_json::from_value(agent).unwrap();
        hub.wrote(agent, "at-work").await;
        agents.push(agent);
    }
    let listed = world.cli(&["--json", "ps", "--label", "team=edge"]).await;
    let listed = listed.expect(0).json();
    assert_eq!(listed["agents"].as_array().unwrap().len(), 1);
    assert_eq!(listed["agents"][0]["agentId"], agents[1].to_string());
    let killed = world
        .cli(&["--json", "kill", "--all", "--label", "team=core"])
        .await;
    assert_eq!(killed.expect(0).json()["killed"], 1);
    world
        .cli(&["kill", "--all", "--label", "Team"])
        .await
        .expect(2);
    assert_eq!(processes_of(spoke, agents[0]), Vec::<u32>::new());
    let status = hub.status(agents[1]).await;
    assert_eq!(
        (&status["state"], &status["labels"]["tier"]),
        (&json!("running"), &json!("1"))
    );
    world.stop().await;
}
