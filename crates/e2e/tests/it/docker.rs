//! Whole systems whose agents live in containers. Where there is no engine, or the image is not there, each test is
//! skipped by name. `.ci/test-image` makes the one with git, `deploy/agent-image/build` the one with Claude Code.

mod claude;
mod dev;
mod endings;
mod rig;
