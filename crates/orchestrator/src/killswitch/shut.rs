//! What shuts the gates: from there on nothing of an agent is launched, and what was is known and struck.

use std::{collections::HashSet, sync::Arc, thread, time::Instant};

use mosaic_types::{
    AgentId,
    command::{KillOutcome, KillReport},
};

use super::{KillScope, PROOF_WITHIN, Parts, proof::told, strike_one};
use crate::lifecycle::{Cell, KillOrder, KillTarget};

/// What a kill-all has met.
#[derive(Default)]
pub(super) struct Shut {
    /// Whose gates are shut.
    pub(super) targets: Vec<(Arc<Cell>, KillTarget)>,
    /// Who was being started when it was looked last.
    pub(super) in_launch: Vec<Arc<Cell>>,
}

impl Parts {
    /// Shuts the gates of the scope's agents that have not ended and are not shut yet. One at which a launch hangs
    /// keeps nobody else alive.
    pub(super) fn shut_all(&self, scope: &KillScope, order: &KillOrder, shut: &mut Shut) {
        let done: HashSet<AgentId> = shut.targets.iter().map(|(cell, _)| cell.agent_id).collect();
        let cells = self.around.fleet.select(|cell| {
            !cell.publisher.has_ended() && scope.includes(cell) && !done.contains(&cell.agent_id)
        });
        shut.in_launch.clear();
        for cell in cells {
            match cell.try_order(order.clone()) {
                Some(target) => shut.targets.push((cell, target)),
                None => shut.in_launch.push(cell),
            }
        }
    }

    /// Kills an agent that is being started right now: when that is through, in about a millisecond. Where it hangs, as
    /// on a disk that does, the death is not proven for now; the strike comes all the same.
    pub(super) async fn kill_in_launch(
        &self,
        cell: &Arc<Cell>,
        order: &KillOrder,
        started: Instant,
    ) -> KillReport {
        let (launched, order) = (Arc::clone(cell), order.clone());
        let shutting = tokio::task::spawn_blocking(move || {
            let target = launched.order(order);
            strike(&target);
            target
        });
        let left = PROOF_WITHIN.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, shutting).await {
            Ok(Ok(target)) => self.prove(cell, target, started).await,
            Ok(Err(_)) | Err(_) => KillReport {
                agent_id: cell.agent_id,
                outcome: KillOutcome::Unverified,
                proof: None,
                detail: Some("its start hangs; it is killed when that is through".to_owned()),
                status: None,
            },
        }
    }
}

pub(super) fn strike(target: &KillTarget) {
    if let KillTarget::Live(handle) = target {
        strike_one(handle.as_ref());
    }
}

/// Strikes what no lock of the kernel's is needed for.
pub(super) fn strike_first(target: &KillTarget) {
    if let KillTarget::Live(handle) = target {
        told(handle.as_ref(), handle.end());
    }
}

/// Strikes the groups, too, and does not wait for it: all that was struck first dies meanwhile, and who is left in a
/// group is waited for by the proof.
pub(super) fn strike_groups_aside(target: &KillTarget) {
    let KillTarget::Live(handle) = target else {
        return;
    };
    let of_thread = Arc::clone(handle);
    // A thread of its own: it waits for no queue.
    let striking = thread::Builder::new()
        .name("strike".to_owned())
        .spawn(move || told(of_thread.as_ref(), of_thread.end_groups()));
    if striking.is_err() {
        told(handle.as_ref(), handle.end_groups());
    }
}
