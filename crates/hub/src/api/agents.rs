//! Agents at spokes.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use mosaic_node::{ApiError, Body, Node, Operator, OptionalBody, PathId, Query};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, RuntimeName, TaskId,
    api::{
        FederationAgent, FederationAgents, FederationKillAll, KillAllRequest, KillRequest, Role,
        SpawnResponse,
    },
    command::{AgentType, KillReport, SpawnContext, SpawnOptions, SpawnPayload},
    label::Label,
};
use serde::{Deserialize, Serialize};

use crate::routing::{AgentsQuery, Routing, SpawnOrder};

/// Media type of a patch.
const PATCH: &str = "text/x-patch";
/// Media type of a git bundle.
const BUNDLE: &str = "application/x-git-bundle";
/// Page size of a list whose query names none.
const DEFAULT_PAGE: u32 = 100;
/// Largest page.
const MAX_PAGE: u32 = 500;

/// Asks for an agent (`POST /federation/agents/spawn`): where, and the payload of `agent.spawn`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpawnRequest {
    /// The hub's connection to the spoke.
    pub connection_id: ConnectionId,
    /// The agent's id; a fresh one if absent. Whoever may have to ask twice chooses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The caller's task.
    pub task_id: TaskId,
    /// What it is for.
    pub agent_type: AgentType,
    /// A runtime of the spoke; `claude` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeName>,
    /// What to work on.
    pub context: SpawnContext,
    /// How to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<SpawnOptions>,
    /// What to find it by again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl From<SpawnRequest> for SpawnOrder {
    fn from(request: SpawnRequest) -> Self {
        Self {
            connection: request.connection_id,
            payload: SpawnPayload {
                agent_id: request.agent_id.unwrap_or_else(AgentId::generate),
                task_id: request.task_id,
                agent_type: request.agent_type,
                runtime: request.runtime,
                context: request.context,
                options: request.options,
                labels: request.labels,
            },
        }
    }
}

/// Query of `GET /federation/agents`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AgentsParams {
    /// Only those at this spoke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<ConnectionId>,
    /// Only those of this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<TaskId>,
    /// Only those that have not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// Only those older than this one: the last of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<AgentId>,
    /// Page size, 1 to 500; 100 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those with this label, as `key=value`.
    #[serde(
        skip_serializing_if = "Option::is_none",
        with = "mosaic_types::label::text"
    )]
    pub label: Option<Label>,
}

impl TryFrom<AgentsParams> for AgentsQuery {
    type Error = Refusal;

    fn try_from(params: AgentsParams) -> Result<Self, Refusal> {
        let limit = params.limit.unwrap_or(DEFAULT_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            let why = format!("a page has 1 to {MAX_PAGE} agents");
            return Err(Refusal::field(ErrorCode::InvalidRequest, "limit", why));
        }
        Ok(Self {
            connection: params.connection_id,
            task: params.task_id,
            active: params.active.unwrap_or(false),
            before: params.before,
            limit,
            label: params.label,
        })
    }
}

/// Query of `GET …/result`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ResultParams {
    format: Option<ResultFormat>,
    salvaged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ResultFormat {
    Json,
    Patch,
    Bundle,
}

pub(super) async fn spawn(
    operator: Operator,
    State(routing): State<Routing>,
    Body(request): Body<SpawnRequest>,
) -> Result<(StatusCode, Json<SpawnResponse>), ApiError> {
    operator.require(Role::Operator)?;
    let response = routing.spawn(&operator, request.into()).await?;
    Ok((StatusCode::ACCEPTED, Json(response)))
}

pub(super) async fn list(
    operator: Operator,
    State(routing): State<Routing>,
    Query(params): Query<AgentsParams>,
) -> Result<Json<FederationAgents>, ApiError> {
    operator.require(Role::Viewer)?;
    Ok(Json(routing.list(&params.try_into()?).await?))
}

pub(super) async fn status(
    operator: Operator,
    State(routing): State<Routing>,
    PathId(agent): PathId<AgentId>,
) -> Result<Json<FederationAgent>, ApiError> {
    operator.require(Role::Viewer)?;
    Ok(Json(routing.status(agent).await?))
}

pub(super) async fn kill(
    operator: Operator,
    State(routing): State<Routing>,
    State(node): State<Node>,
    PathId(agent): PathId<AgentId>,
    OptionalBody(request): OptionalBody<KillRequest>,
) -> Result<Json<KillReport>, ApiError> {
    operator.require(Role::Operator)?;
    let kill = Box::pin(routing.kill(&operator, agent, request));
    Ok(Json(node.priority().first(kill).await?))
}

pub(super) async fn kill_all(
    operator: Operator,
    State(routing): State<Routing>,
    State(node): State<Node>,
    OptionalBody(request): OptionalBody<KillAllRequest>,
) -> Result<Json<FederationKillAll>, ApiError> {
    operator.require(Role::Operator)?;
    let kill = Box::pin(routing.kill_all(&operator, request));
    Ok(Json(node.priority().first(kill).await?))
}

pub(super) async fn result(
    operator: Operator,
    State(routing): State<Routing>,
    PathId(agent): PathId<AgentId>,
    Query(params): Query<ResultParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    operator.require(Role::Viewer)?;
    let format = params.format.unwrap_or_else(|| {
        if accepts(&headers, PATCH) {
            ResultFormat::Patch
        } else if accepts(&headers, BUNDLE) {
            ResultFormat::Bundle
        } else {
            ResultFormat::Json
        }
    });
    if format == ResultFormat::Bundle {
        let bundle = routing.bundle(agent, params.salvaged).await?;
        let head = [
            (header::CONTENT_TYPE, HeaderValue::from_static(BUNDLE)),
            // So that one which breaks off is not taken for whole.
            (
                header::CONTENT_LENGTH,
                HeaderValue::from(bundle.total_bytes),
            ),
        ];
        return Ok((head, axum::body::Body::from_stream(bundle.bytes)).into_response());
    }
    if format == ResultFormat::Json && params.salvaged {
        return Ok(Json(routing.salvaged(agent).await?).into_response());
    }
    let work = routing.work(agent).await?;
    if format == ResultFormat::Json {
        return Ok(Json(work.into_result()).into_response());
    }
    let patch = work
        .patch
        .ok_or_else(|| Refusal::new(ErrorCode::NoResult, "the agent left no work, so no patch"))?;
    Ok(([(header::CONTENT_TYPE, PATCH)], patch).into_response())
}

fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|range| range.trim().eq_ignore_ascii_case(media_type))
}
