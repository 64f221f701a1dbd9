//! `kills`.

use mosaic_types::kill::KillIntentState;

use super::client;
use crate::{
    args::{Globals, KillsArgs, KillsVerb},
    client::Prefer,
    error::{CliError, Exit},
    render,
};

pub(super) async fn kills(globals: &Globals, args: KillsArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    if let Some(KillsVerb::Cancel { kill }) = args.verb {
        let intent = client.cancel_kill(kill).await?;
        if globals.json {
            render::json(&intent)?;
        } else {
            render::kept_kills(&[intent])?;
        }
        return Ok(Exit::Ok);
    }
    let mut kept = client.kept_kills().await?;
    if !args.all {
        kept.kills
            .retain(|intent| intent.state == KillIntentState::Pending);
    }
    if globals.json {
        render::json(&kept)?;
    } else {
        render::kept_kills(&kept.kills)?;
    }
    Ok(Exit::Ok)
}
