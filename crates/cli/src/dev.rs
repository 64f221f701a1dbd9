//! `mosaic dev`: a hub and spokes in one process, connected, until Ctrl-C or SIGTERM.
//!
//! An orderly stop kills every agent and proves it, unless `--keep-agents`; after a crash of this process agents go
//! on, and the next `mosaic dev` in the same folder adopts them. Only one runs in a folder at a time.

use std::{fs, path::Path};

use crate::{
    args::{DevArgs, Globals},
    error::{CliError, Exit},
    ready::{self, Ready},
    render,
    stack::Stack,
};

/// Runs it.
pub(crate) async fn run(globals: &Globals, args: DevArgs) -> Result<Exit, CliError> {
    let image = args.contained.image()?;
    mosaic_hub::app::init_logging(false);
    let dir = globals.dir.clone().unwrap_or_else(ready::default_dir);
    // Listened for from here on, so that a signal during the start stops in order too.
    let stop = mosaic_hub::app::shutdown_on_signals()?;
    let stack = Stack::start(&dir, args.spokes, args.port, image).await?;
    let served = serve(globals, &args, &dir, &stack, &stop).await;
    let killed = if args.keep_agents {
        Ok(Exit::Ok)
    } else {
        kill_all(&stack, &dir).await
    };
    let removed = Ready::remove(&dir);
    let stopped = stack.stop().await;
    served?;
    let exit = killed?;
    removed?;
    stopped?;
    Ok(exit)
}

async fn serve(
    globals: &Globals,
    args: &DevArgs,
    dir: &Path,
    stack: &Stack,
    stop: &tokio_util::sync::CancellationToken,
) -> Result<(), CliError> {
    stack.release_noted(dir).await?;
    let ready = tokio::select! {
        ready = stack.connect() => ready?,
        () = stop.cancelled() => return Ok(()),
    };
    ready.write(dir)?;
    if globals.json {
        render::json(&ready)?;
    } else {
        announce(args, dir, stack, &ready)?;
    }
    stop.cancelled().await;
    Ok(())
}

fn announce(args: &DevArgs, dir: &Path, stack: &Stack, ready: &Ready) -> Result<(), CliError> {
    let shown = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    render::line(format!(
        "{}      {}",
        render::styled(render::BOLD, "hub"),
        ready.hub.url
    ))?;
    for ((name, containment), spoke) in stack.containment().zip(&ready.spokes) {
        let name = render::styled(render::BOLD, name);
        let containment = render::styled(render::DIM, containment);
        render::line(format!("{name}  {}  {containment}", spoke.url))?;
    }
    render::line(format!("data     {}", shown.display()))?;
    let fate = if args.keep_agents {
        "leaves agents running"
    } else {
        "kills every agent"
    };
    render::line(format!("Ctrl-C stops and {fate}. In another terminal:"))?;
    render::line(
        "  mosaic spawn -r file://$PWD -b main --runtime shell --instructions 'date > DATE' --follow",
    )
}

async fn kill_all(stack: &Stack, dir: &Path) -> Result<Exit, CliError> {
    // A note that cannot be made leaves the spokes on hold, which is told at the next spawn; the kill comes first.
    if let Err(error) = stack.note_holds(dir).await {
        render::error(&error);
    }
    let mut exit = Exit::Ok;
    for (name, report) in stack.kill_all().await {
        match report {
            Ok(report) if report.unverified == 0 => {
                if report.killed > 0 {
                    render::note(format!(
                        "{name}: {} agents killed, each proven",
                        report.killed
                    ));
                }
            }
            Ok(report) => {
                render::note(format!(
                    "{name}: {} agents NOT proven dead",
                    report.unverified
                ));
                exit = Exit::KillIncomplete;
            }
            Err(error) => {
                render::note(format!("{name}: agents were NOT killed"));
                render::error(&error);
                exit = Exit::KillIncomplete;
            }
        }
    }
    let uncleared = stack.cleared().await;
    if uncleared > 0 {
        render::note(format!(
            "{uncleared} agents are not cleared up yet; the next start goes on with it"
        ));
    }
    Ok(exit)
}
