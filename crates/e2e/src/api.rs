//! A node's HTTP API as a client without any of our own client code sees it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness fails by failing its test"
)]

use std::{fs, path::PathBuf, time::Duration};

use mosaic_types::AgentId;
use serde_json::{Value, json};

/// The longest a test waits for something that must come. A test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `look` finds something.
///
/// # Panics
/// It is not found within [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited too long: {what}"
        );
        // Between two looks only: what is waited for is the condition.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Something that must end.
///
/// # Panics
/// It does not within [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited too long: {what}"))
}

/// Whether a node is a hub or a spoke: their agents' routes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A hub.
    Hub,
    /// A spoke.
    Spoke,
}

/// A node, with one operator's token.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name in the test.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The operator's token.
    pub token: String,
    http: reqwest::Client,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The media type.
    pub media_type: String,
    /// The body as JSON; as a string if it is none.
    pub body: Value,
    /// The body.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The body of a success.
    ///
    /// # Panics
    /// It is none.
    pub fn ok(self) -> Value {
        assert!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            self.body
        );
        self.body
    }

    /// Checks that it is problem+json of this status and code, and gives the field that it names.
    ///
    /// # Panics
    /// It is something else.
    pub fn problem(&self, status: u16, code: &str) -> Option<String> {
        let why = format!(
            "expected {status} {code}, got {}: {}",
            self.status, self.body
        );
        assert_eq!(self.status, status, "{why}");
        assert_eq!(self.body["code"], code, "{why}");
        assert_eq!(self.media_type, "application/problem+json", "{why}");
        assert_eq!(self.body["status"], status, "{why}");
        assert_eq!(self.body["type"], format!("/problems/{code}"), "{why}");
        assert!(
            self.body["detail"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{why}"
        );
        self.body["field"].as_str().map(str::to_owned)
    }
}

/// A server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct SentEvent {
    /// `id:`
    pub id: String,
    /// `event:`
    pub event: String,
    /// `data:` as JSON.
    pub data: Value,
}

impl SentEvent {
    /// A line of output, if it is one.
    #[must_use]
    pub fn line(&self) -> Option<&str> {
        (self.event == "output").then(|| self.data["line"].as_str())?
    }

    /// A state, if it tells one.
    #[must_use]
    pub fn state(&self) -> Option<&str> {
        (self.event == "status").then(|| self.data["status"]["state"].as_str())?
    }
}

/// An open stream of events.
#[derive(Debug)]
pub struct Events {
    answer: reqwest::Response,
    buffered: Vec<u8>,
    seen: Vec<SentEvent>,
}

impl Events {
    /// The next event; `None` if the stream has ended or broken.
    ///
    /// # Panics
    /// None comes within [`PATIENCE`], though the stream is kept alive.
    pub async fn next(&mut self) -> Option<SentEvent> {
        soon("an event", self.read_next()).await
    }

    /// What has come already, without waiting for more than `grace` once nothing comes.
    pub async fn drain(&mut self, grace: Duration) -> Vec<SentEvent> {
        let mut drained = Vec::new();
        while let Ok(Some(event)) = tokio::time::timeout(grace, self.read_next()).await {
            drained.push(event);
        }
        drained
    }

    async fn read_next(&mut self) -> Option<SentEvent> {
        loop {
            while let Some(end) = self.buffered.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.buffered.drain(..end + 2).collect();
                if let Some(event) = parse(&String::from_utf8(block).unwrap()) {
                    self.seen.push(event.clone());
                    return Some(event);
                }
            }
            let chunk = self.answer.chunk().await.ok()??;
            self.buffered.extend_from_slice(&chunk);
        }
    }

    /// Reads until an event is `wanted`, and gives it.
    ///
    /// # Panics
    /// The stream ends without it.
    pub async fn until(&mut self, wanted: impl Fn(&SentEvent) -> bool) -> SentEvent {
        loop {
            match self.next().await {
                Some(event) if wanted(&event) => return event,
                Some(_) => {}
                None => panic!("the stream ended; seen: {:#?}", self.seen),
            }
        }
    }

    /// Reads to the end, and gives all that was ever seen.
    pub async fn to_the_end(mut self) -> Vec<SentEvent> {
        while self.next().await.is_some() {}
        self.seen
    }
}

fn parse(block: &str) -> Option<SentEvent> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::to_owned)
    };
    let data = field("data")?;
    Some(SentEvent {
        id: field("id").unwrap_or_default(),
        event: field("event").unwrap_or_default(),
        data: serde_json::from_str(&data).unwrap(),
    })
}

/// An HTTP client that knows no proxies.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn http_client() -> reqwest::Client {
    // One that another test of this process installed is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("an HTTP client")
}

impl Node {
    /// A node by its data folder's admin token.
    ///
    /// # Panics
    /// There is no token.
    #[must_use]
    pub fn at(name: &str, kind: Kind, url: &str, data_dir: PathBuf) -> Self {
        let token = fs::read_to_string(data_dir.join("admin.token")).expect("an admin token");
        Self {
            name: name.to_owned(),
            url: url.to_owned(),
            data_dir,
            kind,
            token: token.trim().to_owned(),
            http: http_client(),
        }
    }

    /// The same node for another operator.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// The file with its admin's token.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.data_dir.join("admin.token")
    }

    /// A request to a path of this node.
    ///
    /// # Panics
    /// The method is none.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method.parse().unwrap(), format!("{}{path}", self.url))
            .bearer_auth(&self.token)
    }

    /// Asks, if the node can be reached.
    ///
    /// # Errors
    /// It cannot.
    pub async fn try_call(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        read(request).await
    }

    /// Asks.
    ///
    /// # Panics
    /// The node cannot be reached.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.try_call(method, path, body).await.unwrap()
    }

    /// The root of the agents' routes.
    #[must_use]
    pub fn agents_path(&self) -> &'static str {
        match self.kind {
            Kind::Hub => "/api/v1/federation/agents",
            Kind::Spoke => "/agents",
        }
    }

    /// Asks for an agent.
    pub async fn spawn(&self, body: &Value) -> Answer {
        let path = format!("{}/spawn", self.agents_path());
        self.call("POST", &path, Some(body.clone())).await
    }

    /// An agent's status.
    pub async fn status(&self, agent: AgentId) -> Value {
        let path = format!("{}/{agent}/status", self.agents_path());
        self.call("GET", &path, None).await.ok()
    }

    /// All agents, as listed.
    pub async fn agents(&self) -> Vec<Value> {
        let path = format!("{}?limit=500", self.agents_path());
        let listed = self.call("GET", &path, None).await.ok();
        listed["agents"].as_array().unwrap().clone()
    }

    /// Kills an agent.
    pub async fn kill(&self, agent: AgentId) -> Answer {
        let path = format!("{}/{agent}/kill", self.agents_path());
        self.call("POST", &path, None).await
    }

    /// Kills all.
    pub async fn kill_all(&self, request: Value) -> Value {
        let path = format!("{}/kill-all", self.agents_path());
        self.call("POST", &path, Some(request)).await.ok()
    }

    /// Opens the stream of an agent's events.
    ///
    /// # Panics
    /// The node refuses.
    pub async fn events(&self, agent: AgentId, after: Option<&str>) -> Events {
        let path = format!("{}/{agent}/events", self.agents_path());
        let mut request = self.request("GET", &path);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{answer:?}");
        Events {
            answer,
            buffered: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Waits until the agent has written a line with `text`.
    ///
    /// # Panics
    /// It ends without.
    pub async fn wrote(&self, agent: AgentId, text: &str) {
        let mut events = self.events(agent, None).await;
        events
            .until(|event| event.line().is_some_and(|line| line.contains(text)))
            .await;
    }

    /// Waits until the agent's story is over, its clean-up included. Spokes tell it; on a hub it is looked for.
    pub async fn finished(&self, agent: AgentId) -> Value {
        match self.kind {
            Kind::Spoke => {
                self.events(agent, None).await.to_the_end().await;
                self.status(agent).await
            }
            Kind::Hub => {
                eventually("the agent's end and clean-up", async || {
                    let status = self.status(agent).await;
                    let ended = ["completed", "failed", "killed"]
                        .contains(&status["state"].as_str().unwrap());
                    let cleaned = status["cleanup"]
                        .as_array()
                        .is_some_and(|steps| steps.iter().any(|step| step["step"] == "worktree"));
                    (ended && cleaned).then_some(status)
                })
                .await
            }
        }
    }

    /// Actions of the audit trail with their subjects and outcomes, oldest first.
    ///
    /// # Panics
    /// The trail cannot be read.
    pub async fn audit(&self) -> Vec<Value> {
        let page = self
            .call("GET", "/api/v1/audit?limit=1000", None)
            .await
            .ok();
        let entries = page["entries"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| serde_json::from_str(entry["eventJson"].as_str().unwrap()).unwrap())
            .collect()
    }

    /// Makes a token for another operator.
    pub async fn make_token(&self, name: &str, role: &str) -> Self {
        let body = json!({"name": name, "role": role});
        let made = self.call("POST", "/api/v1/tokens", Some(body)).await.ok();
        self.with_token(made["token"].as_str().unwrap())
    }
}

/// Sends a request and reads the answer.
///
/// # Errors
/// No answer came.
pub async fn read(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let answer = request.timeout(PATIENCE).send().await?;
    let status = answer.status().as_u16();
    let media_type = answer
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let bytes = answer.bytes().await?.to_vec();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Ok(Answer {
        status,
        media_type,
        body,
        bytes,
    })
}
