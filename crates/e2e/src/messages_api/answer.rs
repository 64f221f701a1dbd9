//! Turns, put into the words of the Messages API.

use std::{convert::Infallible, io};

use axum::{
    Json,
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Turn;

/// Tokens that a message reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Read, not from a cache.
    pub input_tokens: u64,
    /// Written.
    pub output_tokens: u64,
    /// Read from a cache.
    pub cache_read_input_tokens: u64,
    /// Written to a cache.
    pub cache_creation_input_tokens: u64,
}

impl Usage {
    /// What each turn reports in the end.
    pub const EACH_TURN: Self = Self {
        input_tokens: 100,
        output_tokens: 25,
        cache_read_input_tokens: 7,
        cache_creation_input_tokens: 3,
    };

    fn json(self, output_tokens: u64) -> Value {
        json!({
            "input_tokens": self.input_tokens,
            "output_tokens": output_tokens,
            "cache_read_input_tokens": self.cache_read_input_tokens,
            "cache_creation_input_tokens": self.cache_creation_input_tokens,
        })
    }
}

/// What the model says before it calls a tool, and before it is cut off.
const PREFACE: &str = "Working on it.";

/// The answer to a request, the `number`th of all.
pub(super) fn answer(
    turn: &Turn,
    number: u64,
    request: &Value,
    stop: CancellationToken,
) -> Response {
    match turn {
        Turn::RateLimited { retry_after_secs } => {
            let mut response = refusal(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "too many requests",
            );
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, (*retry_after_secs).into());
            response
        }
        Turn::Overloaded => {
            let status = StatusCode::from_u16(529).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            refusal(status, "overloaded_error", "Overloaded")
        }
        Turn::Refused {
            status,
            kind,
            message,
        } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_REQUEST);
            refusal(status, kind, message)
        }
        Turn::ToolUse { .. } | Turn::ToolUses(_) | Turn::Text(_) | Turn::Cut | Turn::Hang => {
            let message = Message::new(turn, number, request);
            if request["stream"] == true {
                message.streamed(stop)
            } else {
                message.whole(stop)
            }
        }
    }
}

/// An error in the API's form.
pub(super) fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}});
    (status, Json(body)).into_response()
}

#[derive(Clone, Copy)]
enum Ending {
    Whole,
    Cut,
    Hang,
}

struct Message {
    id: String,
    model: Value,
    blocks: Vec<Value>,
    stop_reason: &'static str,
    ending: Ending,
}

impl Message {
    fn new(turn: &Turn, number: u64, request: &Value) -> Self {
        let text = |text: &str| json!({"type": "text", "text": text});
        let call = |index: usize, name: &str, input: &Value| {
            let id = format!("toolu_{number}_{index}");
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        };
        let (blocks, stop_reason, ending) = match turn {
            Turn::ToolUse { name, input } => {
                let blocks = vec![text(PREFACE), call(0, name, input)];
                (blocks, "tool_use", Ending::Whole)
            }
            Turn::ToolUses(calls) => {
                let calls = calls.iter().enumerate();
                let calls = calls.map(|(index, (name, input))| call(index, name, input));
                let blocks = [text(PREFACE)].into_iter().chain(calls).collect();
                (blocks, "tool_use", Ending::Whole)
            }
            Turn::Text(said) => (vec![text(said)], "end_turn", Ending::Whole),
            Turn::Cut => (vec![text(PREFACE)], "end_turn", Ending::Cut),
            _ => (vec![text(PREFACE)], "end_turn", Ending::Hang),
        };
        Self {
            id: format!("msg_{number}"),
            model: request["model"].clone(),
            blocks,
            stop_reason,
            ending,
        }
    }

    fn json(&self, content: &[Value], stop_reason: Option<&str>, output_tokens: u64) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": null,
            "usage": Usage::EACH_TURN.json(output_tokens),
        })
    }

    fn whole(self, stop: CancellationToken) -> Response {
        let usage = Usage::EACH_TURN;
        let body = self.json(&self.blocks, Some(self.stop_reason), usage.output_tokens);
        let text = body.to_string();
        match self.ending {
            Ending::Whole => Json(body).into_response(),
            Ending::Cut | Ending::Hang => {
                let half = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
                respond("application/json", vec![half], self.ending, stop)
            }
        }
    }

    fn streamed(self, stop: CancellationToken) -> Response {
        let start = self.json(&[], None, 1);
        let mut events = vec![json!({"type": "message_start", "message": start})];
        for (index, block) in self.blocks.iter().enumerate() {
            let (empty, delta) = match block["text"].as_str() {
                Some(text) => (
                    json!({"type": "text", "text": ""}),
                    json!({"type": "text_delta", "text": text}),
                ),
                None => {
                    let mut empty = block.clone();
                    empty["input"] = json!({});
                    let input = block["input"].to_string();
                    let delta = json!({"type": "input_json_delta", "partial_json": input});
                    (empty, delta)
                }
            };
            events.push(json!({
                "type": "content_block_start", "index": index, "content_block": empty
            }));
            events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
            if matches!(self.ending, Ending::Whole) {
                events.push(json!({"type": "content_block_stop", "index": index}));
            }
        }
        if matches!(self.ending, Ending::Whole) {
            events.push(json!({
                "type": "message_delta",
                "delta": {"stop_reason": self.stop_reason, "stop_sequence": null},
                "usage": {"output_tokens": Usage::EACH_TURN.output_tokens},
            }));
            events.push(json!({"type": "message_stop"}));
        }
        let events = events.iter().map(server_sent_event).collect();
        respond("text/event-stream", events, self.ending, stop)
    }
}

fn server_sent_event(event: &Value) -> Bytes {
    let name = event["type"].as_str().unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {event}\n\n"))
}

fn respond(
    content_type: &'static str,
    parts: Vec<Bytes>,
    ending: Ending,
    stop: CancellationToken,
) -> Response {
    let parts = stream::iter(parts.into_iter().map(Ok::<_, io::Error>));
    let body = match ending {
        Ending::Whole => Body::from_stream(parts),
        Ending::Cut => {
            let cut = || io::Error::new(io::ErrorKind::ConnectionReset, "cut as scripted");
            // What was sent must have left before the connection breaks, or there would be no answer
            // at all: the break waits for another turn of the connection's task.
            let cut = stream::once(async move {
                tokio::task::yield_now().await;
                Err(cut())
            });
            Body::from_stream(parts.chain(cut))
        }
        Ending::Hang => {
            let hang = stream::once(async move {
                stop.cancelled().await;
                Err(io::Error::new(io::ErrorKind::ConnectionReset, "shut down"))
            });
            Body::from_stream(parts.chain(hang))
        }
    };
    let headers = [(header::CONTENT_TYPE, content_type)];
    let response: Result<_, Infallible> = Ok((headers, body));
    response.into_response()
}
