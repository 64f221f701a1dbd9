//! What a spoke forgets, and what it does not.

use mosaic_store::Store as _;
use mosaic_types::{
    AgentId,
    audit::{Actor, AuditEvent},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::rig::{self, Spoke};

/// A23: trees that hold work stay for good; agents behind them are forgotten all the same.
#[tokio::test]
async fn a23_kept_trees_are_not_in_the_way_of_retention() {
    let mut spoke = Spoke::start_process_with("[limits]\nretention-agents = 0\n").await;
    let sample = spoke.spawn("true").await;
    spoke.finished(sample).await;
    spoke.stop_daemon();
    let limits = mosaic_store::Limits::default();
    let store = mosaic_store::sqlite::SqliteStore::open(spoke.data_dir(), limits).unwrap();
    let sample = store.agent(sample).await.unwrap().unwrap();
    let mut agents = Vec::new();
    for _ in 0..=200 {
        let agent = AgentId::generate();
        let mut record = sample.clone();
        record.agent_id = agent;
        record.request.agent_id = agent;
        record.status.agent_id = agent;
        let audit = AuditEvent {
            at: record.status.queued_at,
            actor: Actor::System,
            action: "test".to_owned(),
            subject: None,
            outcome: "ok".to_owned(),
            detail: json!({}),
        };
        store.insert_agent(record, audit).await.unwrap();
        agents.push(agent);
    }
    store.close().await;
    let last = agents.pop().unwrap();
    let tree = |agent: &AgentId| spoke.data_dir().join(format!("agents/{agent}/work"));
    for agent in &agents {
        std::fs::create_dir_all(tree(agent)).unwrap();
        std::fs::write(tree(agent).join("precious"), "").unwrap();
    }
    let trees: Vec<_> = agents.iter().map(tree).collect();
    spoke.restart().await;
    let forgotten = async {
        let path = format!("/agents/{last}/status");
        while spoke.call(Method::GET, &path, None).await.0 != StatusCode::NOT_FOUND {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(rig::PATIENCE, forgotten)
        .await
        .unwrap();
    for (agent, tree) in agents.iter().zip(trees) {
        assert!(tree.join("precious").exists());
        assert_eq!(spoke.status(*agent).await.agent_id, *agent);
        std::fs::remove_dir_all(tree).unwrap();
    }
    spoke.stop().await;
}
