//! Agents of an orchestrator.

use mosaic_types::{AgentId, ConnectionId, agent::AgentState};

use super::{
    Backend, Outcome,
    samples::{agent, at, connected, event, moved, remote_agent, task},
};
use crate::{AgentFilter, AgentMove, AgentRecord, InsertAgent, Limits, RetirableAgent, StoreError};

fn unaudited(record: AgentRecord) -> AgentMove {
    AgentMove {
        record,
        audit: None,
    }
}

fn ids(agents: &[AgentRecord]) -> Vec<AgentId> {
    agents.iter().map(|agent| agent.agent_id).collect()
}

/// A4: asking twice is one agent; the caller compares the requests.
pub async fn inserting_twice_answers_with_the_first(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let first = agent(AgentState::Queued)?;
    let inserted = store.insert_agent(first.clone(), event("x")).await?;
    assert_eq!(inserted, InsertAgent::Inserted);
    let mut other = first.clone();
    other.request.context.branch = "other".to_owned();
    for again in [first.clone(), other] {
        let taken = store.insert_agent(again, event("x")).await?;
        assert_eq!(taken, InsertAgent::Taken(Box::new(first.clone())));
    }
    assert_eq!(store.audit_head().seq, 1);
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.agent(first.agent_id).await?, Some(first));
    assert_eq!(store.agent(AgentId::generate()).await?, None);
    store.close().await;
    Ok(())
}

/// A38: it may have been asked for before its connection was forgotten, and nobody could kill it for its peer.
pub async fn no_agent_comes_by_a_connection_that_is_not_on_record(
    backend: &dyn Backend,
) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let mut here = agent(AgentState::Queued)?;
    here.connection_id = Some(ConnectionId::generate());
    let refused = store.insert_agent(here.clone(), event("x")).await;
    assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
    assert_eq!(store.agent(here.agent_id).await?, None);
    let elsewhere = remote_agent(ConnectionId::generate())?;
    let refused = store.save_remote_agent(elsewhere.clone()).await;
    assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
    assert_eq!(store.remote_agent(elsewhere.agent_id).await?, None);
    assert_eq!(store.audit_head().seq, 0);
    store.close().await;
    Ok(())
}

/// Every pair of states, and nothing is changed or audited by a move that is refused.
pub async fn every_move_is_as_the_table_says(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    for from in AgentState::ALL {
        for to in AgentState::ALL {
            let stored = agent(from)?;
            store.insert_agent(stored.clone(), event("x")).await?;
            let before = store.audit_head();
            let wanted = moved(&stored, to);
            let outcome = store
                .move_agent(AgentMove {
                    record: wanted.clone(),
                    audit: Some(event("move")),
                })
                .await;
            if from == to || from.may_become(to) {
                assert!(outcome.is_ok(), "{from} to {to}: {outcome:?}");
                assert_eq!(store.audit_head().seq, before.seq + 1);
                assert_eq!(store.agent(stored.agent_id).await?, Some(wanted));
            } else {
                assert!(
                    matches!(outcome, Err(StoreError::IllegalMove { from: f, to: t })
                        if (f, t) == (from, to)),
                    "{from} to {to}: {outcome:?}"
                );
                assert_eq!(store.audit_head(), before);
                assert_eq!(store.agent(stored.agent_id).await?, Some(stored));
            }
        }
    }
    store.close().await;
    Ok(())
}

/// A record that was read before somebody else's move changes nothing.
pub async fn a_stale_version_moves_nothing(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let queued = agent(AgentState::Queued)?;
    let missing = store
        .move_agent(unaudited(moved(&queued, AgentState::Spawning)))
        .await;
    assert!(matches!(missing, Err(StoreError::NotFound)), "{missing:?}");
    store.insert_agent(queued.clone(), event("x")).await?;
    let killing = moved(&queued, AgentState::Killing);
    store.move_agent(unaudited(killing.clone())).await?;
    let stale = store
        .move_agent(unaudited(moved(&queued, AgentState::Spawning)))
        .await;
    assert!(
        matches!(stale, Err(StoreError::VersionConflict)),
        "{stale:?}"
    );
    assert_eq!(store.agent(queued.agent_id).await?, Some(killing));
    store.close().await;
    Ok(())
}

/// A8: the clean-up is noted on an ended agent, and it stays ended.
pub async fn an_ended_agent_takes_notes_and_stays_ended(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let mut killed = agent(AgentState::Killed)?;
    killed.cleanup_pending = true;
    store.insert_agent(killed.clone(), event("x")).await?;
    let mut cleaned = moved(&killed, AgentState::Killed);
    cleaned.cleanup_pending = false;
    store.move_agent(unaudited(cleaned.clone())).await?;
    let revived = moved(&cleaned, AgentState::Queued);
    let refused = store.move_agent(unaudited(revived)).await;
    assert!(
        matches!(refused, Err(StoreError::IllegalMove { .. })),
        "{refused:?}"
    );
    assert_eq!(store.agent(killed.agent_id).await?, Some(cleaned));
    store.close().await;
    Ok(())
}

/// A2: all that may have processes or work left, and nothing else.
pub async fn restart_finds_the_active_and_those_to_clean(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let mut active = Vec::new();
    let mut to_clean = Vec::new();
    for state in AgentState::ALL {
        for cleanup_pending in [false, true] {
            let mut record = agent(state)?;
            record.cleanup_pending = cleanup_pending;
            store.insert_agent(record.clone(), event("x")).await?;
            match (state.is_terminal(), cleanup_pending) {
                (false, _) => active.push(record),
                (true, true) => to_clean.push(record),
                (true, false) => {}
            }
        }
    }
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(store.active_agents().await?, active);
    assert_eq!(store.pending_cleanups().await?, to_clean);
    let ended = moved(&moved(&active[0], AgentState::Killing), AgentState::Killed);
    store
        .move_agent(unaudited(moved(&active[0], AgentState::Killing)))
        .await?;
    store.move_agent(unaudited(ended)).await?;
    assert_eq!(store.active_agents().await?, active[1..]);
    store.close().await;
    Ok(())
}

/// By the time that the ids tell, so that pages of several stores merge into one list.
pub async fn pages_are_newest_first_without_gaps(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let owner = connected(&store).await?.connection_id;
    let mut accepted = Vec::new();
    let mut samples = (0..12)
        .map(|_| agent(AgentState::Running))
        .collect::<Result<Vec<_>, _>>()?;
    samples.reverse();
    samples.sort_by_key(|record| record.agent_id);
    for (number, mut record) in samples.into_iter().enumerate() {
        record.connection_id = (number % 2 == 0).then_some(owner);
        if number % 3 == 0 {
            record.request.task_id = task("MOS-2")?;
        }
        if number >= 10 {
            record = AgentRecord {
                state: AgentState::Completed,
                ..record
            };
        }
        store.insert_agent(record.clone(), event("x")).await?;
        accepted.insert(0, record);
    }
    let mut seen = Vec::new();
    let mut filter = AgentFilter {
        limit: 5,
        ..AgentFilter::default()
    };
    loop {
        let page = store.agents(filter.clone()).await?;
        assert!(page.len() <= 5);
        let Some(last) = page.last() else { break };
        filter.before = Some(last.agent_id);
        seen.extend(page);
    }
    assert_eq!(seen, accepted);
    for connection in [Some(owner), None] {
        let filter = AgentFilter {
            connection: Some(connection),
            task: Some(task("MOS-2")?),
            active: true,
            before: None,
            limit: 1_000,
        };
        let wanted: Vec<AgentRecord> = accepted
            .iter()
            .filter(|record| {
                record.connection_id == connection
                    && record.request.task_id.as_str() == "MOS-2"
                    && !record.state.is_terminal()
            })
            .cloned()
            .collect();
        assert_eq!(store.agents(filter).await?, wanted);
    }
    store.close().await;
    Ok(())
}

fn ids_of(retirable: &[RetirableAgent]) -> Vec<AgentId> {
    retirable.iter().map(|agent| agent.agent_id).collect()
}

/// A23: an agent whose work may not be saved yet is not retired.
pub async fn retention_takes_the_oldest_cleaned_up_ones(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let mut ended = Vec::new();
    for secs in [50, 20, 40, 10, 30] {
        let mut record = agent(AgentState::Completed)?;
        record.status.ended_at = Some(at(secs));
        store.insert_agent(record.clone(), event("x")).await?;
        ended.push(record);
    }
    let mut to_clean = agent(AgentState::Killed)?;
    to_clean.cleanup_pending = true;
    store.insert_agent(to_clean, event("x")).await?;
    store
        .insert_agent(agent(AgentState::Running)?, event("x"))
        .await?;
    ended.sort_by_key(|record| record.status.ended_at);
    let oldest_first = ids(&ended);
    for (before, keep, limit, expected) in [
        (at(0), 3, 100, &oldest_first[..2]),
        (at(0), 5, 100, &[]),
        (at(40), 100, 100, &oldest_first[..3]),
        (at(40), 1, 2, &oldest_first[..2]),
        (at(20), 0, 100, &oldest_first),
    ] {
        let retirable = store.retirable_agents(before, keep, None, limit).await?;
        assert_eq!(ids_of(&retirable), expected);
    }
    // Page by page; neither one that stays nor one that is forgotten is in the way.
    let first = store.retirable_agents(at(0), 1, None, 2).await?;
    assert_eq!(ids_of(&first), oldest_first[..2]);
    store.forget_agent(first[1].agent_id).await?;
    let after = Some(first[1].cursor);
    let second = store.retirable_agents(at(0), 1, after, 100).await?;
    assert_eq!(ids_of(&second), oldest_first[2..4]);
    store.close().await;
    Ok(())
}

/// A23.
pub async fn only_ended_and_cleaned_up_agents_are_forgotten(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    for state in AgentState::ALL {
        for cleanup_pending in [false, true] {
            let mut record = agent(state)?;
            record.cleanup_pending = cleanup_pending;
            store.insert_agent(record.clone(), event("x")).await?;
            let outcome = store.forget_agent(record.agent_id).await;
            if state.is_terminal() && !cleanup_pending {
                assert!(outcome.is_ok(), "{state}: {outcome:?}");
                assert_eq!(store.agent(record.agent_id).await?, None);
            } else {
                assert!(
                    matches!(outcome, Err(StoreError::IllegalMove { .. })),
                    "{state}: {outcome:?}"
                );
                assert_eq!(store.agent(record.agent_id).await?, Some(record));
            }
        }
    }
    store.forget_agent(AgentId::generate()).await?;
    store.close().await;
    Ok(())
}

/// F22: and an agent that is there already is still found.
pub async fn a_full_table_refuses_agents(backend: &dyn Backend) -> Outcome {
    let limits = Limits {
        max_agents: 2,
        ..Limits::default()
    };
    let store = backend.open(limits.clone()).await?;
    let (first, second) = (agent(AgentState::Failed)?, agent(AgentState::Queued)?);
    let third = agent(AgentState::Queued)?;
    store.insert_agent(first.clone(), event("x")).await?;
    store.insert_agent(second.clone(), event("x")).await?;
    store.close().await;
    let store = backend.open(limits).await?;
    let refused = store.insert_agent(third.clone(), event("x")).await;
    assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    let taken = store.insert_agent(second.clone(), event("x")).await?;
    assert_eq!(taken, InsertAgent::Taken(Box::new(second)));
    store.forget_agent(first.agent_id).await?;
    let inserted = store.insert_agent(third, event("x")).await?;
    assert_eq!(inserted, InsertAgent::Inserted);
    store.close().await;
    Ok(())
}
