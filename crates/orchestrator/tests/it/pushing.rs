//! Pushes of a whole spoke: asked for, allowed, and told of.

use mosaic_orchestrator::worktree::PushRule;
use mosaic_types::{
    AgentId,
    agent::{CleanupKind, ObservedState},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::rig::{Spoke, git};

#[tokio::test]
async fn a_branch_is_pushed_after_a_natural_end_and_never_after_a_kill() {
    let origin = tempfile::tempdir().unwrap();
    let bare = origin.path().join("bare.git");
    let url = format!("file://{}", bare.display());
    let spoke = Spoke::start_with(|config| {
        config.push = vec![PushRule {
            repositories: url.clone(),
            branch_prefix: "mosaic/".to_owned(),
            timeout_secs: 30,
        }];
    })
    .await;
    let source = spoke.repository().to_str().unwrap();
    let to = bare.to_str().unwrap();
    git(origin.path(), &["clone", "-q", "--bare", source, to]);
    let spawn = async |script: &str, push: bool| {
        let agent = AgentId::generate();
        let mut body = spoke.spawn_body(agent, script);
        body["context"]["repository"] = json!(url);
        body["options"] = json!({ "push": push });
        let (code, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
        assert_eq!(code, StatusCode::ACCEPTED, "{answer}");
        agent
    };
    let work = "echo x > x; git add x; git commit -qm x";
    let completed = spawn(work, true).await;
    let status = spoke.finished(completed).await;
    assert_eq!(status.state, ObservedState::Completed);
    let found = status.work.unwrap();
    let pushed = found.pushed.unwrap();
    assert_eq!(pushed.why_not, None);
    assert_eq!(pushed.git_ref, format!("refs/heads/mosaic/{completed}"));
    assert_eq!(pushed.commit, found.head_commit);
    assert_eq!(git(&bare, &["rev-parse", &pushed.git_ref]), pushed.commit);
    let steps: Vec<_> = status.cleanup.iter().map(|step| step.step).collect();
    assert_eq!(steps.last(), Some(&CleanupKind::Push));
    assert!(status.cleanup.iter().all(|step| step.ok));

    let killed = spawn(&format!("{work}; echo done; exec sleep 1000"), true).await;
    spoke.wrote(killed, "done").await;
    spoke.kill(killed).await;
    let failed = spawn(&format!("{work}; exit 3"), true).await;
    let unasked = spawn(work, false).await;
    for agent in [killed, failed, unasked] {
        let status = spoke.finished(agent).await;
        assert_eq!(status.work.unwrap().pushed, None);
        assert!(
            status
                .cleanup
                .iter()
                .all(|step| step.step != CleanupKind::Push)
        );
    }
    let branches = git(
        &bare,
        &["for-each-ref", "--format=%(refname)", "refs/heads"],
    );
    assert_eq!(branches.lines().count(), 2, "{branches}");

    // Where the configuration does not name the repository, the spawn is refused.
    let mut body = spoke.spawn_body(AgentId::generate(), work);
    body["options"] = json!({ "push": true });
    let (code, answer) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    assert_eq!(
        (&answer["code"], &answer["field"]),
        (&json!("unsupported-option"), &json!("options.push"))
    );
    spoke.stop().await;
}
