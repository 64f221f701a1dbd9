//! What agents spend: counted once, on the right day, for the right connection.

use mosaic_types::{AgentId, ConnectionId, UtcDay, agent::AgentState};

use super::{
    Backend, Outcome,
    samples::{agent, connected, event, moved},
};
use crate::{
    AgentMove, AgentRecord, AgentSpending, ConnectionSpending, Limits, SharedStore, Spent,
    StoreError,
};

const MONDAY: i64 = 20_000;

fn day(number: i64) -> UtcDay {
    UtcDay::from_number(number)
}

fn spent(micro_usd: u64, tokens: u64) -> Spent {
    Spent { micro_usd, tokens }
}

async fn inserted(
    store: &SharedStore,
    connection_id: Option<ConnectionId>,
) -> Result<AgentRecord, StoreError> {
    let mut record = agent(AgentState::Running)?;
    record.connection_id = connection_id;
    store.insert_agent(record.clone(), event("x")).await?;
    Ok(record)
}

async fn note(
    store: &SharedStore,
    agent_id: AgentId,
    on: i64,
    total: Spent,
) -> Result<(), StoreError> {
    let day = day(on);
    let noted = AgentSpending {
        agent_id,
        day,
        total,
    };
    store.note_spending(vec![noted]).await
}

/// The sum of one connection on a day.
async fn sum(
    store: &SharedStore,
    on: i64,
    connection_id: Option<ConnectionId>,
) -> Result<Spent, StoreError> {
    let sums = store.spending(day(on)).await?;
    let mut of_it = sums.iter().filter(|sum| sum.connection_id == connection_id);
    let found = of_it.next().map(|sum| sum.spent).unwrap_or_default();
    assert!(of_it.next().is_none(), "one sum for each connection");
    Ok(found)
}

/// Whoever does not know whether a total was counted notes it again.
pub async fn a_total_counts_once_however_often_it_is_noted(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let agent = inserted(&store, None).await?.agent_id;
    for total in [spent(5, 100), spent(5, 100), spent(7, 130), spent(7, 130)] {
        note(&store, agent, MONDAY, total).await?;
    }
    assert_eq!(sum(&store, MONDAY, None).await?, spent(7, 130));
    // The same agent twice in one batch, in order.
    let noted = [spent(8, 131), spent(9, 150)].map(|total| AgentSpending {
        agent_id: agent,
        day: day(MONDAY),
        total,
    });
    store.note_spending(noted.to_vec()).await?;
    assert_eq!(sum(&store, MONDAY, None).await?, spent(9, 150));
    store.close().await;
    Ok(())
}

/// An agent that runs over midnight has spent on both days.
pub async fn each_day_gets_what_is_new_on_it(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let agent = inserted(&store, None).await?.agent_id;
    note(&store, agent, MONDAY, spent(10, 100)).await?;
    note(&store, agent, MONDAY + 1, spent(25, 300)).await?;
    assert_eq!(sum(&store, MONDAY, None).await?, spent(10, 100));
    assert_eq!(sum(&store, MONDAY + 1, None).await?, spent(15, 200));
    assert_eq!(sum(&store, MONDAY + 2, None).await?, Spent::default());
    store.close().await;
    Ok(())
}

/// An estimate is replaced by what it really was, and no sum falls below nothing.
pub async fn a_total_that_came_down_takes_back_what_it_added(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let one = inserted(&store, None).await?.agent_id;
    let other = inserted(&store, None).await?.agent_id;
    note(&store, one, MONDAY, spent(100, 10)).await?;
    note(&store, other, MONDAY, spent(50, 5)).await?;
    note(&store, one, MONDAY, spent(80, 10)).await?;
    assert_eq!(sum(&store, MONDAY, None).await?, spent(130, 15));
    // On another day there is nothing to take it from.
    note(&store, one, MONDAY + 1, spent(60, 10)).await?;
    assert_eq!(sum(&store, MONDAY + 1, None).await?, Spent::default());
    note(&store, one, MONDAY + 1, spent(61, 10)).await?;
    assert_eq!(sum(&store, MONDAY + 1, None).await?, spent(1, 0));
    // What is counted here ends somewhere; it is not an error to come there.
    note(&store, one, MONDAY, spent(u64::MAX, u64::MAX)).await?;
    note(&store, other, MONDAY, spent(u64::MAX, u64::MAX)).await?;
    let most = sum(&store, MONDAY, None).await?;
    assert!(most.tokens >= i64::MAX.unsigned_abs(), "{most:?}");
    store.close().await;
    Ok(())
}

/// What one connection spends is nobody else's.
pub async fn connections_and_the_operator_have_sums_of_their_own(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let (one, other) = (connected(&store).await?, connected(&store).await?);
    let (one, other) = (one.connection_id, other.connection_id);
    for (connection, total) in [
        (Some(one), spent(1, 10)),
        (Some(one), spent(2, 20)),
        (Some(other), spent(4, 40)),
        (None, spent(8, 80)),
    ] {
        let agent = inserted(&store, connection).await?.agent_id;
        note(&store, agent, MONDAY, total).await?;
    }
    assert_eq!(sum(&store, MONDAY, Some(one)).await?, spent(3, 30));
    assert_eq!(sum(&store, MONDAY, Some(other)).await?, spent(4, 40));
    assert_eq!(sum(&store, MONDAY, None).await?, spent(8, 80));
    assert_eq!(store.spending(day(MONDAY)).await?.len(), 3);
    store.close().await;
    Ok(())
}

/// A daemon that comes back counts on from what was counted.
pub async fn totals_and_sums_survive_a_restart(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let running = inserted(&store, None).await?;
    let ending = inserted(&store, None).await?;
    note(&store, running.agent_id, MONDAY, spent(3, 30)).await?;
    note(&store, ending.agent_id, MONDAY, spent(4, 40)).await?;
    let ended = AgentMove {
        record: moved(&ending, AgentState::Completed),
        audit: None,
    };
    store.move_agent(ended).await?;
    store.close().await;
    let store = backend.open(Limits::default()).await?;
    assert_eq!(
        store.spending(day(MONDAY)).await?,
        [ConnectionSpending {
            connection_id: None,
            spent: spent(7, 70)
        }]
    );
    assert_eq!(
        store.active_spending().await?,
        [(running.agent_id, spent(3, 30))]
    );
    note(&store, running.agent_id, MONDAY, spent(3, 30)).await?;
    assert_eq!(sum(&store, MONDAY, None).await?, spent(7, 70));
    store.close().await;
    Ok(())
}

/// One agent that is gone keeps no other from being counted.
pub async fn what_is_not_on_record_is_passed_over(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let known = inserted(&store, None).await?.agent_id;
    let noted = [AgentId::generate(), known].map(|agent_id| AgentSpending {
        agent_id,
        day: day(MONDAY),
        total: spent(1, 1),
    });
    store.note_spending(noted.to_vec()).await?;
    store.note_spending(Vec::new()).await?;
    assert_eq!(sum(&store, MONDAY, None).await?, spent(1, 1));
    store.close().await;
    Ok(())
}

/// Retention gives no budget back.
pub async fn a_forgotten_agent_leaves_its_days_sum(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let running = inserted(&store, None).await?;
    note(&store, running.agent_id, MONDAY, spent(3, 30)).await?;
    let ended = AgentMove {
        record: moved(&running, AgentState::Completed),
        audit: None,
    };
    store.move_agent(ended).await?;
    store.forget_agent(running.agent_id).await?;
    assert_eq!(sum(&store, MONDAY, None).await?, spent(3, 30));
    store.close().await;
    Ok(())
}

/// Old days make room; the days that are kept are whole.
pub async fn a_sweep_forgets_old_days_only(backend: &dyn Backend) -> Outcome {
    let store = backend.open(Limits::default()).await?;
    let agent = inserted(&store, None).await?.agent_id;
    for number in 0..3_u64 {
        let on = MONDAY + i64::try_from(number).unwrap_or_default();
        note(&store, agent, on, spent(number + 1, number + 1)).await?;
    }
    assert_eq!(store.sweep_spending(day(MONDAY + 2)).await?, 2);
    assert_eq!(store.sweep_spending(day(MONDAY + 2)).await?, 0);
    assert_eq!(sum(&store, MONDAY + 1, None).await?, Spent::default());
    assert_eq!(sum(&store, MONDAY + 2, None).await?, spent(1, 1));
    store.close().await;
    Ok(())
}
