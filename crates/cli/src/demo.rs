//! `mosaic demo`: the tour. A hub and two spokes in a folder that is gone afterwards, a real repository, and agents
//! that are watched, killed one by one and all at once. It succeeds only if every step proved itself, and leaves
//! nothing behind, whether it ends by itself, by a failure or by Ctrl-C.

mod key;
mod leftovers;
mod repository;
mod script;
mod tour;

use std::{path::Path, time::Duration};

use tempfile::TempDir;

use crate::{
    args::{DemoArgs, Globals},
    error::{CliError, Exit},
    render::{self, BAD, BOLD, DIM, GOOD, styled},
    stack::Stack,
};

/// How long the whole tour may take.
const LIMIT: Duration = Duration::from_secs(300);

/// How long the folder may resist its removal.
const REMOVAL: Duration = Duration::from_secs(10);
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// What the tour says goes to standard output, or with `--json`, where that is kept for the figures, to standard
/// error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Voice {
    json: bool,
}

impl Voice {
    pub(super) fn say(self, text: impl std::fmt::Display) -> Result<(), CliError> {
        if self.json {
            render::note(text);
            return Ok(());
        }
        render::line(text)
    }

    pub(super) fn step(self, title: impl std::fmt::Display) -> Result<(), CliError> {
        self.say(format!("\n{}", styled(BOLD, title)))
    }

    pub(super) fn good(self, text: impl std::fmt::Display) -> Result<(), CliError> {
        self.say(format!("  {} {text}", styled(GOOD, "✓")))
    }
}

/// Runs it.
pub(crate) async fn run(globals: &Globals, args: DemoArgs) -> Result<Exit, CliError> {
    if std::env::var_os("RUST_LOG").is_some() {
        mosaic_hub::app::init_logging(false);
    }
    let stop = mosaic_hub::app::shutdown_on_signals()?;
    let voice = Voice { json: globals.json };
    let image = args.contained.image()?;
    let scratch = tempfile::Builder::new().prefix("mosaic-demo-").tempdir()?;
    let here = std::env::current_dir()?;
    let chosen = repository::choose(
        args.repository.as_deref(),
        args.branch.as_deref(),
        &here,
        scratch.path(),
    )?;
    // Not cut short by a signal: what is half started could not be stopped in order.
    let stack = Box::pin(Stack::start(&scratch.path().join("data"), 2, None, image)).await?;
    let tour = tour::Tour {
        stack: &stack,
        voice,
        chosen: &chosen,
        marker: marker(&scratch),
        wait_for_key: !args.yes && key::can_be_pressed(),
    };
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(LIMIT, Box::pin(tour.run())) => Some(outcome),
        () = stop.cancelled() => None,
    };
    let marker = tour.marker.clone();
    let swept = sweep(stack, scratch, &marker, image.is_some(), voice).await;
    let figures = match outcome {
        None => {
            swept?;
            voice.say("interrupted; nothing is left")?;
            return Ok(Exit::Interrupted);
        }
        Some(Err(_)) => Err(failed("the tour", "it took longer than five minutes")),
        Some(Ok(figures)) => figures,
    };
    if let (Err(_), Err(error)) = (&figures, &swept) {
        render::note(styled(BAD, "the clean-up failed too:"));
        render::error(error);
    }
    let figures = figures?;
    swept?;
    if globals.json {
        render::json(&figures)?;
    }
    voice.say(format!(
        "\n{} Next: `mosaic dev`, and the README.",
        styled(GOOD, "Every step proved itself.")
    ))?;
    Ok(Exit::Ok)
}

/// A word that every process of the tour's agents carries, so that a survivor would be found.
fn marker(scratch: &TempDir) -> String {
    let name = scratch.path().file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Kills what still runs, stops the nodes, removes the folder, and looks whether anything is left.
async fn sweep(
    stack: Stack,
    scratch: TempDir,
    marker: &str,
    containers: bool,
    voice: Voice,
) -> Result<(), CliError> {
    voice.step("Clearing up")?;
    let mut first = None;
    for (name, report) in stack.kill_all().await {
        match report {
            Ok(report) if report.unverified > 0 => {
                let why = format!("{} agents at {name} are not proven dead", report.unverified);
                first.get_or_insert(failed("clearing up", why));
            }
            Ok(_) => {}
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    let uncleared = stack.cleared().await;
    if uncleared > 0 {
        let why = format!("{uncleared} agents are not cleared up");
        first.get_or_insert(failed("clearing up", why));
    }
    let instances = stack.instances();
    if let Err(error) = stack.stop().await {
        first.get_or_insert(error);
    }
    let path = scratch.keep();
    if let Err(source) = remove(&path).await {
        first.get_or_insert(CliError::File {
            action: "remove",
            path: path.clone(),
            source,
        });
    }
    let mut left = leftovers::find(&path, marker, &instances).await;
    if containers {
        left.extend(leftovers::containers(&instances));
    }
    if !left.is_empty() {
        first.get_or_insert(failed(
            "clearing up",
            format!("still there: {}", left.join(", ")),
        ));
    }
    first.map_or(Ok(()), Err)?;
    let container = if containers { "no container, " } else { "" };
    voice.good(format!(
        "no process, no cgroup, {container}no file is left {}",
        styled(DIM, shown(&path))
    ))
}

/// Removes the folder. A checkout that was under way when the nodes stopped may still write into it for a moment.
async fn remove(path: &Path) -> std::io::Result<()> {
    let deadline = tokio::time::Instant::now() + REMOVAL;
    loop {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
            // Once more after a success too: what was under way makes its folders again.
            Ok(()) | Err(_) => tokio::time::sleep(REMOVAL_PAUSE).await,
        }
    }
}

fn shown(path: &Path) -> String {
    format!("({} is gone)", path.display())
}

fn failed(step: &'static str, why: impl Into<String>) -> CliError {
    CliError::Demo {
        step,
        why: why.into(),
    }
}
