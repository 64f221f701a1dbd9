//! The agents of a spoke as its callers see them: one set of verbs for the peers' commands and for the operator's
//! API. Whose agents a caller sees is its [`Reach`].

use std::{collections::BTreeSet, sync::Arc};

use futures_util::stream::BoxStream;
use mosaic_node::store_refusal;
use mosaic_store::{AgentFilter, AgentRecord};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal,
    agent::AgentStatus,
    command::{
        AgentPage, ListPayload, RenewOutcome, RenewPayload, RenewReport, RenewedLease, RuntimeInfo,
        SandboxInfo, SandboxKind, WatchPayload,
    },
    event::AgentEvent,
};
use tracing::error;

use crate::{
    events::{self, OpenError, Source},
    killswitch::{PastOrders, Reach, unknown_agent},
    sandbox::Sandbox,
    surroundings::Surroundings,
};

mod work;

/// Page size of a list where none is asked for.
const PAGE: u32 = 100;
/// Largest page size of a list.
const PAGE_MAX: u32 = 500;
/// How much goes into one page of a list, in bytes of JSON.
const PAGE_JSON_BYTES: usize = 4 << 20;
/// How many agents are read at once for a page.
const READ_AT_ONCE: u32 = 32;

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Agents {
    around: Arc<Surroundings>,
}

impl Agents {
    /// The agents of these surroundings.
    #[must_use]
    pub fn new(around: Arc<Surroundings>) -> Self {
        Self { around }
    }

    /// One agent.
    ///
    /// # Errors
    /// `unknown-agent`; `store-unavailable`.
    pub async fn status(&self, agent_id: AgentId, reach: Reach) -> Result<AgentStatus, Refusal> {
        match self.source(agent_id, reach).await? {
            Source::Live(views) => Ok(views.borrow().status()),
            Source::Ended(record) => Ok(record.status.clone()),
        }
    }

    async fn source(&self, agent_id: AgentId, reach: Reach) -> Result<Source, Refusal> {
        if let Some(cell) = self.around.fleet.get(agent_id) {
            if reach.includes(cell.connection_id) {
                return Ok(Source::Live(cell.publisher.subscribe()));
            }
            return Err(unknown_agent(agent_id));
        }
        let record = self
            .around
            .store
            .agent(agent_id)
            .await
            .map_err(|error| store_refusal(&error))?;
        match record.filter(|record| reach.includes(record.connection_id)) {
            Some(record) => Ok(Source::Ended(Arc::new(record))),
            None => Err(unknown_agent(agent_id)),
        }
    }

    /// The caller's agents, newest first. A page ends early rather than become too large to sign.
    ///
    /// # Errors
    /// `invalid-request` for a page size out of range; `store-unavailable`.
    pub async fn list(&self, wanted: ListPayload, reach: Reach) -> Result<AgentPage, Refusal> {
        let limit = wanted.limit.unwrap_or(PAGE);
        if !(1..=PAGE_MAX).contains(&limit) {
            let message = format!("must be 1 to {PAGE_MAX}");
            return Err(Refusal::field(ErrorCode::InvalidRequest, "limit", message));
        }
        let mut filter = AgentFilter {
            connection: match reach {
                Reach::Everything => None,
                Reach::Connection(id) => Some(Some(id)),
            },
            task: wanted.task_id,
            active: wanted.active.unwrap_or(false),
            before: wanted.before,
            limit: READ_AT_ONCE,
        };
        let mut page = AgentPage {
            agents: Vec::new(),
            more: false,
        };
        let mut json_bytes = 0;
        loop {
            let records = self
                .around
                .store
                .agents(filter.clone())
                .await
                .map_err(|error| store_refusal(&error))?;
            let is_last = records.len() < READ_AT_ONCE as usize;
            filter.before = records.last().map(|record| record.agent_id);
            for record in records {
                let labels = &record.request.labels;
                if wanted
                    .label
                    .as_ref()
                    .is_some_and(|label| !label.is_among(labels))
                {
                    continue;
                }
                let status = self.freshest(record);
                json_bytes += serde_json::to_vec(&status).map_or(0, |json| json.len());
                let full = page.agents.len() >= limit as usize || json_bytes > PAGE_JSON_BYTES;
                if full && !page.agents.is_empty() {
                    page.more = true;
                    return Ok(page);
                }
                page.agents.push(status);
            }
            if is_last {
                return Ok(page);
            }
        }
    }

    fn freshest(&self, record: AgentRecord) -> AgentStatus {
        match self.around.fleet.get(record.agent_id) {
            Some(cell) => cell.publisher.view().status(),
            None => record.status,
        }
    }

    /// Renews the leases of the caller's agents, from now.
    ///
    /// # Errors
    /// `unknown-agent` if the caller has none of them; `store-unavailable`.
    pub async fn renew(&self, wanted: &RenewPayload, reach: Reach) -> Result<RenewReport, Refusal> {
        let mut agents = Vec::with_capacity(wanted.agent_ids.len());
        for agent_id in &wanted.agent_ids {
            let outcome = self.renew_one(*agent_id, wanted.lease_secs, reach).await?;
            agents.push(RenewedLease {
                agent_id: *agent_id,
                outcome,
            });
        }
        let unknown = |one: &RenewedLease| one.outcome == RenewOutcome::UnknownAgent;
        match agents.first() {
            Some(first) if agents.iter().all(unknown) => Err(Refusal {
                field: Some("agentIds".to_owned()),
                ..unknown_agent(first.agent_id)
            }),
            _ => Ok(RenewReport { agents }),
        }
    }

    async fn renew_one(
        &self,
        agent_id: AgentId,
        secs: u64,
        reach: Reach,
    ) -> Result<RenewOutcome, Refusal> {
        let Some(cell) = self.around.fleet.get(agent_id) else {
            let stored = self.around.store.agent(agent_id).await;
            let stored = stored.map_err(|error| store_refusal(&error))?;
            return Ok(
                match stored.filter(|record| reach.includes(record.connection_id)) {
                    Some(_) => RenewOutcome::Ended,
                    None => RenewOutcome::UnknownAgent,
                },
            );
        };
        if !reach.includes(cell.connection_id) {
            return Ok(RenewOutcome::UnknownAgent);
        }
        let view = cell.publisher.view();
        if view.killing || view.record.state.is_terminal() {
            return Ok(RenewOutcome::Ended);
        }
        Ok(match &cell.lease {
            None => RenewOutcome::NoLease,
            Some(lease) if lease.renew(secs, self.around.clock.boot_ms()) => RenewOutcome::Renewed,
            Some(_) => RenewOutcome::Ended,
        })
    }

    /// Kills of peers that are over.
    #[must_use]
    pub fn past_orders(&self) -> &PastOrders {
        &self.around.past_orders
    }

    /// An agent's events.
    ///
    /// # Errors
    /// `unknown-agent`; `invalid-request` for a cursor that no event of the agent had; `store-unavailable`.
    pub async fn watch(
        &self,
        wanted: WatchPayload,
        reach: Reach,
    ) -> Result<BoxStream<'static, Vec<AgentEvent>>, Refusal> {
        let source = self.source(wanted.agent_id, reach).await?;
        let spool = self.around.layout.agent(wanted.agent_id).spool();
        let after = wanted.after.unwrap_or_default();
        events::stream(source, spool, after, !wanted.no_follow).map_err(|error| match error {
            OpenError::NoSuchPlace(_) => {
                Refusal::field(ErrorCode::InvalidRequest, "after", error.to_string())
            }
            OpenError::Read(_) => {
                error!(agent = %wanted.agent_id, error = &error as &dyn std::error::Error, "failed to open a stream");
                Refusal::new(ErrorCode::Internal, "the output cannot be read")
            }
        })
    }

    /// The connection by which an agent came that is under way, if it came by one.
    #[must_use]
    pub fn connection_of(&self, agent_id: AgentId) -> Option<ConnectionId> {
        self.around.fleet.get(agent_id)?.connection_id
    }

    /// The connections by which agents came that have not ended.
    #[must_use]
    pub fn connections(&self) -> BTreeSet<ConnectionId> {
        let fleet = &self.around.fleet;
        let active = fleet.select(|cell| !cell.publisher.has_ended());
        active
            .iter()
            .filter_map(|cell| cell.connection_id)
            .collect()
    }

    /// How many agents of a connection have not ended.
    #[must_use]
    pub fn active_of(&self, connection_id: ConnectionId) -> usize {
        self.around.fleet.active_of(connection_id)
    }

    /// How many agents have not ended.
    #[must_use]
    pub fn active(&self) -> usize {
        self.around
            .fleet
            .select(|cell| !cell.publisher.has_ended())
            .len()
    }

    /// The sandboxes on offer.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<SandboxInfo> {
        let info = |sandbox: Arc<dyn Sandbox>| {
            let containment = sandbox.containment();
            let limits = [
                ("memory", containment.limits.memory),
                ("cpu", containment.limits.cpu),
                ("pids", containment.limits.pids),
            ];
            SandboxInfo {
                kind: sandbox.kind(),
                containment: containment.to_string(),
                limits: limits
                    .into_iter()
                    .filter(|(_, enforced)| *enforced)
                    .map(|(name, _)| name.to_owned())
                    .collect(),
            }
        };
        self.around.sandboxes.all().map(info).collect()
    }

    /// What a spawn gets that names no sandbox.
    #[must_use]
    pub fn default_sandbox(&self) -> SandboxKind {
        self.around.sandboxes.default_kind()
    }

    /// The runtimes on offer.
    #[must_use]
    pub fn runtimes(&self) -> Vec<RuntimeInfo> {
        self.around.runtimes.availability()
    }
}
