//! The shim: one small process for each agent, which outlives the daemon. One thread does all that is told here; an
//! agent's proxy, if it has one, has threads of its own. It joins
//! the agent's cgroup before it starts anything, starts the engine, hands over when told to, pumps
//! the output into the spool, and leaves the exit record once the namespace is dead.
//!
//! ```text
//! plan ─► in cgroup ─► engine started ─► init ready ──go──► agent runs ─► namespace dead ─► exit.json
//!                          └─── daemon gone, or anything fails ───────────────┘ (notStarted)
//! ```
//!
//! Where the daemon has a container engine start the init, the shim listens for it instead, and everything else is
//! the same. A container that comes up after its shim is gone finds nobody to tell it what to run, and ends.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use zeroize::Zeroizing;

use super::{
    ExitRecord, ExitStatus, cgroup,
    files::{self, ExitFile, Plan},
    identity::ProcessIdentity,
    spool::{SpoolWriter, unix_ms},
};

mod control;
mod init_link;
mod link;
mod masked;
mod output;
mod own_engine;
mod session;
pub(super) mod warm;

use control::Control;
use link::Link;
use masked::MaskedSpool;
use session::{Ended, Session};

/// The hidden first argument that makes one of our binaries a shim.
pub(super) const SHIM_VERB: &str = "sandbox-shim";

/// What the shim says on its standard output when it listens for the init of a container.
pub(super) const LISTENING: &str = "listening";

/// What the shim says on its standard output when the init waits for its word.
pub(super) const READY: &str = "ready";

pub(super) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(agent_dir) = args.next().map(PathBuf::from) else {
        return ExitCode::from(2);
    };
    let is_warm = args.next().is_some_and(|flag| flag == warm::WARM_FLAG);
    close_inherited();
    let ran = if is_warm { run_warm() } else { run(&agent_dir) };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Two readers: the daemon that waits for "ready", and who looks into the log later.
            let _ = writeln!(io::stdout(), "{error}");
            let _ = writeln!(io::stderr(), "shim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Closes what the daemon's own parent left open in it: an agent must not hold somebody's pipe or
/// file. Comes first, while nothing of this process has a descriptor beyond the standard three.
fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // The listing's own is among them, and closed already.
        let _ = nix::unistd::close(number);
    }
}

fn run(agent_dir: &Path) -> io::Result<()> {
    let mut control = Control::default();
    // End of file here: the daemon is gone, nothing was begun.
    let Some(line) = control.read_line()? else {
        return Ok(());
    };
    let line = Zeroizing::new(line);
    let plan: Plan = serde_json::from_slice(&line)?;
    drop(line);
    serve(plan, agent_dir, control, None)
}

/// A shim whose container is there first: it learns of its agent later, or never.
fn run_warm() -> io::Result<()> {
    let mut control = Control::default();
    let Some((plan, link)) = warm::wait(&mut control)? else {
        return Ok(());
    };
    let agent_dir = plan.launch.agent_dir.clone();
    serve(plan, &agent_dir, control, Some(link))
}

/// One agent, from the plan to its exit record. `link` leads to an init that waits already.
fn serve(mut plan: Plan, agent_dir: &Path, control: Control, link: Option<Link>) -> io::Result<()> {
    for group in plan
        .shim_cgroup
        .iter()
        .map(cgroup::Group::path)
        .chain(plan.limit_groups.iter().map(PathBuf::as_path))
    {
        cgroup::join(group).map_err(|error| explain("join the cgroup", &error))?;
    }
    // The next daemon may have looked already, found nobody and launched again: what is written from here on would
    // speak for that launch. Who looks from now on finds this process in its group.
    if Control::is_abandoned()? {
        return Ok(());
    }
    files::write(&agent_dir.join(files::SHIM), &ProcessIdentity::own()?)?;
    let exit_file = ExitFile::reserve(agent_dir)?;
    let spool = SpoolWriter::open(&agent_dir.join(files::SPOOL), plan.launch.spool_max_bytes)?;
    let masks = std::mem::take(&mut plan.launch.masks);
    let spool = MaskedSpool::new(spool, &masks).map_err(|error| explain("mask secrets", &error))?;
    drop(masks);
    let (ended, dropped_bytes) = match Session::start(plan, agent_dir, control, spool, link) {
        Ok(session) => session.watch(),
        Err(error) => (Ended::not_started(error.to_string()), 0),
    };
    if ended.status == ExitStatus::NotStarted {
        let _ = writeln!(
            io::stdout(),
            "{}",
            ended.detail.as_deref().unwrap_or("not started")
        );
    }
    exit_file.commit(&ExitRecord {
        status: ended.status,
        at_unix_ms: unix_ms(),
        dropped_bytes,
        detail: ended.detail,
    })
}

fn explain(attempt: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not {attempt}: {error}"))
}

/// The shim's standard error, for the daemon to open.
pub(super) fn log_file(agent_dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(agent_dir.join(files::SHIM_LOG))
}
