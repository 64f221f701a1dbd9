//! Where an agent is that a daemon before this one drove: by its identity, never by its pid (A13), and never by guess
//! (A3).

use std::{path::Path, sync::Arc, time::Instant};

use mosaic_store::AgentRecord;
use mosaic_types::{
    agent::{AgentState, EndReason, ProofMethod},
    audit::Actor,
};
use tracing::{error, info};

use super::{
    Cell,
    driver::Entry,
    state::{Left, left},
};
use crate::{
    killswitch,
    sandbox::{Adopted, ExitStatus, SandboxError},
    surroundings::Surroundings,
};

/// Finds out where an agent is that a daemon before this one drove.
pub async fn examine(around: &Surroundings, cell: &Cell, record: &AgentRecord) -> Entry {
    let run_dir = around.layout.agent(record.agent_id).run_dir();
    let adopted = match around.sandboxes.adopt(&run_dir).await {
        Ok(adopted) => adopted,
        // Its files say nothing, and the kernel says that nothing of it is there.
        Err(SandboxError::Corrupt { .. }) if is_certainly_empty(around, cell, record, &run_dir) => {
            Adopted::Vanished
        }
        Err(error) => {
            // Not known is not dead (A3): its slot is not freed and it is not started on a guess.
            error!(agent = %record.agent_id, error = &error as &dyn std::error::Error, "failed to examine an agent");
            return Entry::Unknown;
        }
    };
    if record.state == AgentState::Killing && cell.gate.ordered().is_none() {
        let reason = record.status.reason.unwrap_or(EndReason::KillRequested);
        cell.gate.order(killswitch::order(
            reason,
            Actor::System,
            Some("ordered before a restart"),
        ));
        cell.kill_answered.cancel();
    }
    let ended = match adopted {
        Adopted::Live(handle) => {
            cell.gate.adopt(Arc::clone(&handle));
            if cell.gate.ordered().is_some() {
                killswitch::strike_one(handle.as_ref());
                return Entry::Killed;
            }
            info!(agent = %record.agent_id, "adopted");
            return Entry::Running(handle);
        }
        Adopted::Ended(exit) => exit.status,
        Adopted::Vanished => ExitStatus::Lost,
    };
    cell.gate.found_nothing();
    let left = left(record.state, ended == ExitStatus::NotStarted);
    if left == Left::NeverRan {
        cell.attempt_over(killswitch::proof_of(
            ProofMethod::NeverStarted,
            Instant::now(),
        ));
    }
    if cell.gate.ordered().is_some() {
        let proof = killswitch::proof_of(ProofMethod::AlreadyEnded, Instant::now());
        cell.gate.killed(proof);
        return Entry::Killed;
    }
    match left {
        Left::Waiting => Entry::Waiting,
        Left::NeverRan => Entry::NeverRan,
        Left::Ended => Entry::Ended(ended),
    }
}

/// Whether the kernel says that no process of the agent's is there, by its cgroup.
fn is_certainly_empty(
    around: &Surroundings,
    cell: &Cell,
    record: &AgentRecord,
    run_dir: &Path,
) -> bool {
    let (kind, agent_id) = (record.options.sandbox, record.agent_id);
    let sandboxes = &around.sandboxes;
    sandboxes.group_proves(kind, run_dir, cell.scope(), agent_id)
        && sandboxes.list().is_ok_and(|running| {
            !running
                .iter()
                .any(|candidate| candidate.agent_id == agent_id && candidate.populated)
        })
}
