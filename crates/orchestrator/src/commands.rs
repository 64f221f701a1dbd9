//! The peers' way in: admitted commands become the spoke's verbs.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use mosaic_federation::command::{AdmittedCommand, CommandPayload, Usage};
use mosaic_node::{CommandHandler, Node};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, Timestamp,
    agent::EndReason,
    audit::Actor,
    command::{Pong, SandboxKind},
    event::AgentEvent,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    admission::{Admission, Requester},
    agents::Agents,
    hold::Hold,
    killswitch::{self, KillScope, Killswitch, PastOrder, Reach},
    sandbox::Scope,
};

mod left_behind;

/// Executes commands of peers. Each reaches only its own agents.
#[derive(Debug)]
pub struct Commands {
    /// The node that they came to.
    pub node: Node,
    /// The way in for an agent.
    pub admission: Arc<Admission>,
    /// What there is.
    pub agents: Agents,
    /// The killswitch.
    pub killswitch: Killswitch,
    /// Holds.
    pub hold: Arc<Hold>,
}

impl Commands {
    fn actor(command: &AdmittedCommand) -> Actor {
        Actor::Peer {
            instance: command.peer().clone(),
            connection: Some(command.connection_id()),
        }
    }

    fn pong(&self, connection_id: ConnectionId) -> Pong {
        Pong {
            held: self.hold.covers(Scope::Connection(connection_id)),
            active_agents: self.agents.active_of(connection_id) as u64,
            ..self.about_itself()
        }
    }

    /// What the spoke tells its own operator of itself.
    #[must_use]
    pub fn about_itself(&self) -> Pong {
        Pong {
            name: self.node.name().to_owned(),
            role: self.node.role(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: Timestamp::now(),
            sandboxes: self.agents.sandboxes(),
            runtimes: self.agents.runtimes(),
            held: self.hold.covers(Scope::Local),
            active_agents: self.agents.active() as u64,
        }
    }
}

#[async_trait]
impl CommandHandler for Commands {
    async fn execute(
        &self,
        command: AdmittedCommand,
        received: Instant,
    ) -> Result<Box<RawValue>, Refusal> {
        let connection_id = command.connection_id();
        let reach = Reach::Connection(connection_id);
        let actor = Self::actor(&command);
        let max_agents = Some(command.caps().max_agents);
        let (issued_at, deadline) = (command.issued_at(), command.deadline());
        let peer = command.peer().clone();
        let options = command.bounded_options(&self.admission.default_options());
        match command.into_payload() {
            CommandPayload::Spawn(request) => {
                let requester = Requester {
                    connection_id: Some(connection_id),
                    max_agents,
                    actor,
                    options,
                    issued_at: Some(issued_at),
                    received,
                };
                answer(&self.admission.spawn(requester, *request).await?)
            }
            CommandPayload::Status(wanted) => {
                answer(&self.agents.status(wanted.agent_id, reach).await?)
            }
            CommandPayload::List(wanted) => answer(&self.agents.list(wanted, reach).await?),
            CommandPayload::Kill(wanted) => {
                let order =
                    killswitch::order(EndReason::KillRequested, actor, wanted.reason.as_deref());
                let wait = wanted.wait_for_cleanup;
                let reach = self.reach_of_kill(&peer, connection_id, wanted.agent_id);
                self.agents.past_orders().note(
                    connection_id,
                    PastOrder::One(wanted.agent_id),
                    issued_at,
                );
                answer(
                    &self
                        .killswitch
                        .kill(wanted.agent_id, reach, order, wait)
                        .await?,
                )
            }
            CommandPayload::KillAll(wanted) => {
                // One that comes after its time is an order of then, and takes nobody who was asked for after it.
                let is_late = deadline < Timestamp::now();
                let before = wanted.before.or_else(|| is_late.then_some(issued_at));
                // What was signed before and comes after it does not start either.
                let (task, label) = (wanted.task_id.clone(), wanted.label.clone());
                self.agents.past_orders().note(
                    connection_id,
                    PastOrder::All { task, label },
                    before.unwrap_or(issued_at),
                );
                let order = killswitch::order(EndReason::KillAll, actor, wanted.reason.as_deref());
                let scope = KillScope {
                    reach,
                    task: wanted.task_id,
                    label: wanted.label,
                    before,
                };
                answer(&self.kill_all(&peer, scope, order, wanted.hold).await?)
            }
            CommandPayload::Result(wanted) => answer(&self.agents.result(&wanted, reach).await?),
            CommandPayload::Ping(_) => answer(&self.pong(connection_id)),
            CommandPayload::Renew(wanted) => answer(&self.agents.renew(&wanted, reach).await?),
            CommandPayload::Watch(_) => Err(Refusal::new(
                ErrorCode::InvalidRequest,
                "agent.watch is asked for at /federation/v1/streams",
            )),
        }
    }

    async fn watch(
        &self,
        command: AdmittedCommand,
    ) -> Result<BoxStream<'static, Vec<AgentEvent>>, Refusal> {
        let reach = Reach::Connection(command.connection_id());
        match command.into_payload() {
            CommandPayload::Watch(wanted) => self.agents.watch(wanted, reach).await,
            _ => Err(Refusal::new(
                ErrorCode::InvalidRequest,
                "only agent.watch is a stream",
            )),
        }
    }

    fn usage(&self, connection_id: ConnectionId, now: Timestamp) -> Usage {
        Usage {
            active_agents: u32::try_from(self.agents.active_of(connection_id)).unwrap_or(u32::MAX),
            spawns_last_minute: self.admission.spawns_in_window(connection_id, now),
        }
    }

    async fn knows(&self, connection_id: ConnectionId, agent_id: AgentId) -> bool {
        let reach = Reach::Connection(connection_id);
        self.agents.status(agent_id, reach).await.is_ok()
    }

    fn default_sandbox(&self) -> SandboxKind {
        self.agents.default_sandbox()
    }
}

fn answer(value: &impl Serialize) -> Result<Box<RawValue>, Refusal> {
    to_raw_value(value).map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "answer cannot be written"
        );
        Refusal::new(ErrorCode::Internal, "the answer cannot be written")
    })
}
