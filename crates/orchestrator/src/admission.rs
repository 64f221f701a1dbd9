//! The only way in for an agent, whoever asks: everything that can be refused is refused here, by name, before
//! anything exists.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mosaic_federation::command::CommandPayload;
use mosaic_node::store_refusal;
use mosaic_store::{AgentRecord, InsertAgent, StoreError};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, RuntimeName, Timestamp,
    agent::{AgentState, AgentStatus, Budget, ObservedState, Progress, Usage},
    audit::{Actor, AuditEvent},
    command::{NetworkPolicy, SandboxKind, SpawnAccepted, SpawnOptions, SpawnPayload},
};

use crate::{
    killswitch,
    lifecycle::{
        Cell, Drivers,
        driver::{Driver, Entry},
        fleet::NotEntered,
        lease::Lease,
    },
    surroundings::Surroundings,
};

pub(crate) mod check;
mod secrets;

const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Who asks for an agent.
#[derive(Debug, Clone)]
pub struct Requester {
    /// The connection; `None` for the spoke's own operator.
    pub connection_id: Option<ConnectionId>,
    /// How many agents the connection may have at once.
    pub max_agents: Option<u32>,
    /// For the audit trail.
    pub actor: Actor,
    /// The options that its agent runs with: those asked for, the defaults, and nothing above a cap.
    pub options: SpawnOptions,
    /// When the peer signed the spawn, by its clock; `None` for the spoke's own operator.
    pub issued_at: Option<Timestamp>,
    /// When it came here.
    pub received: Instant,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Admission {
    around: Arc<Surroundings>,
    drivers: Drivers,
    spawns: Mutex<HashMap<ConnectionId, VecDeque<Timestamp>>>,
}

impl Admission {
    /// Admits agents to these surroundings; their drivers run on `drivers`.
    #[must_use]
    pub fn new(around: Arc<Surroundings>, drivers: Drivers) -> Self {
        Self {
            around,
            drivers,
            spawns: Mutex::default(),
        }
    }

    /// The options of an agent whose spawn names none.
    #[must_use]
    pub fn default_options(&self) -> SpawnOptions {
        SpawnOptions {
            sandbox: Some(self.around.sandboxes.default_kind()),
            timeout_secs: Some(self.around.limits.default_timeout_secs),
            max_retries: Some(0),
            network: Some(match &self.around.egress.default {
                Some(rules) => {
                    NetworkPolicy::Allow(rules.iter().map(ToString::to_string).collect())
                }
                None => NetworkPolicy::Open,
            }),
            ..SpawnOptions::default()
        }
    }

    /// Spawns an agent of the spoke's own operator, to whom no grant's caps apply.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub async fn spawn_local(
        &self,
        actor: Actor,
        request: SpawnPayload,
    ) -> Result<SpawnAccepted, Refusal> {
        let CommandPayload::Spawn(request) = CommandPayload::Spawn(Box::new(request)).bounded()?
        else {
            return Err(Refusal::new(
                ErrorCode::Internal,
                "a spawn became another command",
            ));
        };
        let options = with_defaults(request.options.clone(), self.default_options());
        let requester = Requester {
            connection_id: None,
            max_agents: None,
            actor,
            options,
            issued_at: None,
            received: Instant::now(),
        };
        self.spawn(requester, *request).await
    }

    /// How many agents a connection has asked for in the last 60 s.
    #[must_use]
    pub fn spawns_in_window(&self, connection_id: ConnectionId, now: Timestamp) -> u32 {
        let mut spawns = self.spawns.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(times) = spawns.get_mut(&connection_id) else {
            return 0;
        };
        forget_outside_window(times, now);
        let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
        if times.is_empty() {
            spawns.remove(&connection_id);
        }
        count
    }

    /// Accepts an agent, or tells of the one that is there already with the same content.
    ///
    /// # Errors
    /// The refusal, with its code and field. Then nothing of the agent exists.
    pub async fn spawn(
        &self,
        requester: Requester,
        request: SpawnPayload,
    ) -> Result<SpawnAccepted, Refusal> {
        // An agent that is there is told of whatever else would be refused now: the caller asks again because
        // an answer was lost.
        if let Some(cell) = self.around.fleet.get(request.agent_id) {
            return same_cell(&cell, &requester, &request).await;
        }
        let stored = self
            .around
            .store
            .agent(request.agent_id)
            .await
            .map_err(|error| store_refusal(&error))?;
        if let Some(record) = stored {
            return same_agent(&record, &requester, &request);
        }
        check::spoke(&self.around, &requester)?;
        check::overtaken(&self.around, &requester, &request)?;
        check::lease(&self.around, &requester, &request)?;
        let runtime = check::request(&self.around, &request, &requester).await?;
        secrets::check(&self.around, &requester, &runtime)?;
        self.enter(requester, request, runtime).await
    }

    async fn enter(
        &self,
        requester: Requester,
        request: SpawnPayload,
        runtime: RuntimeName,
    ) -> Result<SpawnAccepted, Refusal> {
        let now = Timestamp::now();
        let agent_id = request.agent_id;
        let record = Arc::new(fresh_record(&requester, request, runtime, now));
        let lease = record.options.lease_secs.map(|secs| {
            let whole = Duration::from_secs(secs);
            Lease::new(secs, whole, self.around.clock.boot_ms())
        });
        let cell = Arc::new(Cell::new(&record, lease));
        // Whom a kill without a daemon means is in the fleet when word of it is read: this one came after it.
        killswitch::heed(&self.around);
        // In memory before on record: from here on a kill-all takes it, wherever it is.
        match self
            .around
            .fleet
            .enter(Arc::clone(&cell), requester.max_agents)
        {
            Ok(()) => {}
            Err(NotEntered::Taken(taken)) => {
                return same_cell(&taken, &requester, &record.request).await;
            }
            Err(NotEntered::Full) => {
                return Err(Refusal::new(
                    ErrorCode::Overloaded,
                    "the queue of agents is full",
                ));
            }
            Err(NotEntered::ConnectionFull) => {
                return Err(Refusal::new(
                    ErrorCode::QuotaExceeded,
                    "the connection has as many agents as it may",
                ));
            }
        }
        // Killed before, while its record was being tried and came to nothing: what was told dead stays dead.
        if self.around.kills.names(agent_id) {
            cell.on_record.send_replace(Some(false));
            self.around.fleet.leave(agent_id);
            return Err(Refusal::field(
                ErrorCode::Conflict,
                "agentId",
                "the agent was killed before it was on record; spawn another",
            ));
        }
        // A hold that was set before the agent could be seen has not been seen to hold it.
        if self.around.hold.covers(cell.scope()) {
            cell.on_record.send_replace(Some(false));
            self.around.fleet.leave(agent_id);
            return Err(check::held());
        }
        // Nor has a kill that overtook the spawn found it.
        if let Err(overtaken) = check::overtaken(&self.around, &requester, &record.request) {
            cell.on_record.send_replace(Some(false));
            self.around.fleet.leave(agent_id);
            return Err(overtaken);
        }
        let audit = AuditEvent {
            at: now,
            actor: requester.actor.clone(),
            action: "agent.spawn".to_owned(),
            subject: Some(agent_id.to_string()),
            outcome: "ok".to_owned(),
            detail: serde_json::json!({
                "repository": record.status.repository,
                "branch": record.status.branch,
                "runtime": record.status.runtime,
                "taskId": record.status.task_id,
            }),
        };
        // Detached from the caller: the record and its driver come both, or neither.
        let around = Arc::clone(&self.around);
        let drivers = self.drivers.clone();
        let entering = {
            let record = Arc::clone(&record);
            tokio::spawn(async move {
                match around
                    .store
                    .insert_agent(AgentRecord::clone(&record), audit)
                    .await
                {
                    Ok(InsertAgent::Inserted) => {
                        cell.on_record.send_replace(Some(true));
                        let record = AgentRecord::clone(&record);
                        let driver = Driver::new(Arc::clone(&around), cell, record);
                        drivers.spawn(driver.run(Entry::Waiting));
                        Ok(None)
                    }
                    Ok(InsertAgent::Taken(taken)) => {
                        cell.on_record.send_replace(Some(false));
                        around.fleet.leave(agent_id);
                        Ok(Some(taken))
                    }
                    Err(error) => {
                        cell.on_record.send_replace(Some(false));
                        around.fleet.leave(agent_id);
                        Err(not_inserted(&error))
                    }
                }
            })
        };
        let taken = entering
            .await
            .map_err(|_| Refusal::new(ErrorCode::Internal, "the spawn broke off; ask again"))??;
        if let Some(taken) = taken {
            return same_agent(&taken, &requester, &record.request);
        }
        if let Some(connection_id) = requester.connection_id {
            let mut spawns = self.spawns.lock().unwrap_or_else(PoisonError::into_inner);
            spawns.entry(connection_id).or_default().push_back(now);
        }
        Ok(SpawnAccepted {
            agent_id,
            state: AgentState::Queued,
            existing: false,
            lease_secs: record.options.lease_secs,
        })
    }
}

/// Forgets spawns of more than a window ago, and those that a clock which was ahead has put where no window gets to.
fn forget_outside_window(times: &mut VecDeque<Timestamp>, now: Timestamp) {
    times.retain(|at| now.since(*at) < RATE_WINDOW && at.since(now) < RATE_WINDOW);
}

/// Why an agent does not come on record.
fn not_inserted(error: &StoreError) -> Refusal {
    match error {
        // It had ended, and was forgotten before anything said that an agent comes by it.
        StoreError::NotFound => Refusal::new(
            ErrorCode::ConnectionNotActive,
            "the connection was taken out of use meanwhile",
        ),
        error => store_refusal(error),
    }
}

/// Tells of the agent that has the id, once it is on record: an acceptance is not told before.
async fn same_cell(
    cell: &Cell,
    requester: &Requester,
    request: &SpawnPayload,
) -> Result<SpawnAccepted, Refusal> {
    let mut on_record = cell.on_record.subscribe();
    let known = on_record
        .wait_for(Option::is_some)
        .await
        .map(|known| *known);
    match known {
        Ok(Some(true)) => same_agent(&cell.publisher.view().record, requester, request),
        _ => Err(Refusal::new(
            ErrorCode::StoreUnavailable,
            "the agent could not be put on record; ask again",
        )),
    }
}

/// Tells of the agent that has the id, if it is the same one.
fn same_agent(
    record: &AgentRecord,
    requester: &Requester,
    request: &SpawnPayload,
) -> Result<SpawnAccepted, Refusal> {
    if record.connection_id == requester.connection_id && record.request == *request {
        return Ok(SpawnAccepted {
            agent_id: record.agent_id,
            state: record.state,
            existing: true,
            lease_secs: record.options.lease_secs,
        });
    }
    Err(Refusal::field(
        ErrorCode::Conflict,
        "agentId",
        "the id is taken by an agent with other content",
    ))
}

fn with_defaults(asked: Option<SpawnOptions>, defaults: SpawnOptions) -> SpawnOptions {
    let asked = asked.unwrap_or_default();
    SpawnOptions {
        sandbox: asked.sandbox.or(defaults.sandbox),
        timeout_secs: asked.timeout_secs.or(defaults.timeout_secs),
        max_retries: asked.max_retries.or(defaults.max_retries),
        network: asked.network.or(defaults.network),
        ..asked
    }
}

/// What is told of an agent's budget.
fn budget(options: &SpawnOptions) -> Option<Budget> {
    let budget = Budget {
        usd: options.budget_usd,
        tokens: options.budget_tokens,
    };
    (budget != Budget::default()).then_some(budget)
}

fn fresh_record(
    requester: &Requester,
    request: SpawnPayload,
    runtime: RuntimeName,
    now: Timestamp,
) -> AgentRecord {
    let agent_id: AgentId = request.agent_id;
    let connection_id = requester.connection_id;
    AgentRecord {
        agent_id,
        connection_id,
        options: requester.options.clone(),
        version: 1,
        state: AgentState::Queued,
        status: AgentStatus {
            agent_id,
            task_id: request.task_id.clone(),
            agent_type: request.agent_type,
            runtime,
            sandbox: requester.options.sandbox.unwrap_or(SandboxKind::Process),
            connection_id,
            state: ObservedState::Queued,
            reason: None,
            detail: None,
            attempt: 0,
            repository: request.context.repository.clone(),
            branch: request.context.branch.clone(),
            agent_branch: format!("mosaic/{agent_id}"),
            queued_at: now,
            started_at: None,
            ended_at: None,
            exit_code: None,
            signal: None,
            progress: Progress::default(),
            usage: Usage::default(),
            summary: None,
            work: None,
            death: None,
            cleanup: Vec::new(),
            budget: budget(&requester.options),
            labels: request.labels.clone(),
            lease_secs: requester.options.lease_secs,
        },
        issued_at: requester.issued_at,
        request,
        not_before: None,
        attempt_start: None,
        cleanup_pending: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_days_ahead_takes_no_spawn_from_the_window() {
        let now = Timestamp::from_unix_millis(1_000_000_000_000);
        let at = |secs: i64| Timestamp::from_unix_millis(1_000_000_000_000 + 1000 * secs);
        // Of a clock that was a little ahead, they still count: setting it back gives nobody more.
        let mut times = VecDeque::from([-86_400, -60, -59, 86_400, 0, 59, 60].map(at));
        forget_outside_window(&mut times, now);
        assert_eq!(times, [-59, 0, 59].map(at));
    }
}
