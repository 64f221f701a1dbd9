//! The audit trail.

use axum::{Json, extract::State};
use mosaic_types::{
    ErrorCode, Refusal,
    api::{AuditPage, AuditVerdict, Role, WitnessedHead},
};
use serde::Deserialize;

use crate::{
    http::{ApiError, Operator, Query},
    node::Node,
};

const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PageQuery {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    limit: Option<u32>,
}

pub(super) async fn page(
    State(node): State<Node>,
    operator: Operator,
    Query(query): Query<PageQuery>,
) -> Result<Json<AuditPage>, ApiError> {
    operator.require(Role::Viewer)?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError(Refusal::field(
            ErrorCode::InvalidRequest,
            "limit",
            format!("must be 1 to {MAX_PAGE}"),
        )));
    }
    let entries = node.store().audit_entries(query.after, limit).await?;
    let head = node.audit().head();
    let more = entries.last().is_some_and(|last| last.seq < head.seq);
    Ok(Json(AuditPage {
        entries,
        head,
        more,
    }))
}

pub(super) async fn verify(
    State(node): State<Node>,
    operator: Operator,
) -> Result<Json<AuditVerdict>, ApiError> {
    operator.require(Role::Viewer)?;
    let verdict = mosaic_store::audit::verify(&**node.store(), []).await?;
    Ok(Json(verdict))
}

pub(super) async fn witnessed(
    State(node): State<Node>,
    operator: Operator,
) -> Result<Json<Vec<WitnessedHead>>, ApiError> {
    operator.require(Role::Viewer)?;
    let mut heads = node.store().witnessed_heads().await?;
    // Whoever verifies with these finds the peer's trail wrong, whichever of the two it holds to.
    heads.extend(node.store().contradicted_heads().await?);
    Ok(Json(heads))
}
