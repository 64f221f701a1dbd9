//! Two real nodes on loopback sockets, with a handler that counts.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in a test a panic is the report, in its helpers too"
)]

mod audit;
mod commands;
mod harness;
mod kills;
mod operators;
mod peering;
mod serving;
mod ssrf;
mod streams;
