//! What an ended agent left, as its callers get it: in parts that can be signed.

use std::{
    io::{Read as _, Seek as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mosaic_types::{
    AgentId, ErrorCode, Refusal,
    command::{AgentResult, PatchEncoding, PatchPart, ResultPayload},
    work::{ResultForm, Salvaged, SalvagedRef},
};
use tracing::error;

use super::{Agents, Source};
use crate::{
    events,
    killswitch::Reach,
    worktree::{BundleOf, WorktreeError},
};

/// How much of a patch goes into one answer, in bytes.
const PATCH_PART_BYTES: u64 = 3 << 20;
/// The longest that a part of a patch may be in JSON, in bytes: text where every character is escaped by one. What
/// is longer goes as base64, which needs no escapes.
const PATCH_PART_JSON_BYTES: usize = 6 << 20;

impl Agents {
    /// What an ended agent left, with its patch or bundle from an offset on.
    ///
    /// # Errors
    /// `unknown-agent`; `not-ended` until its work is home; `no-result` for a bundle of nothing; `body-too-large` for
    /// one above its limit; `invalid-request` for an offset beyond the end; `store-unavailable`.
    pub async fn result(
        &self,
        wanted: &ResultPayload,
        reach: Reach,
    ) -> Result<AgentResult, Refusal> {
        let status = match self.source(wanted.agent_id, reach).await? {
            Source::Live(views) => {
                let view = views.borrow().clone();
                if !view.record.state.is_terminal() || view.record.cleanup_pending {
                    return Err(Refusal::new(
                        ErrorCode::NotEnded,
                        "the agent's work is not home yet",
                    ));
                }
                view.status()
            }
            Source::Ended(record) => record.status.clone(),
        };
        let agent = wanted.agent_id;
        let offset = wanted.patch_offset.unwrap_or(0);
        let salvaged = if wanted.salvaged && offset == 0 {
            Some(self.salvaged(agent).await?)
        } else {
            None
        };
        let (patch, bundle) = match wanted.form.unwrap_or_default() {
            ResultForm::Patch
                if status
                    .work
                    .as_ref()
                    .is_some_and(|work| work.patch_bytes > 0) =>
            {
                let path = self.around.worktrees.patch_path(&agent);
                (Some(part_at(path, offset).await?), None)
            }
            ResultForm::Patch => (None, None),
            ResultForm::Bundle => {
                let path = self.bundle(agent, wanted.salvaged).await?;
                (None, Some(part_at(path, offset).await?))
            }
        };
        Ok(AgentResult {
            status,
            patch,
            bundle,
            salvaged,
        })
    }

    async fn salvaged(&self, agent: AgentId) -> Result<Salvaged, Refusal> {
        match self.around.worktrees.salvaged(&agent).await {
            Ok((refs, more)) => Ok(Salvaged {
                refs: refs
                    .into_iter()
                    .map(|held| SalvagedRef {
                        git_ref: held.name,
                        commit: held.commit,
                        subject: held.subject,
                        commits: held.commits as u64,
                        files_changed: held.files_changed as u64,
                    })
                    .collect(),
                more,
            }),
            // It never had a tree.
            Err(WorktreeError::NotPrepared) => Ok(Salvaged::default()),
            Err(error) => Err(failed(agent, &error)),
        }
    }

    async fn bundle(&self, agent: AgentId, salvaged: bool) -> Result<PathBuf, Refusal> {
        let of = if salvaged {
            BundleOf::Salvaged
        } else {
            BundleOf::Branch
        };
        let nothing = || {
            let message = match of {
                BundleOf::Branch => {
                    "the agent's branch has no commit of its own, so there is no bundle of it"
                }
                BundleOf::Salvaged => "the agent left no work, so no bundle",
            };
            Refusal::field(ErrorCode::NoResult, "form", message)
        };
        match self.around.worktrees.bundle(&agent, of).await {
            Ok(Some(path)) => Ok(path),
            Ok(None) | Err(WorktreeError::NotPrepared) => Err(nothing()),
            Err(error) => Err(failed(agent, &error)),
        }
    }
}

/// Work that cannot be handed over, as the caller sees it.
fn failed(agent: AgentId, error: &WorktreeError) -> Refusal {
    match error {
        WorktreeError::TooLarge { .. } => {
            Refusal::field(ErrorCode::BodyTooLarge, "form", error.to_string())
        }
        WorktreeError::DiskFull { .. } => Refusal::new(error.code(), error.to_string()),
        _ => {
            error!(%agent, error = error as &dyn std::error::Error, "failed to read an agent's work");
            Refusal::new(ErrorCode::Internal, "the work cannot be read")
        }
    }
}

async fn part_at(path: PathBuf, offset: u64) -> Result<PatchPart, Refusal> {
    tokio::task::spawn_blocking(move || read_part(&path, offset))
        .await
        .map_err(|_| Refusal::new(ErrorCode::Internal, "reading broke off"))?
}

fn read_part(path: &Path, offset: u64) -> Result<PatchPart, Refusal> {
    let gone = |_| Refusal::new(ErrorCode::NoResult, "the work is not there any more");
    let mut file = std::fs::File::open(path).map_err(gone)?;
    let total_bytes = file.metadata().map_err(gone)?.len();
    if offset > total_bytes {
        return Err(Refusal::field(
            ErrorCode::InvalidRequest,
            "patchOffset",
            format!("must be at most {total_bytes}"),
        ));
    }
    let mut bytes = Vec::new();
    file.seek(std::io::SeekFrom::Start(offset)).map_err(gone)?;
    file.take(PATCH_PART_BYTES)
        .read_to_end(&mut bytes)
        .map_err(gone)?;
    Ok(part_of(bytes, offset, total_bytes))
}

/// Text goes as text, up to the last whole character; anything else as base64, and text that is much longer in JSON.
fn part_of(mut bytes: Vec<u8>, offset: u64, total_bytes: u64) -> PatchPart {
    if let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
        && error.valid_up_to() > 0
    {
        bytes.truncate(error.valid_up_to());
    }
    let end = offset + bytes.len() as u64;
    let fits = events::json_bytes(&bytes) <= PATCH_PART_JSON_BYTES;
    let (content, encoding) = match String::from_utf8(bytes) {
        Ok(text) if fits => (text, PatchEncoding::Utf8),
        Ok(text) => (STANDARD.encode(text), PatchEncoding::Base64),
        Err(error) => (STANDARD.encode(error.as_bytes()), PatchEncoding::Base64),
    };
    PatchPart {
        content,
        encoding,
        offset,
        total_bytes,
        next_offset: (end < total_bytes).then_some(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_ends_at_a_whole_character_and_the_next_begins_there() {
        let bytes = "aä".as_bytes();
        let part = part_of(bytes[..2].to_vec(), 0, 3);
        assert_eq!((part.content.as_str(), part.next_offset), ("a", Some(1)));
        let rest = part_of(bytes[1..].to_vec(), 1, 3);
        assert_eq!((rest.content.as_str(), rest.next_offset), ("ä", None));
    }

    #[test]
    fn f21_a_part_that_json_would_blow_up_goes_as_base64() {
        let bytes = vec![1; usize::try_from(PATCH_PART_BYTES).unwrap()];
        let part = part_of(bytes.clone(), 0, PATCH_PART_BYTES);
        assert_eq!(part.encoding, PatchEncoding::Base64);
        assert!(serde_json::to_vec(&part).unwrap().len() < PATCH_PART_JSON_BYTES);
        assert_eq!(STANDARD.decode(part.content).unwrap(), bytes);
    }

    #[test]
    fn bytes_that_are_no_text_go_as_base64() {
        let part = part_of(vec![0xff, 0xfe, b'a'], 0, 3);
        assert_eq!(part.encoding, PatchEncoding::Base64);
        assert_eq!(STANDARD.decode(part.content).unwrap(), [0xff, 0xfe, b'a']);
    }
}
