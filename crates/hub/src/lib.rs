//! A Mosaic hub: it decides and routes, and runs no agent.
//!
//! [`app::start`] serves two faces on one listener. The operators' API (`/api/v1`, [`api`]) is what people and
//! programs use; the federation endpoint is what peers use. Between them [`routing`] knows at which spoke an
//! agent is, and asks there: the spoke is the authority on every agent, and what it did not say is `unknown`.

pub mod api;
pub mod app;
pub mod config;
mod handler;
pub mod routing;
