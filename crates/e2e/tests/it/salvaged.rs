//! What a killed agent had done, listed and brought back through the hub by the command line.

use mosaic_e2e::system::{World, git};
use serde_json::json;

// A22: a kill in the middle of the work loses none of it, and its operator gets it without a shell at the spoke.
#[tokio::test]
async fn a22_the_work_of_a_killed_agent_is_listed_and_restored() {
    let mut world = World::new();
    let (hub, _spokes) = world.dev(1).await;
    let repository = world.repository_url();
    let script = "echo c > committed; git add .; git commit -qm committed; \
        echo u > uncommitted; echo at-work; exec sleep 100000";
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
    let agent = spawned["agentId"].as_str().unwrap().to_owned();
    hub.wrote(agent.parse().unwrap(), "at-work").await;
    world.cli(&["kill", "--wait", &agent]).await.expect(0);

    let branch = format!("refs/heads/mosaic/{agent}");
    let salvage = format!("refs/mosaic/salvage/{agent}");
    let listed = world
        .cli(&["--json", "result", "--salvaged", &agent])
        .await
        .expect(0)
        .json();
    let told: Vec<_> = listed["refs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|held| (&held["gitRef"], &held["commits"], &held["filesChanged"]))
        .collect();
    assert_eq!(
        told,
        [
            (&json!(branch), &json!(1), &json!(1)),
            (&json!(salvage), &json!(2), &json!(2)),
        ]
    );
    let shown = world.cli(&["result", "--salvaged", &agent]).await.expect(0);
    assert!(shown.stdout.contains(&salvage), "{}", shown.stdout);

    let clone = |name: &str| {
        let path = world.path(name);
        git(
            &world.path(""),
            &["clone", "-q", &repository, path.to_str().unwrap()],
        );
        path
    };
    let fetched = clone("fetched");
    world
        .cli_in(&fetched, &["result", "--salvaged", "--fetch", &agent])
        .await
        .expect(0);
    assert_eq!(
        git(&fetched, &["show", &format!("{salvage}:uncommitted")]),
        "u"
    );
    assert_eq!(git(&fetched, &["rev-list", "--count", &branch]), "2");
    let bundle = world.path("salvaged.bundle");
    let to_file = [
        "result",
        "--salvaged",
        "--bundle",
        bundle.to_str().unwrap(),
        &agent,
    ];
    world.cli(&to_file).await.expect(0);
    let heads = git(
        &fetched,
        &["bundle", "list-heads", bundle.to_str().unwrap()],
    );
    assert_eq!(heads.lines().count(), 2, "{heads}");
    let applied = clone("applied");
    world
        .cli_in(&applied, &["result", "--salvaged", "--apply", &agent])
        .await
        .expect(0);
    for (name, text) in [("committed", "c\n"), ("uncommitted", "u\n")] {
        assert_eq!(std::fs::read_to_string(applied.join(name)).unwrap(), text);
    }
    world.stop().await;
}
