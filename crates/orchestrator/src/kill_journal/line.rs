//! The lines of the journal.

use std::{collections::HashMap, io};

use mosaic_types::{AgentId, Timestamp, audit::AuditEvent};
use serde::{Deserialize, Serialize};

use crate::lifecycle::KillOrder;

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub(super) enum Line {
    Agent {
        agent_id: AgentId,
        order: KillOrder,
        /// The attempt that is there had ended before the order. A daemon that does not know the word kills.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        spares_result: bool,
    },
    Everything {
        everything: KillOrder,
    },
    Told {
        told: AuditEvent,
    },
}

/// What a journal says.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Words {
    /// Who is killed.
    pub agents: HashMap<AgentId, KillOrder>,
    /// Whose attempt had ended before the order: it keeps its result, and no attempt follows it.
    pub spared: HashMap<AgentId, KillOrder>,
    /// The last order for everything.
    pub everything: Option<KillOrder>,
    /// What is to go on the audit trail, in order.
    pub told: Vec<AuditEvent>,
}

/// The word on one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It is killed.
    Kill(KillOrder),
    /// The attempt that is there had ended before: it keeps its result, and no attempt follows it.
    NoMore(KillOrder),
}

impl Words {
    /// The word on an agent that is active when they are read, so that it was accepted before them. `ended_at`: when
    /// the attempt that is there ended by itself, if it did.
    #[must_use]
    pub fn on(&self, agent_id: AgentId, ended_at: Option<Timestamp>) -> Option<Word> {
        if let Some(order) = self.agents.get(&agent_id) {
            return Some(Word::Kill(order.clone()));
        }
        let (order, is_spared) = match self.spared.get(&agent_id) {
            // Of an attempt that is not there any more there is no result to spare.
            Some(order) => (order, ended_at.is_some()),
            None => {
                let order = self.everything.as_ref()?;
                (order, ended_at.is_some_and(|ended| ended <= order.at))
            }
        };
        let word = if is_spared { Word::NoMore } else { Word::Kill };
        Some(word(order.clone()))
    }

    /// Adds the word on an agent.
    pub fn add(&mut self, agent_id: AgentId, word: Word) {
        match word {
            Word::Kill(order) => self.agents.insert(agent_id, order),
            Word::NoMore(order) => self.spared.insert(agent_id, order),
        };
    }

    /// Adds the words on these agents.
    pub(super) fn add_agents(&mut self, others: &Self) {
        self.agents.extend(others.agents.clone());
        self.spared.extend(others.spared.clone());
    }

    /// These words as lines.
    ///
    /// # Errors
    /// When they cannot be written down.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        encode(self.clone().into_lines())
    }

    /// The words that such lines say; what is not whole is passed over, unless it names an agent.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        parse(bytes)
    }

    pub(super) fn into_lines(self) -> impl Iterator<Item = Line> {
        let line = |spares_result| {
            move |(agent_id, order)| Line::Agent {
                agent_id,
                order,
                spares_result,
            }
        };
        let spared = self.spared.into_iter().map(line(true));
        let agents = self.agents.into_iter().map(line(false)).chain(spared);
        let everything = self.everything.into_iter();
        let everything = everything.map(|everything| Line::Everything { everything });
        let told = self.told.into_iter().map(|told| Line::Told { told });
        everything.chain(agents).chain(told)
    }
}

pub(super) fn encode(lines: impl Iterator<Item = Line>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut bytes, &line)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// The same for the end of a file, whatever that is: after a line that was cut off comes a new one.
pub(super) fn after_any(lines: impl Iterator<Item = Line>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![b'\n'];
    bytes.extend(encode(lines)?);
    Ok(bytes)
}

pub(super) fn parse(bytes: &[u8]) -> Words {
    let mut words = Words::default();
    let lines = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    for line in lines {
        match serde_json::from_slice(line) {
            Ok(Line::Agent {
                agent_id,
                order,
                spares_result,
            }) => {
                let word = if spares_result {
                    Word::NoMore
                } else {
                    Word::Kill
                };
                words.add(agent_id, word(order));
            }
            Ok(Line::Everything { everything }) => words.everything = Some(everything),
            Ok(Line::Told { told }) => words.told.push(told),
            Err(_) => words.agents.extend(torn(line)),
        }
    }
    words
}

/// How much of this is whole lines, in bytes. What follows is still being written, or was cut off.
pub(super) fn whole(bytes: &[u8]) -> usize {
    let end = bytes.iter().rposition(|byte| *byte == b'\n');
    let end = end.map_or(0, |newline| newline + 1);
    let (_, rest) = bytes.split_at(end);
    match serde_json::from_slice::<Line>(rest) {
        Ok(_) => bytes.len(),
        Err(_) => end,
    }
}

/// Of a line that is not whole: the id comes first.
fn torn(line: &[u8]) -> Option<(AgentId, KillOrder)> {
    let text = String::from_utf8_lossy(line);
    let id = text.strip_prefix("{\"agentId\":\"")?.get(..36)?;
    Some((id.parse().ok()?, KillOrder::of_a_torn_line()))
}
