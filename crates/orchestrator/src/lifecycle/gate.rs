//! The door between an agent and its processes.
//!
//! ```text
//!          launch                    proven dead
//!  Closed ────────► Live(handle) ────────────────► Closed      (a retry may launch again)
//!     │                 │                             │
//!     └──── order ──────┴────── order ────────────────┘  ► nothing launches any more
//! ```
//!
//! A kill order and a launch take the same short lock, so one of them is first: either the launch sees the
//! order and does not happen, or the order sees the handle and kills by it (A9, A32). The lock is held for the
//! start of one shim, about a millisecond, and never over an await.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use mosaic_types::{
    Timestamp,
    agent::{DeathProof, EndReason},
    audit::Actor,
};
use serde::{Deserialize, Serialize};

use crate::sandbox::SandboxHandle;

mod machine;

pub use machine::{LaunchRefused, Machine, Target};

/// A kill that was ordered. The first order stays; later ones change nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillOrder {
    /// What the record will say.
    pub reason: EndReason,
    /// Who ordered it.
    pub actor: Actor,
    /// Their words, if they gave any.
    pub note: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl KillOrder {
    /// The order of which only the agent's name could be read.
    pub(crate) fn of_a_torn_line() -> Self {
        Self {
            reason: EndReason::KillRequested,
            actor: Actor::System,
            note: None,
            at: Timestamp::from_unix_millis(0),
        }
    }
}

/// What a kill order met.
pub type KillTarget = Target<Arc<dyn SandboxHandle>, DeathProof>;

/// See the module documentation. Who may pass is [`Machine`]'s to say.
#[derive(Debug, Default)]
pub struct Gate(Mutex<Machine<KillOrder, Arc<dyn SandboxHandle>, DeathProof>>);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Machine<KillOrder, Arc<dyn SandboxHandle>, DeathProof>> {
        // A panic under the lock leaves a state that is still true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts something, unless a kill was ordered.
    ///
    /// # Errors
    /// [`LaunchRefused`]; then nothing was started.
    pub fn launch<E>(
        &self,
        start: impl FnOnce() -> Result<Arc<dyn SandboxHandle>, E>,
    ) -> Result<Arc<dyn SandboxHandle>, LaunchRefused<E>> {
        self.lock().launch(start)
    }

    /// Takes over what a daemon before this one started.
    pub fn adopt(&self, handle: Arc<dyn SandboxHandle>) {
        self.lock().adopt(handle);
    }

    /// Orders the kill, and tells what it meets. From here on nothing is launched.
    pub fn order(&self, order: KillOrder) -> KillTarget {
        self.lock().order(order)
    }

    /// Orders that no attempt follows the one that is there. `true` if the agent waits for one: then it is killed.
    pub fn order_after(&self, order: KillOrder) -> bool {
        self.lock().order_after(order)
    }

    /// As [`Self::order`], unless something is being started behind it right now: that takes about a millisecond, and as long as
    /// the disk hangs where it does.
    pub fn try_order(&self, order: KillOrder) -> Option<KillTarget> {
        match self.0.try_lock() {
            Ok(mut machine) => Some(machine.order(order)),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner().order(order)),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether the agent is proven dead for good.
    pub fn is_over(&self) -> bool {
        self.lock().is_over()
    }

    /// Whether there are processes, or the remains of some whose death is not proven.
    pub fn is_live(&self) -> bool {
        self.lock().is_live()
    }

    /// The order, if one was given.
    pub fn ordered(&self) -> Option<KillOrder> {
        self.lock().ordered().cloned()
    }

    /// The order for what would follow, if one was given and it is not the agent's kill.
    pub fn ordered_after(&self) -> Option<KillOrder> {
        self.lock().ordered_after().cloned()
    }

    /// An ordered kill is proven: whoever orders another is told of this one.
    pub fn killed(&self, proof: DeathProof) {
        self.lock().killed(proof);
    }

    /// What a daemon before this one started is still to be found.
    pub fn not_found_yet(&self) {
        self.lock().not_found_yet();
    }

    /// Nothing of a daemon before this one is there.
    pub fn found_nothing(&self) {
        self.lock().found_nothing();
    }

    /// The attempt is proven dead; another may be launched, unless a kill was ordered. `true` if one was ordered for
    /// just this case ([`Self::order_after`]).
    pub fn attempt_over(&self, proof: DeathProof) -> bool {
        self.lock().attempt_over(proof)
    }

    /// The agent is proven dead and ends by itself, unless a kill was ordered before: then the order is
    /// answered, and the end is a kill.
    ///
    /// # Errors
    /// The order.
    pub fn end(&self, proof: DeathProof) -> Result<(), KillOrder> {
        self.lock().end(proof)
    }
}

#[cfg(test)]
mod tests {
    use mosaic_types::agent::ProofMethod;

    use super::*;

    fn order() -> KillOrder {
        KillOrder {
            reason: EndReason::KillRequested,
            actor: Actor::System,
            note: None,
            at: Timestamp::now(),
        }
    }

    fn proof() -> DeathProof {
        DeathProof {
            method: ProofMethod::Cgroup,
            elapsed_micros: 1,
            proven_at: Timestamp::now(),
        }
    }

    #[test]
    fn a9_nothing_is_launched_after_an_order() {
        let gate = Gate::default();
        assert!(matches!(gate.order(order()), KillTarget::NeverStarted));
        let launched = gate.launch(|| -> Result<_, ()> { panic!("started after a kill") });
        assert!(matches!(launched, Err(LaunchRefused::Ordered)));
    }

    #[test]
    fn an_order_for_what_follows_spares_a_result_and_nothing_else() {
        let spared = Gate::default();
        assert!(!spared.order_after(order()));
        assert!(spared.end(proof()).is_ok(), "it has its result");
        assert_eq!(spared.ordered(), None);
        let again = Gate::default();
        again.order_after(order());
        let launched = again.launch(|| -> Result<_, ()> { panic!("started after a kill") });
        assert!(matches!(launched, Err(LaunchRefused::Ordered)));
        assert!(again.attempt_over(proof()), "another was to follow");
        assert!(again.ordered().is_some() && again.ordered_after().is_none());
        assert!(!again.attempt_over(proof()), "it is said once");
        let waits = Gate::default();
        waits.attempt_over(proof());
        assert!(waits.order_after(order()), "another was to follow");
        assert!(waits.ordered().is_some());
    }

    #[test]
    fn an_end_that_was_first_stays_an_end() {
        let gate = Gate::default();
        assert!(gate.end(proof()).is_ok());
        assert!(matches!(gate.order(order()), KillTarget::Ended(_)));
        assert_eq!(gate.ordered(), None);
    }

    #[test]
    fn only_one_kill_takes_an_agent() {
        let gate = Gate::default();
        assert!(matches!(gate.order(order()), KillTarget::NeverStarted));
        gate.killed(proof());
        assert!(matches!(gate.order(order()), KillTarget::Ended(_)));
        assert!(gate.ordered().is_some(), "it is still a kill that ended it");
    }

    #[test]
    fn an_order_that_was_first_makes_the_end_a_kill() {
        let gate = Gate::default();
        let first = order();
        gate.order(first.clone());
        gate.order(KillOrder {
            reason: EndReason::KillAll,
            ..order()
        });
        assert_eq!(gate.end(proof()), Err(first));
    }
}
