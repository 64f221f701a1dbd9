//! The hub's binary.

use std::process::ExitCode;

use clap::Parser;
use mosaic_hub::{app, config};

fn main() -> ExitCode {
    let flags = config::Flags::parse();
    let outcome = mosaic_node::runtime()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(flags)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mosaic-hub: {}", mosaic_node::with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: config::Flags) -> Result<(), Box<dyn std::error::Error>> {
    let config = app::Config::load(flags)?;
    app::init_logging(config.log_json);
    let shutdown = app::shutdown_on_signals()?;
    let listener = tokio::net::TcpListener::bind(config.listen).await?;
    app::start(config, listener, shutdown).await?.wait().await?;
    Ok(())
}
