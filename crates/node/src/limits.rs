//! Bounds on what whoever reaches this node's sockets can make it hold, do or wait for.

use std::{num::NonZeroUsize, thread, time::Duration};

/// Bounds of the HTTP server and of the federation endpoint. [`HttpLimits::default`] is for production.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections at once from anywhere.
    pub max_connections: usize,
    /// Connections at once from one address that is not loopback; a /64 of IPv6 is one address.
    pub max_connections_per_address: usize,
    /// Connections from loopback on top of `max_connections`, so that a flood from outside cannot keep the
    /// machine's own operator from a kill.
    pub reserved_local_connections: usize,
    /// Longest time from a request's first byte, or from the end of the one before, to the end of its head (F20).
    /// So it is also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Longest time for a body to arrive whole (F20).
    pub body_timeout: Duration,
    /// Longest time that a client may take nothing of what is written to it.
    pub write_timeout: Duration,
    /// How long requests under way may take to finish at shutdown.
    pub drain_timeout: Duration,
    /// Largest body of a request in bytes.
    pub max_body_bytes: usize,
    /// Commands executed at once that do not kill.
    pub max_commands: usize,
    /// Commands executed at once on top of those that change something and do not kill: spawns, renewals of leases. Who only
    /// asks, which may wait for kills, keeps nobody from them.
    pub reserved_changes: usize,
    /// Kills executed at once on top of `max_commands`: the share that nothing else can take.
    pub reserved_kills: usize,
    /// Kills of one peer that wait for a permit; what a peer sends beyond is refused at once.
    pub max_waiting_kills: usize,
    /// How long a kill holds its permit. One that takes longer is waiting for a clean-up, and others may begin.
    pub kill_permit_hold: Duration,
    /// How many of those who only ask are let begin at once beside kills and just after them.
    pub turns: usize,
    /// How long one of them waits for kills that are under way, once it has a turn.
    pub stand_aside: Duration,
    /// How long such a turn is held. One that takes longer waits for something, and the next may begin.
    pub turn_hold: Duration,
    /// How long turns are taken after a kill, so that those who stood aside do not all begin at once.
    pub by_turns: Duration,
    /// Longest wait for the first of several identical commands.
    pub duplicate_wait: Duration,
    /// Open event streams in all. Each holds a connection: no more than half of those that there may be.
    pub max_streams: usize,
    /// Open event streams of one peer: no more than a quarter of the connections of one address, so that however
    /// many a hub's users watch, its kills find a connection.
    pub max_streams_per_peer: usize,
    /// A stream that has nothing to say says so this often.
    pub stream_heartbeat: Duration,
    /// Connections that wait for an operator to accept them.
    pub max_pending_connections: usize,
    /// How long a connection waits at least. When there is no room for another, the oldest that has waited longer is
    /// rejected.
    pub pending_for: Duration,
    /// Connect requests of one address that are looked at in any second; of all addresses, 16 times as many.
    pub max_connects_per_second: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_connections_per_address: 256,
            reserved_local_connections: 64,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            max_body_bytes: 1024 * 1024,
            max_commands: 256,
            reserved_changes: 64,
            reserved_kills: 256,
            max_waiting_kills: 256,
            kill_permit_hold: Duration::from_millis(500),
            turns: thread::available_parallelism().map_or(1, NonZeroUsize::get),
            stand_aside: Duration::from_millis(25),
            turn_hold: Duration::from_millis(25),
            by_turns: Duration::from_millis(100),
            duplicate_wait: Duration::from_secs(30),
            max_streams: 512,
            max_streams_per_peer: 64,
            stream_heartbeat: Duration::from_secs(15),
            max_pending_connections: 64,
            pending_for: Duration::from_secs(86_400),
            max_connects_per_second: 20,
        }
    }
}
