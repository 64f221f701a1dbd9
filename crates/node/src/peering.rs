//! How connections come about and end: the verbs of operators, and what is decided about those who ask.

use std::{sync::Arc, time::Duration};

use mosaic_federation::{
    connect::{ConnectAnswer, VerifiedIdentity},
    connection::{self as moves, ConnectionError, Origin},
    token::{PeeringToken, TokenError, TokenSecret},
};
use mosaic_store::InviteRecord;
use mosaic_types::{
    ConnectionId, ErrorCode, InviteId, Refusal, Timestamp,
    api::{ConnectRequest, InviteCreated, InviteRequest},
    audit::{Actor, AuditEvent},
    connection::{Connection, ConnectionState},
    grant::Grants,
};

use crate::{
    connections::{Connections, Decision},
    http::problem::store_refusal,
    node::Node,
    peer_client::{PeerError, PeerUrl},
};

const DEFAULT_INVITE_TTL_SECS: u64 = 3600;
const MAX_INVITE_TTL_SECS: u64 = 7 * 86_400;

mod ask_again;
mod decide;

pub(crate) use ask_again::ask_again;
pub(crate) use decide::ConnectDecision;

impl Node {
    /// Makes a peering token.
    ///
    /// # Errors
    /// `invalid-request` with the member at fault, or what the store says.
    pub async fn invite(
        &self,
        request: InviteRequest,
        actor: Actor,
    ) -> Result<InviteCreated, Refusal> {
        let ttl_secs = request.ttl_secs.unwrap_or(DEFAULT_INVITE_TTL_SECS);
        if !(1..=MAX_INVITE_TTL_SECS).contains(&ttl_secs) {
            return Err(Refusal::field(
                ErrorCode::InvalidRequest,
                "ttlSecs",
                format!("must be 1 to {MAX_INVITE_TTL_SECS}"),
            ));
        }
        moves::check_grants(&request.grants).map_err(|error| error.refusal())?;
        let url = self.public_url().ok_or_else(|| {
            Refusal::new(
                ErrorCode::InvalidRequest,
                "this node has no public URL by which a peer could reach it",
            )
        })?;
        let now = Timestamp::now();
        let token = PeeringToken::mint(
            url,
            self.instance_id().clone(),
            InviteId::generate(),
            now.saturating_add(Duration::from_secs(ttl_secs)),
            request.grants,
        )
        .map_err(|error| {
            tracing::error!(%error, "failed to make a peering token");
            Refusal::new(ErrorCode::Internal, "no randomness is available")
        })?;
        let text = token.encode().map_err(|error| {
            Refusal::field(ErrorCode::InvalidRequest, "grants", error.to_string())
        })?;
        let audit = AuditEvent {
            at: now,
            actor,
            action: "invite.create".to_owned(),
            subject: Some(token.invite_id.to_string()),
            outcome: "ok".to_owned(),
            detail: serde_json::json!({ "expiresAt": token.expires_at, "grants": token.grants }),
        };
        let invite = InviteRecord {
            invite_id: token.invite_id,
            secret_hash: token.secret_hash(),
            grants: token.grants.clone(),
            created_at: now,
            expires_at: token.expires_at,
            used_by: None,
        };
        let saved = self.store().save_invite(invite, audit).await;
        saved.map_err(|error| store_refusal(&error))?;
        Ok(InviteCreated {
            invite_id: token.invite_id,
            token: text.to_string(),
            expires_at: token.expires_at,
        })
    }

    /// Connects to a peer: with a token at once, with a URL once the peer's operator accepts. Asked for again, it
    /// asks the peer again.
    ///
    /// # Errors
    /// `invalid-token` if the token is unknown, expired or used; `peer-unreachable`; what the peer refuses; or
    /// what the store says.
    pub async fn connect(
        &self,
        request: ConnectRequest,
        actor: Actor,
    ) -> Result<Arc<Connection>, Refusal> {
        let now = Timestamp::now();
        match (request.token, request.url) {
            (Some(text), None) => {
                if request.requested_grants.is_some() {
                    return Err(Refusal::field(
                        ErrorCode::InvalidRequest,
                        "requestedGrants",
                        "the token says what is granted",
                    ));
                }
                let token =
                    PeeringToken::parse(&text, now).map_err(|error| token_refusal(&error))?;
                let url = self.peers().url(&token.url).map_err(|error| Refusal {
                    field: Some("token".to_owned()),
                    ..error.refusal()
                })?;
                let identity = self
                    .peers()
                    .identify(&url, Some(&token.instance_id))
                    .await
                    .map_err(|error| error.refusal())?;
                let by = Asking::Token(&token.secret, token.invite_id);
                self.ask(&url, &identity, by, &token.grants, actor).await
            }
            (None, Some(text)) => {
                let url = self.peers().url(&text).map_err(|error| error.refusal())?;
                let identity = self
                    .peers()
                    .identify(&url, None)
                    .await
                    .map_err(|error| error.refusal())?;
                let requested = request.requested_grants.unwrap_or_default();
                self.ask(&url, &identity, Asking::Operator, &requested, actor)
                    .await
            }
            _ => Err(Refusal::new(
                ErrorCode::InvalidRequest,
                "either `token` or `url` is required",
            )),
        }
    }

    async fn ask(
        &self,
        url: &PeerUrl,
        identity: &VerifiedIdentity,
        by: Asking<'_>,
        requested: &Grants,
        actor: Actor,
    ) -> Result<Arc<Connection>, Refusal> {
        let peer = identity.instance_id();
        if peer == self.instance_id() {
            return Err(itself());
        }
        let token = match by {
            Asking::Token(secret, invite_id) => Some((secret, invite_id)),
            Asking::Operator | Asking::Again(_) => None,
        };
        // Before the token is used up.
        let may_ask = |connections: &Connections| by.may_change(connections.by_peer(peer));
        may_ask(self.connections())?;
        let own = self
            .identity_envelope(Timestamp::now())
            .map_err(|error| crate::endpoint::seal_fault(&error))?;
        let secret = token.map(|(secret, _)| secret);
        let answered = self
            .peers()
            .connect(url, identity, &own, secret, requested)
            .await;
        let answer = match answered {
            Ok(answer) => answer,
            Err(PeerError::NotAccepted) if token.is_some() => {
                return Err(Refusal::field(
                    ErrorCode::InvalidToken,
                    "token",
                    "the peer does not take the peering token: it is unknown, expired or used",
                ));
            }
            Err(error) => return Err(error.refusal()),
        };
        let now = Timestamp::now();
        let decided = self.connections().decide(|connections| {
            let known = may_ask(connections)?;
            let next = answered_connection(known.as_deref(), url, &answer, token, now)?;
            let unchanged = known.is_some_and(|known| same_but_version(&known, &next));
            let decision = Decision {
                connection: next,
                invite: None,
                actor,
                action: (!unchanged).then_some("connection.connect"),
                requested: None,
            };
            Ok((decision, ()))
        });
        decided.await.map(|(connection, ())| connection)
    }

    /// Accepts a connection that a peer asked for.
    ///
    /// # Errors
    /// `unknown-connection`; `connection-not-active` if it does not wait for this node; `invalid-request` for grants
    /// that cannot be used; or what the store says.
    pub async fn accept(
        &self,
        id: ConnectionId,
        grants: Grants,
        actor: Actor,
    ) -> Result<Arc<Connection>, Refusal> {
        let accept = move |connection: &Connection, now| {
            if connection.outgoing {
                return Err(Refusal::new(
                    ErrorCode::ConnectionNotActive,
                    "this node asked for the connection; the peer's operator accepts it",
                ));
            }
            moves::accept(connection, grants.clone(), now).map_err(|error| error.refusal())
        };
        self.connections().change(id, actor, accept).await
    }

    /// Rejects a connection that waits to be accepted.
    ///
    /// # Errors
    /// As of [`accept`](Self::accept).
    pub async fn reject(&self, id: ConnectionId, actor: Actor) -> Result<Arc<Connection>, Refusal> {
        self.move_connection(id, actor, moves::reject).await
    }

    /// Takes a connection out of use, at once.
    ///
    /// # Errors
    /// As of [`Connections::change`].
    pub async fn suspend(
        &self,
        id: ConnectionId,
        actor: Actor,
    ) -> Result<Arc<Connection>, Refusal> {
        self.move_connection(id, actor, moves::suspend).await
    }

    /// Takes a suspended connection into use again.
    ///
    /// # Errors
    /// As of [`Connections::change`].
    pub async fn resume(&self, id: ConnectionId, actor: Actor) -> Result<Arc<Connection>, Refusal> {
        self.move_connection(id, actor, moves::resume).await
    }

    /// Ends a connection for good, at once.
    ///
    /// # Errors
    /// As of [`Connections::change`].
    pub async fn disconnect(
        &self,
        id: ConnectionId,
        actor: Actor,
    ) -> Result<Arc<Connection>, Refusal> {
        self.move_connection(id, actor, moves::disconnect).await
    }

    async fn move_connection(
        &self,
        id: ConnectionId,
        actor: Actor,
        next: fn(&Connection, Timestamp) -> Result<Connection, ConnectionError>,
    ) -> Result<Arc<Connection>, Refusal> {
        let change = move |connection: &Connection, now| {
            next(connection, now).map_err(|error| error.refusal())
        };
        self.connections().change(id, actor, change).await
    }
}

/// By what right a peer is asked for a connection.
#[derive(Clone, Copy)]
enum Asking<'a> {
    /// A peering token's.
    Token(&'a TokenSecret, InviteId),
    /// Our operator's; the peer's has yet to accept.
    Operator,
    /// The same, again, for this connection that waits.
    Again(ConnectionId),
}

impl Asking<'_> {
    /// Refuses what the operator has decided otherwise, perhaps while the peer was being asked.
    fn may_change(
        self,
        known: Option<Arc<Connection>>,
    ) -> Result<Option<Arc<Connection>>, Refusal> {
        let waits = |known: &Connection, id| {
            known.connection_id == id && known.state == ConnectionState::Pending
        };
        let refusal = |why: &str| Err(Refusal::new(ErrorCode::ConnectionNotActive, why));
        match (self, known) {
            (Self::Again(id), known) if !known.as_ref().is_some_and(|known| waits(known, id)) => {
                refusal("the connection does not wait to be accepted any more")
            }
            (_, Some(known)) if known.state == ConnectionState::Suspended => {
                refusal("the connection to this peer is suspended here; resume it first")
            }
            (_, known) => Ok(known),
        }
    }
}

/// The connection after a peer's answer.
fn answered_connection(
    known: Option<&Connection>,
    url: &PeerUrl,
    answer: &ConnectAnswer,
    token: Option<(&TokenSecret, InviteId)>,
    now: Timestamp,
) -> Result<Connection, Refusal> {
    // What was active stays so, and the grants that the peer has from us are not the peer's to change.
    let active = known.is_some_and(|known| known.state == ConnectionState::Active);
    let origin = Origin::Outgoing {
        state: if active {
            ConnectionState::Active
        } else {
            answer.state
        },
        received: Box::new(answer.granted.clone()),
        granted: known.map_or_else(Grants::none, |known| known.granted.clone()),
        invite_id: token
            .map(|(_, invite_id)| invite_id)
            .or_else(|| known.and_then(|known| known.invite_id)),
    };
    let fresh = moves::from_connect(&answer.identity, origin, ConnectionId::generate(), now)
        .map_err(|error| error.refusal())?;
    // A peer that waits for us to accept it goes on doing so when we ask it, too: were it ours to wait then, neither
    // side could accept.
    let waits_for_us = known
        .is_some_and(|known| !known.outgoing && known.state == ConnectionState::Pending)
        && fresh.state == ConnectionState::Pending;
    let fresh = Connection {
        // The address that was seen to work.
        url: Some(url.base().to_owned()),
        outgoing: !waits_for_us,
        ..fresh
    };
    Ok(match known {
        Some(known) => succeeding(known, fresh),
        None => fresh,
    })
}

fn succeeding(known: &Connection, fresh: Connection) -> Connection {
    Connection {
        connection_id: known.connection_id,
        created_at: known.created_at,
        version: known.version.saturating_add(1),
        ..fresh
    }
}

/// Whether there is nothing to save. A peer's key comes with a fresh `notBefore` in every document.
fn same_but_version(known: &Connection, next: &Connection) -> bool {
    let ids = |connection: &Connection| -> Vec<_> {
        connection
            .keys
            .iter()
            .map(|key| key.key_id.clone())
            .collect()
    };
    ids(known) == ids(next)
        && *known
            == Connection {
                keys: known.keys.clone(),
                updated_at: known.updated_at,
                version: known.version,
                ..next.clone()
            }
}

fn itself() -> Refusal {
    Refusal::new(
        ErrorCode::InvalidRequest,
        "an instance does not connect to itself",
    )
}

fn token_refusal(error: &TokenError) -> Refusal {
    Refusal::field(ErrorCode::InvalidToken, "token", error.to_string())
}
