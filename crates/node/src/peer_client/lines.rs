//! The lines of a peer's stream, verified one by one.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::BoxStream};
use mosaic_federation::{dsse::MAX_RESPONSE_BYTES, event::EventStream};
use mosaic_types::{Timestamp, event::AgentEvent};

use super::{PeerError, TransportError};

/// A stream that has shown no sign of life for so long is over: a peer gives one every 15 s.
const STREAM_SILENCE: Duration = Duration::from_secs(45);

/// The lines of a stream as they come in.
pub(super) struct IncomingLines {
    body: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no line feed.
    searched: usize,
    verified: EventStream,
}

impl IncomingLines {
    pub(super) fn new(
        body: BoxStream<'static, Result<Bytes, reqwest::Error>>,
        verified: EventStream,
    ) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
            verified,
        }
    }

    /// The next batch; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<AgentEvent>>, PeerError> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                return self
                    .verified
                    .next(line, Timestamp::now())
                    .map(Some)
                    .map_err(PeerError::Stream);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_RESPONSE_BYTES {
                return Err(PeerError::Unreachable(TransportError::TooLarge {
                    limit: MAX_RESPONSE_BYTES,
                }));
            }
            let chunk = tokio::time::timeout(STREAM_SILENCE, self.body.next())
                .await
                .map_err(|_| PeerError::TimedOut)?;
            match chunk {
                None => return Ok(None),
                Some(Ok(chunk)) => self.buffer.extend_from_slice(&chunk),
                Some(Err(error)) => return Err(PeerError::transport(TransportError::of(error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use mosaic_federation::{command::CommandBuilder, identity::Identity};
    use mosaic_types::{
        ConnectionId,
        command::CommandType,
        connection::{Connection, ConnectionState, NodeRole},
        grant::Grants,
    };

    use super::*;

    /// A peer that has gone without a word does not keep whoever watches waiting for ever.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_falls_silent_is_over() {
        let dir = tempfile::TempDir::new().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let now = Timestamp::now();
        let request = CommandBuilder::new(identity.instance_id(), CommandType::AgentWatch)
            .seal(&identity, &serde_json::json!({}), now)
            .unwrap();
        let connection = Connection {
            connection_id: ConnectionId::generate(),
            peer: identity.instance_id().clone(),
            name: "peer".to_owned(),
            role: NodeRole::Orchestrator,
            url: None,
            keys: Vec::new(),
            protocol: 1,
            state: ConnectionState::Active,
            granted: Grants::none(),
            received: Grants::none(),
            invite_id: None,
            outgoing: true,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let verified = EventStream::new(connection, identity.instance_id().clone(), &request);
        let mut lines = IncomingLines::new(stream::pending().boxed(), verified);
        let waiting = tokio::time::timeout(STREAM_SILENCE * 2, lines.next());
        assert!(matches!(waiting.await, Ok(Err(PeerError::TimedOut))));
    }
}
