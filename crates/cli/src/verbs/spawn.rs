//! `spawn`.

use std::{io::Read, path::Path};

use mosaic_hub::api::SpawnRequest;
use mosaic_types::{
    AgentId,
    command::{SpawnContext, SpawnOptions, SpawnPayload},
};

use super::{client, logs, names};
use crate::{
    args::{Globals, SpawnArgs},
    client::{Client, Prefer},
    error::{CliError, Exit},
    render::{self, Waiting},
};

pub(super) async fn spawn(globals: &Globals, args: SpawnArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    let (follow, connection) = (args.follow, args.connection.clone());
    let payload = payload(args)?;
    let response = send(&client, connection.as_deref(), payload).await?;
    if globals.json {
        render::json(&response)?;
    } else if follow {
        render::note(render::styled(
            render::DIM,
            format!("agent {}", response.agent_id),
        ));
    } else {
        render::line(response.agent_id)?;
        if response.existing {
            render::note(format!("it was there already, and is {}", response.state));
        }
    }
    if !follow {
        return Ok(Exit::Ok);
    }
    logs::show(globals, client, response.agent_id, true, false).await
}

async fn send(
    client: &Client,
    connection: Option<&str>,
    payload: SpawnPayload,
) -> Result<mosaic_types::api::SpawnResponse, CliError> {
    if connection.is_none() && client.spawns_here().await {
        let _waiting = Waiting::for_what("waiting for the node to accept the agent");
        return client.spawn_here(&payload).await;
    }
    let spoke = names::spoke(client, connection).await?;
    let request = SpawnRequest {
        connection_id: spoke.connection_id,
        agent_id: Some(payload.agent_id),
        task_id: payload.task_id,
        agent_type: payload.agent_type,
        runtime: payload.runtime,
        context: payload.context,
        options: payload.options,
        labels: payload.labels,
    };
    let _waiting = Waiting::for_what(format!("waiting for {} to accept the agent", spoke.name));
    client.spawn(&request).await
}

/// The id is chosen here, so that asking again after a lost answer is still one agent.
fn payload(args: SpawnArgs) -> Result<SpawnPayload, CliError> {
    let instructions = match &args.instructions_file {
        Some(path) => Some(read_text(path)?),
        None => args.instructions,
    };
    let options = SpawnOptions {
        sandbox: args.sandbox,
        timeout_secs: args.timeout,
        max_retries: args.retries,
        lease_secs: args.lease,
        memory_mb: args.memory_mb,
        cpus: args.cpus,
        network: args.network,
        budget_usd: args.budget_usd,
        secrets: (!args.secrets.is_empty()).then_some(args.secrets),
        push: args.push.then_some(true),
        budget_tokens: args.budget_tokens,
    };
    Ok(SpawnPayload {
        agent_id: args.agent_id.unwrap_or_else(AgentId::generate),
        task_id: args.task,
        agent_type: args.agent_type,
        runtime: args.runtime,
        context: SpawnContext {
            repository: args.repository,
            branch: args.branch,
            work_items: args.items,
            skills: (!args.skills.is_empty()).then_some(args.skills),
            instructions,
        },
        options: (options != SpawnOptions::default()).then_some(options),
        labels: args
            .labels
            .into_iter()
            .map(|label| (label.key, label.value))
            .collect(),
    })
}

/// A file's text; `-` is standard input.
pub(super) fn read_text(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|source| CliError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(text)
}
