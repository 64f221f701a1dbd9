//! `audit`.

use std::path::Path;

use mosaic_types::{api::WitnessedHead, audit::AuditHead};

use super::client;
use crate::{
    args::{AuditArgs, AuditVerb, Globals},
    client::{Client, Prefer},
    error::{CliError, Exit},
    render::{self, Table},
};

pub(super) async fn audit(globals: &Globals, args: AuditArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    match args.verb {
        Some(AuditVerb::Verify { witnessed }) => {
            verify(globals, &client, witnessed.as_deref()).await
        }
        Some(AuditVerb::Witnessed { instance }) => {
            let mut heads = client.witnessed().await?;
            heads.retain(|seen| instance.as_ref().is_none_or(|one| seen.instance == *one));
            if globals.json {
                render::json(&heads)?;
                return Ok(Exit::Ok);
            }
            let mut table = Table::new(["INSTANCE", "SEEN", "HEAD"]);
            for seen in heads {
                let head = format!("{}:{}", seen.head.seq, seen.head.hash);
                table.row([seen.instance.to_string(), render::time(seen.seen_at), head]);
            }
            render::line(table)?;
            Ok(Exit::Ok)
        }
        None => page(globals, &client, args.after, args.limit).await,
    }
}

async fn verify(globals: &Globals, client: &Client, file: Option<&Path>) -> Result<Exit, CliError> {
    // The witnesses first: what they have seen by now must be in what is fetched after.
    let heads = witnesses(globals, client, file).await?;
    let seen = heads.len();
    let verdict = {
        let _waiting = render::Waiting::for_what("verifying every entry");
        client.audit_verify(heads).await?
    };
    if !globals.json {
        render::note(render::styled(
            render::DIM,
            format!(
                "every entry was checked here, against {seen} heads that other nodes have seen"
            ),
        ));
    }
    if globals.json {
        render::json(&verdict)?;
    } else {
        render::verdict(&verdict)?;
    }
    Ok(if verdict.valid {
        Exit::Ok
    } else {
        Exit::AuditBad
    })
}

/// Heads of the node's trail that others have seen: those in the file, and those that the other nodes of the
/// `mosaic dev` that runs have.
async fn witnesses(
    globals: &Globals,
    client: &Client,
    file: Option<&Path>,
) -> Result<Vec<AuditHead>, CliError> {
    let others = client.target().others(globals)?;
    if file.is_none() && others.is_empty() {
        return Ok(Vec::new());
    }
    let instance = client.instance().await?.instance_id;
    let mut heads = Vec::new();
    if let Some(path) = file {
        let text = super::spawn::read_text(path)?;
        let listed: Vec<WitnessedHead> =
            serde_json::from_str(&text).map_err(|source| CliError::Parse {
                path: path.to_owned(),
                source,
            })?;
        let ours = listed.into_iter().filter(|seen| seen.instance == instance);
        heads.extend(ours.map(|seen| seen.head));
    }
    for other in others {
        let url = other.url.clone();
        match Client::new(other)?.witnessed_of(&instance).await {
            Ok(seen) => heads.extend(seen),
            // A witness that cannot be asked is no fault of the trail.
            Err(error) => render::note(render::clean(&format!("{url} was not asked: {error}"))),
        }
    }
    Ok(heads)
}

async fn page(
    globals: &Globals,
    client: &Client,
    after: Option<u64>,
    limit: u32,
) -> Result<Exit, CliError> {
    let after = match after {
        Some(after) => after,
        // The newest, unless a start is named.
        None => client
            .audit(0, 1)
            .await?
            .head
            .seq
            .saturating_sub(u64::from(limit)),
    };
    let page = client.audit(after, limit).await?;
    if globals.json {
        render::json(&page)?;
    } else {
        render::audit(&page.entries)?;
        if page.more {
            render::note(render::styled(
                render::DIM,
                "there are more: --after <the last SEQ above>",
            ));
        }
    }
    Ok(Exit::Ok)
}
