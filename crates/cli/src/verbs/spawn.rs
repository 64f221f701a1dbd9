//! `spawn`.

use std::{io::Read, path::Path};

use mosaic_hub::api::SpawnRequest;
use mosaic_types::{
    AgentId,
    api::SpawnResponse,
    command::{SpawnContext, SpawnOptions, SpawnPayload},
    connection::Connection,
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
    let place = place(&client, connection.as_deref()).await?;
    let response = send(&client, place, payload).await?;
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

/// The spoke behind the hub that is to run it; none if the node itself is.
async fn place(client: &Client, connection: Option<&str>) -> Result<Option<Connection>, CliError> {
    if connection.is_none() && client.spawns_here().await {
        return Ok(None);
    }
    names::spoke(client, connection).await.map(Some)
}

/// Asks for the agent. Whoever does not learn what became of it learns its id, so that to ask again is still one agent.
async fn send(
    client: &Client,
    place: Option<Connection>,
    payload: SpawnPayload,
) -> Result<SpawnResponse, CliError> {
    let agent = payload.agent_id;
    ask(client, place, payload).await.map_err(|error| {
        if !error.outcome_unknown() {
            return error;
        }
        let source = Box::new(error);
        CliError::MayRun { agent, source }
    })
}

async fn ask(
    client: &Client,
    place: Option<Connection>,
    payload: SpawnPayload,
) -> Result<SpawnResponse, CliError> {
    // With its id, for whoever does not wait for the end of this.
    let waiting = |name: &str| {
        let agent = payload.agent_id;
        Waiting::for_what(format!("agent {agent}: waiting for {name} to accept it"))
    };
    let Some(spoke) = place else {
        let _waiting = waiting("the node");
        return client.spawn_here(&payload).await;
    };
    let _waiting = waiting(&spoke.name);
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
