//! `hold`.

use mosaic_types::api::HoldReleaseRequest;

use super::{client, names};
use crate::{
    args::{Globals, HoldArgs, HoldVerb},
    client::Prefer,
    error::{CliError, Exit},
    render,
};

pub(super) async fn hold(globals: &Globals, args: HoldArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Spoke)?;
    let status = match args.verb {
        HoldVerb::Status => client.hold().await?,
        HoldVerb::Release { connection } => {
            let connection_id = match &connection {
                Some(text) => Some(names::connection(&client, text).await?.connection_id),
                None => None,
            };
            client
                .release(&HoldReleaseRequest { connection_id })
                .await?
        }
    };
    if globals.json {
        render::json(&status)?;
    } else if status.all {
        render::line(render::styled(render::WARN, "every spawn is held"))?;
    } else if status.connections.is_empty() {
        render::line("no spawn is held")?;
    }
    if !globals.json {
        for connection in &status.connections {
            let text = format!("spawns of connection {connection} are held");
            render::line(render::styled(render::WARN, text))?;
        }
    }
    Ok(Exit::Ok)
}
