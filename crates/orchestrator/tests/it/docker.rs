//! Agents in real containers of a real engine. Where there is none, or the image for tests is not there, each test is
//! skipped by name; `MOSAIC_REQUIRE_ALL=1` makes that a failure. `.ci/test-image` makes the image.
//!
//! What becomes of agents when the engine is in trouble is tried on an engine of each test's own.

mod answers;
pub(crate) mod engine;
mod frozen;
mod image;
mod isolation;
mod late;
mod life;
mod mapping;
mod meddler;
mod network;
pub(crate) mod rig;
mod stopped;
mod umask;
mod warm;
