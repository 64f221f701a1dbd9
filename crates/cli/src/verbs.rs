//! One file for each group of verbs: read arguments, ask the node, show the answer.

mod agents;
mod audit;
mod hold;
mod kills;
mod logs;
mod names;
mod peers;
mod results;
mod spawn;
mod tokens;

use clap::CommandFactory;

use crate::{
    args::{Cli, Command, Globals},
    client::{Client, Prefer, Target},
    demo, dev,
    error::{CliError, Exit},
};

/// Runs the verb.
pub(crate) async fn run(cli: Cli) -> Result<Exit, CliError> {
    let globals = &cli.globals;
    match cli.command {
        Command::Dev(args) => Box::pin(dev::run(globals, args)).await,
        Command::Demo(args) => Box::pin(demo::run(globals, args)).await,
        Command::Invite(args) => peers::invite(globals, args).await,
        Command::Connect(args) => peers::connect(globals, args).await,
        Command::Connections(args) => peers::connections(globals, args).await,
        Command::Spawn(args) => spawn::spawn(globals, *args).await,
        Command::Ps(args) => agents::ps(globals, args).await,
        Command::Status(args) => agents::status(globals, args).await,
        Command::Logs(args) => logs::logs(globals, args).await,
        Command::Result(args) => results::result(globals, args).await,
        Command::Kill(args) => agents::kill(globals, args).await,
        Command::Kills(args) => kills::kills(globals, args).await,
        Command::Hold(args) => hold::hold(globals, args).await,
        Command::Audit(args) => audit::audit(globals, args).await,
        Command::Tokens(args) => tokens::tokens(globals, args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mosaic", &mut script);
            crate::render::raw(&script)?;
            Ok(Exit::Ok)
        }
    }
}

fn client(globals: &Globals, prefer: Prefer) -> Result<Client, CliError> {
    Client::new(Target::find(globals, prefer)?)
}
