//! Which connections are kept when there are too many.
//!
//! A newcomer is never turned away while there is somebody of less standing: a kill must get in, whoever holds
//! idle sockets open. Standing is what the requests of a connection have shown:
//!
//! | standing | closed to make room |
//! |---|---|
//! | nobody authenticated yet | first, the oldest before the others |
//! | viewers | when there is nobody of the above |
//! | operators, peers | never; if all are, the newcomer is turned away |
//!
//! A peer, or an operator, has its standing on a quarter of the connections at most. Those above are nobody's, from
//! however many addresses they come: no one of them takes the place of another's kill, nor of its own.
//!
//! Addresses have a share each, and one who has an IPv6 network has one address. Loopback has no such share, because
//! behind a proxy everybody comes from there, but a reserve that nobody from outside can take.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use mosaic_types::ConnectionId;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::limits::HttpLimits;

// Zero is nobody that is known.
const VIEWER: u8 = 1;
const MAY_KILL: u8 = 2;

/// In the extensions of every request: what the requests of its connection have shown of who is there.
#[derive(Debug, Clone)]
pub(crate) struct Standing(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    level: AtomicU8,
    /// In whose share it counts.
    killer: OnceLock<Killer>,
    shares: Arc<Shares>,
}

/// Somebody who may kill.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Killer {
    /// By the name of the token.
    Operator(String),
    /// By the connection.
    Peer(ConnectionId),
}

impl Standing {
    fn new(shares: &Arc<Shares>) -> Self {
        Self(Arc::new(Shown {
            level: AtomicU8::default(),
            killer: OnceLock::new(),
            shares: Arc::clone(shares),
        }))
    }

    /// Somebody who may look was authenticated.
    pub(crate) fn raise_to_viewer(&self) {
        self.0.level.fetch_max(VIEWER, Ordering::Relaxed);
    }

    /// Somebody who may kill was authenticated. It counts if there is room in their share.
    pub(crate) fn raise_to_killer(&self, killer: &Killer) {
        let shown = &self.0;
        if shown.killer.get().is_some() || !shown.shares.take(killer) {
            return;
        }
        if shown.killer.set(killer.clone()).is_err() {
            shown.shares.give_back(killer);
        }
        shown.level.fetch_max(MAY_KILL, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.level.load(Ordering::Relaxed)
    }
}

impl Default for Standing {
    /// Of a request that came by no connection of a server.
    fn default() -> Self {
        Self::new(&Arc::default())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(killer) = self.killer.get() {
            self.shares.give_back(killer);
        }
    }
}

/// On how many connections each of those who may kill has its standing.
#[derive(Debug, Default)]
struct Shares {
    max: usize,
    held: Mutex<HashMap<Killer, usize>>,
}

impl Shares {
    fn take(&self, killer: &Killer) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let of_killer = held.get(killer).copied().unwrap_or(0);
        if of_killer >= self.max {
            return false;
        }
        held.insert(killer.clone(), of_killer + 1);
        true
    }

    fn give_back(&self, killer: &Killer) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(killer) {
            Some(left) if *left > 1 => *left -= 1,
            _ => drop(held.remove(killer)),
        }
    }
}

/// Who is connected. Bounded in all and by address.
#[derive(Debug)]
pub(super) struct Admission {
    max: usize,
    max_per_address: usize,
    reserved_local: usize,
    shares: Arc<Shares>,
    admitted: Mutex<Admitted>,
}

#[derive(Debug, Default)]
pub(super) struct Admitted {
    /// By number, so the oldest first.
    pub(super) connections: BTreeMap<u64, Place>,
    pub(super) by_address: HashMap<IpAddr, usize>,
    next: u64,
}

#[derive(Debug)]
pub(super) struct Place {
    address: IpAddr,
    standing: Standing,
    revoked: CancellationToken,
}

impl Admission {
    pub(super) fn new(limits: &HttpLimits) -> Self {
        Self {
            max: limits.max_connections,
            max_per_address: limits.max_connections_per_address,
            reserved_local: limits.reserved_local_connections,
            shares: Arc::new(Shares {
                max: (limits.max_connections / 4).max(1),
                held: Mutex::default(),
            }),
            admitted: Mutex::default(),
        }
    }

    /// Takes a connection in, closing another one for it if there has to be room.
    pub(super) fn admit(this: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let address = group(address);
        let mut admitted = this.lock();
        if !this.make_room(&mut admitted, address) {
            return None;
        }
        let number = admitted.next;
        admitted.next += 1;
        let standing = Standing::new(&this.shares);
        let revoked = CancellationToken::new();
        *admitted.by_address.entry(address).or_insert(0) += 1;
        let place = Place {
            address,
            standing: standing.clone(),
            revoked: revoked.clone(),
        };
        admitted.connections.insert(number, place);
        Some(Slot {
            admission: Arc::clone(this),
            number,
            standing,
            revoked,
        })
    }

    /// Closes the oldest of least standing, if there is one that may not kill.
    pub(super) fn make_way(&self) -> bool {
        self.lock().revoke_one(|_| true)
    }

    fn make_room(&self, admitted: &mut Admitted, address: IpAddr) -> bool {
        let of = |admitted: &Admitted, address| admitted.by_address.get(&address).copied();
        let local = address.is_loopback();
        if !local
            && of(admitted, address).unwrap_or(0) >= self.max_per_address
            && !admitted.revoke_one(|place| place.address == address)
        {
            return false;
        }
        let max = if local {
            self.max + self.reserved_local
        } else {
            self.max
        };
        if admitted.connections.len() < max {
            return true;
        }
        let locals = of(admitted, LOOPBACK).unwrap_or(0);
        admitted.revoke_one(|place| local || !place.address.is_loopback())
            || (locals > self.reserved_local && admitted.revoke_one(|_| true))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Admitted> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Closes the oldest of least standing among `these`, unless all may kill.
    fn revoke_one(&mut self, these: impl Fn(&Place) -> bool) -> bool {
        let least = self
            .connections
            .iter()
            .filter(|(_, place)| these(place) && place.standing.get() < MAY_KILL)
            .min_by_key(|(number, place)| (place.standing.get(), **number))
            .map(|(number, _)| *number);
        let Some(number) = least else {
            return false;
        };
        if let Some(place) = self.remove(number) {
            place.revoked.cancel();
        }
        true
    }

    fn remove(&mut self, number: u64) -> Option<Place> {
        let place = self.connections.remove(&number)?;
        let left = self.by_address.get(&place.address).copied().unwrap_or(0);
        if left > 1 {
            self.by_address.insert(place.address, left - 1);
        } else {
            self.by_address.remove(&place.address);
        }
        Some(place)
    }
}

const LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Addresses that are most likely one owner's count as one: a /64 of IPv6, and all of loopback.
pub(crate) fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        address if address.is_loopback() => LOOPBACK,
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

/// One admitted connection; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    admission: Arc<Admission>,
    number: u64,
    standing: Standing,
    revoked: CancellationToken,
}

impl Slot {
    /// For the requests that come by the connection.
    pub(super) fn standing(&self) -> Standing {
        self.standing.clone()
    }

    /// Returns once the connection has to make room for another.
    pub(super) fn revoked(&self) -> WaitForCancellationFuture<'_> {
        self.revoked.cancelled()
    }

    #[cfg(test)]
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.admission.lock().remove(self.number));
    }
}
