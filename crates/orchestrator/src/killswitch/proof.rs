//! Striking one sandbox, and the kernel's word that it is dead.

use std::time::{Duration, Instant};

use mosaic_types::{
    Timestamp,
    agent::{DeathProof, ProofMethod},
};
use tracing::warn;

use crate::sandbox::{self, Death, SandboxError, SandboxHandle};

/// How long one look for a proof of death takes before the kill is repeated.
pub(crate) const PROOF_ROUND: Duration = Duration::from_secs(5);

/// Between two such looks.
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn strike_one(handle: &dyn SandboxHandle) {
    told(handle, handle.kill());
}

/// Whether it is dead is what the proof says; here it is only told.
pub(super) fn told(handle: &dyn SandboxHandle, struck: Result<(), SandboxError>) {
    if let Err(error) = struck {
        warn!(agent = %handle.agent_id(), error = &error as &dyn std::error::Error, "kill failed");
    }
}

/// A sandbox's proof as it is told.
pub(crate) fn in_words_of_the_wire(proof: &sandbox::DeathProof) -> DeathProof {
    DeathProof {
        method: method(proof.method),
        elapsed_micros: proof.elapsed_micros,
        proven_at: Timestamp::now(),
    }
}

pub(crate) fn method(method: sandbox::ProofMethod) -> ProofMethod {
    match method {
        sandbox::ProofMethod::Cgroup => ProofMethod::Cgroup,
        sandbox::ProofMethod::Pidfd => ProofMethod::Pidfd,
    }
}

pub(crate) fn proof_of(method: ProofMethod, started: Instant) -> DeathProof {
    DeathProof {
        method,
        elapsed_micros: micros(started.elapsed()),
        proven_at: Timestamp::now(),
    }
}

/// Kills what a handle holds and waits until the kernel confirms it, for as long as it takes.
pub(crate) async fn kill_and_prove(handle: &dyn SandboxHandle) -> DeathProof {
    loop {
        strike_one(handle);
        match handle.prove_dead(Instant::now() + PROOF_ROUND).await {
            Death::Proven(proof) => return in_words_of_the_wire(&proof),
            Death::NotProven { survivors } => {
                warn!(agent = %handle.agent_id(), ?survivors, "not dead yet");
                // What cannot be asked for, without a descriptor left say, is answered at once.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
