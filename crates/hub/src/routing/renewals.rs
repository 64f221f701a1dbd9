//! Keeps the agents alive that live by a lease: each is renewed at a third of it, in one command for all of a spoke that
//! are due. An agent whose kill is pending is not kept alive.
//!
//! How long a lease is, a spoke says: whatever it says, it costs this hub so many commands at once and no more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, TaskId, Timestamp,
    agent::AgentStatus,
    command::{CommandType, RenewOutcome, RenewPayload, RenewReport},
    connection::{Connection, ConnectionState},
};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::{Failure, Lane, Routing, due::keep_up, intents::Known, require_active};

/// Most agents that are kept alive; whoever is above is warned of.
const CAPACITY: usize = 100_000;
/// The leases that can be renewed, in seconds.
const LEASE_SECS: RangeInclusive<u64> = 1..=86_400;
/// Agents in one command.
const BATCH: usize = 256;
/// What falls due within this much is renewed along.
const ALONG: Duration = Duration::from_millis(500);
/// The shortest and the longest pause after a renewal that failed. None is sooner after one that succeeded either.
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
    /// Among the renewals of the spoke; given back when it is over, however it ends.
    _place: OwnedSemaphorePermit,
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

    /// Takes in what is known of an agent: one that lives by a lease is kept alive, one that has ended is not. A lease
    /// that cannot be is no word of one.
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
        if !LEASE_SECS.contains(&secs) {
            tracing::warn!(agent = %status.agent_id, secs, "a spoke tells of a lease that none can be");
            return;
        }
        if let Some(known) = leased.get_mut(&status.agent_id) {
            if known.secs != secs {
                known.secs = secs;
                known.next_at = known.next_at.min(now + pace(secs));
                drop(leased);
                self.wake.notify_one();
            }
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

    /// What is to be renewed now, and when the next is due. Whoever is `spared` is left out until the next turn. Who
    /// finds no place waits for one, and for no time.
    fn due(
        &self,
        now: Instant,
        spared: impl Fn(AgentId, &Leased) -> bool,
        enter: impl Fn(ConnectionId) -> Option<OwnedSemaphorePermit>,
    ) -> (Vec<Batch>, Option<Instant>) {
        let mut leased = self.lock();
        let mut batches = Vec::new();
        let mut full = BTreeSet::new();
        for ((connection, secs), agents) in take_due(&mut leased, now, spared) {
            for agents in agents.chunks(BATCH) {
                let Some(place) = enter(connection) else {
                    full.insert(connection);
                    break;
                };
                for agent in agents {
                    if let Some(one) = leased.get_mut(agent) {
                        one.next_at = now + pace(secs);
                    }
                }
                batches.push(Batch {
                    connection,
                    secs,
                    agents: agents.to_vec(),
                    _place: place,
                });
            }
        }
        let waits = |one: &&Leased| !full.contains(&one.connection) || one.next_at > now;
        let next = leased.values().filter(waits).map(|one| one.next_at).min();
        (batches, next)
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
                let again = now + (pace(batch.secs) / 2).clamp(RETRY.0, RETRY.1);
                for agent in &batch.agents {
                    if let Some(one) = leased.get_mut(agent) {
                        one.next_at = one.next_at.min(again);
                    }
                }
            }
        }
    }
}

/// The agents that are due, by spoke and lease: all of a spoke with the same lease, if any of them is. Whoever is
/// `spared` has had its turn.
fn take_due(
    leased: &mut HashMap<AgentId, Leased>,
    now: Instant,
    spared: impl Fn(AgentId, &Leased) -> bool,
) -> BTreeMap<(ConnectionId, u64), Vec<AgentId>> {
    let mut due: BTreeMap<_, Vec<AgentId>> = leased
        .values()
        .filter(|one| one.next_at <= now)
        .map(|one| ((one.connection, one.secs), Vec::new()))
        .collect();
    for (agent, one) in leased.iter_mut() {
        let Some(agents) = due.get_mut(&(one.connection, one.secs)) else {
            continue;
        };
        if one.next_at > now + ALONG {
            continue;
        }
        if spared(*agent, one) {
            one.next_at = now + pace(one.secs);
        } else {
            agents.push(*agent);
        }
    }
    due
}

/// The time from one renewal to the next.
fn pace(secs: u64) -> Duration {
    (Duration::from_secs(secs) / 3).max(RETRY.0)
}

impl Routing {
    /// Renews until `shutdown`. With the hub gone nobody renews: that is what a lease is for.
    pub(super) async fn renew(self, shutdown: CancellationToken) {
        let renewals = &self.inner.renewals;
        keep_up("a renewal", &renewals.wake, shutdown, |now| {
            let spared = |agent, one: &Leased| {
                self.inner.intents.covers(Known {
                    agent,
                    connection: one.connection,
                    task: &one.task,
                    labels: &one.labels,
                    asked_at: one.asked_at,
                })
            };
            let enter = |spoke| self.inner.lanes.enter(spoke, Lane::Renewal).ok();
            let (batches, next) = renewals.due(now, spared, enter);
            let renewal = |batch| {
                let routing = self.clone();
                async move { routing.renew_batch(batch).await }
            };
            (batches.into_iter().map(renewal).collect(), next)
        })
        .await;
    }

    /// By which connection the agents of this one are renewed: by itself; or, once it has ended, by the one that leads to
    /// the same spoke now.
    fn way_to_renew(&self, connection: Arc<Connection>) -> Result<Arc<Connection>, Refusal> {
        let Err(refusal) = require_active(&connection) else {
            return Ok(connection);
        };
        let now = self.node().connections().by_peer(&connection.peer);
        now.filter(|now| now.state == ConnectionState::Active)
            .ok_or(refusal)
    }

    async fn renew_batch(&self, batch: Batch) {
        let payload = RenewPayload {
            agent_ids: batch.agents.clone(),
            lease_secs: batch.secs,
        };
        let connection = self
            .connection(batch.connection)
            .and_then(|connection| self.way_to_renew(connection));
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
    use super::{
        super::lanes::{Lanes, RENEWALS},
        *,
    };

    /// What is due, for whoever has places in these lanes.
    fn due(renewals: &Renewals, lanes: &Lanes, now: Instant) -> (Vec<Batch>, Option<Instant>) {
        let enter = |spoke| lanes.enter(spoke, Lane::Renewal).ok();
        renewals.due(now, |_, _| false, enter)
    }

    fn status(lease_secs: Option<u64>) -> AgentStatus {
        let status = serde_json::json!({
            "agentId": AgentId::generate(), "taskId": "T-1", "agentType": "worker", "runtime": "shell",
            "sandbox": "process", "state": "running", "attempt": 1, "repository": "file:///r", "branch": "main",
            "agentBranch": "b", "queuedAt": "2026-01-01T00:00:00Z", "progress": {}, "usage": {},
            "leaseSecs": lease_secs,
        });
        serde_json::from_value(status).unwrap()
    }

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
        let lanes = Lanes::default();
        let enter = |spoke| lanes.enter(spoke, Lane::Renewal).ok();
        let (batches, next) = renewals.due(now, |agent, _| agent == agents[0], enter);
        let mut sizes: Vec<_> = batches
            .iter()
            .map(|batch| (batch.connection == here, batch.agents.len()))
            .collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [(false, 1), (true, BATCH)], "and one is spared");
        assert_eq!(next, Some(now + Duration::from_secs(10)));
        let (batches, _) = due(&renewals, &lanes, now + Duration::from_secs(9));
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
        let lanes = Lanes::default();
        let (batches, _) = due(&renewals, &lanes, now);
        let failure = Failure::unsent(Refusal::new(ErrorCode::PeerUnreachable, "x"));
        renewals.took(&batches[0], &Err(failure), now);
        let (_, next) = due(&renewals, &lanes, now);
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
    // A37: a spoke may say what it likes of its leases; it costs so much and no more, and nobody else.
    #[test]
    fn a37_a_spoke_that_tells_of_impossible_leases_is_asked_no_more_for_it() {
        let (renewals, lanes, now) = (Renewals::default(), Lanes::default(), Instant::now());
        let spoke = ConnectionId::generate();
        for secs in [0, 86_401, u64::MAX] {
            renewals.note(spoke, &status(Some(secs)), now);
        }
        let (batches, next) = due(&renewals, &lanes, now);
        assert!(batches.is_empty());
        assert_eq!(next, None);
        // The shortest is not renewed at every turn, and the longest is.
        let (short, long) = (status(Some(1)), status(Some(86_400)));
        renewals.note(spoke, &short, now);
        renewals.note(spoke, &long, now);
        let (batches, next) = due(&renewals, &lanes, now);
        assert_eq!(batches.len(), 2);
        assert_eq!(next, Some(now + RETRY.0));
        // One that has become shorter is renewed as often as that.
        let shorter = AgentStatus {
            lease_secs: Some(30),
            ..long
        };
        renewals.note(spoke, &shorter, now);
        let ended = AgentStatus {
            lease_secs: None,
            ..short
        };
        renewals.note(spoke, &ended, now);
        let (batches, next) = due(&renewals, &lanes, now);
        assert!(batches.is_empty());
        assert_eq!(next, Some(now + Duration::from_secs(10)));
    }

    // A37
    #[test]
    fn a37_a_spoke_that_is_slow_to_renew_holds_up_no_other_and_gets_so_many_at_once() {
        let (renewals, lanes, now) = (Renewals::default(), Lanes::default(), Instant::now());
        let (slow, other) = (ConnectionId::generate(), ConnectionId::generate());
        let many = RENEWALS * BATCH + 1;
        for _ in 0..many {
            let one = leased(slow, 30, now);
            renewals.lock().insert(AgentId::generate(), one);
        }
        let one = leased(other, 60, now);
        renewals.lock().insert(AgentId::generate(), one);
        let (mut under_way, next) = due(&renewals, &lanes, now);
        let of_slow = under_way.iter().filter(|one| one.connection == slow);
        assert_eq!(of_slow.count(), RENEWALS);
        assert_eq!(under_way.len(), RENEWALS + 1);
        // Whoever waits for a place is not looked at in vain until there is one.
        assert_eq!(next, Some(now + Duration::from_secs(10)));
        assert!(due(&renewals, &lanes, now).0.is_empty());
        under_way.retain(|one| one.connection == other || one.agents.len() < BATCH);
        let (rest, _) = due(&renewals, &lanes, now);
        let sizes: Vec<_> = rest.iter().map(|batch| batch.agents.len()).collect();
        assert_eq!(sizes, [1]);
    }
}
