//! An ended agent's work: asked for until it is home, fetched, put together.

use std::{io::Write, time::Duration};

use base64::Engine;
use mosaic_types::{
    AgentId, ErrorCode,
    command::{AgentResult, PatchEncoding, PatchPart},
    work::Salvaged,
};
use reqwest::{Method, Response};
use tempfile::NamedTempFile;
use tokio::time::Instant;

use super::{Client, LONG};
use crate::error::CliError;

/// How long an ended agent's work may take to be fetched from its tree.
const HARVEST: Duration = Duration::from_secs(60);
/// How often to look whether it has been.
const HARVEST_PAUSE: Duration = Duration::from_millis(50);
/// How long a whole bundle may take.
const BUNDLE: Duration = Duration::from_secs(660);

impl Client {
    /// An ended agent's work, with the whole patch.
    pub(crate) async fn result(&self, agent: AgentId) -> Result<AgentResult, CliError> {
        let response = self.work(agent, "", LONG).await?;
        let result = self.json(response).await?;
        if self.is_spoke().await {
            return self.put_together(agent, result).await;
        }
        Ok(result)
    }

    /// What the spoke's mirror holds of an ended agent.
    pub(crate) async fn salvaged(&self, agent: AgentId) -> Result<Salvaged, CliError> {
        let response = self.work(agent, "?salvaged=true", LONG).await?;
        let result: AgentResult = self.json(response).await?;
        result
            .salvaged
            .ok_or_else(|| self.malformed("it does not tell what was salvaged".to_owned()))
    }

    /// Writes an ended agent's bundle to `out`, and tells how long it is.
    pub(crate) async fn bundle(
        &self,
        agent: AgentId,
        salvaged: bool,
        out: &mut NamedTempFile,
    ) -> Result<u64, CliError> {
        let mut take = |bytes: &[u8]| {
            out.write_all(bytes).map_err(|source| CliError::File {
                action: "write",
                path: out.path().to_owned(),
                source,
            })
        };
        let mut length = 0;
        if !self.is_spoke().await {
            let query = format!("?format=bundle&salvaged={salvaged}");
            let mut response = self.work(agent, &query, BUNDLE).await?;
            while let Some(bytes) = response
                .chunk()
                .await
                .map_err(|source| self.unreachable(source))?
            {
                take(&bytes)?;
                length += bytes.len() as u64;
            }
            return Ok(length);
        }
        loop {
            let query = format!("?form=bundle&salvaged={salvaged}&patchOffset={length}");
            let response = self.work(agent, &query, LONG).await?;
            let part = self
                .json::<AgentResult>(response)
                .await?
                .bundle
                .filter(|part| part.offset == length && !part.content.is_empty())
                .ok_or_else(|| self.malformed("a part of the bundle is amiss".to_owned()))?;
            let bytes = self.decode(&part)?;
            take(&bytes)?;
            length += bytes.len() as u64;
            match part.next_offset {
                Some(next) if next == length => {}
                None if part.total_bytes == length => return Ok(length),
                _ => return Err(self.malformed("the bundle does not fit together".to_owned())),
            }
        }
    }

    /// Asks for an agent's work. It is fetched from the agent's tree after the death was told: as long as it is not
    /// home, it is asked for again. That is no question of its own, for its answer would be all of a large work.
    async fn work(
        &self,
        agent: AgentId,
        query: &str,
        timeout: Duration,
    ) -> Result<Response, CliError> {
        let path = format!("{}/agents/{agent}/result{query}", self.prefix().await);
        let mut deadline = None;
        loop {
            let answer = self.send(Method::GET, &path, None, &[], Some(timeout));
            let not_home = match answer.await {
                Err(CliError::Refused(problem)) if problem.code == ErrorCode::NotEnded => problem,
                answer => return answer,
            };
            // Whoever asks for the work of an agent that has not ended is told so.
            if deadline.is_none() && self.has_ended(agent).await? {
                deadline = Some(Instant::now() + HARVEST);
            }
            if deadline.is_none_or(|deadline| Instant::now() >= deadline) {
                return Err(CliError::Refused(not_home));
            }
            tokio::time::sleep(HARVEST_PAUSE).await;
        }
    }

    async fn has_ended(&self, agent: AgentId) -> Result<bool, CliError> {
        let state = self.status(agent).await?.state;
        Ok(state.known().is_some_and(|state| state.is_terminal()))
    }

    /// A spoke gives the patch in parts, of which this is the first; a hub puts them together.
    async fn put_together(
        &self,
        agent: AgentId,
        mut whole: AgentResult,
    ) -> Result<AgentResult, CliError> {
        let path = format!("/agents/{agent}/result");
        let mut next = whole.patch.as_ref().and_then(|part| part.next_offset);
        let Some(mut bytes) = whole
            .patch
            .as_ref()
            .map(|part| self.decode(part))
            .transpose()?
        else {
            return Ok(whole);
        };
        while let Some(offset) = next {
            let more: AgentResult = self.get(&format!("{path}?patchOffset={offset}")).await?;
            let part = more
                .patch
                .filter(|part| part.offset == bytes.len() as u64 && !part.content.is_empty());
            let part =
                part.ok_or_else(|| self.malformed("a part of the patch is amiss".to_owned()))?;
            bytes.extend(self.decode(&part)?);
            next = part.next_offset;
        }
        let total_bytes = bytes.len() as u64;
        let (content, encoding) = match String::from_utf8(bytes) {
            Ok(text) => (text, PatchEncoding::Utf8),
            Err(error) => {
                let engine = base64::engine::general_purpose::STANDARD;
                (engine.encode(error.as_bytes()), PatchEncoding::Base64)
            }
        };
        whole.patch = Some(PatchPart {
            content,
            encoding,
            offset: 0,
            total_bytes,
            next_offset: None,
        });
        Ok(whole)
    }

    fn decode(&self, part: &PatchPart) -> Result<Vec<u8>, CliError> {
        match part.encoding {
            PatchEncoding::Utf8 => Ok(part.content.clone().into_bytes()),
            PatchEncoding::Base64 => base64::engine::general_purpose::STANDARD
                .decode(&part.content)
                .map_err(|error| self.malformed(error.to_string())),
        }
    }

    /// An ended agent's patch.
    pub(crate) async fn patch(&self, agent: AgentId) -> Result<Vec<u8>, CliError> {
        if self.is_spoke().await {
            return self.patch_of(&self.result(agent).await?);
        }
        let response = self.work(agent, "?format=patch", LONG).await?;
        let bytes = response
            .bytes()
            .await
            .map_err(|source| self.unreachable(source))?;
        Ok(bytes.to_vec())
    }

    /// The whole patch of a result; nothing if there is none.
    pub(crate) fn patch_of(&self, result: &AgentResult) -> Result<Vec<u8>, CliError> {
        let part = result.patch.as_ref();
        part.map_or(Ok(Vec::new()), |part| self.decode(part))
    }
}
