//! Work that is home, of which nothing could be told yet.

use std::fs;

use mosaic_types::{
    AgentId,
    agent::{CleanupKind, ObservedState},
};

use crate::{
    pushing::Pushing,
    rig::{Spoke, git},
};

/// In the way of every patch while it is there.
fn blocked_patch(spoke: &Spoke, agent: AgentId) -> std::path::PathBuf {
    let path = format!("agents/{agent}/worktree/result.patch.tmp");
    spoke.data_dir().join(path)
}

// A23: refs are set before the patch is written. A tree that went in between took with it what is told of the work,
// and its push.
#[tokio::test]
async fn a23_a_tree_stays_until_its_work_is_told_of() {
    let pushing = Pushing::start().await;
    let spoke = &pushing.spoke;
    let script = "echo x > x; git add x; git commit -qm x; echo y > y; echo z > ~/z; echo there
        until [ -e go ]; do sleep 0.1; done";
    for is_killed in [false, true] {
        let agent = pushing.spawn(script, true).await;
        spoke.wrote(agent, "there").await;
        let blocked = blocked_patch(spoke, agent);
        fs::create_dir_all(blocked.join("in-the-way")).unwrap();
        let tree = spoke.data_dir().join(format!("agents/{agent}/work"));
        let home = spoke.data_dir().join(format!("agents/{agent}/home"));
        assert!(home.join("z").exists());
        if is_killed {
            spoke.kill(agent).await;
        } else {
            fs::write(tree.join("go"), "").unwrap();
        }
        let looked_at = |seen: &str| seen.contains("\"step\":\"worktree\"");
        let seen = spoke.follow(agent, None, looked_at).await;
        assert!(looked_at(&seen), "{seen}");
        assert!(tree.join("y").exists(), "the tree went: {seen}");
        assert!(!home.exists(), "it may be what fills the disk");

        fs::remove_dir_all(blocked).unwrap();
        let status = spoke.finished(agent).await;
        let work = status.work.unwrap();
        assert!(work.patch_bytes > 0);
        let name = format!("{}:y", work.head_commit);
        assert_eq!(git(&spoke.mirror(), &["show", &name]), "y");
        assert!(status.cleanup.iter().all(|step| step.ok));
        let is_pushed = status
            .cleanup
            .iter()
            .any(|step| step.step == CleanupKind::Push);
        assert_eq!(is_pushed, status.state == ObservedState::Completed);
        assert_eq!(is_pushed, !is_killed);
        assert!(!tree.exists());
    }
    pushing.spoke.stop().await;
}
