//! The real command line of Claude Code on a spoke, asked for at the hub.

use mosaic_e2e::{
    api::{Node, eventually},
    messages_api::{MessagesApi, Script, Turn, Usage},
    system::{World, git, processes_with},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

use crate::support;

/// A world whose spokes find `claude`, and its model's service on loopback.
async fn world_with(script: Script) -> Option<(World, MessagesApi)> {
    let program = support::claude_cli()?;
    let api = MessagesApi::start(script).await.unwrap();
    let mut world = World::new();
    // As the operator's shell would have it: the spoke passes on what the runtime's list allows.
    let mut path = vec![program.parent().unwrap().to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    world.set_env(
        "PATH",
        std::env::join_paths(path).unwrap().to_str().unwrap(),
    );
    world.set_env("ANTHROPIC_BASE_URL", api.base_url());
    world.set_env("ANTHROPIC_API_KEY", "not-a-key");
    world.set_env("A_SECRET_OF_THE_OPERATOR", "never-to-be-seen");
    Some((world, api))
}

fn body(world: &World, connection: &str, agent: AgentId) -> Value {
    json!({
        "connectionId": connection,
        "agentId": agent,
        "taskId": "MOS-1",
        "agentType": "worker",
        "context": {
            "repository": world.repository_url(),
            "branch": "main",
            "workItems": ["Write hello.txt"],
        },
    })
}

#[tokio::test]
async fn claude_works_at_a_remote_spoke_and_its_patch_comes_home() {
    let command = "echo hello > hello.txt && git add hello.txt && git commit --quiet -m hello && \
                   echo ${A_SECRET_OF_THE_OPERATOR:-nothing} > loose.txt";
    let script = Script::new(Turn::bash(command)).then(Turn::text("Done: wrote hello.txt"));
    let Some((mut world, api)) = world_with(script).await else {
        return;
    };
    let (hub, spokes) = world.dev(1).await;
    let agent = AgentId::generate();
    hub.spawn(&body(&world, &spokes[0].1, agent)).await.ok();
    let status = hub.finished(agent).await;
    assert_eq!(
        (&status["state"], &status["reason"]),
        (&json!("completed"), &json!("finished")),
        "{status:#}"
    );
    assert_eq!(status["runtime"], "claude");
    assert_eq!(status["summary"], "Done: wrote hello.txt");
    let progress = &status["progress"];
    assert_eq!(
        (&progress["turns"], &progress["toolCalls"]),
        (&json!(2), &json!(1))
    );
    assert!(
        progress["lastTool"]
            .as_str()
            .unwrap()
            .starts_with("Bash: echo hello"),
        "{progress}"
    );
    assert!(
        progress["model"].is_string() && progress["sessionId"].is_string(),
        "{progress}"
    );
    // A17: what the service counted, once a message.
    let (usage, turn) = (&status["usage"], Usage::EACH_TURN);
    assert_eq!(usage["inputTokens"], 2 * turn.input_tokens);
    assert_eq!(usage["outputTokens"], 2 * turn.output_tokens);
    assert_eq!(usage["cacheReadTokens"], 2 * turn.cache_read_input_tokens);
    assert_eq!(
        usage["cacheCreationTokens"],
        2 * turn.cache_creation_input_tokens
    );
    assert!(usage["costUsd"].as_f64().unwrap() > 0.0);

    let fresh = world.path("fresh");
    git(
        &world.path(""),
        &[
            "clone",
            "-q",
            &world.repository_url(),
            fresh.to_str().unwrap(),
        ],
    );
    let path = format!("{}/{agent}/result", hub.agents_path());
    let result = hub.call("GET", &path, None).await.ok();
    let patch = world.path("taken-home.patch");
    std::fs::write(&patch, result["patch"]["content"].as_str().unwrap()).unwrap();
    git(&fresh, &["am", "-q", patch.to_str().unwrap()]);
    assert_eq!(
        std::fs::read_to_string(fresh.join("hello.txt")).unwrap(),
        "hello\n"
    );
    // What it left uncommitted is there too, and saw nothing of the operator's environment.
    assert_eq!(
        std::fs::read_to_string(fresh.join("loose.txt")).unwrap(),
        "nothing\n"
    );

    assert!(api.requests()[0].user_text().contains("Write hello.txt"));
    assert!(
        api.requests()
            .iter()
            .all(|request| request.route == "POST /v1/messages")
    );
    world.stop().await;
    api.shutdown().await.unwrap();
}

/// Waits until the agent has come so far that the hub tells of a call of the tool.
async fn in_the_tool(hub: &Node, agent: AgentId) -> Value {
    eventually("a call of the tool, in the status", async || {
        let status = hub.status(agent).await;
        (status["progress"]["toolCalls"] == 1).then_some(status)
    })
    .await
}

#[tokio::test]
async fn a14_claude_killed_in_a_tool_takes_every_grandchild_with_it() {
    let mark = format!("mosaic-e2e-grandchild-{}", AgentId::generate());
    let command = format!(
        "echo precious > half-done.txt; setsid sh -c 'while :; do sleep 1000; done; : {mark}' & \
         (setsid setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1000; done; : {mark}' &) ; \
         touch ready; while :; do sleep 1000; done"
    );
    let Some((mut world, api)) = world_with(Script::new(Turn::bash(command))).await else {
        return;
    };
    let (hub, spokes) = world.dev(1).await;
    let (spoke, connection) = &spokes[0];
    let agent = AgentId::generate();
    hub.spawn(&body(&world, connection, agent)).await.ok();
    let status = in_the_tool(&hub, agent).await;
    assert_eq!(status["state"], "running");
    // Mid-way, the hub tells what is known: a model, words, tokens.
    assert!(
        status["progress"]["lastTool"]
            .as_str()
            .unwrap()
            .starts_with("Bash: echo precious")
    );
    assert!(status["progress"]["lastText"].is_string(), "{status:#}");
    assert_eq!(
        status["usage"]["inputTokens"],
        Usage::EACH_TURN.input_tokens
    );
    let ready = spoke.data_dir.join(format!("agents/{agent}/work/ready"));
    eventually("both grandchildren", async || {
        (ready.exists() && processes_with(&mark).len() >= 2).then_some(())
    })
    .await;
    let own = spoke.data_dir.join(format!("agents/{agent}"));
    let own = own.to_str().unwrap();
    assert!(!processes_with(own).is_empty());

    let report = hub.kill(agent).await.ok();
    // From here on nothing of it is alive: at once, not after a while.
    let (marked, owned) = (processes_with(&mark), processes_with(own));
    assert!(
        marked.is_empty() && owned.is_empty(),
        "alive: {marked:?} {owned:?}"
    );
    let cgroups = mosaic_e2e::system::cgroups_of(&spoke.data_dir);
    for cgroup in cgroups {
        if let Ok(events) = std::fs::read_to_string(cgroup.join("cgroup.events")) {
            assert!(events.contains("populated 0"), "{cgroup:?}: {events}");
        }
    }
    assert_eq!(report["outcome"], "killed");
    assert!(["cgroup", "pidfd"].contains(&report["proof"]["method"].as_str().unwrap()));

    let status = hub.finished(agent).await;
    assert_eq!(
        (&status["state"], &status["reason"]),
        (&json!("killed"), &json!("kill-requested"))
    );
    // A16: words on the way are no answer.
    assert_eq!(status.get("summary"), None, "{status:#}");
    // A22: and the work is not lost.
    let reference = status["work"]["gitRef"].as_str().unwrap();
    assert_eq!(reference, format!("refs/mosaic/salvage/{agent}"));
    let path = format!("{}/{agent}/result", hub.agents_path());
    let result = hub.call("GET", &path, None).await.ok();
    assert!(
        result["patch"]["content"]
            .as_str()
            .unwrap()
            .contains("+precious"),
        "{result:#}"
    );
    world.stop().await;
    api.shutdown().await.unwrap();
}
