//! The orchestrator: runs agents in sandboxes, each in a working tree of its own, and stops them.
//!
//! ```text
//! commands (peers) ─┐                    ┌─► spawner ─► worktree, runtime, sandbox
//!                   ├─► admission ─► lifecycle (driver, gate, publisher)
//! api (operator) ───┤                    ▲
//!                   └─► killswitch ──────┘ through the gate only: no store, no queue
//! ```

pub mod admission;
pub mod agents;
pub mod api;
pub mod app;
mod aside;
pub mod budget;
pub mod cli;
pub mod commands;
pub mod config;
pub mod crash_points;
pub mod events;
pub mod hold;
pub mod kill_journal;
pub mod killswitch;
pub mod layout;
pub mod leases;
pub mod lifecycle;
pub mod offline;
pub mod reconciler;
pub mod retention;
pub mod runtime;
pub mod sandbox;
pub mod secrets;
pub mod spawner;
pub mod surroundings;
pub mod tail;
pub mod worktree;
