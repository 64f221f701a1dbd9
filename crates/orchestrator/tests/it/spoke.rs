//! The whole spoke through its operator's API: agents from spawn to clean-up.

use mosaic_types::{
    AgentId,
    agent::{EndReason, ObservedState},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::rig::{self, FOREVER, Spoke, git};

#[tokio::test]
async fn an_agents_work_comes_home_as_branch_and_patch() {
    let spoke = Spoke::start().await;
    let agent = spoke
        .spawn("echo one > one; git add one; git commit -qm 'adds one'; echo two > two; echo done")
        .await;
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    assert_eq!(status.reason, Some(EndReason::Finished));
    assert_eq!(status.exit_code, Some(0));
    let work = status.work.as_ref().unwrap();
    let subjects: Vec<_> = work
        .commits
        .iter()
        .map(|commit| commit.subject.as_str())
        .collect();
    assert_eq!(subjects.len(), 2);
    assert_eq!(subjects[0], "adds one");
    assert!(work.uncommitted_included);
    assert_eq!(
        (work.files_changed, work.insertions, work.deletions),
        (2, 2, 0)
    );
    assert_eq!(
        git(&spoke.mirror(), &["rev-parse", &work.git_ref]),
        work.head_commit
    );

    let (code, result) = spoke
        .call(Method::GET, &format!("/agents/{agent}/result"), None)
        .await;
    assert_eq!(code, StatusCode::OK, "{result}");
    let patch = spoke.data_dir().join("taken-home.patch");
    std::fs::write(&patch, result["patch"]["content"].as_str().unwrap()).unwrap();
    git(spoke.repository(), &["am", "-q", patch.to_str().unwrap()]);
    assert_eq!(
        git(spoke.repository(), &["rev-parse", "HEAD^{tree}"]),
        git(
            &spoke.mirror(),
            &["rev-parse", &format!("{}^{{tree}}", work.git_ref)]
        )
    );
    spoke.stop().await;
}

#[tokio::test]
async fn a4_spawning_twice_is_one_agent_and_other_content_is_a_conflict() {
    let spoke = Spoke::start().await;
    let agent = AgentId::generate();
    let body = spoke.spawn_body(agent, "echo once");
    let calls = (0..8).map(|_| spoke.call(Method::POST, "/agents/spawn", Some(body.clone())));
    let answers = futures_util::future::join_all(calls).await;
    assert!(
        answers
            .iter()
            .all(|(code, _)| *code == StatusCode::ACCEPTED),
        "{answers:?}"
    );
    let fresh = answers
        .iter()
        .filter(|(_, answer)| answer["existing"] == false)
        .count();
    assert_eq!(fresh, 1, "{answers:?}");
    let other = spoke.spawn_body(agent, "echo twice");
    let (code, problem) = spoke.call(Method::POST, "/agents/spawn", Some(other)).await;
    assert_eq!(
        (code, problem["field"].as_str()),
        (StatusCode::CONFLICT, Some("agentId"))
    );
    spoke.finished(agent).await;
    // Ended, and still the same agent.
    let (code, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(
        (code, answer["existing"].as_bool()),
        (StatusCode::ACCEPTED, Some(true))
    );
    let output = spoke.follow(agent, None, |_| false).await;
    assert_eq!(output.matches("\"line\":\"once\"").count(), 1, "{output}");
    spoke.stop().await;
}

#[tokio::test]
async fn a_stream_resumes_where_it_was_left() {
    let spoke = Spoke::start().await;
    let agent = spoke
        .spawn("for i in 1 2 3 4 5; do echo line-$i; echo err-$i >&2; done")
        .await;
    spoke.finished(agent).await;
    let whole = spoke.follow(agent, None, |_| false).await;
    let ids: Vec<&str> = whole
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .collect();
    assert!(ids.len() > 10, "{whole}");
    for (seen, id) in ids.iter().enumerate() {
        let rest = spoke.follow(agent, Some(id), |_| false).await;
        let rest: Vec<&str> = rest
            .lines()
            .filter_map(|line| line.strip_prefix("id: "))
            .collect();
        assert_eq!(rest, ids[seen + 1..], "after {id}");
    }
    spoke.stop().await;
}

#[tokio::test]
async fn a31_a_line_of_one_mebibyte_survives_whole() {
    let spoke = Spoke::start().await;
    let agent = spoke
        .spawn("head -c 1048576 /dev/zero | tr '\\0' x; echo; echo end")
        .await;
    let seen = spoke.follow(agent, None, |_| false).await;
    let longest = seen
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .max_by_key(|l| l.len());
    let event: serde_json::Value = serde_json::from_str(longest.unwrap()).unwrap();
    assert_eq!(event["line"].as_str().unwrap().len(), 1_048_576);
    spoke.stop().await;
}

#[tokio::test]
async fn failed_attempts_are_retried_in_the_same_tree_and_then_fail() {
    let spoke = Spoke::start().await;
    let agent = AgentId::generate();
    let mut body = spoke.spawn_body(agent, "echo try >> tries; test $(wc -l < tries) -ge 2");
    body["options"] = json!({"maxRetries": 2});
    spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.attempt),
        (ObservedState::Completed, 2),
        "{status:?}"
    );

    let agent = spoke.spawn("echo lost >&2; exit 7").await;
    let status = spoke.finished(agent).await;
    assert_eq!((status.state, status.attempt), (ObservedState::Failed, 1));
    assert_eq!(
        (status.reason, status.exit_code),
        (Some(EndReason::ExitStatus), Some(7))
    );
    spoke.stop().await;
}

#[tokio::test]
async fn a_time_limit_ends_an_agent_and_its_work_comes_home() {
    let spoke = Spoke::start().await;
    let agent = AgentId::generate();
    let mut body = spoke.spawn_body(agent, "echo kept > kept; exec sleep 1000");
    body["options"] = json!({"timeoutSecs": 1, "maxRetries": 3});
    spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Failed, Some(EndReason::TimedOut))
    );
    assert_eq!(
        status.attempt, 1,
        "a limit that ran out would run out again"
    );
    assert_eq!(status.work.unwrap().files_changed, 1);
    spoke.stop().await;
}

#[tokio::test]
async fn a14_nothing_outlives_an_agent_that_ends_by_itself() {
    let spoke = Spoke::start().await;
    let marker = format!("{}", 100_000 + std::process::id());
    let agent = spoke
        .spawn(&format!(
            "setsid sleep {marker} & (setsid sleep {marker} &) ; echo left"
        ))
        .await;
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&command).contains(&marker),
            "a grandchild is left"
        );
    }
    spoke.stop().await;
}

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let spoke = Spoke::start().await;
    let good = spoke.spawn_body(AgentId::generate(), "true");
    let cases = [
        (
            json!({"context": {"repository": "file:///nowhere/at/all"}}),
            "unknown-repository",
            "context.repository",
        ),
        (
            json!({"context": {"repository": "ext::sh -c id"}}),
            "invalid-request",
            "context.repository",
        ),
        (
            json!({"context": {"repository": "--upload-pack=id"}}),
            "invalid-request",
            "context.repository",
        ),
        (
            json!({"context": {"branch": "no-such"}}),
            "unknown-branch",
            "context.branch",
        ),
        (
            json!({"context": {"branch": "../../x"}}),
            "unknown-branch",
            "context.branch",
        ),
        (
            json!({"context": {"branch": "--upload-pack=x"}}),
            "unknown-branch",
            "context.branch",
        ),
        (json!({"runtime": "no-such"}), "unknown-runtime", "runtime"),
        (
            json!({"options": {"sandbox": "docker"}}),
            "unknown-sandbox",
            "options.sandbox",
        ),
        (
            json!({"options": {"timeoutSecs": 0}}),
            "invalid-request",
            "options.timeoutSecs",
        ),
        (
            json!({"options": {"timeoutSecs": 999_999_999}}),
            "invalid-request",
            "options.timeoutSecs",
        ),
        (
            json!({"options": {"leaseSecs": 60}}),
            "unsupported-option",
            "options.leaseSecs",
        ),
        (
            json!({"agentId": "not-an-id"}),
            "invalid-request",
            "agentId",
        ),
        (json!({"agentType": "boss"}), "invalid-request", "agentType"),
        (json!({"surprise": 1}), "invalid-request", "surprise"),
        (
            json!({"context": {"instructions": null}}),
            "invalid-request",
            "context.instructions",
        ),
    ];
    for (change, code, field) in cases {
        let mut body = good.clone();
        merge(&mut body, &change);
        let (status, problem) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
        assert!(status.is_client_error(), "{change}: {problem}");
        assert_eq!(problem["code"], code, "{change}: {problem}");
        assert_eq!(problem["field"], field, "{change}: {problem}");
    }
    let (_, agents) = spoke.call(Method::GET, "/agents", None).await;
    assert_eq!(
        agents["agents"],
        json!([]),
        "nothing is left of a refused spawn"
    );
    spoke.stop().await;
}

#[tokio::test]
async fn a26_below_the_watermark_spawns_are_refused() {
    let spoke = Spoke::start_with(|config| config.limits.min_free_disk_mb = u64::MAX).await;
    let body = spoke.spawn_body(AgentId::generate(), "true");
    let (code, problem) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(code, StatusCode::INSUFFICIENT_STORAGE, "{problem}");
    assert_eq!(problem["code"], "disk-full");
    spoke.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_leaves_nothing() {
    let spoke = Spoke::start_with(|config| {
        config.limits.max_running = 1;
        config.limits.max_queued = 1;
    })
    .await;
    let running = spoke.spawn(FOREVER).await;
    spoke.wrote(running, "at-work").await;
    spoke.spawn(FOREVER).await;
    let refused = AgentId::generate();
    let body = spoke.spawn_body(refused, "true");
    let (code, problem) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(
        (code, problem["code"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("overloaded"))
    );
    let (code, _) = spoke
        .call(Method::GET, &format!("/agents/{refused}/status"), None)
        .await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    spoke.stop().await;
}

#[tokio::test]
async fn a28_a_slot_is_freed_by_its_owners_end_only() {
    let spoke = Spoke::start_with(|config| config.limits.max_running = 1).await;
    let first = spoke.spawn(FOREVER).await;
    spoke.wrote(first, "at-work").await;
    let second = spoke.spawn(FOREVER).await;
    let third = spoke.spawn(FOREVER).await;
    spoke.kill(second).await;
    spoke.finished(second).await;
    assert_eq!(
        spoke.status(third).await.state,
        ObservedState::Queued,
        "the slot is the first's"
    );
    spoke.kill(first).await;
    spoke.wrote(third, "at-work").await;
    spoke.stop().await;
}

#[tokio::test]
async fn ended_agents_are_forgotten_and_their_branches_kept() {
    let mut spoke = Spoke::start_process_with("[limits]\nretention-agents = 1\n").await;
    let first = spoke.spawn("echo one > one").await;
    let work = spoke.finished(first).await.work.unwrap();
    let last = spoke.spawn("echo two > two").await;
    spoke.finished(last).await;
    spoke.stop_daemon();
    spoke.restart().await;
    let forgotten = async {
        let path = format!("/agents/{first}/status");
        while spoke.call(Method::GET, &path, None).await.0 != StatusCode::NOT_FOUND {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, forgotten)
        .await
        .unwrap();
    assert!(!spoke.data_dir().join(format!("agents/{first}")).exists());
    assert_eq!(
        git(&spoke.mirror(), &["show", &format!("{}:one", work.git_ref)]),
        "one"
    );
    assert_eq!(spoke.status(last).await.state, ObservedState::Completed);
    spoke.stop().await;
}

#[tokio::test]
async fn work_that_could_not_be_brought_home_is_tried_again() {
    let spoke = Spoke::start().await;
    let agent = spoke
        .spawn("echo kept > kept; echo up; while ! test -e go; do sleep 0.05; done")
        .await;
    spoke.wrote(agent, "up").await;
    let mirror = spoke.mirror();
    let away = mirror.with_extension("away");
    std::fs::rename(&mirror, &away).unwrap();
    std::fs::write(&mirror, "in the way").unwrap();
    std::fs::write(spoke.data_dir().join(format!("agents/{agent}/work/go")), "").unwrap();
    spoke.becomes(agent, ObservedState::Completed).await;
    assert_eq!(spoke.status(agent).await.work, None);
    let (code, problem) = spoke
        .call(Method::GET, &format!("/agents/{agent}/result"), None)
        .await;
    assert_eq!(
        (code, problem["code"].as_str()),
        (StatusCode::CONFLICT, Some("not-ended"))
    );
    std::fs::remove_file(&mirror).unwrap();
    std::fs::rename(&away, &mirror).unwrap();
    let status = spoke.finished(agent).await;
    assert_eq!(status.work.unwrap().files_changed, 2, "the file and the go");
    spoke.stop().await;
}

fn merge(into: &mut serde_json::Value, change: &serde_json::Value) {
    match (into, change) {
        (serde_json::Value::Object(into), serde_json::Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}
