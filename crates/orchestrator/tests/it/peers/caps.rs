//! What a grant caps, counts and leaves out.

use super::*;

/// F14: strict settings are usable, or it is said why not.
#[tokio::test]
async fn f14_a_budget_cap_is_kept_by_the_runtime_or_refused_by_name() {
    let spoke = Spoke::start_with(|config| {
        config.runtimes.push(RuntimeConfig {
            name: "thrifty".parse().unwrap(),
            args: vec![
                "-c".to_owned(),
                "echo \"$2\"; exit 0".to_owned(),
                "sh".to_owned(),
            ],
            budget_args: vec!["--budget".to_owned(), "{budget_usd}".to_owned()],
            prompt: PromptChannel::Stdin,
            ..RuntimeConfig::shell()
        });
    })
    .await;
    let mut capped = grants(&spoke);
    capped.caps.max_budget_usd = Some(2.5);
    let capped = Peer::with(&spoke, capped).await;
    let free = Peer::of(&spoke).await;
    let body = |runtime: &str, options: Value| {
        let agent = AgentId::generate();
        let mut body = spoke.spawn_body(agent, "true");
        body["runtime"] = json!(runtime);
        body["options"] = options;
        (agent, body)
    };
    for (options, budget) in [(json!({}), "2.5"), (json!({"budgetUsd": 1.25}), "1.25")] {
        let (agent, body) = body("thrifty", options);
        capped.ask(CommandType::AgentSpawn, &body).await.unwrap();
        let batches = capped.batches(agent, None).await;
        assert_eq!(output(&batches), [(budget, false)]);
    }
    for (peer, runtime, options, field, code) in [
        (
            &capped,
            "shell",
            json!({}),
            "runtime",
            ErrorCode::UnsupportedOption,
        ),
        (
            &capped,
            "shell",
            json!({"budgetUsd": 1}),
            "options.budgetUsd",
            ErrorCode::UnsupportedOption,
        ),
        (
            &free,
            "shell",
            json!({"budgetUsd": 1}),
            "options.budgetUsd",
            ErrorCode::UnsupportedOption,
        ),
        (
            &capped,
            "thrifty",
            json!({"budgetUsd": 3}),
            "options.budgetUsd",
            ErrorCode::GrantExceeded,
        ),
        (
            &free,
            "thrifty",
            json!({"budgetTokens": 3}),
            "options.budgetTokens",
            ErrorCode::UnsupportedOption,
        ),
    ] {
        let (_, body) = body(runtime, options);
        let refusal = peer.ask(CommandType::AgentSpawn, &body).await.unwrap_err();
        assert_eq!(
            (refusal.code, refusal.field.as_deref()),
            (code, Some(field)),
            "{body}: {refusal:?}"
        );
    }
    capped.stop().await;
    free.stop().await;
    spoke.stop().await;
}

/// F14: where nothing can enforce a cap, a spawn that did not ask for it is told that the grant did.
#[tokio::test]
async fn f14_a_cap_that_cannot_be_enforced_is_refused_as_the_grants() {
    let spoke = Spoke::start_with(|config| config.sandbox.without_cgroup = true).await;
    let mut capped = grants(&spoke);
    capped.caps.max_memory_mb = Some(512);
    let peer = Peer::with(&spoke, capped).await;
    for (options, by_grant) in [(json!({}), true), (json!({"memoryMb": 256}), false)] {
        let mut body = spoke.spawn_body(AgentId::generate(), "true");
        body["options"] = options;
        let refusal = peer.ask(CommandType::AgentSpawn, &body).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::UnsupportedOption);
        assert_eq!(refusal.field.as_deref(), Some("options.memoryMb"));
        assert_eq!(refusal.message.contains("the grant caps it"), by_grant);
    }
    peer.stop().await;
    spoke.stop().await;
}

/// A28: however many ask at once.
#[tokio::test]
async fn f14_a_cap_of_agents_is_exact_under_concurrency() {
    let spoke = Spoke::start().await;
    let mut few = grants(&spoke);
    few.caps.max_agents = 7;
    let peer = Peer::with(&spoke, few).await;
    let bodies: Vec<Value> = (0..20)
        .map(|_| spoke.spawn_body(AgentId::generate(), FOREVER))
        .collect();
    let asking = bodies
        .iter()
        .map(|body| peer.ask(CommandType::AgentSpawn, body));
    let answers = join_all(asking).await;
    let mut accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((1..=7).contains(&accepted), "{answers:?}");
    // While one is on its way in, another may be refused that there was a place for; asked for again, it is had.
    for (body, answer) in bodies.iter().zip(answers) {
        if answer.is_ok() {
            continue;
        }
        assert_eq!(refusal_of(answer).0, ErrorCode::QuotaExceeded);
        match peer.ask(CommandType::AgentSpawn, body).await {
            Ok(_) => accepted += 1,
            Err(refusal) => {
                assert_eq!(refusal.code, ErrorCode::QuotaExceeded);
                assert_eq!(accepted, 7, "refused with a place free");
            }
        }
    }
    assert_eq!(accepted, 7);
    assert_eq!(peer.listed().await.len(), 7);
    // A place is free again with a proven death, and only one.
    let victim = *peer.listed().await.iter().next().unwrap();
    peer.ask(CommandType::AgentKill, &json!({"agentId": victim}))
        .await
        .unwrap();
    spoke.finished(victim).await;
    peer.spawn(&spoke, FOREVER).await;
    let body = spoke.spawn_body(AgentId::generate(), FOREVER);
    let answer = peer.ask(CommandType::AgentSpawn, &body).await;
    assert_eq!(refusal_of(answer).0, ErrorCode::QuotaExceeded);
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f14_spawns_per_minute_are_counted_ended_ones_too() {
    let spoke = Spoke::start().await;
    let mut slow = grants(&spoke);
    slow.caps.spawns_per_minute = 3;
    let peer = Peer::with(&spoke, slow).await;
    for _ in 0..3 {
        let agent = peer.spawn(&spoke, "true").await;
        spoke.finished(agent).await;
    }
    let body = spoke.spawn_body(AgentId::generate(), "true");
    let answer = peer.ask(CommandType::AgentSpawn, &body).await;
    assert_eq!(refusal_of(answer).0, ErrorCode::QuotaExceeded);
    // Kills have no part in it.
    let report = peer.ask(CommandType::AgentKillAll, &json!({})).await;
    assert_eq!(report.unwrap()["unverified"], 0);
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f14_what_a_grant_caps_is_capped() {
    let spoke = Spoke::start().await;
    let mut short = grants(&spoke);
    short.caps.max_timeout_secs = 1;
    short.caps.max_retries = 0;
    let peer = Peer::with(&spoke, short).await;
    for (options, field) in [
        (json!({"timeoutSecs": 2}), "options.timeoutSecs"),
        (json!({"maxRetries": 1}), "options.maxRetries"),
    ] {
        let mut body = spoke.spawn_body(AgentId::generate(), "true");
        body["options"] = options;
        let answer = peer.ask(CommandType::AgentSpawn, &body).await;
        assert_eq!(
            refusal_of(answer),
            (ErrorCode::GrantExceeded, Some(field.to_owned()))
        );
    }
    // What was not asked for is bounded as well.
    let agent = peer.spawn(&spoke, FOREVER).await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Failed, Some(EndReason::TimedOut))
    );
    peer.stop().await;
    spoke.stop().await;
}

#[tokio::test]
async fn f14_a_repository_beside_the_granted_is_refused() {
    let spoke = Spoke::start().await;
    let peer = Peer::of(&spoke).await;
    let granted = format!("file://{}", spoke.repository().display());
    for (repository, code) in [
        (format!("{granted}-other"), ErrorCode::NotGranted),
        (format!("{granted}/.git"), ErrorCode::NotGranted),
        ("https://example.com/x".to_owned(), ErrorCode::NotGranted),
        (format!("{granted}/../other"), ErrorCode::InvalidRequest),
    ] {
        let mut body = spoke.spawn_body(AgentId::generate(), "true");
        body["context"]["repository"] = json!(repository);
        let answer = peer.ask(CommandType::AgentSpawn, &body).await;
        let expected = (code, Some("context.repository".to_owned()));
        assert_eq!(refusal_of(answer), expected, "{repository}");
    }
    assert!(peer.listed().await.is_empty());
    peer.stop().await;
    spoke.stop().await;
}
