//! Word of a kill that another process left, while no daemon ran or while this one did: heeded whenever an agent is found
//! dead or is about to start, so that nobody's kill is taken for an accident, and nothing starts after it.

use mosaic_store::AgentRecord;
use mosaic_types::agent::AgentState;
use tracing::warn;

use super::{shut, strike};
use crate::{
    aside::aside,
    kill_journal::Words,
    lifecycle::{Cell, KillOrder},
    sandbox,
    surroundings::Surroundings,
};

/// The word on an agent, in the journal or in its own folder.
pub(crate) fn word_on(
    around: &Surroundings,
    words: &Words,
    record: &AgentRecord,
) -> Option<KillOrder> {
    let run_dir = around.layout.agent(record.agent_id).run_dir();
    // Of an attempt before this one it says nothing.
    let ended_at = (record.state == AgentState::Running)
        .then(|| sandbox::ended_at(&run_dir))
        .flatten();
    let queued_at = record.status.queued_at;
    let word = words.on(record.agent_id, queued_at, ended_at).cloned();
    word.or_else(|| {
        let own = Words::of_bytes(&sandbox::word_in_reserve(&run_dir)?);
        own.agents.get(&record.agent_id).cloned()
    })
}

/// Takes up what the journal says that this process has not said itself. Costs a look at a file's length, for which a
/// disk that hangs keeps this thread.
pub(crate) fn heed(around: &Surroundings) {
    aside(|| {
        let _alone = around.kills.heeding();
        let Some(words) = around.kills.news() else {
            return;
        };
        for cell in around.fleet.select(|cell| !cell.publisher.has_ended()) {
            if cell.gate.ordered().is_none() {
                heed_words(around, &cell, &words);
            }
        }
    });
}

/// As [`heed`], and looks into the agent's own folder, too: for one that was found dead.
pub(crate) fn heed_of(around: &Surroundings, cell: &Cell) {
    heed(around);
    if cell.gate.ordered().is_none() {
        heed_words(around, cell, &Words::default());
    }
}

fn heed_words(around: &Surroundings, cell: &Cell, words: &Words) {
    let record = cell.publisher.view().record;
    if let Some(order) = word_on(around, words, &record) {
        warn!(agent = %cell.agent_id, "killed by another process");
        strike(&shut(cell, order));
        cell.kill_answered.cancel();
    }
}
