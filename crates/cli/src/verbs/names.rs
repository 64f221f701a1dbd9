//! Short names for long ids.

use mosaic_hub::api::AgentsParams;
use mosaic_types::{
    AgentId,
    connection::{Connection, ConnectionState, NodeRole},
};

use crate::{
    client::Client,
    error::{CliError, UsageError},
};

/// Fewest characters of an agent's id that stand for it.
const MIN_CHARS: usize = 4;
/// Most pages of 500 agents that are searched.
const MAX_PAGES: usize = 10;

/// An agent by its id, or by an unmistakable start or end of it.
pub(super) async fn agent(client: &Client, text: &str) -> Result<AgentId, CliError> {
    if let Ok(agent) = text.parse() {
        return Ok(agent);
    }
    let hexadecimal = text
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if !hexadecimal || text.len() < MIN_CHARS {
        return Err(UsageError::NotAnAgent(text.to_owned()).into());
    }
    let mut found = None;
    let mut before = None;
    for _ in 0..MAX_PAGES {
        let params = AgentsParams {
            before,
            limit: Some(500),
            ..AgentsParams::default()
        };
        let page = client.agents(&params).await?;
        for (_, status) in page.agents() {
            before = Some(status.agent_id);
            if !fits(status.agent_id, text) {
                continue;
            }
            if found.is_some_and(|other| other != status.agent_id) {
                return Err(UsageError::AmbiguousAgent(text.to_owned()).into());
            }
            found = Some(status.agent_id);
        }
        if !page.more() {
            break;
        }
    }
    found.ok_or_else(|| UsageError::NoSuchAgent(text.to_owned()).into())
}

fn fits(agent: AgentId, text: &str) -> bool {
    let id = agent.to_string();
    let text = text.to_ascii_lowercase();
    id.starts_with(&text) || id.ends_with(&text)
}

/// A connection by its id or name.
pub(super) async fn connection(client: &Client, text: &str) -> Result<Connection, CliError> {
    pick(client.connections().await?, text).map_err(CliError::Usage)
}

fn pick(connections: Vec<Connection>, text: &str) -> Result<Connection, UsageError> {
    let id = text.parse().ok();
    let mut named: Vec<_> = connections
        .into_iter()
        .filter(|one| Some(one.connection_id) == id || one.name == text)
        .collect();
    // A name may have been used before by a connection that has ended.
    if named.len() > 1 {
        named.retain(|one| one.state != ConnectionState::Disconnected);
    }
    match (named.pop(), named.is_empty()) {
        (Some(connection), true) => Ok(connection),
        (Some(_), false) => Err(UsageError::AmbiguousConnection(text.to_owned())),
        (None, _) => Err(UsageError::NoSuchConnection(text.to_owned())),
    }
}

/// The connection that is named, or the only active one to a spoke.
pub(super) async fn spoke(client: &Client, text: Option<&str>) -> Result<Connection, CliError> {
    if let Some(text) = text {
        return connection(client, text).await;
    }
    let mut spokes: Vec<_> = client
        .connections()
        .await?
        .into_iter()
        .filter(|one| one.state == ConnectionState::Active && one.role == NodeRole::Orchestrator)
        .collect();
    match (spokes.pop(), spokes.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), others) => Err(UsageError::NameConnection(others + 1).into()),
        (None, _) => Err(UsageError::NameConnection(0).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_an_id_stand_for_it() {
        let agent: AgentId = "019a1b2c-0000-7000-8000-0000000abcde".parse().unwrap();
        for text in ["019a", "019A1B2C", "bcde", "0abcde", "019a1b2c-0000-7"] {
            assert!(fits(agent, text), "{text}");
        }
        assert!(!fits(agent, "1b2c"));
    }
}
