//! Word of a kill that another process left, while no daemon ran or while this one did: heeded whenever an agent is found
//! dead or is about to start, so that nobody's kill is taken for an accident, and nothing starts after it; and before one
//! is accepted, so that a kill means nobody who comes after it.

use mosaic_store::AgentRecord;
use mosaic_types::agent::AgentState;
use tracing::warn;

use super::shut::strike;
use crate::{
    aside::aside,
    kill_journal::{JournalError, Word, Words},
    lifecycle::Cell,
    sandbox,
    surroundings::Surroundings,
};

/// The word on an agent, in the journal or in its own folder.
pub(crate) fn word_on(around: &Surroundings, words: &Words, record: &AgentRecord) -> Option<Word> {
    let run_dir = around.layout.agent(record.agent_id).run_dir();
    // Of an attempt before this one it says nothing.
    let ended_at = (record.state == AgentState::Running)
        .then(|| sandbox::ended_at(&run_dir))
        .flatten();
    words.on(record.agent_id, ended_at).or_else(|| {
        let own = Words::of_bytes(&sandbox::word_in_reserve(&run_dir)?);
        let order = own.agents.get(&record.agent_id)?;
        Some(Word::Kill(order.clone()))
    })
}

/// Takes up what the journal says that this process has not said itself. Costs a look at a file's length, for which a
/// disk that hangs keeps this thread.
pub(crate) fn heed(around: &Surroundings) {
    aside(|| {
        let _alone = around.kills.heeding();
        if let Some(words) = around.kills.news() {
            for cell in around.fleet.select(|cell| !cell.publisher.has_ended()) {
                if cell.gate.ordered().is_none() {
                    heed_words(around, &cell, &words);
                }
            }
        }
        // Before anybody comes who is not meant. Where the disk does not take it now, with the next look.
        if around.kills.is_for_everything()
            && let Err(error) = around.kills.assign(&in_force(around))
        {
            warn!(
                error = &error as &dyn std::error::Error,
                "an order for everything is not one for each agent yet"
            );
        }
    });
}

/// Drops from the journal what nobody needs any more. The first `told` that were left for the audit trail are there.
pub(crate) fn settle(around: &Surroundings, told: usize) -> Result<(), JournalError> {
    aside(|| {
        // Nobody takes up others meanwhile.
        let _alone = around.kills.heeding();
        around.kills.settle(&in_force(around), told)
    })
}

/// The orders that were given and are not on record yet.
fn in_force(around: &Surroundings) -> Words {
    let mut words = Words::default();
    for cell in around.fleet.select(|cell| !cell.publisher.has_ended()) {
        let after = || cell.gate.ordered_after().map(Word::NoMore);
        if let Some(word) = cell.gate.ordered().map(Word::Kill).or_else(after) {
            words.add(cell.agent_id, word);
        }
    }
    words
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
    match word_on(around, words, &record) {
        Some(Word::Kill(order)) => {
            warn!(agent = %cell.agent_id, "killed by another process");
            strike(&cell.order_answered(order));
        }
        Some(Word::NoMore(order)) => cell.order_answered_after(order),
        None => {}
    }
}
