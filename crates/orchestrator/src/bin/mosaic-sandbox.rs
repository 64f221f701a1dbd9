//! The shim and the init of sandboxes, and nothing else: what runs beside each agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    mosaic_orchestrator::sandbox::dispatch().unwrap_or(ExitCode::from(2))
}
