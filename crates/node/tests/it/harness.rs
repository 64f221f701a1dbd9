use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::Router;
use futures_util::{StreamExt, stream::BoxStream};
use mosaic_federation::{
    command::{AdmittedCommand, CommandBuilder, CommandPayload, SealedCommand, Usage},
    response::{VerifiedResponse, verify_response},
};
use mosaic_node::{
    CommandHandler, HttpLimits, Node, NodeConfig, fallback, federation_routes, health_routes,
    operator_routes, serve,
};
use mosaic_types::{
    AgentId, ConnectionId, ErrorCode, Refusal, Timestamp,
    api::{ConnectRequest, InviteCreated, InviteRequest},
    command::{CommandType, SandboxKind},
    connection::{Connection, NodeRole},
    event::AgentEvent,
    grant::Grants,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Semaphore, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Counts what it executes. `agent.status` waits for `gate`, and so does a kill that
/// waits for the clean-up.
pub(crate) struct Counter {
    executed: AtomicU64,
    pub(crate) gate: Semaphore,
    pub(crate) waiting: watch::Sender<u64>,
    pub(crate) active_agents: AtomicU32,
    pub(crate) events: watch::Sender<Vec<AgentEvent>>,
    /// Runs when the quota is looked at: after admission, before the claim.
    pub(crate) before_claim: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    by_type: Mutex<HashMap<CommandType, u64>>,
    /// Bytes by which answers are longer.
    pub(crate) padding: AtomicUsize,
    /// Agents that are known to be there.
    pub(crate) known: Mutex<Vec<AgentId>>,
    /// How often the peer was heard.
    pub(crate) heard: AtomicU64,
}

impl Counter {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            executed: AtomicU64::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            waiting: watch::Sender::new(0),
            active_agents: AtomicU32::new(0),
            events: watch::Sender::new(Vec::new()),
            before_claim: Mutex::default(),
            by_type: Mutex::default(),
            padding: AtomicUsize::new(0),
            known: Mutex::default(),
            heard: AtomicU64::new(0),
        })
    }

    pub(crate) fn executed(&self) -> u64 {
        self.executed.load(Ordering::SeqCst)
    }

    pub(crate) fn executed_of(&self, command_type: CommandType) -> u64 {
        self.by_type
            .lock()
            .unwrap()
            .get(&command_type)
            .copied()
            .unwrap_or(0)
    }

    /// Shuts the gate, so that `agent.status` waits.
    pub(crate) fn shut(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) async fn until_waiting(&self, count: u64) {
        self.waiting
            .subscribe()
            .wait_for(|now| *now >= count)
            .await
            .unwrap();
    }
}

#[async_trait]
impl CommandHandler for Counter {
    async fn execute(
        &self,
        command: AdmittedCommand,
        _: std::time::Instant,
    ) -> Result<Box<RawValue>, Refusal> {
        let count = self.executed.fetch_add(1, Ordering::SeqCst) + 1;
        *self
            .by_type
            .lock()
            .unwrap()
            .entry(command.command_type())
            .or_default() += 1;
        match command.payload() {
            CommandPayload::Status(_) => {
                self.waiting.send_modify(|waiting| *waiting += 1);
                let _through = self.gate.acquire().await.unwrap();
            }
            CommandPayload::Kill(kill) if kill.wait_for_cleanup => {
                self.waiting.send_modify(|waiting| *waiting += 1);
                let _through = self.gate.acquire().await.unwrap();
            }
            CommandPayload::Kill(kill) if kill.reason.as_deref() == Some("of nobody") => {
                return Err(Refusal::new(ErrorCode::UnknownAgent, "no agent of that id"));
            }
            CommandPayload::Result(_) => {
                return Err(Refusal::new(ErrorCode::UnknownAgent, "no agent of that id"));
            }
            CommandPayload::List(_) => panic!("a handler that panics"),
            _ => {}
        }
        let padding = "x".repeat(self.padding.load(Ordering::SeqCst));
        let answer =
            json!({ "count": count, "command": command.command_type(), "padding": padding });
        Ok(serde_json::value::to_raw_value(&answer).unwrap())
    }

    async fn watch(
        &self,
        _: AdmittedCommand,
    ) -> Result<BoxStream<'static, Vec<AgentEvent>>, Refusal> {
        let batches = tokio_stream_of(self.events.subscribe());
        Ok(batches.boxed())
    }

    fn usage(&self, _: ConnectionId, _: Timestamp) -> Usage {
        if let Some(hook) = self.before_claim.lock().unwrap().take() {
            hook();
        }
        Usage {
            active_agents: self.active_agents.load(Ordering::SeqCst),
            spawns_last_minute: 0,
        }
    }

    async fn knows(&self, _: ConnectionId, agent: AgentId) -> bool {
        self.known.lock().unwrap().contains(&agent)
    }

    fn default_sandbox(&self) -> SandboxKind {
        SandboxKind::Process
    }

    fn heard(&self, _: ConnectionId) {
        self.heard.fetch_add(1, Ordering::SeqCst);
    }
}

fn tokio_stream_of(
    events: watch::Receiver<Vec<AgentEvent>>,
) -> impl futures_util::Stream<Item = Vec<AgentEvent>> + Send {
    futures_util::stream::unfold(events, |mut events| async move {
        events.changed().await.ok()?;
        let batch = events.borrow_and_update().clone();
        Some((batch, events))
    })
}

pub(crate) struct Running {
    pub(crate) node: Node,
    pub(crate) url: String,
    pub(crate) handler: Arc<Counter>,
    pub(crate) admin: String,
    pub(crate) http: reqwest::Client,
    pub(crate) dir: TempDir,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

pub(crate) fn config(dir: &TempDir, name: &str, role: NodeRole) -> NodeConfig {
    NodeConfig {
        data_dir: dir.path().join("data"),
        name: name.to_owned(),
        role,
        public_url: None,
        allow_private_peers: true,
        limits: HttpLimits::default(),
    }
}

impl Running {
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_with(name, HttpLimits::default(), Router::new()).await
    }

    pub(crate) async fn start_limited(name: &str, limits: HttpLimits) -> Self {
        Self::start_with(name, limits, Router::new()).await
    }

    pub(crate) async fn start_with(name: &str, limits: HttpLimits, extra: Router) -> Self {
        Self::start_whole(TempDir::new().unwrap(), name, limits, extra).await
    }

    /// Starts again on what an earlier run left.
    pub(crate) async fn start_in(dir: TempDir, name: &str) -> Self {
        Self::start_whole(dir, name, HttpLimits::default(), Router::new()).await
    }

    async fn start_whole(dir: TempDir, name: &str, limits: HttpLimits, extra: Router) -> Self {
        let config = NodeConfig {
            limits: limits.clone(),
            ..config(&dir, name, NodeRole::Orchestrator)
        };
        let node = Node::open(config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        node.set_public_url(url.clone());
        let handler = Counter::new();
        let router = Router::new()
            .merge(federation_routes(node.clone(), handler.clone()))
            .nest("/api/v1", operator_routes(node.clone()))
            .merge(health_routes(node.clone(), async || Ok(())))
            .merge(extra);
        let shutdown = CancellationToken::new();
        let serving = serve(listener, fallback(router), limits, shutdown.clone());
        let tasks = vec![
            tokio::spawn(async move { serving.await.unwrap() }),
            tokio::spawn(node.background(shutdown.clone())),
        ];
        let path = node.data_dir().join("admin.token");
        let admin = std::fs::read_to_string(path).unwrap().trim().to_owned();
        Self {
            node,
            url,
            handler,
            admin,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            dir,
            shutdown,
            tasks,
        }
    }

    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.node.close().await;
        self.dir
    }

    /// A request to the operators' API.
    pub(crate) async fn api(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.api_as(&self.admin, method, path, body).await
    }

    pub(crate) async fn api_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let url = format!("{}/api/v1{path}", self.url);
        let mut request = self
            .http
            .request(method.parse().unwrap(), url)
            .bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.bytes().await.unwrap();
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    pub(crate) async fn invite(&self, grants: Grants) -> InviteCreated {
        let request = InviteRequest {
            grants,
            ttl_secs: None,
        };
        let (status, body) = self
            .api("POST", "/federation/invites", Some(json!(request)))
            .await;
        assert_eq!(status, 201, "{body}");
        serde_json::from_value(body).unwrap()
    }

    pub(crate) async fn connect(&self, token: &str) -> (u16, Value) {
        let request = ConnectRequest {
            token: Some(token.to_owned()),
            ..ConnectRequest::default()
        };
        self.api("POST", "/federation/connections", Some(json!(request)))
            .await
    }

    /// Posts bytes to the endpoint: status, headers that matter, body.
    pub(crate) async fn post(&self, path: &str, bytes: Vec<u8>) -> Answer {
        post(&self.http, &format!("{}{path}", self.url), bytes).await
    }

    /// The node's identity document, as anybody can get it.
    pub(crate) async fn identity(&self) -> Vec<u8> {
        let url = format!("{}{IDENTITY}", self.url);
        let response = self.http.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.bytes().await.unwrap().to_vec()
    }

    pub(crate) async fn audit_actions(&self) -> Vec<String> {
        let entries = self.node.store().audit_entries(0, 1000).await.unwrap();
        entries
            .iter()
            .map(|entry| {
                let event: Value = serde_json::from_str(&entry.event_json).unwrap();
                event["action"].as_str().unwrap().to_owned()
            })
            .collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

pub(crate) async fn post(http: &reqwest::Client, url: &str, bytes: Vec<u8>) -> Answer {
    let response = http.post(url).body(bytes).send().await.unwrap();
    let mut headers: Vec<_> = response
        .headers()
        .iter()
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    Answer {
        status: response.status().as_u16(),
        headers,
        body: response.bytes().await.unwrap().to_vec(),
    }
}

pub(crate) const IDENTITY: &str = "/.well-known/mosaic";
pub(crate) const COMMANDS: &str = "/federation/v1/commands";
pub(crate) const STREAMS: &str = "/federation/v1/streams";

/// A hub that has connected to a spoke by a peering token.
pub(crate) struct Pair {
    pub(crate) hub: Running,
    pub(crate) spoke: Running,
}

pub(crate) fn repositories() -> Vec<String> {
    vec!["file:///**".to_owned()]
}

impl Pair {
    pub(crate) async fn connected() -> Self {
        Self::connected_with(Grants::full(repositories()), HttpLimits::default()).await
    }

    pub(crate) async fn connected_with(grants: Grants, limits: HttpLimits) -> Self {
        let hub = Running::start("hub").await;
        let spoke = Running::start_limited("spoke", limits).await;
        let invite = spoke.invite(grants).await;
        let (status, body) = hub.connect(&invite.token).await;
        assert_eq!(status, 201, "{body}");
        Self { hub, spoke }
    }

    /// The hub's connection to the spoke.
    pub(crate) fn to_spoke(&self) -> Arc<Connection> {
        self.hub
            .node
            .connections()
            .by_peer(self.spoke.node.instance_id())
            .unwrap()
    }

    /// The spoke's connection to the hub.
    pub(crate) fn to_hub(&self) -> Arc<Connection> {
        self.spoke
            .node
            .connections()
            .by_peer(self.hub.node.instance_id())
            .unwrap()
    }

    pub(crate) fn seal(
        &self,
        command_type: CommandType,
        payload: &impl Serialize,
    ) -> SealedCommand {
        CommandBuilder::new(self.spoke.node.instance_id(), command_type)
            .seal(self.hub.node.identity(), payload, Timestamp::now())
            .unwrap()
    }

    pub(crate) async fn send(&self, command: &SealedCommand) -> Answer {
        self.spoke.post(COMMANDS, command.bytes.clone()).await
    }

    /// Verifies an answer as the hub would.
    pub(crate) fn verify(&self, command: &SealedCommand, answer: &Answer) -> VerifiedResponse {
        assert_eq!(
            answer.status,
            200,
            "{}",
            String::from_utf8_lossy(&answer.body)
        );
        verify_response(
            &answer.body,
            &self.to_spoke(),
            self.hub.node.instance_id(),
            command,
            Timestamp::now(),
        )
        .unwrap()
    }

    pub(crate) fn data<T: DeserializeOwned>(&self, command: &SealedCommand, answer: &Answer) -> T {
        self.verify(command, answer).read().unwrap().unwrap()
    }

    pub(crate) fn refusal(&self, command: &SealedCommand, answer: &Answer) -> Refusal {
        self.verify(command, answer)
            .result
            .unwrap_err()
            .into_refusal()
    }

    pub(crate) async fn stop(self) {
        self.hub.stop().await;
        self.spoke.stop().await;
    }
}

pub(crate) fn agent() -> Value {
    json!({ "agentId": AgentId::generate() })
}

pub(crate) fn spawn_payload() -> Value {
    json!({
        "agentId": AgentId::generate(),
        "taskId": "MOS-1",
        "agentType": "worker",
        "context": { "repository": "file:///srv/repo", "branch": "main", "workItems": ["x"] },
    })
}

/// The outer bound of waits that must end by themselves; never reached by a test that passes.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it should have happened by now")
}
