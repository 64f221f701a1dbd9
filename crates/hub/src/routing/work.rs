//! Fetching an ended agent's work: the patch comes in parts and is put together here. What was salvaged is told by itself.

use base64::{Engine, engine::general_purpose::STANDARD};
use mosaic_types::{
    AgentId, ErrorCode, Refusal,
    command::{AgentResult, CommandType, PatchEncoding, PatchPart, ResultPayload},
    connection::Connection,
};

use super::{
    FETCH_LIMIT, Lane, Routing,
    parts::{Parts, misfit},
    require_about, require_active,
};

/// Largest patch that is put together, in bytes.
pub const MAX_PATCH_BYTES: u64 = 64 * 1024 * 1024;

/// An ended agent and its work.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The spoke's answer, without the patch.
    pub result: AgentResult,
    /// The whole patch, if the agent left work.
    pub patch: Option<Vec<u8>>,
}

impl Work {
    /// The answer with the whole patch in it.
    #[must_use]
    pub fn into_result(self) -> AgentResult {
        let patch = self.patch.map(|bytes| {
            let total_bytes = bytes.len() as u64;
            let (content, encoding) = match String::from_utf8(bytes) {
                Ok(text) => (text, PatchEncoding::Utf8),
                Err(error) => (STANDARD.encode(error.as_bytes()), PatchEncoding::Base64),
            };
            PatchPart {
                content,
                encoding,
                offset: 0,
                total_bytes,
                next_offset: None,
            }
        });
        AgentResult {
            patch,
            ..self.result
        }
    }
}

impl Routing {
    /// An ended agent and what was salvaged of it, without its patch.
    ///
    /// # Errors
    /// `unknown-agent`, `not-ended`, `connection-not-active`, `peer-unreachable`, the spoke's refusal.
    pub async fn salvaged(&self, agent: AgentId) -> Result<AgentResult, Refusal> {
        let connection = self.locate(agent).await?;
        require_active(&connection)?;
        let payload = ResultPayload {
            agent_id: agent,
            patch_offset: None,
            form: None,
            salvaged: true,
        };
        let answer: AgentResult = self
            .ask(&connection, CommandType::AgentResult, &payload)
            .await
            .map_err(Refusal::from)?;
        require_about(agent, answer.status.agent_id)?;
        Ok(AgentResult {
            status: self.take_in(connection.connection_id, answer.status),
            patch: None,
            bundle: None,
            salvaged: answer.salvaged,
        })
    }

    /// An ended agent's work.
    ///
    /// # Errors
    /// `unknown-agent`, `not-ended`, `connection-not-active`, `peer-unreachable` (also if the parts do not fit
    /// together), `body-too-large` if the patch is above [`MAX_PATCH_BYTES`], `overloaded`, the spoke's refusal.
    pub async fn work(&self, agent: AgentId) -> Result<Work, Refusal> {
        let connection = self.locate(agent).await?;
        require_active(&connection)?;
        let _permit = self.inner.assemblies.try_acquire().map_err(|_| {
            Refusal::new(
                ErrorCode::Overloaded,
                "too many results are being fetched at once",
            )
        })?;
        let id = connection.connection_id;
        let _place = self.inner.lanes.enter(id, Lane::Fetch)?;
        tokio::time::timeout(FETCH_LIMIT, self.fetch(&connection, agent))
            .await
            .unwrap_or_else(|_| {
                Err(Refusal::new(
                    ErrorCode::PeerUnreachable,
                    "the spoke takes too long to give the whole patch",
                ))
            })
    }

    async fn fetch(&self, connection: &Connection, agent: AgentId) -> Result<Work, Refusal> {
        let mut parts = Parts::new("patch", MAX_PATCH_BYTES);
        let mut bytes = Vec::new();
        loop {
            let payload = ResultPayload {
                agent_id: agent,
                patch_offset: parts.offset(),
                form: None,
                salvaged: false,
            };
            let answer: AgentResult = self
                .ask(connection, CommandType::AgentResult, &payload)
                .await
                .map_err(Refusal::from)?;
            require_about(agent, answer.status.agent_id)?;
            let complete = match &answer.patch {
                Some(part) => parts.add(part, &mut bytes)?,
                None if parts.offset().is_none() => true,
                None => return Err(misfit("patch", "a part is missing")),
            };
            if complete {
                let status = self.take_in(connection.connection_id, answer.status);
                return Ok(Work {
                    result: AgentResult {
                        status,
                        patch: None,
                        bundle: None,
                        salvaged: None,
                    },
                    patch: parts.offset().map(|_| bytes),
                });
            }
        }
    }
}
