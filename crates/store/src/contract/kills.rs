//! What must outlive a crash for a kill to come true: a spoke's leases, and the kills that a hub keeps.

use mosaic_types::{
    AgentId, ConnectionId, KillIntentId,
    agent::AgentState,
    audit::Actor,
    connection::ConnectionState,
    kill::{KillIntent, KillIntentState, KillTarget},
};

use super::{
    Backend, Outcome,
    samples::{agent, at, connected, connection, connection_moved, event, moved},
};
use crate::{AgentMove, LeaseRecord, Limits, StoreError};

fn lease(agent_id: AgentId, secs: u64) -> LeaseRecord {
    LeaseRecord {
        agent_id,
        boot_id: "a boot".to_owned(),
        boot_deadline_ms: secs * 1000,
        deadline: at(secs),
    }
}

fn intent() -> KillIntent {
    KillIntent {
        intent_id: KillIntentId::generate(),
        connection_id: ConnectionId::generate(),
        target: KillTarget::Agent {
            agent_id: AgentId::generate(),
        },
        hold: false,
        reason: Some("enough".to_owned()),
        author: Actor::Operator {
            token: "admin".to_owned(),
        },
        ordered_at: at(1),
        state: KillIntentState::Pending,
        attempts: 0,
        last_attempt_at: None,
        delivered_at: None,
        settled_at: None,
        last_error: None,
        durable: true,
    }
}

/// Of agents that have not ended, and of no other.
pub async fn leases_are_of_active_agents_and_survive_a_restart(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let (running, ending) = (agent(AgentState::Running)?, agent(AgentState::Killing)?);
    for record in [&running, &ending] {
        store.insert_agent(record.clone(), event("x")).await?;
    }
    let first = [
        lease(running.agent_id, 5),
        lease(ending.agent_id, 5),
        lease(AgentId::generate(), 5),
    ];
    store.save_leases(first.to_vec()).await?;
    assert_eq!(store.leases().await?, first[..2]);
    let record = moved(&ending, AgentState::Killed);
    let audit = None;
    store.move_agent(AgentMove { record, audit }).await?;
    store
        .save_leases(vec![lease(running.agent_id, 9), lease(ending.agent_id, 9)])
        .await?;
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.leases().await?, [lease(running.agent_id, 9)]);
    // An agent that is forgotten takes its lease along.
    store.forget_agent(ending.agent_id).await?;
    store.close().await;
    Ok(())
}

/// A late note that it is pending takes nothing back.
pub async fn a_kept_kill_survives_a_restart_and_stays_settled(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let (one, two) = (intent(), intent());
    store.save_kill_intent(one.clone()).await?;
    store.save_kill_intent(two.clone()).await?;
    let tried = KillIntent {
        attempts: 3,
        ..one.clone()
    };
    store.save_kill_intent(tried.clone()).await?;
    let proven = KillIntent {
        state: KillIntentState::Proven,
        settled_at: Some(at(2)),
        ..two.clone()
    };
    store.save_kill_intent(proven.clone()).await?;
    store.save_kill_intent(two).await?;
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.kill_intents().await?, [tried, proven]);
    store.close().await;
    Ok(())
}

/// A38: by what is on record of an ended connection a hub knows which spoke a kept kill is for.
pub async fn a_full_table_keeps_the_connection_of_a_kept_kill(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_connections: 1,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let active = connected(&store).await?;
    let pending = KillIntent {
        connection_id: active.connection_id,
        ..intent()
    };
    store.save_kill_intent(pending.clone()).await?;
    let ended = connection_moved(&active, ConnectionState::Disconnected);
    store.save_connection(ended.clone(), event("x")).await?;
    let next = connection(ConnectionState::Active)?;
    let refused = store.save_connection(next.clone(), event("x")).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    let proven = KillIntent {
        state: KillIntentState::Proven,
        ..pending
    };
    store.save_kill_intent(proven).await?;
    let forgotten = store.save_connection(next, event("x")).await?;
    assert_eq!(forgotten, Some(ended.connection_id));
    store.close().await;
    Ok(())
}

/// F12, F22: pending ones are never evicted; of the settled the newest are kept.
pub async fn a_full_table_of_kept_kills_refuses_and_evicts_nothing(
    backend: &dyn Backend,
) -> Outcome {
    let limits = Limits {
        max_pending_kills: 2,
        max_settled_kills: 1,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let kept = [intent(), intent()];
    for one in &kept {
        store.save_kill_intent(one.clone()).await?;
    }
    let refused = store.save_kill_intent(intent()).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    // A note on one that is there needs no room.
    store.save_kill_intent(kept[0].clone()).await?;
    assert_eq!(store.kill_intents().await?, kept);
    let settled = kept.map(|one| KillIntent {
        state: KillIntentState::Cancelled,
        ..one
    });
    for one in &settled {
        store.save_kill_intent(one.clone()).await?;
    }
    assert_eq!(store.kill_intents().await?, settled[1..]);
    store.save_kill_intent(intent()).await?;
    store.close().await;
    Ok(())
}
