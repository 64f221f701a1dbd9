//! A typed client of the operators' API. It follows no redirects: the token goes to the node that was named.

mod audit;
mod events;
mod kills;
mod target;
mod work;

use std::{sync::Arc, time::Duration};

use mosaic_hub::api::{AgentsParams, SpawnRequest};
use mosaic_types::{
    AgentId, ConnectionId,
    agent::AgentStatus,
    api::{
        AcceptRequest, ConnectRequest, ConnectionList, EventsParams, FederationAgent,
        FederationAgents, HoldReleaseRequest, HoldStatus, InstanceInfo, InviteCreated,
        InviteRequest, SpawnResponse, TokenCreated, TokenInfo, TokenRequest,
    },
    command::{AgentPage, Pong, SpawnPayload},
    connection::Connection,
    error::Problem,
    event::EventCursor,
};
use reqwest::{Method, Response};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::OnceCell;

use crate::error::CliError;

pub(crate) use events::EventFeed;
pub(crate) use kills::KilledAll;
pub(crate) use target::{Prefer, Target};

/// How long most answers may take.
const SHORT: Duration = Duration::from_secs(30);
/// How long a spawn, a kill with clean-up or a whole result may take.
const LONG: Duration = Duration::from_secs(150);
/// How long a stream may be silent; the node speaks every 15 s.
const SILENCE: Duration = Duration::from_secs(50);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a node may take to say what it is.
const ROLE_LIMIT: Duration = Duration::from_secs(5);
/// Largest error body that is read.
const MAX_PROBLEM_BYTES: usize = 64 * 1024;

/// See the module documentation.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// The same for streams, once one is opened.
    streams: Arc<OnceCell<reqwest::Client>>,
    target: Target,
    /// Whether the node is a spoke, once it has said so.
    spoke: Arc<OnceCell<bool>>,
}

impl Client {
    /// A client of one node.
    pub(crate) fn new(target: Target) -> Result<Self, CliError> {
        // Another part of this process may have installed one already; either will do.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = http_to(&target).build().map_err(CliError::Client)?;
        let spoke = Arc::new(OnceCell::new_with(target.spoke));
        Ok(Self {
            http,
            streams: Arc::default(),
            target,
            spoke,
        })
    }

    /// The node.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The node's URL.
    pub(crate) fn url(&self) -> &str {
        &self.target.url
    }

    async fn streams(&self) -> Result<&reqwest::Client, CliError> {
        let made = self.streams.get_or_try_init(|| async {
            let http = http_to(&self.target).read_timeout(SILENCE);
            http.build().map_err(CliError::Client)
        });
        made.await
    }

    /// Asks. The whole answer has to come within `timeout`; without one it is a stream, which must not fall silent.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        headers: &[(&'static str, String)],
        timeout: Option<Duration>,
    ) -> Result<Response, CliError> {
        let url = format!("{}/api/v1{path}", self.target.url);
        let http = match timeout {
            Some(_) => &self.http,
            None => self.streams().await?,
        };
        let mut request = http.request(method, url).bearer_auth(&self.target.token);
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        let response = request
            .send()
            .await
            .map_err(|source| self.unreachable(source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(response).await)
    }

    fn unreachable(&self, source: reqwest::Error) -> CliError {
        // The URL is in the message already.
        CliError::Unreachable {
            url: self.target.url.clone(),
            source: source.without_url(),
        }
    }

    async fn refused(&self, mut response: Response) -> CliError {
        let status = response.status();
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_PROBLEM_BYTES {
                break;
            }
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => CliError::Refused(Box::new(problem)),
            Err(_) => self.malformed(format!("status {status} without a problem")),
        }
    }

    fn malformed(&self, why: String) -> CliError {
        CliError::Malformed {
            url: self.target.url.clone(),
            why,
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, CliError> {
        let bytes = response
            .bytes()
            .await
            .map_err(|source| self.unreachable(source))?;
        serde_json::from_slice(&bytes).map_err(|error| self.malformed(error.to_string()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let response = self.send(Method::GET, path, None, &[], Some(SHORT)).await?;
        self.json(response).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, CliError> {
        let body = serde_json::to_vec(body)?;
        let response = self
            .send(Method::POST, path, Some(body), &[], Some(timeout))
            .await?;
        self.json(response).await
    }

    /// Whether the node is a spoke, whose API for agents is its own.
    async fn is_spoke(&self) -> bool {
        use mosaic_types::connection::NodeRole;
        let asked = self.spoke.get_or_try_init(|| async {
            let info = tokio::time::timeout(ROLE_LIMIT, self.instance()).await;
            let info = info.map_err(drop)?.map_err(drop)?;
            Ok::<_, ()>(info.pong.role == NodeRole::Orchestrator)
        });
        // Whoever does not say is taken for a hub.
        asked.await.copied().unwrap_or(false)
    }

    /// Whether the node is a spoke, if that is known without asking.
    fn known_spoke(&self) -> Option<bool> {
        self.spoke.get().copied()
    }

    /// The node itself.
    pub(crate) async fn instance(&self) -> Result<InstanceInfo, CliError> {
        self.get("/instance").await
    }

    /// Spawns at a hub.
    pub(crate) async fn spawn(&self, request: &SpawnRequest) -> Result<SpawnResponse, CliError> {
        self.post("/federation/agents/spawn", request, LONG).await
    }

    /// Spawns at a spoke, as its own operator.
    pub(crate) async fn spawn_here(
        &self,
        payload: &SpawnPayload,
    ) -> Result<SpawnResponse, CliError> {
        self.post("/agents/spawn", payload, LONG).await
    }

    /// Whether spawns go to this node itself.
    pub(crate) async fn spawns_here(&self) -> bool {
        self.is_spoke().await
    }

    /// Lists agents.
    pub(crate) async fn agents(&self, params: &AgentsParams) -> Result<Listed, CliError> {
        let query = query(params)?;
        if self.is_spoke().await {
            Ok(Listed::Spoke(self.get(&format!("/agents{query}")).await?))
        } else {
            Ok(Listed::Hub(
                self.get(&format!("/federation/agents{query}")).await?,
            ))
        }
    }

    /// One agent.
    pub(crate) async fn status(&self, agent: AgentId) -> Result<AgentStatus, CliError> {
        if self.is_spoke().await {
            return self.get(&format!("/agents/{agent}/status")).await;
        }
        let at: FederationAgent = self
            .get(&format!("/federation/agents/{agent}/status"))
            .await?;
        Ok(AgentStatus {
            connection_id: Some(at.connection_id),
            ..at.status
        })
    }

    /// One agent, and whether a kill of it is pending at the hub.
    pub(crate) async fn told(&self, agent: AgentId) -> Result<Told, CliError> {
        if self.is_spoke().await {
            let status = self.get(&format!("/agents/{agent}/status")).await?;
            let kill_pending = false;
            return Ok(Told {
                status,
                kill_pending,
            });
        }
        let at: FederationAgent = self
            .get(&format!("/federation/agents/{agent}/status"))
            .await?;
        Ok(Told {
            kill_pending: at.kill_pending,
            status: AgentStatus {
                connection_id: Some(at.connection_id),
                ..at.status
            },
        })
    }

    async fn prefix(&self) -> &'static str {
        if self.is_spoke().await {
            ""
        } else {
            "/federation"
        }
    }

    /// Opens a stream of an agent's events.
    async fn open_events(
        &self,
        agent: AgentId,
        after: Option<EventCursor>,
        follow: bool,
    ) -> Result<Response, CliError> {
        let params = EventsParams {
            after: None,
            follow: (!follow).then_some(false),
        };
        let path = format!(
            "{}/agents/{agent}/events{}",
            self.prefix().await,
            query(&params)?
        );
        let mut headers = vec![("accept", "text/event-stream".to_owned())];
        headers.extend(after.map(|after| ("last-event-id", after.to_string())));
        self.send(Method::GET, &path, None, &headers, None).await
    }

    /// The node's connections.
    pub(crate) async fn connections(&self) -> Result<Vec<Connection>, CliError> {
        Ok(self
            .get::<ConnectionList>("/federation/connections")
            .await?
            .connections)
    }

    /// Connects the node to a peer.
    pub(crate) async fn connect(&self, request: &ConnectRequest) -> Result<Connection, CliError> {
        self.post("/federation/connections", request, SHORT).await
    }

    /// Accepts a pending connection.
    pub(crate) async fn accept(
        &self,
        id: ConnectionId,
        request: &AcceptRequest,
    ) -> Result<Connection, CliError> {
        self.post(
            &format!("/federation/connections/{id}/accept"),
            request,
            SHORT,
        )
        .await
    }

    /// `reject`, `suspend`, `resume` or `disconnect`.
    pub(crate) async fn change_connection(
        &self,
        id: ConnectionId,
        verb: &str,
    ) -> Result<Connection, CliError> {
        let path = format!("/federation/connections/{id}/{verb}");
        let response = self
            .send(Method::POST, &path, None, &[], Some(SHORT))
            .await?;
        self.json(response).await
    }

    /// Asks a peer through the node.
    pub(crate) async fn ping(&self, id: ConnectionId) -> Result<Pong, CliError> {
        self.get(&format!("/federation/connections/{id}/ping"))
            .await
    }

    /// Makes a peering token.
    pub(crate) async fn invite(&self, request: &InviteRequest) -> Result<InviteCreated, CliError> {
        self.post("/federation/invites", request, SHORT).await
    }

    /// The holds of a spoke.
    pub(crate) async fn hold(&self) -> Result<HoldStatus, CliError> {
        self.get("/hold").await
    }

    /// Releases holds of a spoke.
    pub(crate) async fn release(
        &self,
        request: &HoldReleaseRequest,
    ) -> Result<HoldStatus, CliError> {
        self.post("/hold/release", request, SHORT).await
    }

    /// Every token, without its secret.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenInfo>, CliError> {
        self.get("/tokens").await
    }

    /// Makes a token.
    pub(crate) async fn create_token(
        &self,
        request: &TokenRequest,
    ) -> Result<TokenCreated, CliError> {
        self.post("/tokens", request, SHORT).await
    }

    /// Deletes a token.
    pub(crate) async fn delete_token(&self, name: &str) -> Result<(), CliError> {
        self.send(
            Method::DELETE,
            &format!("/tokens/{name}"),
            None,
            &[],
            Some(SHORT),
        )
        .await?;
        Ok(())
    }
}

/// A client of the node. A limit of silence would count the time until an answer begins as well, so it is for streams
/// alone.
fn http_to(target: &Target) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .user_agent(concat!("mosaic/", env!("CARGO_PKG_VERSION")));
    if target.is_loopback() {
        builder.no_proxy()
    } else {
        builder
    }
}

/// Agents as a hub or a spoke lists them.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Listed {
    Hub(FederationAgents),
    Spoke(AgentPage),
}

/// An agent as a node tells it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Told {
    #[serde(flatten)]
    pub(crate) status: AgentStatus,
    /// Whether a kill of it is pending at the hub.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) kill_pending: bool,
}

impl Listed {
    /// The agents of which a kill is pending at the hub.
    pub(crate) fn kills_pending(&self) -> std::collections::BTreeSet<AgentId> {
        match self {
            Self::Hub(list) => list
                .agents
                .iter()
                .filter(|at| at.kill_pending)
                .map(|at| at.status.agent_id)
                .collect(),
            Self::Spoke(_) => std::collections::BTreeSet::new(),
        }
    }

    /// The agents, with the spoke's name if the hub told it.
    pub(crate) fn agents(&self) -> Vec<(Option<&str>, &AgentStatus)> {
        match self {
            Self::Hub(list) => list
                .agents
                .iter()
                .map(|at| (Some(at.spoke.as_str()), &at.status))
                .collect(),
            Self::Spoke(page) => page.agents.iter().map(|status| (None, status)).collect(),
        }
    }

    /// Whether there are more.
    pub(crate) fn more(&self) -> bool {
        match self {
            Self::Hub(list) => list.more,
            Self::Spoke(page) => page.more,
        }
    }
}

/// A value in a query: what has a meaning there is escaped.
fn escaped(value: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// A query string. Names need no escape; values get theirs.
fn query(params: &impl Serialize) -> Result<String, CliError> {
    let mut text = String::new();
    if let serde_json::Value::Object(members) = serde_json::to_value(params)? {
        for (name, value) in members {
            let value = match value {
                serde_json::Value::String(value) => value,
                other => other.to_string(),
            };
            text.push(if text.is_empty() { '?' } else { '&' });
            text.push_str(&name);
            text.push('=');
            text.push_str(&escaped(&value));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
