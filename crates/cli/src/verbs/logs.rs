//! `logs`, and what `spawn --follow` shows.

use mosaic_types::{AgentId, agent::AgentStatus, agent::ObservedState, event::EventKind};

use super::{client, names};
use crate::{
    args::{Globals, LogsArgs},
    client::{Client, EventFeed, Prefer},
    error::{CliError, Exit},
    render::{self, OutputWriter},
};

pub(super) async fn logs(globals: &Globals, args: LogsArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    let agent = names::agent(&client, &args.agent.agent).await?;
    show(globals, client, agent, args.follow, args.raw).await
}

/// Shows an agent's output; with `follow` until it ends. States go to standard error, so that standard output is the
/// agent's alone.
pub(super) async fn show(
    globals: &Globals,
    client: Client,
    agent: AgentId,
    follow: bool,
    raw: bool,
) -> Result<Exit, CliError> {
    let mut feed = EventFeed::open(client, agent, follow).await?;
    let mut output = OutputWriter::new(raw);
    let mut last = None;
    while let Some(event) = feed.next().await? {
        if globals.json {
            render::json(&event)?;
            continue;
        }
        output.write(&event)?;
        if let EventKind::Status { status } = &event.kind
            && follow
            && last.replace(status.state) != Some(status.state)
        {
            render::note(format!(
                "{} {}",
                render::styled(render::DIM, "──"),
                render::status_line(status)
            ));
        }
    }
    Ok(if follow {
        feed.ended().map_or(Exit::Ok, exit_of)
    } else {
        Exit::Ok
    })
}

fn exit_of(status: &AgentStatus) -> Exit {
    match status.state {
        ObservedState::Completed => Exit::Ok,
        _ => Exit::AgentNotCompleted,
    }
}
