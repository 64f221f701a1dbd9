use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use mosaic_node::{HttpLimits, NodeConfig};
use mosaic_store::contract::samples;
use mosaic_types::{agent::AgentState, audit::Actor, audit::AuditEvent, connection::NodeRole};

use super::*;

/// The budgets of a spoke with one agent on record.
async fn budgets(limits: &Limits) -> (tempfile::TempDir, Arc<Budgets>, AgentId) {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::open(NodeConfig {
        data_dir: folder.path().join("spoke"),
        name: "spoke".to_owned(),
        role: NodeRole::Orchestrator,
        public_url: None,
        allow_private_peers: true,
        limits: HttpLimits::default(),
    })
    .await
    .unwrap();
    let agent = samples::agent(AgentState::Queued).unwrap();
    let agent_id = agent.agent_id;
    let audit = AuditEvent {
        at: Timestamp::now(),
        actor: Actor::System,
        action: "agent.spawn".to_owned(),
        subject: Some(agent_id.to_string()),
        outcome: "ok".to_owned(),
        detail: serde_json::Value::Null,
    };
    node.store().insert_agent(agent, audit).await.unwrap();
    let budgets = Budgets::load(node, limits, Timestamp::now()).await.unwrap();
    (folder, Arc::new(budgets), agent_id)
}

fn used(tokens: u64) -> Usage {
    Usage {
        input_tokens: tokens,
        ..Usage::default()
    }
}

#[tokio::test]
async fn who_waits_for_what_was_counted_does_not_wait_for_what_others_spend() {
    let (_folder, budgets, agent_id) = budgets(&Limits::default()).await;
    let meter = Meter::new(&budgets, agent_id, None, &SpawnOptions::default());
    let now = Timestamp::now();
    let mut writing = pin!(budgets.write());
    let mut tokens = 0;
    let is_written = poll_fn(|context| {
        // More is spent each time that the store has answered.
        tokens += 1;
        assert_eq!(meter.count(&used(tokens), now), None);
        match writing.as_mut().poll(context) {
            Poll::Pending if tokens < 1000 => Poll::Pending,
            polled => Poll::Ready(polled.is_ready()),
        }
    });
    assert!(is_written.await, "it writes what is spent meanwhile");
    // What it left is the next one's.
    budgets.write().await;
    let spent = budgets.store.spending(UtcDay::of(now)).await.unwrap();
    assert_eq!(spent[0].spent.tokens, tokens);
}

#[tokio::test]
async fn an_agent_is_bounded_by_its_own_budget_or_the_spokes_day() {
    let own = SpawnOptions {
        budget_usd: Some(1.0),
        ..SpawnOptions::default()
    };
    let of_day = Limits {
        budget_tokens_per_day: Some(1),
        ..Limits::default()
    };
    for (limits, options, is_bounded) in [
        (Limits::default(), SpawnOptions::default(), false),
        (Limits::default(), own, true),
        (of_day, SpawnOptions::default(), true),
    ] {
        let (_folder, budgets, agent_id) = budgets(&limits).await;
        let meter = Meter::new(&budgets, agent_id, None, &options);
        assert_eq!(meter.is_bounded(), is_bounded);
    }
}
