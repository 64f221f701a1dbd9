//! What becomes of those who ask to be connected.
//!
//! | who asks has | and comes | gets |
//! |---|---|---|
//! | nothing | with a good token | an active connection with the token's grants |
//! | nothing | without | a pending one, if there is room; one that has waited for long makes room |
//! | a pending connection | with a good token | it becomes active |
//! | an active one | with a good token | the same one with the token's grants and the keys it shows |
//! | a pending or active one | without, or with the token that made it | the same one, told again |
//! | a suspended one | with whatever | the constant 401: the operator has said no |
//! | a rejected or disconnected one | without a token | the constant 401: a token makes a new one |
//! | whatever | with any other token | the constant 401 |

use std::sync::Arc;

use mosaic_federation::{
    connect::VerifiedConnect,
    connection::{self as moves, Origin},
};
use mosaic_store::InviteRecord;
use mosaic_types::{
    ConnectionId, ErrorCode, Refusal, Timestamp,
    audit::Actor,
    connection::{Connection, ConnectionState},
};

use super::{itself, succeeding};
use crate::{connections::Decision, http::problem::store_refusal, node::Node};

/// What was decided about one who asks to be connected.
pub(crate) enum ConnectDecision {
    /// This is the connection.
    Connected(Arc<Connection>),
    /// The constant answer.
    Unauthenticated,
}

impl Node {
    /// Decides about one who asks to be connected; see the table in the module documentation.
    pub(crate) async fn decide_connect(
        &self,
        request: &VerifiedConnect,
        now: Timestamp,
    ) -> Result<ConnectDecision, Refusal> {
        let peer = request.identity.instance_id();
        if peer == self.instance_id() {
            return Err(itself());
        }
        let known = self.connections().by_peer(peer);
        let is = |state| known.as_ref().is_some_and(|known| known.state == state);
        if is(ConnectionState::Suspended) {
            return Ok(ConnectDecision::Unauthenticated);
        }
        let actor = Actor::Peer {
            instance: peer.clone(),
            connection: None,
        };
        let Some(secret) = &request.token_secret else {
            return match known {
                Some(known) => Ok(ConnectDecision::Connected(known)),
                None => self.take_in(request, actor, now).await,
            };
        };
        let found = self.store().invite(secret.hash()).await;
        let Some(invite) = found.map_err(|error| store_refusal(&error))? else {
            return Ok(ConnectDecision::Unauthenticated);
        };
        let spent_by_them = |known: &Connection| {
            known.state == ConnectionState::Active && known.invite_id == Some(invite.invite_id)
        };
        if invite.used_by.is_none() && now < invite.expires_at {
            let decided = self.connections().decide(|connections| {
                let known = connections.by_peer(peer);
                let connection = invited(known.as_deref(), request, &invite, now)?;
                let decision = Decision {
                    connection,
                    invite: Some(invite.invite_id),
                    actor,
                    action: Some("connection.connect"),
                    requested: None,
                };
                Ok((decision, ()))
            });
            match decided.await {
                Ok((connection, ())) => return Ok(ConnectDecision::Connected(connection)),
                // Somebody was faster: perhaps this very peer.
                Err(refusal) if refusal.code == ErrorCode::InvalidToken => {}
                Err(refusal) => return Err(refusal),
            }
        }
        self.connections().settled().await;
        Ok(match self.connections().by_peer(peer) {
            Some(known) if spent_by_them(&known) => ConnectDecision::Connected(known),
            _ => ConnectDecision::Unauthenticated,
        })
    }

    /// If there is no room for another one who waits, rejects the one who has waited longest, if that is too long.
    async fn expire_one_pending(&self, now: Timestamp) -> Result<(), Refusal> {
        let connections = self.connections().list();
        let limits = self.limits();
        if waiting(&connections).count() < limits.max_pending_connections {
            return Ok(());
        }
        let oldest = waiting(&connections)
            .find(|known| !known.outgoing && now.since(known.created_at) >= limits.pending_for);
        match oldest {
            Some(oldest) => self
                .reject(oldest.connection_id, Actor::System)
                .await
                .map(drop),
            None => Ok(()),
        }
    }

    /// Lets one without a token wait for an operator.
    async fn take_in(
        &self,
        request: &VerifiedConnect,
        actor: Actor,
        now: Timestamp,
    ) -> Result<ConnectDecision, Refusal> {
        let peer = request.identity.instance_id();
        let connections = self.connections().list();
        if connections.iter().any(|known| known.peer == *peer) {
            return Ok(ConnectDecision::Unauthenticated);
        }
        let max_pending = self.limits().max_pending_connections;
        self.expire_one_pending(now).await?;
        let decided = self.connections().decide(|connections| {
            if let Some(known) = connections.by_peer(peer) {
                let decision = Decision {
                    connection: (*known).clone(),
                    invite: None,
                    actor,
                    action: None,
                    requested: None,
                };
                return Ok((decision, ()));
            }
            if waiting(&connections.list()).count() >= max_pending {
                return Err(Refusal::new(
                    ErrorCode::Overloaded,
                    "too many connections wait to be accepted",
                ));
            }
            let id = ConnectionId::generate();
            let connection = moves::from_connect(&request.identity, Origin::Asked, id, now)
                .map_err(|error| error.refusal())?;
            let decision = Decision {
                connection,
                invite: None,
                actor,
                action: Some("connection.ask"),
                requested: Some(request.requested_grants.clone()),
            };
            Ok((decision, ()))
        });
        decided
            .await
            .map(|(connection, ())| ConnectDecision::Connected(connection))
    }
}

/// Connections that nobody has decided about, oldest first.
fn waiting(connections: &[Arc<Connection>]) -> impl Iterator<Item = &Arc<Connection>> {
    let known = connections.iter();
    known.filter(|known| known.state == ConnectionState::Pending)
}

/// The connection of one who has come with a good token.
fn invited(
    known: Option<&Connection>,
    request: &VerifiedConnect,
    invite: &InviteRecord,
    now: Timestamp,
) -> Result<Connection, Refusal> {
    let origin = Origin::Invited {
        invite_id: invite.invite_id,
        granted: invite.grants.clone(),
    };
    let fresh = moves::from_connect(&request.identity, origin, ConnectionId::generate(), now)
        .map_err(|error| error.refusal())?;
    match known {
        Some(known) if known.state == ConnectionState::Suspended => Err(Refusal::new(
            ErrorCode::InvalidToken,
            "the connection is suspended",
        )),
        Some(known) => Ok(Connection {
            received: known.received.clone(),
            outgoing: known.outgoing,
            ..succeeding(known, fresh)
        }),
        None => Ok(fresh),
    }
}
