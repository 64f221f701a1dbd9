//! `ps`, `status` and `kill`.

use mosaic_hub::api::AgentsParams;
use mosaic_types::{
    Timestamp,
    api::{KillAllRequest, KillRequest},
    command::KillOutcome,
};

use super::{client, names};
use crate::{
    args::{AgentArg, Globals, KillArgs, PsArgs},
    client::{Client, Prefer},
    error::{CliError, Exit},
    render::{self, Waiting},
};

pub(super) async fn ps(globals: &Globals, args: PsArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    let connection = match &args.connection {
        Some(text) => Some(names::connection(&client, text).await?.connection_id),
        None => None,
    };
    let params = AgentsParams {
        connection_id: connection,
        task_id: args.task,
        active: (!args.all).then_some(true),
        before: args.before,
        limit: Some(args.limit),
        label: args.label,
    };
    let listed = client.agents(&params).await?;
    if globals.json {
        render::json(&listed)?;
    } else {
        render::listed(&listed, Timestamp::now())?;
    }
    Ok(Exit::Ok)
}

pub(super) async fn status(globals: &Globals, args: AgentArg) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    let agent = names::agent(&client, &args.agent).await?;
    let told = client.told(agent).await?;
    if globals.json {
        render::json(&told)?;
    } else {
        render::status(&told.status)?;
        if told.kill_pending {
            render::line(render::styled(
                render::WARN,
                "a kill of it is pending: see `mosaic kills`",
            ))?;
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn kill(globals: &Globals, args: KillArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    match &args.agent {
        Some(agent) => kill_one(globals, &client, agent, &args).await,
        None => kill_all(globals, &client, args).await,
    }
}

async fn kill_one(
    globals: &Globals,
    client: &Client,
    agent: &str,
    args: &KillArgs,
) -> Result<Exit, CliError> {
    let agent = names::agent(client, agent).await?;
    let request = KillRequest {
        reason: args.reason.clone(),
        wait_for_cleanup: args.wait,
    };
    let report = {
        let _waiting = Waiting::for_what("waiting for the proof of death");
        client.kill(agent, &request).await?
    };
    if globals.json {
        render::json(&report)?;
    } else {
        render::kill_report(&report)?;
    }
    Ok(match report.outcome {
        KillOutcome::Killed | KillOutcome::AlreadyEnded => Exit::Ok,
        KillOutcome::Unverified => Exit::KillIncomplete,
    })
}

async fn kill_all(globals: &Globals, client: &Client, args: KillArgs) -> Result<Exit, CliError> {
    let connection = match &args.connection {
        Some(text) => Some(names::connection(client, text).await?.connection_id),
        None => None,
    };
    let request = KillAllRequest {
        connection_id: connection,
        task_id: args.task,
        hold: args.hold,
        reason: args.reason,
        label: args.label,
    };
    let report = {
        let _waiting = Waiting::for_what("waiting for the proofs of death");
        client.kill_all(&request).await?
    };
    if globals.json {
        render::json(&report)?;
    } else {
        render::killed_all(&report, request.hold)?;
    }
    Ok(report.exit(request.hold))
}
