//! An engine that really maps users.

use mosaic_e2e::engine::private::PrivateEngine;
use mosaic_types::agent::{EndReason, ObservedState};
use serde_json::json;

use super::engine::Troubled;
use crate::sandbox::rig::skip_unless;

/// Refused by its own word and by name, before anything is made in it, and not tried again.
#[tokio::test]
async fn a_real_engine_that_maps_users_is_refused_by_name() {
    let engine = PrivateEngine::start_mapping_users().await;
    skip_unless(engine.is_some(), "a Docker engine that maps users");
    let Some(engine) = engine else {
        return;
    };
    let root = engine.docker(&["info", "--format", "{{.DockerRootDir}}"]);
    assert!(root.ends_with("/100000.100000"), "it maps users: {root}");
    let troubled = Troubled::on(engine, 5, |_| {}).await;
    let (status, told) = troubled.run("echo ran", json!({"maxRetries": 3})).await;
    let ended = (status.state, status.reason, status.attempt);
    let refused = (ObservedState::Failed, Some(EndReason::SpawnFailed), 1);
    assert_eq!(ended, refused, "{status:#?}");
    let detail = status.detail.unwrap_or_default();
    assert!(detail.contains("maps users (`userns`)"), "{detail}");
    assert!(!told.contains("\"line\":\"ran\""), "{told}");
    assert_eq!(troubled.engine.containers(), Vec::<String>::new());
    troubled.stop().await;
}
