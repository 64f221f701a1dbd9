//! An agent's life, from admission to its clean-up.
//!
//! One task for each agent ([`driver`]) mutates its record; everybody else watches ([`publisher`]). What may
//! follow what is one table ([`mosaic_types::agent::AgentState::may_become`]), and what a driver does next is
//! decided without I/O ([`state`]). Each move is stored and audited before it is seen. A kill does not wait for
//! any of this: it goes through the [`gate`], which is the only door to a process.
//!
//! ```text
//! admission ──► Fleet::enter ──► driver ── gate ──► sandbox
//!                    ▲              │                  ▲
//!    status, events ─┘◄─ publisher ─┘     killswitch ──┘ (through the gate: no store, no queue)
//! ```

pub mod driver;
pub mod drivers;
pub mod examine;
pub mod fleet;
pub mod gate;
pub mod harvest;
pub mod lease;
#[cfg(test)]
mod model;
pub mod publisher;
pub mod state;
pub mod supervise;

pub use drivers::Drivers;
pub use fleet::{Cell, Fleet};
pub use gate::{Gate, KillOrder, KillTarget};
