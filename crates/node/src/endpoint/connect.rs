//! `POST /federation/v1/connect`: how a stranger becomes a peer.
//!
//! With a peering token that is good, the connection is active at once. Without one, it waits for an operator; such
//! requests are bounded in number. Nothing is fetched for a stranger (F25): who it is, it says itself, and its own key
//! signs it.
//!
//! A request that is sent again is answered again: what it did is seen from the connection, so nothing is kept
//! for strangers.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use mosaic_federation::{
    command::Refused,
    connect::{ConnectError, seal_connect_response, verify_connect},
};
use mosaic_types::{ErrorCode, Timestamp};

use super::{Endpoint, answer, envelope_response, lock};
use crate::{
    http::{ApiError, extract::read_body, serve::group},
    peering::ConnectDecision,
};

/// How many times as many requests as of one address are looked at of all.
const ADDRESSES: u32 = 16;

/// Counts the connect requests of the running second, in all and by address.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u32,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    second: i64,
    all: u32,
    /// No larger than `all` may become.
    by_address: HashMap<IpAddr, u32>,
}

impl Rate {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            running: Mutex::default(),
        }
    }

    fn allows(&self, address: IpAddr, now: Timestamp) -> bool {
        let second = now.unix_millis().div_euclid(1000);
        let mut running = lock(&self.running);
        if running.second != second {
            *running = Running {
                second,
                ..Running::default()
            };
        }
        let of_address = running.by_address.get(&address).copied().unwrap_or(0);
        if of_address >= self.per_second || running.all >= self.per_second.saturating_mul(ADDRESSES)
        {
            return false;
        }
        running.all += 1;
        running.by_address.insert(address, of_address + 1);
        true
    }
}

pub(super) async fn serve(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    let address = request.extensions().get::<SocketAddr>();
    let address = group(address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), SocketAddr::ip));
    match read_body(request).await {
        Ok(bytes) => Box::pin(endpoint.connect(&bytes, address)).await,
        Err(error) => error.into_response(),
    }
}

impl Endpoint {
    async fn connect(self: Arc<Self>, bytes: &[u8], address: IpAddr) -> Response {
        const ACTION: &str = "federation.connect";
        let now = Timestamp::now();
        if !self.connects.allows(address, now) {
            return ApiError::new(ErrorCode::Overloaded, "too many connect requests")
                .into_response();
        }
        let request = match verify_connect(bytes, self.node.instance_id(), now) {
            Ok(request) => request,
            Err(ConnectError::Unauthenticated(_)) => return self.unauthenticated(ACTION, now),
            Err(ConnectError::Refused(refused, peer)) => {
                self.node
                    .audit()
                    .refused(None, ACTION, refused.refusal.code.as_str(), now);
                return envelope_response(answer::refusal(&self.node, &peer, &refused));
            }
        };
        let peer = request.identity.instance_id().clone();
        let refuse = |refusal| {
            let refused = Refused {
                refusal,
                message_id: Some(request.message_id),
                digest: request.digest,
            };
            envelope_response(answer::refusal(&self.node, &peer, &refused))
        };
        let node = self.node.clone();
        let asked = request.clone();
        // A task of its own, so that one who hangs up does not leave half a connection behind.
        let deciding = self
            .node
            .tasks()
            .spawn(async move { node.decide_connect(&asked, now).await });
        let connection = match deciding.await {
            Ok(Ok(ConnectDecision::Connected(connection))) => connection,
            Ok(Ok(ConnectDecision::Unauthenticated)) => return self.unauthenticated(ACTION, now),
            Ok(Err(refusal)) => return refuse(refusal),
            Err(error) => return ApiError::internal(&error).into_response(),
        };
        let sealed = self.node.identity_envelope(now).and_then(|identity| {
            seal_connect_response(
                self.node.identity(),
                &identity,
                &request,
                connection.state,
                &connection.granted,
                &self.node.audit().head(),
                now,
            )
        });
        match sealed {
            Ok(bytes) => envelope_response(bytes),
            Err(error) => refuse(answer::fault(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One who asks without end keeps itself out, and nobody else.
    #[test]
    fn the_rate_of_connect_requests_is_each_addresss_own() {
        let rate = Rate::new(2);
        let at = Timestamp::from_unix_millis;
        let address = |last: u8| IpAddr::from([203, 0, 113, last]);
        let allowed = |last: u8, millis| rate.allows(address(last), at(millis));
        assert!(allowed(1, 0) && allowed(1, 1) && !allowed(1, 2));
        assert!(allowed(2, 3));
        assert!(allowed(1, 1000), "the next second");
        let all = (0..200).filter(|last| allowed(*last, 2000)).count();
        assert_eq!(all, 32, "and all addresses together have a bound");
        assert_eq!(lock(&rate.running).by_address.len(), 32);
    }
}
