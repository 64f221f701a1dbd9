//! Budgets of a whole spoke: what an agent may use, and all of a connection in a day. The runtime is a script that
//! writes what Claude Code writes.

use mosaic_orchestrator::runtime::{ModelPrice, OutputFormat, RuntimeConfig};
use mosaic_store::{AgentSpending, ConnectionSpending, Spent, Store as _};
use mosaic_types::{
    AgentId, ErrorCode, Timestamp, UtcDay,
    agent::{AgentStatus, EndReason, ObservedState, ProofMethod, Usage},
    command::CommandType,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    peers::{Peer, grants},
    rig::{self, FOREVER, Spoke, git},
};

/// `say ID TOKENS [MODEL]` tells the usage of a message; `result USD` ends the run well.
const SAY: &str = r#"
say() { printf '{"type":"assistant","message":{"id":"%s","model":"%s","content":[],"usage":{"input_tokens":%s}}}\n' "$1" "${3:-penny-1}" "$2"; }
result() { printf '{"type":"result","subtype":"success","result":"done","total_cost_usd":%s}\n' "$1"; }
until_go() { while ! test -e go; do sleep 0.05; done; }
"#;

/// The runtime for a spoke that reads its configuration from a file.
const COUNTING: &str = r#"
[[runtimes]]
name = "counting"
program = "sh"
args = ["-c", "{instructions}"]
prompt = "argument"
output = "claude-stream-json"
env-allow = ["PATH"]
"#;

fn counting() -> RuntimeConfig {
    RuntimeConfig {
        name: "counting".parse().unwrap(),
        output: OutputFormat::ClaudeStreamJson,
        prices: vec![ModelPrice {
            model: "penny-*".to_owned(),
            // A cent for a token.
            input: 10_000.0,
            output: 0.0,
            cache_read: 0.0,
            cache_creation: 0.0,
        }],
        ..RuntimeConfig::shell()
    }
}

async fn spoke() -> Spoke {
    Spoke::start_with(|config| config.runtimes.push(counting())).await
}

fn body(spoke: &Spoke, agent: AgentId, script: &str, options: Value) -> Value {
    let mut body = spoke.spawn_body(agent, &format!("{SAY}{script}"));
    body["runtime"] = json!("counting");
    body["options"] = options;
    body
}

async fn spawn(spoke: &Spoke, script: &str, options: Value) -> AgentId {
    let agent = AgentId::generate();
    let body = body(spoke, agent, script, options);
    let (status, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    agent
}

fn go(spoke: &Spoke, agent: AgentId) {
    let file = spoke.data_dir().join(format!("agents/{agent}/work/go"));
    std::fs::write(file, "").unwrap();
}

/// What the trail says of an agent.
async fn trail_of(spoke: &Spoke, agent: AgentId) -> Vec<Value> {
    let (_, page) = spoke
        .call(Method::GET, "/api/v1/audit?limit=100", None)
        .await;
    let entries = page["entries"].as_array().unwrap().iter();
    entries
        .map(|entry| serde_json::from_str(entry["eventJson"].as_str().unwrap()).unwrap())
        .filter(|event: &Value| event["subject"] == agent.to_string())
        .collect()
}

/// Waits until the agent's usage is what it should be.
async fn used(spoke: &Spoke, agent: AgentId, tokens: u64) -> AgentStatus {
    usage_is(spoke, agent, |usage| usage.tokens() == tokens).await
}

async fn used_usd(spoke: &Spoke, agent: AgentId, usd: f64) -> AgentStatus {
    usage_is(spoke, agent, |usage| usage.cost_usd == Some(usd)).await
}

async fn usage_is(spoke: &Spoke, agent: AgentId, is_it: impl Fn(&Usage) -> bool) -> AgentStatus {
    let looking = async {
        loop {
            let status = spoke.status(agent).await;
            if is_it(&status.usage) {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, looking)
        .await
        .expect("the usage is read")
}

fn is_stopped(status: &AgentStatus, detail: &str) {
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Killed, Some(EndReason::BudgetExceeded)),
        "{status:?}"
    );
    assert_eq!(status.detail.as_deref(), Some(detail));
}

#[tokio::test]
async fn a22_an_agent_past_its_budget_is_killed_proven_and_its_work_is_salvaged() {
    let spoke = spoke().await;
    let marker = format!("{}", 300_000 + std::process::id());
    let script = format!(
        "say a 60; say a 60; echo precious > half-done; setsid sleep {marker} & \
         (setsid sleep {marker} &) ; echo at-work; until_go; say b 41; exec sleep 1000"
    );
    let agent = spawn(
        &spoke,
        &script,
        json!({"budgetTokens": 100, "maxRetries": 3}),
    )
    .await;
    spoke.wrote(agent, "at-work").await;
    // A17: said twice, counted once.
    let status = used(&spoke, agent, 60).await;
    assert_eq!(status.state, ObservedState::Running);
    assert_eq!(status.budget.unwrap().tokens, Some(100));
    go(&spoke, agent);
    let status = spoke.finished(agent).await;
    is_stopped(&status, "the agent's budget is passed: 101 of 100 tokens");
    assert_eq!((status.attempt, status.summary), (1, None));
    let proof = status.death.unwrap();
    assert!(matches!(
        proof.method,
        ProofMethod::Cgroup | ProofMethod::Pidfd
    ));
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_its = String::from_utf8_lossy(&command).contains(&marker);
        assert!(!is_its, "A14: a grandchild is left");
    }
    let work = status.work.unwrap();
    assert_eq!(work.git_ref, format!("refs/mosaic/salvage/{agent}"));
    let saved = format!("{}:half-done", work.git_ref);
    assert_eq!(git(&spoke.mirror(), &["show", &saved]), "precious");

    // It is on the trail and on disk like anybody's kill.
    let word = std::fs::read_to_string(spoke.data_dir().join("kills.jsonl")).unwrap();
    assert!(word.contains(&agent.to_string()) && word.contains("budget-exceeded"));
    let entries = trail_of(&spoke, agent).await;
    for action in ["killswitch.kill", "agent.killing", "agent.killed"] {
        let of_kill = entries.iter().find(|event| event["action"] == action);
        assert_eq!(of_kill.unwrap()["actor"]["kind"], "system", "{action}");
    }
    spoke.stop().await;
}

#[tokio::test]
async fn a17_usage_that_is_repeated_passes_no_budget() {
    let spoke = spoke().await;
    let script = "for i in 1 2 3 4 5; do say a 60; done; say b 40; result 0.25";
    let agent = spawn(&spoke, script, json!({"budgetTokens": 100})).await;
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    assert_eq!(status.usage.tokens(), 100);
    spoke.stop().await;
}

#[tokio::test]
async fn cost_is_reckoned_by_prices_until_the_runtime_tells_it() {
    let spoke = spoke().await;
    let agent = spawn(
        &spoke,
        "say a 60; until_go; result 0.25",
        json!({"budgetUsd": 1}),
    )
    .await;
    let status = used(&spoke, agent, 60).await;
    assert_eq!(
        (status.usage.cost_usd, status.usage.cost_is_estimate),
        (Some(0.6), true)
    );
    go(&spoke, agent);
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    assert_eq!(
        (status.usage.cost_usd, status.usage.cost_is_estimate),
        (Some(0.25), false)
    );

    // A name that no price has costs as much as the dearest.
    let script = "say a 99; say b 2 brand-new; exec sleep 1000";
    let agent = spawn(&spoke, script, json!({"budgetUsd": 1})).await;
    is_stopped(
        &spoke.finished(agent).await,
        "the agent's budget is passed: $1.010000 of $1.000000",
    );
    spoke.stop().await;
}

/// Its result is worth more than the last seconds of what it can no longer spend.
#[tokio::test]
async fn an_agent_that_has_given_its_result_is_not_stopped_for_what_it_cost() {
    let spoke = spoke().await;
    let script = "say a 60; until_go; result 99.5; sleep 0.2";
    let agent = spawn(&spoke, script, json!({"budgetUsd": 1})).await;
    used(&spoke, agent, 60).await;
    go(&spoke, agent);
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    assert_eq!(status.usage.cost_usd, Some(99.5));
    spoke.stop().await;
}

#[tokio::test]
async fn an_attempt_that_used_the_budget_up_is_the_last() {
    let spoke = spoke().await;
    let options = json!({"budgetTokens": 100, "maxRetries": 3});
    let agent = spawn(&spoke, "say a 100; exit 3", options).await;
    let status = spoke.finished(agent).await;
    is_stopped(&status, "the agent's budget is used up: 100 of 100 tokens");
    assert_eq!(status.attempt, 1);
    let trail = trail_of(&spoke, agent).await;
    let again = trail.iter().any(|event| event["action"] == "agent.queued");
    assert!(!again, "it waits for no further attempt: {trail:?}");
    spoke.stop().await;
}

async fn spent_today(spoke: &mut Spoke) -> Vec<ConnectionSpending> {
    spoke.stop_daemon();
    let limits = mosaic_store::Limits::default();
    let store = mosaic_store::sqlite::SqliteStore::open(spoke.data_dir(), limits).unwrap();
    let spent = store.spending(UtcDay::of(Timestamp::now())).await.unwrap();
    store.close().await;
    spoke.restart().await;
    spent
}

#[tokio::test]
async fn a17_usage_adds_up_over_attempts_and_over_a_restart() {
    let mut spoke = Spoke::start_process_with(COUNTING).await;
    let script = "if ! test -e second; then touch second; say a 60; exit 3; fi; \
        say a 60; echo again; until_go; say b 41; exec sleep 1000";
    let options = json!({"budgetTokens": 160, "maxRetries": 2});
    let agent = spawn(&spoke, script, options).await;
    spoke.wrote(agent, "again").await;
    used(&spoke, agent, 120).await;
    spoke.crash();
    spoke.restart().await;
    let status = used(&spoke, agent, 120).await;
    assert_eq!(
        (status.state, status.attempt),
        (ObservedState::Running, 2),
        "{status:?}"
    );
    go(&spoke, agent);
    let status = spoke.finished(agent).await;
    is_stopped(&status, "the agent's budget is passed: 161 of 160 tokens");
    assert_eq!((status.attempt, status.usage.tokens()), (2, 161));
    // And the day has each of them once: 161 tokens of a model of no price, at the dearest.
    let spent = ConnectionSpending {
        connection_id: None,
        spent: Spent {
            micro_usd: 161 * 15,
            tokens: 161,
        },
    };
    assert_eq!(spent_today(&mut spoke).await, [spent]);
    spoke.stop().await;
}

/// Its output is read again, a turn at a time; what it had used before midnight is not used again.
#[tokio::test]
async fn a17_a_restart_moves_nothing_of_yesterday_into_today() {
    let mut spoke = Spoke::start_process_with(COUNTING).await;
    // More than one turn reads, before the dearest of it.
    let script = "say a 10; for i in $(seq 600); do echo '{}'; done; say b 290; echo said; until_go; \
        say c 1; echo more; exec sleep 1000";
    let agent = spawn(&spoke, script, json!({})).await;
    spoke.wrote(agent, "said").await;
    used(&spoke, agent, 300).await;
    spoke.stop_daemon();
    yesterday_it_was(&spoke, agent, 300).await;
    let settings = spoke.settings() + "[limits]\nbudget-tokens-per-day = 100\n";
    spoke.write_settings(&settings);
    spoke.restart().await;
    used(&spoke, agent, 300).await;
    go(&spoke, agent);
    spoke.wrote(agent, "more").await;
    let status = used(&spoke, agent, 301).await;
    assert_eq!(status.state, ObservedState::Running, "{status:?}");
    assert_eq!(spent_today(&mut spoke).await[0].spent.tokens, 1);
    let status = spoke.status(agent).await;
    assert_eq!(status.state, ObservedState::Running, "{status:?}");
    spoke.stop().await;
}

/// Changes what is on record of a spoke that does not run: all that was counted of an agent was counted yesterday.
async fn yesterday_it_was(spoke: &Spoke, agent_id: AgentId, tokens: u64) {
    let limits = mosaic_store::Limits::default();
    let store = mosaic_store::sqlite::SqliteStore::open(spoke.data_dir(), limits).unwrap();
    let today = UtcDay::of(Timestamp::now());
    let of_today = store.spending(today).await.unwrap();
    let total = of_today[0].spent;
    assert_eq!((of_today.len(), total.tokens), (1, tokens));
    let noted = [(today, Spent::default()), (today.days_before(1), total)];
    let noted = noted.map(|(day, total)| AgentSpending {
        agent_id,
        day,
        total,
    });
    store.note_spending(noted.to_vec()).await.unwrap();
    store.close().await;
}

/// It has given its result: what all have used today is no reason to end it, after a restart neither.
#[tokio::test]
async fn an_agent_that_has_given_its_result_is_not_stopped_by_a_restart() {
    let settings = format!("{COUNTING}[limits]\nbudget-usd-per-day = 1\n");
    let mut spoke = Spoke::start_process_with(&settings).await;
    let script =
        "say a 60; for i in $(seq 600); do echo '{}'; done; result 99.5; echo said; until_go";
    let agent = spawn(&spoke, script, json!({})).await;
    spoke.wrote(agent, "said").await;
    used_usd(&spoke, agent, 99.5).await;
    // In order, so that the next one knows of all that was counted.
    spoke.stop_daemon();
    spoke.restart().await;
    used_usd(&spoke, agent, 99.5).await;
    go(&spoke, agent);
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    spoke.stop().await;
}

/// Nobody sees any more what it uses.
#[tokio::test]
async fn an_agent_with_a_budget_is_stopped_when_its_output_is_not_kept_any_more() {
    let spoke = Spoke::start_with(|config| {
        config.runtimes.push(counting());
        config.limits.spool_max_bytes = 16 << 10;
    })
    .await;
    let budget = json!({"budgetTokens": 100});
    let unbounded = "say a 10; yes | head -c 100000; until_go";
    let unbounded = spawn(&spoke, unbounded, json!({})).await;
    let done = "say a 10; result 0.25; yes | head -c 100000; until_go";
    let done = spawn(&spoke, done, budget.clone()).await;
    for agent in [unbounded, done] {
        spool_has(&spoke, agent, "truncated").await;
    }
    let bounded = "say a 10; yes | head -c 100000; exec sleep 1000";
    let bounded = spawn(&spoke, bounded, budget).await;
    is_stopped(
        &spoke.finished(bounded).await,
        "its output passed spool-max-bytes: what it uses cannot be counted any more, and it has a budget",
    );
    for agent in [unbounded, done] {
        assert_eq!(spoke.status(agent).await.state, ObservedState::Running);
        go(&spoke, agent);
    }
    let reason = spoke.finished(unbounded).await.reason;
    assert_eq!(reason, Some(EndReason::NoResult));
    let state = spoke.finished(done).await.state;
    assert_eq!(state, ObservedState::Completed);
    spoke.stop().await;
}

/// A shim that was killed in the middle of a record is no reason to count nothing from then on.
#[tokio::test]
async fn a17_an_attempt_after_a_torn_record_is_counted() {
    let spoke = spoke().await;
    let script = "if ! test -e second; then touch second; echo first; until_go; exit 3; fi; \
        say b 101; exec sleep 1000";
    let options = json!({"budgetTokens": 100, "maxRetries": 1});
    let agent = spawn(&spoke, script, options).await;
    spoke.wrote(agent, "first").await;
    // The next attempt waits until the hold is over.
    let hold = json!({"taskId": "no-such-task", "hold": true});
    let (_, report) = spoke
        .call(Method::POST, "/agents/kill-all", Some(hold))
        .await;
    assert_eq!(report["killed"], 0, "{report}");
    go(&spoke, agent);
    spoke.becomes(agent, ObservedState::Queued).await;
    let spool = spoke.data_dir().join(format!("agents/{agent}/run/spool"));
    let spool = std::fs::OpenOptions::new().append(true).open(spool);
    std::io::Write::write_all(&mut spool.unwrap(), b"MSP").unwrap();
    spoke.call(Method::POST, "/hold/release", None).await;
    let status = spoke.finished(agent).await;
    is_stopped(&status, "the agent's budget is passed: 101 of 100 tokens");
    assert_eq!(status.attempt, 2);
    spoke.stop().await;
}

/// Waits until this is in the agent's spool.
async fn spool_has(spoke: &Spoke, agent: AgentId, text: &str) {
    let spool = spoke.data_dir().join(format!("agents/{agent}/run/spool"));
    let has = async {
        while !std::fs::read(&spool)
            .is_ok_and(|bytes| bytes.windows(text.len()).any(|at| at == text.as_bytes()))
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, has).await.unwrap();
}

/// What an agent used is counted though it was killed while nobody read it.
#[tokio::test]
async fn a_kill_that_no_daemon_saw_through_leaves_nothing_uncounted() {
    let mut spoke = Spoke::start_process_with(COUNTING).await;
    let agent = spawn(
        &spoke,
        "echo at-work; until_go; say a 70; echo said; exec sleep 1000",
        json!({}),
    )
    .await;
    // On record as running it is before it is let go.
    spoke.wrote(agent, "at-work").await;
    let word = Spoke::kill_word().replace("AGENT", &agent.to_string());
    spoke.crash();
    go(&spoke, agent);
    spool_has(&spoke, agent, "said\n").await;
    std::fs::write(spoke.data_dir().join("kills.jsonl"), word).unwrap();
    spoke.restart().await;
    let status = spoke.finished(agent).await;
    assert_eq!(status.reason, Some(EndReason::KillRequested), "{status:?}");
    assert_eq!(status.usage.tokens(), 70);
    assert_eq!(spent_today(&mut spoke).await[0].spent.tokens, 70);
    spoke.stop().await;
}

#[tokio::test]
async fn a_connections_day_stops_its_agents_and_refuses_more_and_nobody_elses() {
    let spoke = spoke().await;
    let mut capped = grants(&spoke);
    capped.caps.budget_tokens_per_day = Some(100);
    let capped = Peer::with(&spoke, capped).await;
    let other = Peer::of(&spoke).await;
    let counted = async |peer: &Peer, script: &str| {
        let agent = AgentId::generate();
        let body = body(&spoke, agent, script, json!({}));
        peer.ask(CommandType::AgentSpawn, &body).await.unwrap();
        spoke.becomes(agent, ObservedState::Running).await;
        agent
    };
    let idle = counted(&capped, "say a 60; exec sleep 1000").await;
    used(&spoke, idle, 60).await;
    let others = counted(&other, "say a 5000; exec sleep 1000").await;
    used(&spoke, others, 5000).await;
    let uncounted = spoke.spawn_body(AgentId::generate(), FOREVER);
    capped
        .ask(CommandType::AgentSpawn, &uncounted)
        .await
        .unwrap();
    let uncounted: AgentId = uncounted["agentId"].as_str().unwrap().parse().unwrap();
    spoke.wrote(uncounted, "at-work").await;

    let last = counted(&capped, "until_go; say b 41; exec sleep 1000").await;
    go(&spoke, last);
    for agent in [last, idle] {
        is_stopped(
            &spoke.finished(agent).await,
            "the connection's budget of the day is passed: 101 of 100 tokens",
        );
    }
    for agent in [others, uncounted] {
        assert_eq!(spoke.status(agent).await.state, ObservedState::Running);
    }

    let refused = AgentId::generate();
    let refusal = capped
        .ask(
            CommandType::AgentSpawn,
            &body(&spoke, refused, "say a 1", json!({})),
        )
        .await
        .unwrap_err();
    assert_eq!(
        (refusal.code, refusal.retryable),
        (ErrorCode::BudgetExhausted, true)
    );
    let midnight = UtcDay::of(Timestamp::now()).end();
    assert!(
        refusal
            .message
            .ends_with(&format!("begins anew at {midnight}")),
        "{refusal}"
    );
    assert!(!spoke.data_dir().join(format!("agents/{refused}")).exists());
    counted(&other, "say a 1; exec sleep 1000").await;
    capped.stop().await;
    other.stop().await;
    spoke.stop().await;
}

/// One that waits is not started to be stopped at once.
#[tokio::test]
async fn an_agent_whose_turn_comes_on_a_day_that_is_used_up_does_not_start() {
    let spoke = Spoke::start_with(|config| {
        config.runtimes.push(counting());
        config.limits.max_running = 1;
        config.limits.budget_tokens_per_day = Some(100);
    })
    .await;
    let running = spawn(&spoke, "until_go; say a 101; exec sleep 1000", json!({})).await;
    spoke.becomes(running, ObservedState::Running).await;
    let waiting = spawn(&spoke, "say a 1; exec sleep 1000", json!({})).await;
    go(&spoke, running);
    let detail = "the spoke's budget of the day is passed: 101 of 100 tokens";
    is_stopped(&spoke.finished(running).await, detail);
    let status = spoke.finished(waiting).await;
    is_stopped(&status, detail);
    assert_eq!((status.attempt, status.started_at), (0, None));
    assert_eq!(status.death.unwrap().method, ProofMethod::NeverStarted);
    spoke.stop().await;
}

#[tokio::test]
async fn the_spokes_day_outlives_a_restart() {
    let settings = format!("{COUNTING}[limits]\nbudget-usd-per-day = 0.0015\n");
    let mut spoke = Spoke::start_process_with(&settings).await;
    let agent = spawn(&spoke, "say a 100; exit 0", json!({})).await;
    spoke.finished(agent).await;
    spoke.crash();
    spoke.restart().await;
    let refused = body(&spoke, AgentId::generate(), "say a 1", json!({}));
    let (status, problem) = spoke
        .call(Method::POST, "/agents/spawn", Some(refused))
        .await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{problem}");
    assert_eq!(problem["code"], "budget-exhausted");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .starts_with("the spoke's budget of the day is used up: $0.001500 of $0.001500"),
        "{problem}"
    );
    // What tells no usage is none of it.
    spoke.finished(spoke.spawn("true").await).await;
    spoke.stop().await;
}
