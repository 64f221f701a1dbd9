//! A stand-in for Anthropic's Messages API on an address of this host, so that the real command line of Claude Code
//! can be run without a model.
//!
//! It plays a [`Script`], turn by turn, from its start for each conversation (a session of the CLI), so
//! that many agents can use one stand-in at once. It answers streamed and unstreamed requests, counts
//! tokens by a constant, and records what it was asked.

mod answer;

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use answer::Usage;

const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
const MAX_RECORDED: usize = 4096;
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// One answer of the model's service.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// The model calls a tool, after a few words.
    ToolUse {
        /// The tool's name.
        name: String,
        /// Its input.
        input: Value,
    },
    /// The model writes this and ends its turn.
    Text(String),
    /// 429 with a `retry-after` of so many seconds.
    RateLimited {
        /// What the header says.
        retry_after_secs: u32,
    },
    /// 529, overloaded.
    Overloaded,
    /// Another refusal.
    Refused {
        /// HTTP status.
        status: u16,
        /// The error's type, such as `invalid_request_error`.
        kind: String,
        /// Its text.
        message: String,
    },
    /// The stream begins, brings some text, and the connection breaks.
    Cut,
    /// The stream begins, brings some text, and then nothing, until the stand-in is shut down.
    Hang,
    /// The model calls several tools at once, each by its name and input.
    ToolUses(Vec<(String, Value)>),
}

impl Turn {
    /// The model calls Bash with this command.
    #[must_use]
    pub fn bash(command: impl Into<String>) -> Self {
        Self::ToolUse {
            name: "Bash".to_owned(),
            input: json!({"command": command.into(), "description": "as scripted"}),
        }
    }

    /// The model calls Bash with each of these commands, at once.
    #[must_use]
    pub fn bashes<const N: usize>(commands: [&str; N]) -> Self {
        let call = |command: &str| {
            let input = json!({"command": command, "description": "as scripted"});
            ("Bash".to_owned(), input)
        };
        Self::ToolUses(commands.map(call).into())
    }

    /// The model writes this and ends its turn.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

/// What is answered, in order, to the requests of one conversation. A request after the last turn is
/// answered with that again.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    first: Turn,
    rest: Vec<Turn>,
}

impl Script {
    /// A script that begins with this turn.
    #[must_use]
    pub fn new(first: Turn) -> Self {
        Self {
            first,
            rest: Vec::new(),
        }
    }

    /// And goes on with this one.
    #[must_use]
    pub fn then(mut self, turn: Turn) -> Self {
        self.rest.push(turn);
        self
    }

    fn turn(&self, index: usize) -> &Turn {
        match index.checked_sub(1) {
            None => &self.first,
            Some(index) => self
                .rest
                .get(index)
                .or(self.rest.last())
                .unwrap_or(&self.first),
        }
    }
}

/// A request, as it came.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// Method and path, without the query.
    pub route: String,
    /// Which conversation; empty if the client did not say.
    pub conversation: String,
    /// The `x-api-key` header.
    pub api_key: Option<String>,
    /// The body; null if it is not JSON.
    pub body: Value,
}

impl RecordedRequest {
    /// The texts of all messages of the user, in order, one below the other.
    #[must_use]
    pub fn user_text(&self) -> String {
        let mut texts = Vec::new();
        for message in self.messages().filter(|message| message["role"] == "user") {
            match &message["content"] {
                Value::String(text) => texts.push(text.as_str()),
                content => texts.extend(
                    content
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|block| block["text"].as_str()),
                ),
            }
        }
        texts.join("\n")
    }

    /// The results of tools that were handed in.
    pub fn tool_results(&self) -> impl Iterator<Item = &Value> {
        self.messages()
            .filter_map(|message| message["content"].as_array())
            .flatten()
            .filter(|block| block["type"] == "tool_result")
    }

    fn messages(&self) -> impl Iterator<Item = &Value> {
        self.body["messages"].as_array().into_iter().flatten()
    }
}

#[derive(Debug, Default)]
struct Journal {
    requests: VecDeque<RecordedRequest>,
    turns_by_conversation: HashMap<String, usize>,
    answers: u64,
}

#[derive(Debug, Clone)]
struct Shared {
    script: Arc<Script>,
    journal: Arc<Mutex<Journal>>,
    stop: CancellationToken,
}

impl Shared {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        // A test that panicked elsewhere is no reason to fail here too.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stand-in that runs. It ends with [`MessagesApi::shutdown`]; if it is dropped, soon afterwards.
#[derive(Debug)]
pub struct MessagesApi {
    address: SocketAddr,
    shared: Shared,
    server: Option<JoinHandle<std::io::Result<()>>>,
}

impl MessagesApi {
    /// Starts on a free port of the loopback interface.
    ///
    /// # Errors
    /// No port could be bound.
    pub async fn start(script: Script) -> anyhow::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, script).await
    }

    /// Starts on a free port of another address of this host.
    ///
    /// # Errors
    /// No port could be bound.
    pub async fn start_at(host: Ipv4Addr, script: Script) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((host, 0))
            .await
            .context("failed to bind the stand-in of the Messages API")?;
        let address = listener.local_addr().context("failed to read the port")?;
        let shared = Shared {
            script: Arc::new(script),
            journal: Arc::default(),
            stop: CancellationToken::new(),
        };
        let router = Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/messages/count_tokens", post(count_tokens))
            .fallback(unexpected)
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(shared.clone());
        let stopped = shared.stop.clone().cancelled_owned();
        let serve = axum::serve(listener, router).with_graceful_shutdown(stopped);
        let server = tokio::spawn(async move { serve.await });
        Ok(Self {
            address,
            shared,
            server: Some(server),
        })
    }

    /// What `ANTHROPIC_BASE_URL` is to be.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far, the oldest first; the latest 4096 are kept.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.journal().requests.iter().cloned().collect()
    }

    /// Ends all answers that hang, takes no more requests, and waits for the end.
    ///
    /// # Errors
    /// A client kept its connection for too long.
    pub async fn shutdown(mut self) -> anyhow::Result<()> {
        self.shared.stop.cancel();
        if let Some(server) = self.server.take() {
            tokio::time::timeout(SHUTDOWN_LIMIT, server)
                .await
                .context("a client kept its connection to the stand-in")?
                .context("the stand-in panicked")?
                .context("the stand-in failed")?;
        }
        Ok(())
    }
}

impl Drop for MessagesApi {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

async fn messages(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let request = record(&shared, "POST /v1/messages", &headers, &body);
    if !request.body["messages"].is_array() {
        let message = "messages: field required";
        return answer::refusal(StatusCode::BAD_REQUEST, "invalid_request_error", message);
    }
    let (turn, number) = {
        let mut journal = shared.journal();
        journal.answers += 1;
        let number = journal.answers;
        let played = journal
            .turns_by_conversation
            .entry(request.conversation.clone())
            .or_default();
        let turn = shared.script.turn(*played).clone();
        *played += 1;
        (turn, number)
    };
    answer::answer(&turn, number, &request.body, shared.stop.clone())
}

async fn count_tokens(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    record(&shared, "POST /v1/messages/count_tokens", &headers, &body);
    Json(json!({"input_tokens": Usage::EACH_TURN.input_tokens})).into_response()
}

async fn unexpected(State(shared): State<Shared>, request: Request) -> Response {
    let route = format!("{} {}", request.method(), request.uri().path());
    record(&shared, &route, request.headers(), &[]);
    answer::refusal(StatusCode::NOT_FOUND, "not_found_error", "no such path")
}

fn record(shared: &Shared, route: &str, headers: &HeaderMap, body: &[u8]) -> RecordedRequest {
    let header = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let conversation = header("x-claude-code-session-id")
        .or_else(|| Some(body["metadata"]["user_id"].as_str()?.to_owned()))
        .unwrap_or_default();
    let request = RecordedRequest {
        route: route.to_owned(),
        conversation,
        api_key: header("x-api-key"),
        body,
    };
    let mut journal = shared.journal();
    if journal.requests.len() == MAX_RECORDED {
        journal.requests.pop_front();
    }
    journal.requests.push_back(request.clone());
    request
}
