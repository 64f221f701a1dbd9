//! `tokens`.

use mosaic_types::api::TokenRequest;

use super::client;
use crate::{
    args::{Globals, TokensArgs, TokensVerb},
    client::Prefer,
    error::{CliError, Exit},
    render::{self, Table},
};

pub(super) async fn tokens(globals: &Globals, args: TokensArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    match args.verb {
        TokensVerb::Create { name, role } => {
            let created = client
                .create_token(&TokenRequest {
                    name,
                    role: role.into(),
                })
                .await?;
            if globals.json {
                render::json(&created)?;
            } else {
                render::line(&created.token)?;
                render::note("it is shown this once; keep it in a file that only you can read");
            }
        }
        TokensVerb::List => {
            let tokens = client.tokens().await?;
            if globals.json {
                render::json(&tokens)?;
                return Ok(Exit::Ok);
            }
            let mut table = Table::new(["NAME", "ROLE", "MADE"]);
            for token in tokens {
                let role = format!("{:?}", token.role).to_lowercase();
                table.row([token.name, role, render::time(token.created_at)]);
            }
            render::line(table)?;
        }
        TokensVerb::Delete { name } => {
            client.delete_token(&name).await?;
            if globals.json {
                render::json(&serde_json::json!({ "deleted": name }))?;
            }
        }
    }
    Ok(Exit::Ok)
}
