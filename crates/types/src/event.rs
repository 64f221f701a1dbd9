//! What happens to an agent, as a stream that can be resumed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{AgentId, Timestamp, agent::AgentStatus};

/// A place in an agent's event stream: how many of its moves, and how many bytes of its output spool,
/// were seen. Written `m<moves>-o<offset>`.
///
/// Both counts only grow and outlive a restart, so a stream resumes exactly: nothing twice, nothing missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventCursor {
    /// Moves seen: the version of the agent's record.
    pub moves: u64,
    /// Byte offset in the output spool.
    pub output: u64,
}

/// The text is not an [`EventCursor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an event id of the form m<moves>-o<offset>")]
pub struct EventCursorError;

impl fmt::Display for EventCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}-o{}", self.moves, self.output)
    }
}

impl FromStr for EventCursor {
    type Err = EventCursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (moves, output) = text.strip_prefix('m')?.split_once("-o")?;
            let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(moves) || !digits(output) {
                return None;
            }
            Some(Self {
                moves: moves.parse().ok()?,
                output: output.parse().ok()?,
            })
        };
        parse().ok_or(EventCursorError)
    }
}

impl Serialize for EventCursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventCursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// One event of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentEvent {
    /// The agent.
    pub agent_id: AgentId,
    /// Where the stream stands after this event: resume with it.
    pub id: EventCursor,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
pub enum EventKind {
    /// It moved, or its clean-up went on. Holds the whole status, so that missing one costs nothing.
    Status {
        /// The agent now.
        status: Box<AgentStatus>,
    },
    /// It wrote a line.
    Output {
        /// Where to.
        stream: OutputStream,
        /// The line without its line feed; bytes that are not UTF-8 are replaced by U+FFFD.
        line: String,
        /// Whether the line goes on in a later event of the same stream: it is longer than 1 MiB, or the
        /// other stream wrote in between.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unfinished: bool,
    },
    /// Output is missing here: the disk was full, or a part of the spool is damaged; or the spool is full, and what the
    /// agent writes from here on is counted and dropped.
    OutputTruncated {
        /// Bytes dropped so far.
        dropped_bytes: u64,
    },
    /// It asked for a destination that its network policy does not let it reach.
    EgressRefused {
        /// Host and port, as it named them; cut at 300 characters.
        destination: String,
        /// Whether the destination is on its list, and leads to an address that is not public.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        not_public: bool,
        /// Whether this is the last refusal that is told of an attempt, whatever comes after.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last_told: bool,
    },
}

impl EventKind {
    /// The event's name, as in SSE's `event` field.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Output { .. } => "output",
            Self::OutputTruncated { .. } => "output-truncated",
            Self::EgressRefused { .. } => "egress-refused",
        }
    }
}

/// Where an agent wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_what_they_write_and_nothing_else() {
        let cursor = EventCursor {
            moves: 3,
            output: 10_482,
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in [
            "",
            "3-5",
            "m3",
            "m-o1",
            "m3-o+1",
            "m3-o99999999999999999999999",
        ] {
            assert_eq!(bad.parse::<EventCursor>(), Err(EventCursorError), "{bad}");
        }
    }
}
