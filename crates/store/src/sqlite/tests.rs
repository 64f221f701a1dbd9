//! The contract on SQLite, and what only a file can go through.

mod disk_full;
mod durability;
mod opening;
mod plans;
mod support;
mod tampering;

use support::TempBackend;

crate::contract_suite!(TempBackend::fresh());
