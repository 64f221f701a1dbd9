//! What is known of a running agent, derived from its output.

use serde::{Deserialize, Serialize};

/// Where an agent is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Nothing was heard yet.
    #[default]
    Starting,
    /// The model is at work, or plain output flows.
    Working,
    /// A tool was called and has not answered.
    Tool,
    /// The model's service refused for now; the runtime waits and tries again.
    Retrying,
    /// The runtime has given its result.
    Finished,
}

/// Tokens used, in total. Each saturates at 2^53 − 1, which every JSON reader holds exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    /// Read, not from a cache.
    pub input: u64,
    /// Written. While the agent runs this is a lower bound: the runtime reports what was known when
    /// a message began, and the true figure with its result.
    pub output: u64,
    /// Read from a cache.
    pub cache_read: u64,
    /// Written to a cache.
    pub cache_creation: u64,
}

impl Tokens {
    /// The greatest count that is reported.
    pub const MAX: u64 = (1 << 53) - 1;

    /// The sum, field by field, saturating.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a.saturating_add(b).min(Self::MAX))
    }

    /// The greater, field by field.
    #[must_use]
    pub fn at_least(self, other: Self) -> Self {
        self.zip(other, u64::max)
    }

    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            input: f(self.input, other.input),
            output: f(self.output, other.output),
            cache_read: f(self.cache_read, other.cache_read),
            cache_creation: f(self.cache_creation, other.cache_creation),
        }
    }
}

/// How much of the output was of which kind, in lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Lines in all, the overlong included.
    pub lines: u64,
    /// Lines of plain text.
    pub plain_lines: u64,
    /// JSON objects of a type that is not known here, or with a field that is not what it should be.
    pub unknown_lines: u64,
    /// Lines longer than [`super::MAX_LINE_BYTES`], passed over.
    pub overlong_lines: u64,
}

/// A bounded summary of what an agent does. Cheap to make and to send.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Where it is.
    pub phase: Phase,
    /// Answers of the model so far, those of sub-agents left out.
    pub turns: u64,
    /// Tools called so far.
    pub tool_calls: u64,
    /// The tool called last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_tool: Option<String>,
    /// What it was called with, on one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_tool_brief: Option<String>,
    /// The last text of the model, or the last line of plain output. Never a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_text: Option<String>,
    /// The model in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The runtime's own name for this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Tokens used.
    pub tokens: Tokens,
    /// What it cost, in US dollars: by the runtime's own reckoning, which comes with its result, and by prices
    /// for what it has used since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Whether a part of the cost is reckoned by prices, because the runtime has not told it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cost_is_estimate: bool,
    /// Refusals by the model's service that the runtime waited out.
    pub retries: u64,
    /// Work that the runtime does in the background and waits for.
    pub background_tasks: u64,
    /// Kinds of lines seen.
    pub counters: Counters,
}

/// What the runtime said at its end, as it said it. Whether it is an answer is for
/// [`super::Outcome`] to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FinalResult {
    /// The runtime called it a success: subtype `success` and not `is_error`.
    pub success: bool,
    /// The runtime's word for how it ended, such as `success` or `error_max_turns`.
    pub subtype: String,
    /// The text, bounded.
    pub text: String,
    /// HTTP status of the model service's refusal, when that was the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_error_status: Option<u64>,
    /// How long the run took, in milliseconds, by the runtime's own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// One thing that happened, for those who watch. Texts are bounded and free of control characters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum RuntimeEvent {
    /// The runtime is up.
    Started {
        /// The model in use, if it was said.
        model: Option<String>,
    },
    /// The model wrote text.
    Text {
        /// The text.
        text: String,
    },
    /// The model called a tool.
    ToolUse {
        /// The tool's name.
        tool: String,
        /// What with, on one line.
        brief: String,
    },
    /// A tool answered.
    ToolResult {
        /// The tool failed, or was refused.
        is_error: bool,
    },
    /// The model's service refused for now; the runtime waits.
    Retrying {
        /// Which try failed, from 1.
        attempt: u64,
        /// HTTP status, unless the connection broke.
        status: Option<u64>,
        /// How long the runtime waits, in milliseconds.
        delay_ms: u64,
    },
    /// A line of plain output.
    Output {
        /// The line.
        line: String,
    },
    /// A line longer than the bound was passed over.
    OverlongLine,
    /// The runtime gave its result.
    Result {
        /// It called it a success.
        success: bool,
        /// Its text.
        text: String,
    },
}
