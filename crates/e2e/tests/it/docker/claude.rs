//! The real command line of Claude Code in a container, asked for at the hub.

use std::fs;

use mosaic_e2e::{
    api::eventually,
    engine,
    messages_api::{MessagesApi, Script, Turn, Usage},
    system::{git, processes_with},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

use super::rig::{Docked, has_image, world_with};

/// What the service counted, once for each message (A17).
fn assert_usage(status: &Value, turns: u64) {
    let (usage, turn) = (&status["usage"], Usage::EACH_TURN);
    for (name, each) in [
        ("inputTokens", turn.input_tokens),
        ("outputTokens", turn.output_tokens),
        ("cacheReadTokens", turn.cache_read_input_tokens),
        ("cacheCreationTokens", turn.cache_creation_input_tokens),
    ] {
        assert_eq!(usage[name], turns * each, "{name}: {status:#}");
    }
}

fn assert_ended(status: &Value, state: &str, reason: &str) {
    assert_eq!(
        (&status["state"], &status["reason"]),
        (&json!(state), &json!(reason)),
        "{status:#}"
    );
    assert_eq!(status["sandbox"], "docker");
}

async fn stop(docked: Docked, api: MessagesApi) {
    docked.world.stop().await;
    api.shutdown().await.unwrap();
}

#[tokio::test]
async fn claude_works_in_a_container_and_its_patch_is_applied() {
    let command = "echo hello > hello.txt && git add hello.txt && git commit --quiet -m hello && \
                   echo ${A_SECRET_OF_THE_OPERATOR:-nothing} > loose.txt && \
                   touch ready && until test -e go; do sleep 0.1; done; rm -f ready go";
    let script = Script::new(Turn::bash(command)).then(Turn::text("Done: wrote hello.txt"));
    let Some((docked, api)) = Docked::with_claude(script).await else {
        return;
    };
    let agent = docked.spawn().await;
    // Mid-way the hub tells of the tool, and what it cost so far.
    let status = eventually("a call of the tool, in the status", async || {
        let status = docked.hub.status(agent).await;
        (status["progress"]["toolCalls"] == 1).then_some(status)
    })
    .await;
    assert_eq!(status["state"], "running");
    assert_eq!(
        status["usage"]["inputTokens"],
        Usage::EACH_TURN.input_tokens
    );
    assert_eq!(docked.containers(), [format!("mosaic-{agent}")]);
    let work = docked.spoke.data_dir.join(format!("agents/{agent}/work"));
    eventually("the tool at work", async || {
        work.join("ready").exists().then_some(())
    })
    .await;
    fs::write(work.join("go"), "").unwrap();

    let status = docked.hub.finished(agent).await;
    assert_ended(&status, "completed", "finished");
    assert_eq!(status["summary"], "Done: wrote hello.txt");
    let progress = &status["progress"];
    assert_eq!(
        (&progress["turns"], &progress["toolCalls"]),
        (&json!(2), &json!(1))
    );
    assert!(progress["model"].is_string() && progress["sessionId"].is_string());
    assert_usage(&status, 2);
    assert!(status["usage"]["costUsd"].as_f64().unwrap() > 0.0);
    assert_eq!(docked.containers(), Vec::<String>::new());

    let id = agent.to_string();
    let shown = docked.world.cli_at(&docked.hub, &["status", &id]).await;
    assert!(shown.expect(0).stdout.contains("sandbox docker"));
    let fresh = docked.world.path("fresh");
    let (url, to) = (docked.world.repository_url(), fresh.to_str().unwrap());
    git(&docked.world.path(""), &["clone", "-q", &url, to]);
    let (hub, token) = (&docked.hub.url, docked.hub.token_file());
    let token = token.to_str().unwrap();
    let apply = [
        "--hub",
        hub,
        "--token-file",
        token,
        "result",
        &id,
        "--apply",
    ];
    docked.world.cli_in(&fresh, &apply).await.expect(0);
    let read = |name| fs::read_to_string(fresh.join(name)).unwrap();
    assert_eq!(
        (read("hello.txt"), read("loose.txt")),
        ("hello\n".to_owned(), "nothing\n".to_owned())
    );
    assert!(
        api.requests()
            .iter()
            .all(|request| request.route == "POST /v1/messages")
    );
    stop(docked, api).await;
}

#[tokio::test]
async fn a17_a_long_conversation_in_a_container_is_counted_once() {
    let tool = |name: &str, input: Value| Turn::ToolUse {
        name: name.to_owned(),
        input,
    };
    let note = "/tmp/note.txt";
    let script = Script::new(Turn::bashes([
        "echo a > a.txt",
        "echo b > b.txt",
        "uname -s",
    ]))
    .then(Turn::bash("cat a.txt b.txt"))
    .then(tool("Write", json!({"file_path": note, "content": "c\n"})))
    .then(tool("Read", json!({"file_path": note})))
    .then(Turn::bashes([
        "git status --short",
        "cp /tmp/note.txt c.txt",
    ]))
    .then(Turn::bash(
        "git add . && git commit --quiet -m three && git log --oneline",
    ))
    .then(Turn::text("Three files"));
    let Some((docked, api)) = Docked::with_claude(script).await else {
        return;
    };
    let agent = docked.spawn().await;
    let status = docked.hub.finished(agent).await;
    assert_ended(&status, "completed", "finished");
    assert_eq!(status["summary"], "Three files");
    assert_eq!(status["progress"]["toolCalls"], 9, "{status:#}");
    // The runtime has the last word on its turns: one for each result of a tool, and the last.
    assert_eq!(status["progress"]["turns"], 10, "{status:#}");
    // Seven messages of the service, whatever number of lines and results there are.
    assert_usage(&status, 7);
    let requests = api.requests();
    let last = requests.last().unwrap();
    let results: Vec<_> = last.tool_results().collect();
    assert_eq!(results.len(), 9, "{:#}", last.body);
    assert!(
        results.iter().all(|result| result["is_error"] != true),
        "{results:#?}"
    );
    let work = &status["work"];
    assert_eq!(work["commits"].as_array().unwrap().len(), 1, "{work:#}");
    stop(docked, api).await;
}

#[tokio::test]
async fn refusals_of_the_service_are_waited_out_in_a_container() {
    let script = Script::new(Turn::RateLimited {
        retry_after_secs: 1,
    })
    .then(Turn::bash("echo hello > hello.txt"))
    .then(Turn::Overloaded)
    .then(Turn::Cut)
    .then(Turn::text("At last"));
    let Some((docked, api)) = Docked::with_claude(script).await else {
        return;
    };
    let agent = docked.spawn().await;
    let status = docked.hub.finished(agent).await;
    assert_ended(&status, "completed", "finished");
    assert_eq!(status["summary"], "At last");
    assert_eq!(
        status["attempt"], 1,
        "the runtime's own patience was enough"
    );
    assert_eq!(status["progress"]["turns"], 2, "{status:#}");
    // What the message that was cut had begun with was used too; whether the runtime saw so much of it is a race that
    // is not ours.
    let input = status["usage"]["inputTokens"].as_u64().unwrap();
    assert!(
        [2, 3].contains(&(input / Usage::EACH_TURN.input_tokens)),
        "{status:#}"
    );
    assert_eq!(api.requests().len(), 5);
    stop(docked, api).await;
}

#[tokio::test]
async fn a_final_refusal_in_a_container_is_a_failure_in_its_words() {
    let refused = Turn::Refused {
        status: 400,
        kind: "invalid_request_error".to_owned(),
        message: "credit balance is too low".to_owned(),
    };
    let script = Script::new(Turn::bash("echo half > half.txt")).then(refused);
    let Some((docked, api)) = Docked::with_claude(script).await else {
        return;
    };
    let agent = docked.spawn().await;
    let status = docked.hub.finished(agent).await;
    assert_ended(&status, "failed", "runtime-error");
    let detail = status["detail"].as_str().unwrap();
    assert!(detail.to_lowercase().contains("credit balance"), "{detail}");
    // A22: what it had done is there all the same.
    assert!(status["work"]["gitRef"].is_string(), "{status:#}");
    assert_eq!(docked.containers(), Vec::<String>::new());
    stop(docked, api).await;
}

#[tokio::test]
async fn a14_claude_killed_in_a_tool_leaves_nothing_in_kernel_or_engine() {
    let mark = format!("mosaic-e2e-grandchild-{}", AgentId::generate());
    let command = format!(
        "echo precious > half-done.txt; setsid sh -c 'while :; do sleep 1000; done; : {mark}' & \
         (setsid setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1000; done; : {mark}' &) ; \
         touch ready; while :; do sleep 1000; done"
    );
    let Some((docked, api)) = Docked::with_claude(Script::new(Turn::bash(command))).await else {
        return;
    };
    let agent = docked.spawn().await;
    let ready = docked
        .spoke
        .data_dir
        .join(format!("agents/{agent}/work/ready"));
    eventually("both grandchildren", async || {
        (ready.exists() && processes_with(&mark).len() >= 2).then_some(())
    })
    .await;
    assert_eq!(docked.containers(), [format!("mosaic-{agent}")]);
    let own = docked.spoke.data_dir.join(format!("agents/{agent}"));
    let own = own.to_str().unwrap();
    assert!(!processes_with(own).is_empty());

    let report = docked.hub.kill(agent).await.ok();
    // By the kernel's word nothing of it is alive: at once, whatever the engine has yet to do.
    let alive = (processes_with(&mark), processes_with(own));
    assert_eq!(alive, (Vec::new(), Vec::new()));
    for cgroup in mosaic_e2e::system::cgroups_of(&docked.spoke.data_dir) {
        if let Ok(events) = fs::read_to_string(cgroup.join("cgroup.events")) {
            assert!(events.contains("populated 0"), "{cgroup:?}: {events}");
        }
    }
    assert_eq!(report["outcome"], "killed", "{report:#}");
    assert!(["cgroup", "pidfd"].contains(&report["proof"]["method"].as_str().unwrap()));

    let status = docked.hub.finished(agent).await;
    assert_ended(&status, "killed", "kill-requested");
    assert_eq!(status.get("summary"), None, "A16: {status:#}");
    // And by the engine's word there never was one.
    assert_eq!(docked.containers(), Vec::<String>::new());
    assert_eq!(
        mosaic_e2e::system::cgroups_of(&docked.spoke.data_dir),
        Vec::<std::path::PathBuf>::new()
    );
    let path = format!("{}/{agent}/result", docked.hub.agents_path());
    let result = docked.hub.call("GET", &path, None).await.ok();
    let patch = result["patch"]["content"].as_str().unwrap();
    assert!(patch.contains("+precious"), "A22: {result:#}");
    stop(docked, api).await;
}

#[tokio::test]
async fn the_agent_images_own_claude_is_found_and_can_commit() {
    let image = engine::agent_image();
    if !has_image(&image, "deploy/agent-image/build") {
        return;
    }
    let command = "rg --version && jq --version && python3 --version && whoami && \
                   echo hello > hello.txt && git add . && git commit --quiet -m hello";
    let script = Script::new(Turn::bash(command)).then(Turn::text("Done"));
    let (world, api) = world_with(script).await;
    // The built-in runtime, which names no path.
    let docked = Docked::start(world, &image, "").await;
    let agent = docked.spawn().await;
    let status = docked.hub.finished(agent).await;
    assert_ended(&status, "completed", "finished");
    let requests = api.requests();
    let results: Vec<_> = requests.last().unwrap().tool_results().collect();
    assert!(results[0]["is_error"] != true, "{results:#?}");
    assert_eq!(
        status["work"]["commits"].as_array().unwrap().len(),
        1,
        "{status:#}"
    );
    stop(docked, api).await;
}
