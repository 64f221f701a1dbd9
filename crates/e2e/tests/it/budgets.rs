//! Budgets from an operator's command line to the death of what passed them, and with the store gone.

use mosaic_e2e::{
    api::{Node, eventually},
    system::{World, processes_with},
};
use mosaic_types::AgentId;
use serde_json::{Value, json};

/// A runtime that tells its usage as Claude Code does; here a script writes that.
const COUNTING: &str = r#"
[[runtimes]]
name = "counting"
program = "sh"
args = ["-c", "{instructions}"]
prompt = "argument"
output = "claude-stream-json"
env-allow = ["PATH"]
"#;

/// `say ID TOKENS` tells the usage of a message.
const SAY: &str = r#"
say() { printf '{"type":"assistant","message":{"id":"%s","content":[],"usage":{"input_tokens":%s}}}\n' "$1" "$2"; }
until_go() { while ! test -e go; do sleep 0.05; done; }
"#;

fn processes_of(spoke: &Node, agent: AgentId) -> Vec<u32> {
    processes_with(&format!("{}/agents/{agent}", spoke.data_dir.display()))
}

fn go(spoke: &Node, agent: AgentId) {
    let file = spoke.data_dir.join(format!("agents/{agent}/work/go"));
    std::fs::write(file, "").unwrap();
}

async fn used(node: &Node, agent: AgentId, tokens: u64) {
    eventually("the usage", async || {
        (node.status(agent).await["usage"]["inputTokens"] == tokens).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_operator_bounds_an_agent_and_a_day_from_the_command_line() {
    let mut world = World::new();
    let hub = world.hub("hub").await;
    let spoke = world.spoke("spoke", COUNTING).await;
    let grants = ["--repository", "**", "--budget-tokens-per-day", "150"];
    world.peer(&hub, &spoke, &grants).await;
    let spawn = async |script: &str| {
        let url = world.repository_url();
        let instructions = format!("{SAY}{script}");
        let args = [
            "--json",
            "spawn",
            "--task",
            "T-1",
            "--repository",
            &url,
            "--runtime",
            "counting",
            "--budget-tokens",
            "100",
            "--instructions",
            &instructions,
        ];
        world.cli_at(&hub, &args).await
    };
    let spawned = spawn("say a 60; until_go; say b 90; exec sleep 1000").await;
    let agent: AgentId = spawned.expect(0).json()["agentId"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    used(&hub, agent, 60).await;
    let told = world.cli_at(&hub, &["status", &agent.to_string()]).await;
    let told = told.expect(0).stdout;
    assert!(told.contains("40 tokens left of 100"), "{told}");
    go(&spoke, agent);
    let status = hub.finished(agent).await;
    assert_eq!(status["state"], "killed", "{status:#}");
    assert_eq!(status["reason"], "budget-exceeded");
    assert_eq!(
        status["detail"],
        "the agent's budget is passed: 150 of 100 tokens"
    );
    // 150 of 150: no room for another today.
    let refused = spawn("say c 1").await.expect(3);
    assert!(
        refused.stderr.contains("budget-exhausted"),
        "{}",
        refused.stderr
    );
    world.stop().await;
}

#[tokio::test]
async fn a_store_that_is_locked_stops_no_agent_and_spares_none() {
    let mut world = World::new();
    for expected in ["store failed", "the store failed", "is not", "failed to"] {
        world.expect_log(expected);
    }
    let spoke = world.spoke("spoke", COUNTING).await;
    let spawn = async |script: &str, options: Value| {
        let agent = AgentId::generate();
        let mut body = world.spawn_body(None, agent, &format!("{SAY}{script}"));
        body["runtime"] = json!("counting");
        body["options"] = options;
        assert_eq!(spoke.spawn(&body).await.status, 202);
        agent
    };
    let bounded = spawn(
        "say a 60; until_go; say b 41; exec sleep 1000",
        json!({"budgetTokens": 100}),
    )
    .await;
    let free = spawn("say a 500; until_go; say b 1; exec sleep 1000", json!({})).await;
    used(&spoke, bounded, 60).await;
    used(&spoke, free, 500).await;
    let store = rusqlite::Connection::open(spoke.data_dir.join("store.db")).unwrap();
    store.busy_timeout(mosaic_e2e::api::PATIENCE).unwrap();
    store.execute_batch("BEGIN EXCLUSIVE").unwrap();

    go(&spoke, free);
    used(&spoke, free, 501).await;
    go(&spoke, bounded);
    eventually("its death", async || {
        processes_of(&spoke, bounded).is_empty().then_some(())
    })
    .await;
    assert!(!processes_of(&spoke, free).is_empty(), "it goes on");

    store.execute_batch("ROLLBACK").unwrap();
    let status = spoke.finished(bounded).await;
    assert_eq!(status["reason"], "budget-exceeded", "{status:#}");
    // What was counted meanwhile is in the store, once.
    eventually("the day's sum", async || {
        let sum = "SELECT sum(tokens) FROM spending";
        let sum: i64 = store.query_row(sum, [], |row| row.get(0)).unwrap();
        assert!(sum <= 602, "{sum}");
        (sum == 602).then_some(())
    })
    .await;
    drop(store);
    world.stop().await;
}
