//! The client by which this node commands its peers: one pool of connections, signed requests, verified answers.
//!
//! An answer counts only if the peer signed it, for this very request. Anything else, whatever its status, tells
//! nothing about what became of the command.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream, stream::BoxStream};
use http::{StatusCode, header};
use mosaic_federation::{
    command::{CommandBuilder, SealedCommand},
    connect::{
        ConnectAnswer, MAX_IDENTITY_BYTES, VerifiedIdentity, seal_connect, verify_connect_response,
    },
    dsse::MAX_RESPONSE_BYTES,
    event::EventStream,
    identity::Identity,
    key::Keyring,
    response::{ResponseError, verify_response_with},
    token::TokenSecret,
};
use mosaic_store::SharedStore;
use mosaic_types::{
    ConnectionId, InstanceId, MessageId, Timestamp,
    audit::AuditHead,
    command::{CommandType, WatchPayload},
    connection::{Connection, ConnectionState},
    event::AgentEvent,
    grant::Grants,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::AuditLog;

mod error;
pub mod guard;
mod heads;
mod lines;
mod shares;
mod transport;

pub use error::PeerError;
pub use guard::{PeerUrl, PeerUrlError};
pub use transport::{BuildClientError, TransportError};

use heads::{ShownHeads, witness};
use lines::IncomingLines;
use shares::Shares;
use transport::{Transport, read_bounded};

const COMMANDS: &str = "/federation/v1/commands";
const STREAMS: &str = "/federation/v1/streams";
const CONNECT: &str = "/federation/v1/connect";
const WELL_KNOWN: &str = "/.well-known/mosaic";

/// How long a peer may take to identify itself, or to answer a connect request.
const CONNECT_EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take to open a stream.
const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A command to send.
#[derive(Debug, Clone, Copy)]
pub struct CommandCall<'a, P: ?Sized> {
    /// Its id; a fresh one if `None`.
    pub message_id: Option<MessageId>,
    /// What to ask for.
    pub command_type: CommandType,
    /// With what.
    pub payload: &'a P,
    /// How long the answer may take. The command is good for as long from when it is sent, within 1 to 300 s after it
    /// was issued.
    pub timeout: Duration,
    /// When it was issued, if that is before it is sent: a kill that was ordered meanwhile comes after it.
    pub issued_at: Option<Timestamp>,
}

/// A peer's verified answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerAnswer<T> {
    /// Id of the command that it answers.
    pub message_id: MessageId,
    /// What it says.
    pub data: T,
    /// Where the peer's audit trail ended.
    pub audit_head: AuditHead,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub struct PeerClient {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    /// Kills have connections of their own, which nothing else can fill.
    kill_transport: Transport,
    identity: Arc<Identity>,
    store: SharedStore,
    audit: AuditLog,
    allow_private: bool,
    shares: Shares,
    /// What peers have shown of their trails. As many as there are peers that answered.
    heads: Mutex<HashMap<InstanceId, ShownHeads>>,
    /// The keys of each connection at its version, enrolled once. As many as there are connections.
    keyrings: Mutex<HashMap<ConnectionId, (u64, Arc<Keyring>)>>,
}

impl std::fmt::Debug for PeerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerClient").finish_non_exhaustive()
    }
}

impl PeerClient {
    pub(crate) fn new(
        identity: Arc<Identity>,
        store: SharedStore,
        audit: AuditLog,
        allow_private: bool,
    ) -> Result<Self, BuildClientError> {
        Ok(Self {
            inner: Arc::new(Inner {
                transport: Transport::new(allow_private)?,
                kill_transport: Transport::new(allow_private)?,
                identity,
                store,
                audit,
                allow_private,
                shares: Shares::default(),
                heads: Mutex::default(),
                keyrings: Mutex::default(),
            }),
        })
    }

    /// Sends a command and waits for the verified answer. It is sent once: whoever wants to try again decides so,
    /// with the same message id.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn command<T, P>(
        &self,
        connection: &Connection,
        call: CommandCall<'_, P>,
    ) -> Result<PeerAnswer<T>, PeerError>
    where
        T: DeserializeOwned,
        P: Serialize + ?Sized,
    {
        let url = self.url_of(connection)?;
        let share = self.inner.shares.of(&connection.peer);
        let _call = if call.command_type.is_kill() {
            None
        } else {
            Some(share.call(call.timeout).await.ok_or(PeerError::Busy)?)
        };
        let request = self.seal(connection, &call)?;
        let message_id = request.message_id;
        let transport = if call.command_type.is_kill() {
            &self.inner.kill_transport
        } else {
            &self.inner.transport
        };
        let exchange = transport.exchange(
            &url,
            COMMANDS,
            request.bytes.clone(),
            call.timeout,
            MAX_RESPONSE_BYTES,
        );
        let (status, bytes) = exchange.await.map_err(PeerError::transport)?;
        self.read(connection, &request, status, &bytes)
            .map(|(data, audit_head)| PeerAnswer {
                message_id,
                data,
                audit_head,
            })
    }

    /// Opens a stream of an agent's events. Batches may be empty: signs of life. The stream ends when the peer
    /// ends it, and after an error.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn watch(
        &self,
        connection: &Connection,
        payload: &WatchPayload,
    ) -> Result<BoxStream<'static, Result<Vec<AgentEvent>, PeerError>>, PeerError> {
        let url = self.url_of(connection)?;
        let call = CommandCall {
            message_id: None,
            command_type: CommandType::AgentWatch,
            payload,
            timeout: STREAM_OPEN_TIMEOUT,
            issued_at: None,
        };
        let share = self.inner.shares.of(&connection.peer);
        let place = share.stream().ok_or(PeerError::Busy)?;
        let request = self.seal(connection, &call)?;
        let sending = self
            .inner
            .transport
            .post(&url, STREAMS, request.bytes.clone(), None);
        let response = tokio::time::timeout(STREAM_OPEN_TIMEOUT, sending)
            .await
            .map_err(|_| PeerError::TimedOut)?
            .map_err(PeerError::transport)?;
        let status = response.status();
        let is_stream = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes() == crate::endpoint::EVENT_LINES.as_bytes());
        if status != StatusCode::OK || !is_stream {
            let reading = read_bounded(response, MAX_RESPONSE_BYTES);
            let bytes = tokio::time::timeout(STREAM_OPEN_TIMEOUT, reading)
                .await
                .map_err(|_| PeerError::TimedOut)?
                .map_err(PeerError::transport)?;
            let refused: Result<(serde_json::Value, _), _> =
                self.read(connection, &request, status, &bytes);
            return Err(refused.err().unwrap_or(PeerError::Unsigned { status }));
        }
        let me = self.inner.identity.instance_id().clone();
        let verified = EventStream::new(connection.clone(), me, &request);
        let lines = IncomingLines::new(response.bytes_stream().boxed(), verified);
        let events = stream::unfold(Some((lines, place)), |open| async move {
            let (mut lines, place) = open?;
            match lines.next().await {
                Ok(Some(events)) => Some((Ok(events), Some((lines, place)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(events.boxed())
    }

    /// Asks whoever is at `url` who it is; of `expected`, if that is known.
    pub(crate) async fn identify(
        &self,
        url: &PeerUrl,
        expected: Option<&InstanceId>,
    ) -> Result<VerifiedIdentity, PeerError> {
        let exchange = self.inner.transport.get(
            url,
            WELL_KNOWN,
            CONNECT_EXCHANGE_TIMEOUT,
            MAX_IDENTITY_BYTES,
        );
        let (status, bytes) = exchange.await.map_err(PeerError::transport)?;
        if status != StatusCode::OK {
            return Err(PeerError::Unsigned { status });
        }
        let now = Timestamp::now();
        match expected {
            Some(expected) => VerifiedIdentity::verify_of(&bytes, expected, now),
            None => VerifiedIdentity::verify(&bytes, now),
        }
        .map_err(PeerError::Identity)
    }

    /// Asks a peer to be connected.
    pub(crate) async fn connect(
        &self,
        url: &PeerUrl,
        peer: &VerifiedIdentity,
        own_identity: &[u8],
        token: Option<&TokenSecret>,
        requested: &Grants,
    ) -> Result<ConnectAnswer, PeerError> {
        let identity = &self.inner.identity;
        let to = Some(peer.instance_id());
        let request = seal_connect(
            identity,
            own_identity,
            to,
            token,
            requested,
            Timestamp::now(),
        )
        .map_err(PeerError::Seal)?;
        let exchange = self.inner.transport.exchange(
            url,
            CONNECT,
            request.bytes.clone(),
            CONNECT_EXCHANGE_TIMEOUT,
            MAX_RESPONSE_BYTES,
        );
        let (status, bytes) = exchange.await.map_err(PeerError::transport)?;
        let me = identity.instance_id();
        let answer = verify_connect_response(&bytes, peer, me, &request, Timestamp::now())
            .map_err(|error| unverifiable(status, error))?
            .map_err(PeerError::Refused)?;
        self.witness(peer.instance_id(), &answer.audit_head);
        Ok(answer)
    }

    fn url_of(&self, connection: &Connection) -> Result<PeerUrl, PeerError> {
        if connection.state != ConnectionState::Active {
            return Err(PeerError::NotActive);
        }
        let url = connection.url.as_deref().ok_or(PeerError::NoUrl)?;
        self.url(url)
    }

    /// Checks a URL by what this node is allowed to connect to.
    pub(crate) fn url(&self, text: &str) -> Result<PeerUrl, PeerError> {
        PeerUrl::parse(text, self.inner.allow_private).map_err(PeerError::Url)
    }

    fn seal<P: Serialize + ?Sized>(
        &self,
        connection: &Connection,
        call: &CommandCall<'_, P>,
    ) -> Result<SealedCommand, PeerError> {
        let now = Timestamp::now();
        // A clock that was set back meanwhile makes no command that is not valid yet.
        let issued_at = call.issued_at.unwrap_or(now).min(now);
        let good_for = now.since(issued_at) + call.timeout;
        let ttl_secs = good_for.as_secs() + u64::from(good_for.subsec_nanos() > 0);
        let builder = CommandBuilder::new(&connection.peer, call.command_type).ttl_secs(ttl_secs);
        let builder = match call.message_id {
            Some(message_id) => builder.message_id(message_id),
            None => builder,
        };
        builder
            .seal(&self.inner.identity, call.payload, issued_at)
            .map_err(PeerError::Seal)
    }

    fn read<T: DeserializeOwned>(
        &self,
        connection: &Connection,
        request: &SealedCommand,
        status: StatusCode,
        bytes: &Bytes,
    ) -> Result<(T, AuditHead), PeerError> {
        let me = self.inner.identity.instance_id();
        let keyring = self.keyring(connection);
        let response =
            verify_response_with(bytes, connection, &keyring, me, request, Timestamp::now())
                .map_err(|error| unverifiable(status, error))?;
        self.witness(&connection.peer, &response.audit_head);
        let data = response
            .read()
            .map_err(PeerError::Unverifiable)?
            .map_err(PeerError::Refused)?;
        Ok((data, response.audit_head))
    }

    /// The connection's keys, enrolled when this version of it was first seen.
    fn keyring(&self, connection: &Connection) -> Arc<Keyring> {
        let mut keyrings = self
            .inner
            .keyrings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((version, keyring)) = keyrings.get(&connection.connection_id)
            && *version == connection.version
        {
            return Arc::clone(keyring);
        }
        let mut keyring = Keyring::default();
        keyring.add(connection);
        let keyring = Arc::new(keyring);
        let kept = (connection.version, Arc::clone(&keyring));
        keyrings.insert(connection.connection_id, kept);
        keyring
    }

    /// Keeps the head of a peer's trail, in the background, if it is news.
    fn witness(&self, peer: &InstanceId, head: &AuditHead) {
        let starts = self
            .inner
            .heads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(peer.clone())
            .or_default()
            .take(head);
        if starts {
            tokio::spawn(witness(Arc::clone(&self.inner), peer.clone()));
        }
    }
}

fn unverifiable(status: StatusCode, error: ResponseError) -> PeerError {
    match status {
        StatusCode::UNAUTHORIZED => PeerError::NotAccepted,
        StatusCode::OK => PeerError::Unverifiable(error),
        status => PeerError::Unsigned { status },
    }
}
