//! What `mosaic` says of answers that were lost, are not the whole of what was asked for, or are large.

use mosaic_e2e::{
    api::eventually,
    chaos::{Proxy, Weather},
    system::{FOREVER, World, free_port, git},
};
use mosaic_types::AgentId;
use serde_json::json;

/// A4: whoever lost the answer is told the id that makes asking again the same agent.
#[tokio::test]
async fn a4_a_lost_answer_comes_with_the_id_by_which_asking_again_is_one_agent() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let inner = free_port();
    let proxy = Proxy::start(inner).await;
    let settings = format!("public-url = \"{}\"", proxy.url());
    let spoke = world.spoke_at("spoke", inner, &settings).await;
    let connection = world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let repository = world.repository_url();
    let spawn = |branch| {
        [
            "spawn",
            "--connection",
            &connection,
            "--repository",
            &repository,
            "--branch",
            branch,
            "--runtime",
            "shell",
            "--instructions",
            FOREVER,
        ]
    };
    proxy.set(Weather::AnswersLost);
    let lost = world.cli_at(&hub, &spawn("main")).await.expect(4);
    let mut words = lost.stderr.split(['`', ' ', '\n']);
    assert!(words.any(|word| word == "--agent-id"), "{lost:#?}");
    let id = words.next().unwrap();
    let agent: AgentId = id.parse().unwrap();
    spoke.wrote(agent, "at-work").await;

    proxy.set(Weather::Fair);
    let again = [&spawn("main")[..], &["--agent-id", id]].concat();
    let again = world.cli_at(&hub, &again).await.expect(0);
    assert_eq!(again.stdout.trim(), id);
    assert!(again.stderr.contains("there already"), "{again:#?}");
    assert_eq!(spoke.agents().await.len(), 1);

    // Of what is refused for good nothing runs, and nothing of the kind is said.
    let refused = world.cli_at(&hub, &spawn("nowhere")).await.expect(3);
    assert!(!refused.stderr.contains("--agent-id"), "{refused:#?}");
    world.stop().await;
}

/// A30: a hold that a restart would end is no success, neither at the spoke nor by the hub, and the reason is given.
#[tokio::test]
async fn a30_a_hold_that_does_not_outlive_the_spoke_is_told_by_exit_code_and_in_words() {
    let mut world = World::new();
    world.expect_log("hold is not on disk");
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", "").await;
    world.peer(&hub, &spoke, &["--repository", "**"]).await;
    let holds = spoke.data_dir.join("hold");
    std::fs::remove_dir(&holds).unwrap();

    let order = ["kill", "--all", "--hold"];
    let told = world.cli_at(&spoke, &order).await.expect(5).stdout;
    assert!(told.contains("ONLY UNTIL THE SPOKE RESTARTS"), "{told}");
    let told = world.cli_at(&hub, &order).await.expect(5).stdout;
    assert!(told.contains("ONLY UNTIL THE SPOKE RESTARTS"), "{told}");
    assert!(told.contains("the hold outlives a restart"), "{told}");
    assert!(told.contains("INCOMPLETE"), "{told}");
    let kept = world.cli_at(&hub, &["--json", "kills"]).await.expect(0);
    let kept = kept.json();
    let kill = kept["kills"][0]["intentId"].as_str().unwrap();
    assert!(told.contains(kill), "{told}");
    // Without a hold nothing is amiss.
    world.cli_at(&spoke, &["kill", "--all"]).await.expect(0);

    std::fs::create_dir(&holds).unwrap();
    eventually("a hold that is proven", async || {
        let kept = world.cli_at(&hub, &["--json", "kills"]).await.expect(0);
        (kept.json()["kills"] == json!([])).then_some(())
    })
    .await;
    for node in [&hub, &spoke] {
        let told = world.cli_at(node, &order).await.expect(0).stdout;
        assert!(told.contains(", spawns are held\n"), "{told}");
    }
    world.stop().await;
}

/// A22: work whose patch is too large for the hub is taken as commits.
#[tokio::test]
async fn a22_work_that_no_hub_puts_together_as_a_patch_is_taken_as_a_bundle() {
    let mut world = World::new();
    let (_hub, _spokes) = world.dev(1).await;
    let repository = world.repository_url();
    // Above 64 MiB as a patch, and next to nothing as a pack.
    let script = "yes work | head -c 75497472 > large; git add .; git commit -qm large";
    let spawned = world
        .cli(&[
            "--json",
            "spawn",
            "--repository",
            &repository,
            "--runtime",
            "shell",
            "--instructions",
            script,
        ])
        .await
        .expect(0)
        .json();
    let agent = spawned["agentId"].as_str().unwrap();
    world.cli(&["logs", "--follow", agent]).await.expect(0);

    // At once: it is waited for while it comes home.
    let bundle = world.path("large.bundle");
    let bundle = bundle.to_str().unwrap();
    world
        .cli(&["result", "--bundle", bundle, agent])
        .await
        .expect(0);
    let refused = world.cli(&["result", "--patch", agent]).await.expect(3);
    assert!(refused.stderr.contains("body-too-large"), "{refused:#?}");

    let clone = world.path("clone");
    let to = clone.to_str().unwrap();
    git(&world.path(""), &["clone", "-q", &repository, to]);
    git(&clone, &["bundle", "verify", "-q", bundle]);
    world
        .cli_in(&clone, &["result", "--fetch", agent])
        .await
        .expect(0);
    let large = format!("mosaic/{agent}:large");
    assert_eq!(git(&clone, &["cat-file", "-s", &large]), "75497472");
    world.stop().await;
}
