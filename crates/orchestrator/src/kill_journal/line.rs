//! The lines of the journal.

use std::{collections::HashMap, io};

use mosaic_types::{AgentId, Timestamp, audit::AuditEvent};
use serde::{Deserialize, Serialize};

use crate::lifecycle::KillOrder;

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub(super) enum Line {
    Agent { agent_id: AgentId, order: KillOrder },
    Everything { everything: KillOrder },
    Told { told: AuditEvent },
}

/// What a journal says.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Words {
    /// Who is killed.
    pub agents: HashMap<AgentId, KillOrder>,
    /// The last order for everything.
    pub everything: Option<KillOrder>,
    /// What is to go on the audit trail, in order.
    pub told: Vec<AuditEvent>,
}

impl Words {
    /// The word on an agent that was accepted at `queued_at`. `ended_at`: when it ended by itself, if it did. What was
    /// accepted later, or had ended before, is not meant by an order for everything.
    #[must_use]
    pub fn on(
        &self,
        agent_id: AgentId,
        queued_at: Timestamp,
        ended_at: Option<Timestamp>,
    ) -> Option<&KillOrder> {
        self.agents.get(&agent_id).or_else(|| {
            self.everything.as_ref().filter(|order| {
                queued_at <= order.at && ended_at.is_none_or(|ended| ended > order.at)
            })
        })
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
        let agents = self.agents.into_iter();
        let agents = agents.map(|(agent_id, order)| Line::Agent { agent_id, order });
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
            Ok(Line::Agent { agent_id, order }) => {
                words.agents.insert(agent_id, order);
            }
            Ok(Line::Everything { everything }) => {
                let is_later = |known: &KillOrder| known.at <= everything.at;
                if words.everything.as_ref().is_none_or(is_later) {
                    words.everything = Some(everything);
                }
            }
            Ok(Line::Told { told }) => words.told.push(told),
            Err(_) => words.agents.extend(torn(line)),
        }
    }
    words
}

/// Of a line that is not whole: the id comes first.
fn torn(line: &[u8]) -> Option<(AgentId, KillOrder)> {
    let text = String::from_utf8_lossy(line);
    let id = text.strip_prefix("{\"agentId\":\"")?.get(..36)?;
    Some((id.parse().ok()?, KillOrder::of_a_torn_line()))
}
