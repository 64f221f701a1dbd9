//! Keeps the agents alive that live by a lease: each is renewed at a third of it, in one command for all of a spoke that
//! are due. An agent whose kill is pending is not kept alive.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, TaskId, Timestamp,
    agent::AgentStatus,
    command::{CommandType, RenewOutcome, RenewPayload, RenewReport},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Failure, Routing, due::keep_up, intents::Known, require_active};

/// Most agents that are kept alive; whoever is above is warned of.
const CAPACITY: usize = 100_000;
/// Agents in one command.
const BATCH: usize = 256;
/// What falls due within this much is renewed along.
const ALONG: Duration = Duration::from_millis(500);
/// The shortest and the longest pause after a renewal that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// How long a spoke may not know an agent before it is given up: its spawn may still be on the way.
const ON_THE_WAY: Duration = Duration::from_secs(400);

/// An agent that lives by a lease.
#[derive(Debug, Clone)]
struct Leased {
    connection: ConnectionId,
    secs: u64,
    task: TaskId,
    labels: BTreeMap<String, String>,
    asked_at: Timestamp,
    since: Instant,
    next_at: Instant,
}

/// One command's worth.
#[derive(Debug)]
struct Batch {
    connection: ConnectionId,
    secs: u64,
    agents: Vec<AgentId>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    leased: Mutex<HashMap<AgentId, Leased>>,
    wake: Notify,
}

impl Renewals {
    fn lock(&self) -> MutexGuard<'_, HashMap<AgentId, Leased>> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what is known of an agent: one that lives by a lease is kept alive, one that has ended is not.
    pub(super) fn note(&self, connection: ConnectionId, status: &AgentStatus, now: Instant) {
        let ended = status
            .state
            .known()
            .is_some_and(|state| state.is_terminal());
        let mut leased = self.lock();
        let Some(secs) = status.lease_secs.filter(|_| !ended) else {
            leased.remove(&status.agent_id);
            return;
        };
        if leased.contains_key(&status.agent_id) {
            return;
        }
        if leased.len() >= CAPACITY {
            tracing::warn!(agent = %status.agent_id, "too many agents live by a lease; this one is not kept alive");
            return;
        }
        leased.insert(
            status.agent_id,
            Leased {
                connection,
                secs,
                task: status.task_id.clone(),
                labels: status.labels.clone(),
                asked_at: status.queued_at,
                since: now,
                // At once: how much is left is not known here.
                next_at: now,
            },
        );
        drop(leased);
        self.wake.notify_one();
    }

    /// What is to be renewed now, and when the next is due. Whoever is `spared` is left out until the next turn.
    fn due(
        &self,
        now: Instant,
        spared: impl Fn(AgentId, &Leased) -> bool,
    ) -> (Vec<Batch>, Option<Instant>) {
        let mut leased = self.lock();
        let mut due: BTreeMap<(ConnectionId, u64), Vec<AgentId>> = BTreeMap::new();
        // One command for all of a spoke with the same lease, if any of them is due.
        let lead: Vec<(ConnectionId, u64)> = leased
            .values()
            .filter(|one| one.next_at <= now)
            .map(|one| (one.connection, one.secs))
            .collect();
        let lead: std::collections::HashSet<_> = lead.into_iter().collect();
        for (agent, one) in leased.iter_mut() {
            let key = (one.connection, one.secs);
            if one.next_at > now + ALONG || !lead.contains(&key) {
                continue;
            }
            one.next_at = now + third(one.secs);
            if !spared(*agent, one) {
                due.entry(key).or_default().push(*agent);
            }
        }
        let next = leased.values().map(|one| one.next_at).min();
        let batches = due.into_iter().flat_map(|((connection, secs), agents)| {
            let parts: Vec<_> = agents.chunks(BATCH).map(<[AgentId]>::to_vec).collect();
            parts.into_iter().map(move |agents| Batch {
                connection,
                secs,
                agents,
            })
        });
        (batches.collect(), next)
    }

    fn took(&self, batch: &Batch, answer: &Result<RenewReport, Failure>, now: Instant) {
        let mut leased = self.lock();
        let unknown = |one: &Leased| now.duration_since(one.since) > ON_THE_WAY;
        match answer {
            Ok(report) => {
                for told in &report.agents {
                    let gone = match told.outcome {
                        RenewOutcome::Renewed => false,
                        RenewOutcome::Ended | RenewOutcome::NoLease => true,
                        RenewOutcome::UnknownAgent => {
                            leased.get(&told.agent_id).is_some_and(unknown)
                        }
                    };
                    // A spoke speaks for its own agents only.
                    if gone && batch.agents.contains(&told.agent_id) {
                        leased.remove(&told.agent_id);
                    }
                }
            }
            Err(failure) if failure.refusal.code == ErrorCode::UnknownAgent => {
                for agent in &batch.agents {
                    if leased.get(agent).is_some_and(unknown) {
                        leased.remove(agent);
                    }
                }
            }
            Err(_) => {
                let again = now + (third(batch.secs) / 2).clamp(RETRY.0, RETRY.1);
                for agent in &batch.agents {
                    if let Some(one) = leased.get_mut(agent) {
                        one.next_at = one.next_at.min(again);
                    }
                }
            }
        }
    }
}

fn third(secs: u64) -> Duration {
    Duration::from_secs(secs) / 3
}

impl Routing {
    /// Renews until `shutdown`. With the hub gone nobody renews: that is what a lease is for.
    pub(super) async fn renew(self, shutdown: CancellationToken) {
        let renewals = &self.inner.renewals;
        keep_up("a renewal", &renewals.wake, shutdown, |now| {
            let (batches, next) = renewals.due(now, |agent, one| {
                self.inner.intents.covers(Known {
                    agent,
                    connection: one.connection,
                    task: &one.task,
                    labels: &one.labels,
                    asked_at: one.asked_at,
                })
            });
            let renewal = |batch| {
                let routing = self.clone();
                async move { routing.renew_batch(batch).await }
            };
            (batches.into_iter().map(renewal).collect(), next)
        })
        .await;
    }

    async fn renew_batch(&self, batch: Batch) {
        let payload = RenewPayload {
            agent_ids: batch.agents.clone(),
            lease_secs: batch.secs,
        };
        let connection = self.connection(batch.connection).and_then(|connection| {
            require_active(&connection)?;
            Ok(Arc::clone(&connection))
        });
        let answer = match connection {
            Ok(connection) => {
                self.ask(&connection, CommandType::AgentRenew, &payload)
                    .await
            }
            Err(refusal) => Err(Failure::unsent(refusal)),
        };
        if let Err(failure) = &answer {
            let agents = batch.agents.len();
            tracing::warn!(refusal = %failure.refusal, agents, "leases were not renewed");
        }
        self.inner.renewals.took(&batch, &answer, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leased(connection: ConnectionId, secs: u64, now: Instant) -> Leased {
        Leased {
            connection,
            secs,
            task: "T-1".parse().unwrap(),
            labels: BTreeMap::new(),
            asked_at: Timestamp::from_unix_millis(0),
            since: now,
            next_at: now,
        }
    }

    #[test]
    fn a_spoke_gets_one_command_for_all_that_are_due() {
        let (renewals, now) = (Renewals::default(), Instant::now());
        let (here, there) = (ConnectionId::generate(), ConnectionId::generate());
        let mut agents = Vec::new();
        for number in 0..BATCH + 1 {
            let agent = AgentId::generate();
            let mut one = leased(here, 30, now);
            // Soon due is due along.
            one.next_at = now + ALONG * u32::from(number % 2 == 1);
            renewals.lock().insert(agent, one);
            agents.push(agent);
        }
        renewals
            .lock()
            .insert(AgentId::generate(), leased(there, 30, now));
        let (batches, next) = renewals.due(now, |agent, _| agent == agents[0]);
        let mut sizes: Vec<_> = batches
            .iter()
            .map(|batch| (batch.connection == here, batch.agents.len()))
            .collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [(false, 1), (true, BATCH)], "and one is spared");
        assert_eq!(next, Some(now + Duration::from_secs(10)));
        let (batches, _) = renewals.due(now + Duration::from_secs(9), |_, _| false);
        assert!(batches.is_empty());
    }

    #[test]
    fn who_is_gone_is_not_asked_for_again_and_a_failure_is_tried_again_soon() {
        let (renewals, now) = (Renewals::default(), Instant::now());
        let here = ConnectionId::generate();
        let (one, other) = (AgentId::generate(), AgentId::generate());
        for agent in [one, other] {
            renewals.lock().insert(agent, leased(here, 30, now));
        }
        let (batches, _) = renewals.due(now, |_, _| false);
        let failure = Failure::unsent(mosaic_types::Refusal::new(ErrorCode::PeerUnreachable, "x"));
        renewals.took(&batches[0], &Err(failure), now);
        let (_, next) = renewals.due(now, |_, _| false);
        assert_eq!(next, Some(now + Duration::from_secs(5)));
        let told = |agent_id, outcome| mosaic_types::command::RenewedLease { agent_id, outcome };
        let report = RenewReport {
            agents: vec![
                told(one, RenewOutcome::Ended),
                // It may still be on its way there.
                told(other, RenewOutcome::UnknownAgent),
            ],
        };
        renewals.took(&batches[0], &Ok(report.clone()), now);
        assert_eq!(renewals.lock().keys().copied().collect::<Vec<_>>(), [other]);
        renewals.took(&batches[0], &Ok(report), now + ON_THE_WAY * 2);
        assert!(renewals.lock().is_empty());
    }
}
