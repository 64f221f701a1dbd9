//! Pushes of a whole spoke: asked for, allowed, and told of.

use std::path::PathBuf;

use mosaic_orchestrator::worktree::PushRule;
use mosaic_types::{
    AgentId,
    agent::{CleanupKind, ObservedState},
};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::rig::{Spoke, git};

/// A spoke that may push to a repository of its own.
pub(crate) struct Pushing {
    pub(crate) spoke: Spoke,
    origin: TempDir,
    url: String,
}

impl Pushing {
    pub(crate) async fn start() -> Self {
        let origin = tempfile::tempdir().unwrap();
        let url = format!("file://{}", bare(&origin).display());
        let spoke = Spoke::start_with(|config| {
            config.push = vec![PushRule {
                repositories: url.clone(),
                branch_prefix: "mosaic/".to_owned(),
                timeout_secs: 30,
            }];
        })
        .await;
        let source = spoke.repository().to_str().unwrap();
        let to = bare(&origin);
        let to = to.to_str().unwrap();
        git(origin.path(), &["clone", "-q", "--bare", source, to]);
        Self { spoke, origin, url }
    }

    /// An agent at work on that repository.
    pub(crate) async fn spawn(&self, script: &str, push: bool) -> AgentId {
        let agent = AgentId::generate();
        let mut body = self.spoke.spawn_body(agent, script);
        body["context"]["repository"] = json!(self.url);
        body["options"] = json!({ "push": push });
        let spawning = self.spoke.call(Method::POST, "/agents/spawn", Some(body));
        let (code, answer) = spawning.await;
        assert_eq!(code, StatusCode::ACCEPTED, "{answer}");
        agent
    }
}

fn bare(origin: &TempDir) -> PathBuf {
    origin.path().join("bare.git")
}

#[tokio::test]
async fn a_branch_is_pushed_after_a_natural_end_and_never_after_a_kill() {
    let pushing = Pushing::start().await;
    let (spoke, bare) = (&pushing.spoke, bare(&pushing.origin));
    let work = "echo x > x; git add x; git commit -qm x";
    let completed = pushing.spawn(work, true).await;
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

    let killed = pushing
        .spawn(&format!("{work}; echo done; exec sleep 1000"), true)
        .await;
    spoke.wrote(killed, "done").await;
    spoke.kill(killed).await;
    let failed = pushing.spawn(&format!("{work}; exit 3"), true).await;
    let unasked = pushing.spawn(work, false).await;
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
    pushing.spoke.stop().await;
}
