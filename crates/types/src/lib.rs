//! The vocabulary of Mosaic: ids, commands, agent states, data transfer objects and error codes.
//!
//! This crate does no I/O and knows no cryptography; everything here can be read by a client.
//! All JSON is camelCase. Requests refuse unknown members; answers may gain members in later versions.

pub mod agent;
pub mod api;
pub mod audit;
pub mod command;
pub mod connection;
pub mod egress;
pub mod error;
pub mod event;
pub mod grant;
pub mod ids;
pub mod kill;
pub mod label;
pub mod time;
mod usage;
pub mod work;

pub use error::{ErrorCode, Refusal};
pub use ids::{
    AgentId, ConnectionId, IdError, InstanceId, InviteId, KeyId, KillIntentId, MessageId,
    RuntimeName, SecretName, TaskId,
};
pub use time::{Timestamp, TimestampError, UtcDay};
