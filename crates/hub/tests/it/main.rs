//! A hub over real sockets: spokes are real nodes whose agents are only on paper, so that what the hub makes of
//! their answers, and of their silence, is what is tested.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests earn trust by failing: there a panic is the report"
)]

mod agents;
mod endings;
mod events;
mod kills;
mod known_dead;
mod leases;
mod link;
mod order;
mod pages;
mod pending;
mod refusals;
mod rejoined;
mod results;
mod spoke;
mod support;
