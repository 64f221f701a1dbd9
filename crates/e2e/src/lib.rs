//! The harness of the end-to-end tests: whole systems of real executables, the faults that are done to them, and a
//! stand-in for the model's service.

pub mod api;
pub mod binaries;
pub mod chaos;
pub mod engine;
pub mod flood;
pub mod messages_api;
pub mod standstill;
pub mod storm;
pub mod system;
pub mod wire;
