//! What a hub remembers: agents at spokes, commands that it sent, heads that peers showed.

use mosaic_types::{
    AgentId, ConnectionId, MessageId,
    agent::{AgentState, ObservedState},
    api::{CommandState, WitnessedHead},
};

use super::{
    Backend, Outcome,
    samples::{agent, at, command, connected, peer, remote_agent, shown_head, task},
};
use crate::{HEAD_REORDER_WINDOW, Limits, RemoteAgent, StoreError};

fn status_json(state: AgentState, summary: &str) -> Result<String, StoreError> {
    let mut status = agent(state)?.status;
    status.state = ObservedState::from(state);
    status.summary = Some(summary.to_owned());
    serde_json::to_string(&status).map_err(|_| StoreError::Malformed { what: "sample" })
}

/// A4.
pub async fn a_remote_agent_is_at_one_connection(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let here = remote_agent(connected(&store).await?.connection_id)?;
    store.save_remote_agent(here.clone()).await?;
    let again = RemoteAgent {
        operator: "other".to_owned(),
        ..here.clone()
    };
    store.save_remote_agent(again).await?;
    let elsewhere = RemoteAgent {
        connection_id: ConnectionId::generate(),
        ..here.clone()
    };
    let refused = store.save_remote_agent(elsewhere).await;
    assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.remote_agent(here.agent_id).await?, Some(here));
    assert_eq!(store.remote_agent(AgentId::generate()).await?, None);
    store.close().await;
    Ok(())
}

/// A8: a late answer says `running`; the end that was seen stands, and its clean-up is still taken.
pub async fn an_end_once_seen_stands(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let remote = remote_agent(connected(&store).await?.connection_id)?;
    let id = remote.agent_id;
    let running = status_json(AgentState::Running, "")?;
    let unknown = store
        .observe_remote_agent(id, running.clone(), false, at(1))
        .await;
    assert!(matches!(unknown, Err(StoreError::NotFound)), "{unknown:?}");
    store.save_remote_agent(remote).await?;
    let seen = |store: crate::SharedStore| async move {
        let remote = store.remote_agent(id).await?;
        Ok::<_, StoreError>(remote.map(|remote| {
            (
                remote.last_status_json.unwrap_or_default(),
                remote.terminal,
                remote.last_seen_at,
            )
        }))
    };
    store
        .observe_remote_agent(id, running.clone(), false, at(1))
        .await?;
    assert_eq!(
        seen(store.clone()).await?,
        Some((running.clone(), false, Some(at(1))))
    );
    let killed = status_json(AgentState::Killed, "")?;
    store
        .observe_remote_agent(id, killed.clone(), true, at(2))
        .await?;
    let completed = status_json(AgentState::Completed, "")?;
    store
        .observe_remote_agent(id, running, false, at(3))
        .await?;
    store
        .observe_remote_agent(id, completed, true, at(3))
        .await?;
    assert_eq!(
        seen(store.clone()).await?,
        Some((killed, true, Some(at(2))))
    );
    let cleaned = status_json(AgentState::Killed, "cleaned up")?;
    store
        .observe_remote_agent(id, cleaned.clone(), true, at(4))
        .await?;
    assert_eq!(
        seen(store.clone()).await?,
        Some((cleaned, true, Some(at(4))))
    );
    store.close().await;
    Ok(())
}

/// A4, F22: what was refused never began; it is over, and no more once it is asked for again.
pub async fn a_refused_remote_agent_is_over_until_more_is_seen(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_remote_agents: 1,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let owner = connected(&store).await?.connection_id;
    let (refused, next) = (remote_agent(owner)?, remote_agent(owner)?);
    let id = refused.agent_id;
    store.save_remote_agent(refused).await?;
    let mut never = agent(AgentState::Queued)?.status;
    never.state = ObservedState::Failed;
    let never = serde_json::to_string(&never);
    let never = never.map_err(|_| StoreError::Malformed { what: "sample" })?;
    let running = status_json(AgentState::Running, "")?;
    for (status, terminal, time) in [(&never, true, 1), (&running, false, 2), (&never, true, 3)] {
        store
            .observe_remote_agent(id, status.clone(), terminal, at(time))
            .await?;
        let seen = store.remote_agent(id).await?;
        let seen = seen.map(|remote| (remote.last_status_json, remote.terminal));
        assert_eq!(seen, Some((Some(status.clone()), terminal)));
    }
    // It makes room.
    store.save_remote_agent(next).await?;
    assert_eq!(store.remote_agent(id).await?, None);
    store.close().await;
    Ok(())
}

/// By connection and task, in pages.
pub async fn remote_pages_are_newest_first(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let (left, right) = (connected(&store).await?, connected(&store).await?);
    let (left, right) = (left.connection_id, right.connection_id);
    let mut saved = Vec::new();
    for number in 0..9 {
        let mut remote = remote_agent(if number % 2 == 0 { left } else { right })?;
        if number % 3 == 0 {
            remote.task_id = task("MOS-2")?;
        }
        store.save_remote_agent(remote.clone()).await?;
        saved.insert(0, remote);
    }
    let mut seen = Vec::new();
    let mut before = None;
    loop {
        let page = store.remote_agents(None, None, before, 4).await?;
        let Some(last) = page.last() else { break };
        before = Some(last.agent_id);
        seen.extend(page);
    }
    assert_eq!(seen, saved);
    let wanted: Vec<RemoteAgent> = saved
        .into_iter()
        .filter(|remote| remote.connection_id == left && remote.task_id.as_str() == "MOS-2")
        .collect();
    let page = store
        .remote_agents(Some(left), Some(task("MOS-2")?), None, 100)
        .await?;
    assert_eq!(page, wanted);
    store.close().await;
    Ok(())
}

/// F22.
pub async fn a_full_table_forgets_ended_remote_agents_only(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_remote_agents: 2,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let owner = connected(&store).await?.connection_id;
    let (first, second) = (remote_agent(owner)?, remote_agent(owner)?);
    let third = remote_agent(owner)?;
    store.save_remote_agent(first.clone()).await?;
    store.save_remote_agent(second.clone()).await?;
    let refused = store.save_remote_agent(third.clone()).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    let ended = status_json(AgentState::Completed, "")?;
    store
        .observe_remote_agent(second.agent_id, ended, true, at(1))
        .await?;
    store.save_remote_agent(third.clone()).await?;
    let kept = store.remote_agents(None, None, None, 100).await?;
    assert_eq!(kept, [third, first]);
    store.close().await;
    Ok(())
}

/// F22.
pub async fn the_newest_commands_are_kept(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_commands: 3,
        ..Limits::default()
    };
    let store = backend.open(limits).await?;
    let mut commands = [command(), command(), command(), command()];
    for sent in &commands {
        store.save_command(sent.clone()).await?;
    }
    assert_eq!(store.command(commands[0].message_id).await?, None);
    commands[1].state = CommandState::Succeeded;
    commands[1].answered_at = Some(at(1));
    store.save_command(commands[1].clone()).await?;
    for sent in &commands[1..] {
        assert_eq!(store.command(sent.message_id).await?.as_ref(), Some(sent));
    }
    assert_eq!(store.command(MessageId::generate()).await?, None);
    store.close().await;
    Ok(())
}

/// Responses overtake one another, and heads with them.
pub async fn witnessed_heads_are_kept(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let (one, two) = (peer(1)?, peer(2)?);
    let lowest = shown_head(&one, 5, 'a', 1);
    let highest = shown_head(&one, 9, 'b', 2);
    let between = shown_head(&one, 7, 'd', 3);
    let other = shown_head(&two, 4, 'c', 2);
    for seen in [
        lowest.clone(),
        highest.clone(),
        between.clone(),
        shown_head(&one, 9, 'b', 90_000),
        other.clone(),
    ] {
        store.witness_head(seen).await?;
    }
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    let expected = [lowest, between, highest, other];
    assert_eq!(store.witnessed_heads().await?, expected);
    assert!(store.contradicted_heads().await?.is_empty());
    store.close().await;
    Ok(())
}

/// The evidence stays, and what was witnessed before is not replaced by it.
pub async fn a_rewritten_or_cut_trail_is_a_contradiction(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let one = peer(1)?;
    let low = shown_head(&one, 5, 'a', 1);
    let high = shown_head(&one, 9, 'b', 2);
    store.witness_head(low.clone()).await?;
    store.witness_head(high.clone()).await?;
    let late = 3 + HEAD_REORDER_WINDOW.as_secs();
    let contradictions: [WitnessedHead; 3] = [
        shown_head(&one, 9, 'f', 3),
        shown_head(&one, 5, 'f', 4),
        shown_head(&one, 8, 'c', late),
    ];
    for seen in &contradictions {
        for _ in 0..2 {
            let refused = store.witness_head(seen.clone()).await;
            assert!(matches!(refused, Err(StoreError::Conflict)), "{refused:?}");
        }
    }
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.witnessed_heads().await?, [low, high]);
    assert_eq!(store.contradicted_heads().await?, contradictions);
    store.close().await;
    Ok(())
}
