//! A hub with spokes, and requests to it.

use std::collections::BTreeMap;

use mosaic_hub::app::{self, Config, Running};
use mosaic_node::HttpLimits;
use mosaic_types::{AgentId, ConnectionId, api::Role, connection::Connection};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::spoke::Spoke;

/// A hub that serves, connected to spokes.
pub(crate) struct World {
    pub(crate) hub: Running,
    pub(crate) spokes: Vec<Spoke>,
    pub(crate) connections: Vec<ConnectionId>,
    http: reqwest::Client,
    tokens: BTreeMap<Role, String>,
    shutdown: CancellationToken,
    _data: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start(spokes: usize) -> Self {
        Self::start_limited(spokes, HttpLimits::default()).await
    }

    pub(crate) async fn start_limited(spokes: usize, limits: HttpLimits) -> Self {
        let data = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = CancellationToken::new();
        let config = Config {
            limits,
            ..Config::dev(data.path().join("hub"), "hub")
        };
        let hub = app::start(config, listener, shutdown.clone())
            .await
            .unwrap();
        let admin = std::fs::read_to_string(data.path().join("hub/admin.token")).unwrap();
        let tokens = BTreeMap::from([(Role::Admin, admin.trim().to_owned())]);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut world = Self {
            hub,
            spokes: Vec::new(),
            connections: Vec::new(),
            http,
            tokens,
            shutdown,
            _data: data,
        };
        for role in [Role::Viewer, Role::Operator] {
            let body = json!({ "name": format!("{role:?}"), "role": role });
            let created = world.post("/tokens", body).await.created();
            let token = created["token"].as_str().unwrap().to_owned();
            world.tokens.insert(role, token);
        }
        for number in 1..=spokes {
            let spoke = Spoke::start(&format!("spoke-{number}")).await;
            world.join(spoke).await;
        }
        world
    }

    /// The same world, its hub stopped in order and started again.
    pub(crate) async fn again(self) -> Self {
        self.shutdown.cancel();
        self.hub.wait().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = CancellationToken::new();
        let config = Config::dev(self._data.path().join("hub"), "hub");
        let hub = app::start(config, listener, shutdown.clone())
            .await
            .unwrap();
        Self {
            hub,
            shutdown,
            ..self
        }
    }

    /// Asks until the answer is what it should become.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let answer = self.get(path).await;
            if wanted(&answer.body) {
                return answer.ok();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Connects the hub to a spoke.
    pub(crate) async fn join(&mut self, spoke: Spoke) {
        let body = json!({ "token": spoke.invite().await });
        let connection = self.post("/federation/connections", body).await.created();
        let connection: Connection = serde_json::from_value(connection).unwrap();
        assert_eq!(connection.peer, *spoke.instance());
        assert_eq!(connection.name, spoke.name);
        self.connections.push(connection.connection_id);
        self.spokes.push(spoke);
    }

    /// Ends the connection to a spoke, for good.
    pub(crate) async fn disconnect(&self, spoke: usize) {
        let id = self.connections[spoke];
        let path = format!("/federation/connections/{id}/disconnect");
        self.post(&path, json!({})).await.ok();
    }

    /// Connects the hub anew to a spoke to which its connection has ended.
    pub(crate) async fn rejoin(&mut self, spoke: usize) {
        let body = json!({ "token": self.spokes[spoke].invite().await });
        let connection = self.post("/federation/connections", body).await.created();
        let connection: Connection = serde_json::from_value(connection).unwrap();
        assert_ne!(connection.connection_id, self.connections[spoke]);
        self.connections[spoke] = connection.connection_id;
    }

    /// Posts in the background.
    pub(crate) fn posting(&self, path: &str, body: &Value) -> JoinHandle<Answer> {
        let request = self.raw(Method::POST, path).json(body).send();
        tokio::spawn(async move { Answer::of(request.await.unwrap()).await })
    }

    pub(crate) async fn request(
        &self,
        role: Option<Role>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Response {
        let url = format!("{}/api/v1{path}", self.hub.url());
        let mut request = self.http.request(method, url);
        if let Some(role) = role {
            request = request.bearer_auth(&self.tokens[&role]);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap()
    }

    pub(crate) fn raw(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/api/v1{path}", self.hub.url());
        self.http
            .request(method, url)
            .bearer_auth(&self.tokens[&Role::Admin])
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(
            self.request(Some(Role::Admin), Method::GET, path, None)
                .await,
        )
        .await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(
            self.request(Some(Role::Admin), Method::POST, path, Some(body))
                .await,
        )
        .await
    }

    /// Spawns an agent at a spoke.
    pub(crate) async fn spawn(&self, spoke: usize) -> AgentId {
        let answer = self
            .post("/federation/agents/spawn", self.order(spoke))
            .await
            .accepted();
        answer["agentId"].as_str().unwrap().parse().unwrap()
    }

    /// The body of a spawn.
    pub(crate) fn order(&self, spoke: usize) -> Value {
        json!({
            "connectionId": self.connections[spoke],
            "taskId": "MOS-1",
            "agentType": "worker",
            "runtime": "shell",
            "context": {
                "repository": "file:///srv/repository",
                "branch": "main",
                "workItems": ["do it"],
            },
        })
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.hub.wait().await.unwrap();
        for spoke in self.spokes {
            spoke.stop().await;
        }
    }
}

/// An answer with its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(response: Response) -> Self {
        let status = response.status();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, body }
    }

    fn expect(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    pub(crate) fn ok(self) -> Value {
        self.expect(StatusCode::OK)
    }

    pub(crate) fn created(self) -> Value {
        self.expect(StatusCode::CREATED)
    }

    pub(crate) fn accepted(self) -> Value {
        self.expect(StatusCode::ACCEPTED)
    }

    /// Asserts a refusal by status, code and field.
    pub(crate) fn refused(self, status: u16, code: &str, field: Option<&str>) {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.body["code"], code, "{}", self.body);
        assert_eq!(self.body["field"].as_str(), field, "{}", self.body);
        assert_eq!(self.body["status"], status);
    }
}
