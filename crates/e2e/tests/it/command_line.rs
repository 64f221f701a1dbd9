//! What an operator does with `mosaic`, in the order in which it is done, and the exit codes of its help.

use mosaic_e2e::{
    api::eventually,
    system::{FOREVER, World, git},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

fn id(value: &Value) -> String {
    value["agentId"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_operators_day() {
    let mut world = World::new();
    let (hub, spokes) = world.dev(1).await;
    let repository = world.repository_url();
    let spawn = [
        "--json",
        "spawn",
        "--repository",
        &repository,
        "--runtime",
        "shell",
    ];
    let script =
        "echo one > one; git add one; git commit -qm 'adds one'; echo two > two; echo done";

    let spawned = world
        .cli(&[&spawn[..], &["--instructions", script]].concat())
        .await;
    let spawned = spawned.expect(0).json();
    assert_eq!(spawned["connectionId"], json!(spokes[0].1));
    let agent = id(&spawned);

    // 0 of `logs --follow`: the agent completed.
    let logs = world.cli(&["logs", "--follow", &agent]).await.expect(0);
    assert_eq!(logs.stdout, "done\n");
    let status = world
        .cli(&["--json", "status", &agent])
        .await
        .expect(0)
        .json();
    assert_eq!(
        (&status["state"], &status["reason"]),
        (&json!("completed"), &json!("finished"))
    );
    // A short form of the id is as good.
    let short = world
        .cli(&["--json", "status", &agent[agent.len() - 8..]])
        .await;
    assert_eq!(id(&short.expect(0).json()), agent);

    // The result in its three forms, each onto a fresh clone.
    let result = world
        .cli(&["--json", "result", &agent])
        .await
        .expect(0)
        .json();
    let content = result["patch"]["content"].as_str().unwrap();
    let clone = |name: &str| {
        let path = world.path(name);
        git(
            &world.path(""),
            &["clone", "-q", &repository, path.to_str().unwrap()],
        );
        path
    };
    let patched = |path: &std::path::Path| {
        assert_eq!(std::fs::read_to_string(path.join("one")).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(path.join("two")).unwrap(), "two\n");
        assert_eq!(git(path, &["rev-list", "--count", "HEAD"]), "3");
    };
    let by_hand = clone("by-hand");
    let patch = world.path("by-hand.patch");
    std::fs::write(&patch, content).unwrap();
    git(&by_hand, &["am", "-q", patch.to_str().unwrap()]);
    patched(&by_hand);
    let printed = world.cli(&["result", "--patch", &agent]).await.expect(0);
    assert_eq!(printed.stdout, content);
    let written = world.path("written.patch");
    let output = ["result", "--output", written.to_str().unwrap(), &agent];
    assert_eq!(world.cli(&output).await.expect(0).stdout, "");
    assert_eq!(std::fs::read_to_string(&written).unwrap(), content);
    let applied = clone("applied");
    world
        .cli_in(&applied, &["result", "--apply", &agent])
        .await
        .expect(0);
    patched(&applied);
    // As commits: a bundle that git takes, and fetched at once. Where the base is not, it is said.
    let bundled = world.path("work.bundle");
    let output = ["result", "--bundle", bundled.to_str().unwrap(), &agent];
    world.cli(&output).await.expect(0);
    let fetched = clone("fetched");
    git(
        &fetched,
        &["bundle", "verify", "-q", bundled.to_str().unwrap()],
    );
    world
        .cli_in(&fetched, &["result", "--fetch", &agent])
        .await
        .expect(0);
    git(&fetched, &["checkout", "-q", &format!("mosaic/{agent}")]);
    patched(&fetched);
    let stranger = world.path("stranger");
    std::fs::create_dir(&stranger).unwrap();
    git(&stranger, &["init", "-q"]);
    let refused = world
        .cli_in(&stranger, &["result", "--fetch", &agent])
        .await
        .expect(1);
    assert!(
        refused.stderr.contains("fetch it first"),
        "{}",
        refused.stderr
    );
    // At the spoke itself, in parts.
    let spoke = ["--node", "spoke-1", "result", "--fetch", &agent];
    world.cli_in(&clone("from-spoke"), &spoke).await.expect(0);
    // 1: failed on this side, as where there is no repository to apply to.
    world
        .cli_in(&world.path("home"), &["result", "--apply", &agent])
        .await
        .expect(1);

    // Kill: one by one, again, and all.
    let mut running = Vec::new();
    for _ in 0..3 {
        let spawned = world
            .cli(&[&spawn[..], &["--instructions", FOREVER]].concat())
            .await;
        running.push(id(&spawned.expect(0).json()));
    }
    for agent in &running {
        hub.wrote(agent.parse().unwrap(), "at-work").await;
    }
    let listed = world.cli(&["--json", "ps"]).await.expect(0).json();
    assert_eq!(listed["agents"].as_array().unwrap().len(), 3, "{listed}");
    let all = world.cli(&["--json", "ps", "--all"]).await.expect(0).json();
    assert_eq!(all["agents"].as_array().unwrap().len(), 4, "{all}");
    let killed = world
        .cli(&["--json", "kill", &running[0], "--reason", "as tested"])
        .await;
    let killed = killed.expect(0).json();
    assert_eq!(killed["outcome"], "killed");
    assert!(killed["proof"]["method"].is_string(), "{killed}");
    // Idempotent: while it is cleaned up it is killed, afterwards it has ended.
    let waited = world
        .cli(&["--json", "kill", "--wait", &running[0]])
        .await
        .expect(0)
        .json();
    assert_ne!(waited["outcome"], "unverified");
    let again = world
        .cli(&["--json", "kill", &running[0]])
        .await
        .expect(0)
        .json();
    assert_eq!(again["outcome"], "already-ended");
    // 6 of `logs --follow`: it was killed.
    world
        .cli(&["logs", "--follow", &running[0]])
        .await
        .expect(6);
    let report = world
        .cli(&["--json", "kill", "--all"])
        .await
        .expect(0)
        .json();
    assert_eq!(
        (&report["complete"], &report["killed"]),
        (&json!(true), &json!(2)),
        "{report}"
    );
    eventually("an empty list, once all are cleaned up", async || {
        let listed = world.cli(&["--json", "ps"]).await.expect(0).json();
        (listed["agents"] == json!([])).then_some(())
    })
    .await;
    // 6 of `spawn --follow`: it failed.
    let failing = [&spawn[..], &["--follow", "--instructions", "exit 7"]].concat();
    world.cli(&failing).await.expect(6);

    // The trail.
    let trail = world
        .cli(&["--json", "audit", "--limit", "500"])
        .await
        .expect(0)
        .json();
    let actions: Vec<Value> = trail["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| serde_json::from_str(entry["eventJson"].as_str().unwrap()).unwrap())
        .collect();
    for (action, subject) in [
        ("agent.spawn", Some(&agent)),
        ("agent.kill", Some(&running[0])),
        ("agent.killAll", None),
    ] {
        let found = actions.iter().any(|event| {
            event["action"] == action && subject.is_none_or(|subject| event["subject"] == **subject)
        });
        assert!(found, "{action} of {subject:?} is not in {actions:#?}");
    }
    for node in ["hub", "spoke-1"] {
        let verdict = world
            .cli(&["--json", "--node", node, "audit", "verify"])
            .await;
        assert_eq!(verdict.expect(0).json()["valid"], true);
    }
    world.stop().await;
}

#[tokio::test]
async fn exit_codes_are_those_of_the_help() {
    let mut world = World::new();
    // 2: no node, and a wrong command line.
    world.cli(&["--dir", "nowhere", "ps"]).await.expect(2);
    world.cli(&["kill"]).await.expect(2);
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let stranger = AgentId::generate().to_string();

    // 3: refused, with code and field.
    let refused = world.cli_at(&hub, &["status", &stranger]).await.expect(3);
    assert!(refused.stderr.contains("unknown-agent"), "{refused:?}");
    let at_nowhere = [
        "spawn",
        "--repository",
        "file:///nowhere",
        "--runtime",
        "shell",
        "--instructions",
        "true",
    ];
    let refused = world.cli_at(&hub, &at_nowhere).await.expect(3);
    assert!(refused.stderr.contains("unknown-repository"), "{refused:?}");
    assert!(refused.stderr.contains("context.repository"), "{refused:?}");
    std::fs::write(world.path("wrong.token"), "mos_wrong").unwrap();
    let wrong = ["--hub", &hub.url, "--token-file", "wrong.token", "ps"];
    assert!(
        world
            .cli(&wrong)
            .await
            .expect(3)
            .stderr
            .contains("unauthorized")
    );

    let agent = world.spawn(&hub, &connection, FOREVER).await;
    hub.wrote(agent, "at-work").await;
    // The spoke goes, and its agents stay (A3: unreachable is not dead).
    world.crash("spoke");
    let ping = world
        .cli_at(&hub, &["connections", "ping", &connection])
        .await;
    // 4: the spoke behind the hub was not reached.
    let _ = ping.expect(4);
    world
        .cli_at(&hub, &["kill", &agent.to_string()])
        .await
        .expect(4);
    let status = world
        .cli_at(&hub, &["--json", "status", &agent.to_string()])
        .await;
    assert_eq!(status.expect(0).json()["state"], "unknown");
    // 5: not every death is proven, and the spoke is named.
    let report = world
        .cli_at(&hub, &["--json", "kill", "--all"])
        .await
        .expect(5)
        .json();
    assert_eq!(
        (&report["complete"], &report["unreachable"]),
        (&json!(false), &json!(1))
    );
    assert_eq!(report["spokes"][0]["name"], "spoke");
    assert_eq!(report["spokes"][0]["error"]["code"], "peer-unreachable");

    assert_eq!(
        report["spokes"][0]["pending"].as_str().map(str::len),
        Some(36)
    );
    let kept = world.cli_at(&hub, &["--json", "kills"]).await.expect(0);
    assert_eq!(kept.json()["kills"].as_array().unwrap().len(), 2);

    // Back, and what was ordered comes true.
    world.restart(&spoke).await;
    eventually("the hub hears the spoke again", async || {
        (hub.status(agent).await["state"] == "killed").then_some(())
    })
    .await;
    let report = world
        .cli_at(&hub, &["--json", "kill", "--all"])
        .await
        .expect(0)
        .json();
    assert_eq!(report["killed"], 0, "{report}");
    eventually("no kill that is pending", async || {
        let kept = world.cli_at(&hub, &["--json", "kills"]).await.expect(0);
        (kept.json()["kills"] == json!([])).then_some(())
    })
    .await;

    // 4: the hub itself.
    world.crash("hub");
    world.cli_at(&hub, &["ps"]).await.expect(4);
    world.stop().await;
}

#[tokio::test]
async fn audit_verify_says_7_of_a_trail_that_was_changed() {
    let mut world = World::new();
    let spoke = world.spoke("spoke", "").await;
    let body = world.spawn_body(None, AgentId::generate(), "true");
    spoke.spawn(&body).await.ok();
    spoke
        .finished(body["agentId"].as_str().unwrap().parse().unwrap())
        .await;
    world.cli_at(&spoke, &["audit", "verify"]).await.expect(0);
    let store = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    store.busy_timeout(mosaic_e2e::api::PATIENCE).unwrap();
    store
        .execute_batch("DROP TRIGGER audit_is_not_edited")
        .unwrap();
    let changed = store
        .execute(
            "UPDATE audit SET event = replace(event, 'agent.spawn', 'agent.span')",
            [],
        )
        .unwrap();
    assert!(changed > 0);
    drop(store);
    let verdict = world
        .cli_at(&spoke, &["--json", "audit", "verify"])
        .await
        .expect(7)
        .json();
    assert_eq!(verdict["valid"], false);
    assert!(verdict["firstBadSeq"].is_u64(), "{verdict}");
    world.stop().await;
}
