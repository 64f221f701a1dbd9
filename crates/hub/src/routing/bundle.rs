//! An ended agent's work as a git bundle: passed on part by part, as it comes from the spoke.

use std::time::Duration;

use futures_util::{StreamExt, future, stream, stream::BoxStream};
use mosaic_types::{
    AgentId, ErrorCode, MessageId, Refusal,
    command::{AgentResult, CommandType, ResultPayload},
    work::ResultForm,
};
use tokio::{sync::mpsc, time::Instant};
use tracing::warn;

use super::{
    ASK_LIMIT, Lane, Routing,
    parts::{Parts, misfit},
    require_about, require_active,
};

/// Largest bundle that is passed on, in bytes.
const MAX_BUNDLE_BYTES: u64 = 1024 * 1024 * 1024;
/// How long the first part may take: a spoke makes the bundle before it, for 120 s at most.
const MAKING_LIMIT: Duration = Duration::from_secs(125);
/// How long a whole bundle may take, whatever the spoke and the client do.
const BUNDLE_LIMIT: Duration = Duration::from_secs(600);

/// A bundle on its way.
pub struct Bundle {
    /// How long it is.
    pub total_bytes: u64,
    /// Its bytes. It ends early, with an error, where the spoke gives no more.
    pub bytes: BoxStream<'static, Result<Vec<u8>, Refusal>>,
}

impl Routing {
    /// An ended agent's work as a bundle: its branch, or with `salvaged` all that the spoke's mirror holds of it.
    ///
    /// # Errors
    /// `unknown-agent`, `not-ended`, `connection-not-active`, `peer-unreachable`, `body-too-large`, `overloaded`, the
    /// spoke's refusal. All of them before the first byte.
    pub async fn bundle(&self, agent: AgentId, salvaged: bool) -> Result<Bundle, Refusal> {
        let connection = self.locate(agent).await?;
        require_active(&connection)?;
        let place = self
            .inner
            .lanes
            .enter(connection.connection_id, Lane::Fetch)?;
        let deadline = Instant::now() + BUNDLE_LIMIT;
        let mut parts = Parts::new("bundle", MAX_BUNDLE_BYTES);
        let routing = self.clone();
        let next = async move |parts: &mut Parts| {
            let payload = ResultPayload {
                agent_id: agent,
                patch_offset: parts.offset(),
                form: Some(ResultForm::Bundle),
                salvaged,
            };
            let limit = if parts.offset().is_none() {
                MAKING_LIMIT
            } else {
                ASK_LIMIT
            };
            let (id, kind) = (MessageId::generate(), CommandType::AgentResult);
            let answer: AgentResult = routing
                .call(&connection, id, kind, &payload, limit)
                .await
                .map_err(Refusal::from)?;
            require_about(agent, answer.status.agent_id)?;
            let part = answer
                .bundle
                .ok_or_else(|| misfit("bundle", "a part is missing"))?;
            let mut bytes = Vec::new();
            let is_last = parts.add(&part, &mut bytes)?;
            Ok::<_, Refusal>((bytes, is_last, part.total_bytes))
        };
        let (first, mut is_last, total_bytes) = next(&mut parts).await?;
        // The place is the pump's, not the client's: one that reads by drops does not keep it for ever. The pump ends
        // when nobody reads any more.
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move {
            let _place = place;
            let pump = async {
                while !is_last {
                    let part = next(&mut parts).await.map(|(bytes, last, _)| {
                        is_last = last;
                        bytes
                    });
                    is_last = is_last || part.is_err();
                    if send.send(part).await.is_err() {
                        return;
                    }
                }
            };
            if tokio::time::timeout_at(deadline, pump).await.is_err() {
                warn!(%agent, "a bundle took too long and was given up");
                let late = Refusal::new(ErrorCode::PeerUnreachable, "the bundle takes too long");
                let _ = send.try_send(Err(late));
            }
        });
        let rest = stream::unfold(receive, |mut receive| async move {
            let part = receive.recv().await?;
            Some((part, receive))
        });
        let bytes = stream::once(future::ready(Ok(first))).chain(rest).boxed();
        Ok(Bundle { total_bytes, bytes })
    }
}
