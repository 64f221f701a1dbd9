//! The operator's own way in, with the hub down and the store gone: the route table, and handlers that hold no
//! rules.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{FromRef, State},
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use futures_util::StreamExt;
use mosaic_node::{
    ApiError, Body, EventsRequest, Node, Operator, OptionalBody, PathId, Query, in_turn,
    operator_routes,
};
use mosaic_types::{
    AgentId, Timestamp,
    agent::{AgentStatus, EndReason},
    api::{
        HoldReleaseRequest, HoldStatus, InstanceInfo, KillAllRequest, KillRequest, Role,
        SpawnResponse,
    },
    audit::AuditEvent,
    command::{
        AgentPage, AgentResult, KillAllReport, KillReport, ListPayload, ResultPayload,
        SpawnPayload, WatchPayload,
    },
    work::ResultForm,
};

use crate::{
    commands::Commands,
    hold::HoldScope,
    killswitch::{self, KillScope, PastOrder, Reach},
};

/// What the handlers share.
#[derive(Debug, Clone)]
struct Shared(Arc<Commands>);

impl FromRef<Shared> for Node {
    fn from_ref(shared: &Shared) -> Self {
        shared.0.node.clone()
    }
}

type Spoke = State<Shared>;

/// Every route of a spoke but the federation's. `/agents…` is where the Mosaic Stack has it; `/api/v1/agents…` is
/// the same.
pub fn routes(spoke: Arc<Commands>) -> Router {
    let orders = Router::new()
        .route("/agents/spawn", post(spawn))
        .route("/agents/kill-all", post(kill_all))
        .route("/agents/{agentId}/kill", post(kill))
        .route("/hold/release", post(release_hold))
        .with_state(Shared(Arc::clone(&spoke)));
    let questions = Router::new()
        .route("/agents", get(list))
        .route("/agents/{agentId}/status", get(status))
        .route("/agents/{agentId}/events", get(events))
        .route("/agents/{agentId}/result", get(result))
        .route("/hold", get(hold))
        .with_state(Shared(Arc::clone(&spoke)));
    let agents = orders.merge(in_turn(spoke.node.clone(), questions));
    let instance = Router::new()
        .route("/instance", get(instance))
        .with_state(Shared(Arc::clone(&spoke)));
    let node = operator_routes(spoke.node.clone()).merge(instance);
    agents.clone().nest("/api/v1", agents.merge(node))
}

async fn spawn(
    State(Shared(spoke)): Spoke,
    operator: Operator,
    Body(request): Body<SpawnPayload>,
) -> Result<(StatusCode, Json<SpawnResponse>), ApiError> {
    operator.require(Role::Operator)?;
    let accepted = spoke
        .admission
        .spawn_local(operator.actor(), request)
        .await?;
    let response = SpawnResponse {
        agent_id: accepted.agent_id,
        connection_id: None,
        message_id: None,
        state: accepted.state,
        existing: accepted.existing,
    };
    Ok((StatusCode::ACCEPTED, Json(response)))
}

async fn list(
    State(Shared(spoke)): Spoke,
    _: Operator,
    Query(wanted): Query<ListPayload>,
) -> Result<Json<AgentPage>, ApiError> {
    Ok(Json(spoke.agents.list(wanted, Reach::Everything).await?))
}

async fn status(
    State(Shared(spoke)): Spoke,
    _: Operator,
    PathId(agent_id): PathId<AgentId>,
) -> Result<Json<AgentStatus>, ApiError> {
    Ok(Json(
        spoke.agents.status(agent_id, Reach::Everything).await?,
    ))
}

async fn kill(
    State(Shared(spoke)): Spoke,
    operator: Operator,
    PathId(agent_id): PathId<AgentId>,
    OptionalBody(request): OptionalBody<KillRequest>,
) -> Result<Json<KillReport>, ApiError> {
    operator.require(Role::Operator)?;
    let order = killswitch::order(
        EndReason::KillRequested,
        operator.actor(),
        request.reason.as_deref(),
    );
    let wait = request.wait_for_cleanup;
    let past = spoke.agents.past_orders();
    past.note_here(Reach::Everything, PastOrder::One(agent_id));
    Ok(Json(
        spoke
            .killswitch
            .kill(agent_id, Reach::Everything, order, wait)
            .await?,
    ))
}

async fn kill_all(
    State(Shared(spoke)): Spoke,
    operator: Operator,
    OptionalBody(request): OptionalBody<KillAllRequest>,
) -> Result<Json<KillAllReport>, ApiError> {
    operator.require(Role::Operator)?;
    let order = killswitch::order(
        EndReason::KillAll,
        operator.actor(),
        request.reason.as_deref(),
    );
    let reach = request
        .connection_id
        .map_or(Reach::Everything, Reach::Connection);
    let (task, label) = (request.task_id.clone(), request.label.clone());
    let past = spoke.agents.past_orders();
    past.note_here(reach, PastOrder::All { task, label });
    let scope = KillScope {
        reach,
        task: request.task_id,
        label: request.label,
        before: None,
    };
    let report = spoke
        .killswitch
        .kill_all(scope, order, request.hold)
        .await?;
    Ok(Json(report))
}

async fn events(
    State(Shared(spoke)): Spoke,
    _: Operator,
    PathId(agent_id): PathId<AgentId>,
    request: EventsRequest,
) -> Result<impl IntoResponse, ApiError> {
    let wanted = WatchPayload {
        agent_id,
        after: request.after,
        no_follow: !request.follow,
    };
    let batches = spoke.agents.watch(wanted, Reach::Everything).await?;
    let events = batches.flat_map(|batch| futures_util::stream::iter(batch.into_iter().map(Ok)));
    Ok(request.answer(events))
}

async fn result(
    State(Shared(spoke)): Spoke,
    _: Operator,
    PathId(agent_id): PathId<AgentId>,
    Query(wanted): Query<ResultParams>,
) -> Result<Json<AgentResult>, ApiError> {
    let wanted = ResultPayload {
        agent_id,
        patch_offset: wanted.patch_offset,
        form: wanted.form,
        salvaged: wanted.salvaged,
    };
    Ok(Json(spoke.agents.result(&wanted, Reach::Everything).await?))
}

/// What of the work to send, and from where.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ResultParams {
    patch_offset: Option<u64>,
    form: Option<ResultForm>,
    salvaged: bool,
}

async fn hold(State(Shared(spoke)): Spoke, _: Operator) -> Json<HoldStatus> {
    Json(spoke.hold.status())
}

async fn release_hold(
    State(Shared(spoke)): Spoke,
    operator: Operator,
    OptionalBody(request): OptionalBody<HoldReleaseRequest>,
) -> Result<Json<HoldStatus>, ApiError> {
    operator.require(Role::Operator)?;
    let scope = request
        .connection_id
        .map_or(HoldScope::Everything, HoldScope::Connection);
    spoke
        .hold
        .release(scope)
        .map_err(|error| ApiError::internal(&error))?;
    spoke.node.audit().record_later(AuditEvent {
        at: Timestamp::now(),
        actor: operator.actor(),
        action: "hold.release".to_owned(),
        subject: request.connection_id.map(|id| id.to_string()),
        outcome: "ok".to_owned(),
        detail: serde_json::Value::Null,
    });
    Ok(Json(spoke.hold.status()))
}

async fn instance(State(Shared(spoke)): Spoke, _: Operator) -> Json<InstanceInfo> {
    let connections = spoke.node.connections().list();
    Json(InstanceInfo {
        instance_id: spoke.node.instance_id().clone(),
        pong: spoke.about_itself(),
        connections: connections
            .iter()
            .map(|connection| (connection.connection_id, connection.state))
            .collect(),
    })
}
