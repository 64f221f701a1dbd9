//! `mosaic`: the operator's command line.

mod args;
mod client;
mod demo;
mod dev;
mod error;
mod ready;
mod render;
mod stack;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // `mosaic dev` runs spokes, and a spoke starts this binary again as the shim of each sandbox.
    if let Some(code) = mosaic_orchestrator::sandbox::dispatch() {
        return code;
    }
    let cli = args::Cli::parse();
    let outcome = mosaic_node::runtime()
        .map_err(error::CliError::Runtime)
        .and_then(|runtime| {
            let done = runtime.block_on(verbs::run(cli));
            // What still works in a folder of `mosaic dev` ends with this process: the folder's lock is given up already.
            runtime.shutdown_background();
            done
        });
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            render::error(&error);
            error.exit().into()
        }
    }
}
