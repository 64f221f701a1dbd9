//! `invite`, `connect` and `connections`.

use std::path::Path;

use mosaic_types::{
    api::{AcceptRequest, ConnectRequest, InviteRequest},
    connection::ConnectionState,
    grant::{Grants, RuntimePattern},
};

use super::{client, names, spawn::read_text};
use crate::{
    args::{ConnectArgs, ConnectionChange, ConnectionsArgs, Globals, GrantArgs, InviteArgs},
    client::{Client, Prefer},
    error::{CliError, Exit},
    render,
};

pub(super) async fn invite(globals: &Globals, args: InviteArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Spoke)?;
    let request = InviteRequest {
        grants: grants(args.grants),
        ttl_secs: args.ttl,
    };
    let created = client.invite(&request).await?;
    if globals.json {
        render::json(&created)?;
    } else {
        render::line(&created.token)?;
        render::note(format!(
            "it can be used once, until {}; it grants {}",
            render::time(created.expires_at),
            render::grants(&request.grants)
        ));
    }
    Ok(Exit::Ok)
}

/// Grants nothing on repositories unless some are named: default deny.
fn grants(args: GrantArgs) -> Grants {
    let mut grants = Grants::full(args.repositories);
    if !args.commands.is_empty() {
        grants.commands = args.commands;
    }
    if !args.runtimes.is_empty() {
        grants.runtimes = args
            .runtimes
            .into_iter()
            .map(RuntimePattern::Named)
            .collect();
    }
    if !args.sandboxes.is_empty() {
        grants.sandboxes = args.sandboxes;
    }
    grants.secrets = args.secrets;
    grants.push = args.push;
    let caps = &mut grants.caps;
    caps.max_agents = args.max_agents.unwrap_or(caps.max_agents);
    caps.spawns_per_minute = args.spawns_per_minute.unwrap_or(caps.spawns_per_minute);
    caps.max_timeout_secs = args.max_timeout.unwrap_or(caps.max_timeout_secs);
    caps.max_memory_mb = args.max_memory_mb;
    caps.max_cpus = args.max_cpus;
    caps.max_budget_usd = args.max_budget_usd;
    caps.max_budget_tokens = args.max_budget_tokens;
    caps.budget_usd_per_day = args.budget_usd_per_day;
    caps.budget_tokens_per_day = args.budget_tokens_per_day;
    caps.max_lease_secs = args.max_lease;
    if let Some(network) = args.network {
        caps.network = network;
    }
    grants
}

pub(super) async fn connect(globals: &Globals, args: ConnectArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    let token = match args.token.as_deref() {
        Some("-") => Some(read_text(Path::new("-"))?.trim().to_owned()),
        token => token.map(str::to_owned),
    };
    let request = ConnectRequest {
        token,
        url: args.url,
        requested_grants: None,
    };
    let connection = client.connect(&request).await?;
    if globals.json {
        render::json(&connection)?;
    } else {
        render::connections(std::slice::from_ref(&connection))?;
        if connection.state == ConnectionState::Pending {
            render::note("it is in use once the other side's operator accepts it");
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn connections(
    globals: &Globals,
    args: ConnectionsArgs,
) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    let Some(change) = args.change else {
        let connections = client.connections().await?;
        if globals.json {
            render::json(&mosaic_types::api::ConnectionList { connections })?;
        } else {
            render::connections(&connections)?;
        }
        return Ok(Exit::Ok);
    };
    apply(globals, &client, change).await
}

async fn apply(
    globals: &Globals,
    client: &Client,
    change: ConnectionChange,
) -> Result<Exit, CliError> {
    let (text, verb) = match &change {
        ConnectionChange::Accept { connection, .. } => (connection, "accept"),
        ConnectionChange::Reject { connection } => (connection, "reject"),
        ConnectionChange::Suspend { connection } => (connection, "suspend"),
        ConnectionChange::Resume { connection } => (connection, "resume"),
        ConnectionChange::Disconnect { connection } => (connection, "disconnect"),
        ConnectionChange::Ping { connection } => (connection, "ping"),
    };
    let id = names::connection(client, text).await?.connection_id;
    let changed = match change {
        ConnectionChange::Ping { .. } => {
            let start = std::time::Instant::now();
            let pong = client.ping(id).await?;
            if globals.json {
                render::json(&pong)?;
            } else {
                render::pong(&pong, start.elapsed())?;
            }
            return Ok(Exit::Ok);
        }
        ConnectionChange::Accept { grants: args, .. } => {
            client
                .accept(
                    id,
                    &AcceptRequest {
                        grants: grants(*args),
                    },
                )
                .await?
        }
        _ => client.change_connection(id, verb).await?,
    };
    if globals.json {
        render::json(&changed)?;
    } else {
        render::connections(std::slice::from_ref(&changed))?;
    }
    Ok(Exit::Ok)
}
