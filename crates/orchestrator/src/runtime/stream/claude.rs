//! The lines of `claude -p --output-format stream-json`.

use std::time::Instant;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    MAX_BRIEF_BYTES, MAX_NAME_BYTES, MAX_RESULT_BYTES, MAX_TEXT_BYTES, StreamReader,
    json::{self, Raw},
    usage::{self, UsageJson},
};
use crate::runtime::{
    progress::{FinalResult, Phase, RuntimeEvent, Tokens},
    text,
};

/// The most content blocks that are read of one line; the real ones have one.
const MAX_BLOCKS: usize = 256;

/// Every field that is read of any line. One that a line lacks is absent.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Line<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    subtype: Raw<'a>,
    #[serde(borrow)]
    session_id: Raw<'a>,
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    message: Raw<'a>,
    #[serde(borrow)]
    parent_tool_use_id: Raw<'a>,
    #[serde(borrow)]
    event: Raw<'a>,
    #[serde(borrow)]
    is_error: Raw<'a>,
    #[serde(borrow)]
    result: Raw<'a>,
    #[serde(borrow)]
    errors: Raw<'a>,
    #[serde(borrow)]
    usage: Raw<'a>,
    #[serde(borrow, rename = "modelUsage")]
    model_usage: Raw<'a>,
    #[serde(borrow)]
    total_cost_usd: Raw<'a>,
    #[serde(borrow)]
    num_turns: Raw<'a>,
    #[serde(borrow)]
    duration_ms: Raw<'a>,
    #[serde(borrow)]
    api_error_status: Raw<'a>,
    #[serde(borrow)]
    tasks: Raw<'a>,
    #[serde(borrow)]
    attempt: Raw<'a>,
    #[serde(borrow)]
    retry_delay_ms: Raw<'a>,
    #[serde(borrow)]
    error_status: Raw<'a>,
}

/// A message of the Messages API.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Message<'a> {
    #[serde(borrow)]
    id: Raw<'a>,
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    content: Raw<'a>,
    #[serde(borrow)]
    usage: Raw<'a>,
}

/// A content block of a message.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Block<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    text: Raw<'a>,
    #[serde(borrow)]
    name: Raw<'a>,
    #[serde(borrow)]
    input: Raw<'a>,
    #[serde(borrow)]
    is_error: Raw<'a>,
}

/// An event of the API's own stream, passed on with `--include-partial-messages`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StreamEvent<'a> {
    #[serde(borrow, rename = "type")]
    kind: Raw<'a>,
    #[serde(borrow)]
    message: Raw<'a>,
}

/// The arguments of a tool that say best what it does, the most telling first.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ToolInput<'a> {
    #[serde(borrow)]
    command: Raw<'a>,
    #[serde(borrow)]
    file_path: Raw<'a>,
    #[serde(borrow)]
    path: Raw<'a>,
    #[serde(borrow)]
    pattern: Raw<'a>,
    #[serde(borrow)]
    url: Raw<'a>,
    #[serde(borrow)]
    query: Raw<'a>,
    #[serde(borrow)]
    description: Raw<'a>,
    #[serde(borrow)]
    prompt: Raw<'a>,
}

/// Whether it is worth while to parse the line.
pub(super) fn looks_like_json(line: &[u8]) -> bool {
    line.trim_ascii_start().first() == Some(&b'{')
}

impl StreamReader {
    /// Reads a line; false if it is no JSON object and so plain text.
    pub(super) fn claude_line(
        &mut self,
        line: &[u8],
        now: Instant,
        events: &mut Vec<RuntimeEvent>,
    ) -> bool {
        let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else {
            return false;
        };
        let kind = json::text(line.kind).unwrap_or_default();
        let subtype = json::text(line.subtype).unwrap_or_default();
        let known = match (kind.as_str(), subtype.as_str()) {
            ("system", "init") => self.init(&line, events),
            ("system", "api_retry") => self.api_retry(&line, events),
            ("system", "background_tasks_changed") => {
                self.background_tasks(json::elements(line.tasks).len() as u64, now);
                true
            }
            // A running commentary of many kinds: hooks, refused permissions, compaction.
            ("system", _) => true,
            ("assistant", _) => self.assistant(&line, events),
            ("user", _) => self.user(&line, events),
            ("stream_event", _) => self.stream_event(&line),
            ("result", _) => self.result(&line, &subtype, now, events),
            _ => false,
        };
        if !known {
            let counters = &mut self.progress.counters;
            counters.unknown_lines = counters.unknown_lines.saturating_add(1);
        }
        true
    }

    fn init(&mut self, line: &Line<'_>, events: &mut Vec<RuntimeEvent>) -> bool {
        self.turn_begins();
        self.progress.phase = Phase::Working;
        let model = name(line.model);
        if let Some(session_id) = name(line.session_id) {
            self.progress.session_id = Some(session_id);
        }
        self.progress.model = model.clone().or(self.progress.model.take());
        events.push(RuntimeEvent::Started { model });
        true
    }

    fn api_retry(&mut self, line: &Line<'_>, events: &mut Vec<RuntimeEvent>) -> bool {
        self.progress.phase = Phase::Retrying;
        self.progress.retries = self.progress.retries.saturating_add(1);
        events.push(RuntimeEvent::Retrying {
            attempt: json::count(line.attempt).unwrap_or(0),
            status: json::count(line.error_status),
            delay_ms: json::count(line.retry_delay_ms).unwrap_or(0),
        });
        true
    }

    fn assistant(&mut self, line: &Line<'_>, events: &mut Vec<RuntimeEvent>) -> bool {
        let Some(message) = json::object::<Message<'_>>(line.message) else {
            return false;
        };
        let sub_agent = json::text(line.parent_tool_use_id).is_some();
        if !sub_agent {
            self.turn_begins();
        }
        self.message_usage(&message, sub_agent);
        // An error of the API is told by a message of no model.
        if let Some(model) = name(message.model).filter(|model| !model.starts_with('<'))
            && !sub_agent
        {
            self.progress.model = Some(model);
        }
        self.progress.phase = Phase::Working;
        for raw in json::elements(message.content).into_iter().take(MAX_BLOCKS) {
            self.assistant_block(raw, events);
        }
        true
    }

    fn assistant_block(&mut self, raw: &RawValue, events: &mut Vec<RuntimeEvent>) {
        let Some(block) = json::object::<Block<'_>>(Some(raw)) else {
            return;
        };
        match json::text(block.kind).as_deref() {
            Some("text") => {
                let text = json::text(block.text).unwrap_or_default();
                let text = text::bounded(&text, MAX_TEXT_BYTES);
                if !text.trim().is_empty() {
                    self.progress.last_text = Some(text.clone());
                    events.push(RuntimeEvent::Text { text });
                }
            }
            Some("tool_use") => {
                let tool = name(block.name).unwrap_or_default();
                let brief = brief(block.input);
                self.progress.phase = Phase::Tool;
                self.progress.tool_calls = self.progress.tool_calls.saturating_add(1);
                self.progress.last_tool = Some(tool.clone());
                self.progress.last_tool_brief = Some(brief.clone());
                events.push(RuntimeEvent::ToolUse { tool, brief });
            }
            _ => {}
        }
    }

    fn user(&mut self, line: &Line<'_>, events: &mut Vec<RuntimeEvent>) -> bool {
        let Some(message) = json::object::<Message<'_>>(line.message) else {
            return false;
        };
        for raw in json::elements(message.content).into_iter().take(MAX_BLOCKS) {
            let Some(block) = json::object::<Block<'_>>(Some(raw)) else {
                continue;
            };
            if json::text(block.kind).as_deref() == Some("tool_result") {
                self.progress.phase = Phase::Working;
                events.push(RuntimeEvent::ToolResult {
                    is_error: json::read(block.is_error).unwrap_or(false),
                });
            }
        }
        true
    }

    fn stream_event(&mut self, line: &Line<'_>) -> bool {
        let Some(event) = json::object::<StreamEvent<'_>>(line.event) else {
            return false;
        };
        let sub_agent = json::text(line.parent_tool_use_id).is_some();
        if json::text(event.kind).as_deref() == Some("message_start")
            && let Some(message) = json::object::<Message<'_>>(event.message)
        {
            if !sub_agent {
                self.turn_begins();
            }
            self.message_usage(&message, sub_agent);
        }
        true
    }

    fn message_usage(&mut self, message: &Message<'_>, sub_agent: bool) {
        let id = json::text(message.id).unwrap_or_default();
        if self.usage.see(&id) && !sub_agent {
            self.progress.turns = self.progress.turns.saturating_add(1);
        }
        if let Some(usage) = json::object::<UsageJson<'_>>(message.usage) {
            let price = self.prices.price(name(message.model).as_deref());
            self.usage.set(&id, usage.tokens(), price);
        }
    }

    fn result(
        &mut self,
        line: &Line<'_>,
        subtype: &str,
        now: Instant,
        events: &mut Vec<RuntimeEvent>,
    ) -> bool {
        // What is not plainly a success is not one: `is_error` may be absent, but not be anything else.
        let is_error = line
            .is_error
            .is_some_and(|_| json::read::<bool>(line.is_error) != Some(false));
        let success = subtype == "success" && !is_error;
        let said = json::text(line.result)
            .filter(|said| !said.is_empty())
            .or_else(|| joined_errors(line.errors))
            .unwrap_or_default();
        let result = FinalResult {
            success,
            subtype: text::bounded_line(subtype, MAX_NAME_BYTES),
            text: text::bounded(&said, MAX_RESULT_BYTES),
            api_error_status: json::count(line.api_error_status),
            duration_ms: json::count(line.duration_ms),
        };
        let price = self.prices.price(self.progress.model.as_deref());
        if let Some(of_run) = usage::of_all_models(line.model_usage) {
            self.usage.settle_run(of_run, price);
        } else if let Some(usage) = json::object::<UsageJson<'_>>(line.usage) {
            self.usage.settle(usage.tokens(), price);
        }
        if let Some(cost) = json::dollars(line.total_cost_usd) {
            self.usage.settle_cost(cost);
        }
        // As with tokens, each result tells the turns since the last.
        if let Some(turns) = json::count(line.num_turns) {
            self.progress.turns = self.turns_settled.saturating_add(turns).min(Tokens::MAX);
        }
        self.progress.phase = Phase::Finished;
        self.result_seen_at = Some(now);
        events.push(RuntimeEvent::Result {
            success,
            text: text::bounded(&result.text, MAX_TEXT_BYTES),
        });
        self.result = Some(result);
        true
    }

    fn background_tasks(&mut self, tasks: u64, now: Instant) {
        let waited = self.waits_for_background();
        self.progress.background_tasks = tasks;
        // Only now can the runtime go, so that its grace begins now.
        if waited && tasks == 0 && self.result_seen_at.is_some() {
            self.result_seen_at = Some(now);
        }
    }

    /// A turn after a result takes the result back: it was not the last word, and what follows must
    /// bring its own.
    fn turn_begins(&mut self) {
        if self.result.take().is_some() {
            self.result_seen_at = None;
            self.usage.reopen();
            self.turns_settled = self.progress.turns;
        }
    }
}

fn name(raw: Raw<'_>) -> Option<String> {
    let text = text::bounded_line(&json::text(raw)?, MAX_NAME_BYTES);
    (!text.is_empty()).then_some(text)
}

fn brief(input: Raw<'_>) -> String {
    let input = json::object::<ToolInput<'_>>(input).unwrap_or_default();
    [
        input.command,
        input.file_path,
        input.path,
        input.pattern,
        input.url,
        input.query,
        input.description,
        input.prompt,
    ]
    .into_iter()
    .find_map(json::text)
    .map(|told| text::bounded_line(&told, MAX_BRIEF_BYTES))
    .unwrap_or_default()
}

fn joined_errors(errors: Raw<'_>) -> Option<String> {
    let errors: Vec<String> = json::elements(errors)
        .into_iter()
        .take(16)
        .filter_map(|error| json::text(Some(error)))
        .collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}
