//! A whole spoke on loopback, in this process or as its real executable, with a real repository to work on. When it
//! is dropped, nothing of its agents may be left: no process, no cgroup, no working tree.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use mosaic_e2e::{standstill::state_of, system::free_port};
use mosaic_node::Node;
use mosaic_orchestrator::app::{self, Config, Running};
use mosaic_types::{
    AgentId,
    agent::{AgentStatus, ObservedState},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The longest a test waits for something that must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Does nothing, for as long as it takes; `exec` so that the shell itself is what runs.
pub(crate) const FOREVER: &str = "echo at-work; exec sleep 1000";

pub(super) struct Spoke {
    pub(super) url: String,
    token: String,
    client: reqwest::Client,
    data_dir: PathBuf,
    repository: PathBuf,
    body: Body,
    _world: TempDir,
}

enum Body {
    Here {
        running: Option<Box<Running>>,
        shutdown: CancellationToken,
    },
    Process(Child),
}

pub(super) fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=T",
            "-c",
            "user.email=t@example.invalid",
            "-C",
        ])
        .arg(dir)
        .args(args)
        .output()
        .expect("git runs");
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether a process can still do something. One that is dead stays on the table until its parent, an engine's say, has
/// looked at it.
pub(crate) fn lives(pid: u64) -> bool {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    state_of(&folder).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn make_repository(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    git(dir, &["init", "-q", "-b", "main"]);
    fs::write(dir.join("README"), "hello\n").unwrap();
    git(dir, &["add", "."]);
    git(dir, &["commit", "-q", "-m", "first"]);
}

impl Spoke {
    pub(super) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(super) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let world = TempDir::new().unwrap();
        let repository = world.path().join("repository");
        make_repository(&repository);
        let data_dir = world.path().join("spoke");
        let mut config = Config::dev(data_dir.clone(), "spoke-under-test");
        config.sandbox.program = Some(env!("CARGO_BIN_EXE_mosaic-sandbox").into());
        change(&mut config);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let shutdown = CancellationToken::new();
        let running = app::start(config, listener, shutdown.clone())
            .await
            .unwrap();
        let url = running.url().to_owned();
        Self {
            url,
            token: admin_token(&data_dir),
            client: http_client(),
            data_dir,
            repository,
            body: Body::Here {
                running: Some(Box::new(running)),
                shutdown,
            },
            _world: world,
        }
    }

    /// The real executable, so that it can be killed.
    pub(super) async fn start_process() -> Self {
        Self::start_process_with("").await
    }

    pub(super) async fn start_process_with(settings: &str) -> Self {
        Self::start_process_as(settings, |_| {}).await
    }

    pub(super) async fn start_process_as(
        settings: &str,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let world = TempDir::new().unwrap();
        let data_dir = world.path().join("spoke");
        Self::start_process_in(world, data_dir, settings, change).await
    }

    /// With a data folder elsewhere.
    pub(super) async fn start_process_at(data_dir: PathBuf, settings: &str) -> Self {
        let world = TempDir::new().unwrap();
        Self::start_process_in(world, data_dir, settings, |_| {}).await
    }

    async fn start_process_in(
        world: TempDir,
        data_dir: PathBuf,
        settings: &str,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let repository = world.path().join("repository");
        make_repository(&repository);
        let port = free_port();
        let config = world.path().join("spoke.toml");
        let text = format!(
            "data-dir = {data_dir:?}\nlisten = \"127.0.0.1:{port}\"\nenable-shell = true\nallow-private-peers = true\n{settings}"
        );
        fs::write(&config, text).unwrap();
        let mut command = executable(&config);
        change(&mut command);
        let child = command.spawn().unwrap();
        let mut spoke = Self {
            url: format!("http://127.0.0.1:{port}"),
            token: String::new(),
            client: http_client(),
            data_dir,
            repository,
            body: Body::Process(child),
            _world: world,
        };
        spoke.ready().await;
        spoke.token = admin_token(&spoke.data_dir);
        spoke
    }

    async fn ready(&self) {
        let url = format!("{}/readyz", self.url);
        let ready = async {
            while !self
                .client
                .get(&url)
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success())
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ready)
            .await
            .expect("the spoke becomes ready");
    }

    /// SIGKILL, as a crash would.
    pub(super) fn crash(&mut self) {
        let Body::Process(child) = &mut self.body else {
            panic!("only a process can crash")
        };
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, as an operator would.
    pub(super) fn stop_daemon(&mut self) {
        let Body::Process(child) = &mut self.body else {
            panic!("only a process can be stopped")
        };
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
    }

    pub(super) async fn restart(&mut self) {
        let config = self._world.path().join("spoke.toml");
        self.body = Body::Process(executable(&config).spawn().unwrap());
        self.ready().await;
    }

    /// What the next daemon is told, in its file.
    pub(super) fn settings(&self) -> String {
        fs::read_to_string(self._world.path().join("spoke.toml")).unwrap()
    }

    pub(super) fn write_settings(&self, text: &str) {
        fs::write(self._world.path().join("spoke.toml"), text).unwrap();
    }

    /// Starts the daemon again, and does not wait until it is ready.
    pub(super) fn start_again(&mut self, change: impl FnOnce(&mut Command)) {
        let mut command = executable(&self._world.path().join("spoke.toml"));
        change(&mut command);
        self.body = Body::Process(command.spawn().unwrap());
    }

    /// Waits until the daemon has died, and says how.
    pub(super) async fn died(&mut self) -> ExitStatus {
        let Body::Process(child) = &mut self.body else {
            panic!("only a process can die")
        };
        let dying = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, dying)
            .await
            .expect("the daemon dies")
    }

    /// The daemon's pid.
    pub(super) fn pid(&self) -> u32 {
        match &self.body {
            Body::Process(child) => child.id(),
            Body::Here { .. } => std::process::id(),
        }
    }

    /// The node of a spoke in this process.
    pub(super) fn node(&self) -> &Node {
        self.running().node()
    }

    /// A spoke in this process.
    pub(super) fn running(&self) -> &Running {
        match &self.body {
            Body::Here {
                running: Some(running),
                ..
            } => running,
            _ => panic!("the spoke is in another process"),
        }
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn repository(&self) -> &Path {
        &self.repository
    }

    /// A mirror's refs, by what git says.
    pub(super) fn mirror(&self) -> PathBuf {
        let mut mirrors = fs::read_dir(self.data_dir.join("mirrors")).unwrap();
        mirrors
            .find_map(|entry| {
                let path = entry.unwrap().path();
                (path.extension()? == "git").then_some(path)
            })
            .expect("a mirror")
    }

    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        self.try_call(method, path, body).await.unwrap()
    }

    /// Asks a daemon that may die of it.
    pub(super) async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> reqwest::Result<(StatusCode, Value)> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(serde_json::to_vec(&body).unwrap());
        }
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        Ok((
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        ))
    }

    pub(super) fn spawn_body(&self, agent_id: AgentId, script: &str) -> Value {
        json!({
            "agentId": agent_id,
            "taskId": "T-1",
            "agentType": "worker",
            "runtime": "shell",
            "context": {
                "repository": format!("file://{}", self.repository.display()),
                "branch": "main",
                "workItems": [],
                "instructions": script,
            },
        })
    }

    pub(super) async fn spawn(&self, script: &str) -> AgentId {
        let agent_id = AgentId::generate();
        let body = self.spawn_body(agent_id, script);
        let (status, answer) = self.call(Method::POST, "/agents/spawn", Some(body)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        agent_id
    }

    /// Waits until the agent is in this state.
    pub(super) async fn becomes(&self, agent_id: AgentId, state: ObservedState) {
        let wanted = format!("\"state\":\"{state}\"");
        let seen = self
            .follow(agent_id, None, |seen| seen.contains(&wanted))
            .await;
        assert!(
            seen.contains(&wanted),
            "the agent never became {state}: {seen}"
        );
    }

    pub(super) async fn status(&self, agent_id: AgentId) -> AgentStatus {
        let (status, answer) = self
            .call(Method::GET, &format!("/agents/{agent_id}/status"), None)
            .await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_value(answer).unwrap()
    }

    /// Follows the agent's events until `wanted` says so, and gives all that were seen, as SSE text.
    pub(super) async fn follow(
        &self,
        agent_id: AgentId,
        last_event_id: Option<&str>,
        wanted: impl Fn(&str) -> bool,
    ) -> String {
        let mut request = self
            .client
            .get(format!("{}/agents/{agent_id}/events", self.url))
            .bearer_auth(&self.token);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut seen = String::new();
        let reading = async {
            while !wanted(&seen) {
                match answer.chunk().await.unwrap() {
                    Some(chunk) => seen.push_str(&String::from_utf8_lossy(&chunk)),
                    None => break,
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, reading).await.is_ok();
        assert!(in_time, "waited too long; seen: {seen}");
        seen
    }

    /// Waits until the agent has written `text`.
    pub(super) async fn wrote(&self, agent_id: AgentId, text: &str) {
        let seen = self
            .follow(agent_id, None, |seen| seen.contains(text))
            .await;
        assert!(
            seen.contains(text),
            "the agent ended without writing {text:?}: {seen}"
        );
    }

    /// Follows the agent to the end of its story, clean-up included.
    pub(super) async fn finished(&self, agent_id: AgentId) -> AgentStatus {
        self.follow(agent_id, None, |_| false).await;
        self.status(agent_id).await
    }

    pub(super) async fn kill(&self, agent_id: AgentId) -> Value {
        let (status, answer) = self
            .call(Method::POST, &format!("/agents/{agent_id}/kill"), None)
            .await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    /// What the daemon leaves on disk of a kill, with `AGENT` for the agent.
    pub(super) fn kill_word() -> String {
        json!({
            "agentId": "AGENT",
            "order": {
                "reason": "kill-requested",
                "actor": {"kind": "system"},
                "note": null,
                "at": "2026-11-23T09:30:00Z",
            },
        })
        .to_string()
    }

    /// Whether a process of the agent's is there, by its cgroup.
    pub(crate) fn runs(&self, agent_id: AgentId) -> bool {
        self.cgroups().iter().any(|scope| {
            let events = scope.join(agent_id.to_string()).join("cgroup.events");
            fs::read_to_string(events).is_ok_and(|events| events.contains("populated 1"))
        })
    }

    /// Puts a process into the agent's cgroup. `false` if it has none.
    pub(crate) fn takes_in(&self, agent_id: AgentId, pid: u32) -> bool {
        let group = self
            .cgroups()
            .into_iter()
            .map(|scope| scope.join(agent_id.to_string()))
            .find(|group| group.exists());
        group.is_some_and(|group| fs::write(group.join("cgroup.procs"), pid.to_string()).is_ok())
    }

    /// Whether a process of the agent's waits where no signal reaches it.
    pub(crate) fn has_stuck(&self, agent_id: AgentId) -> bool {
        let procs = self.cgroups().into_iter().filter_map(|scope| {
            fs::read_to_string(scope.join(agent_id.to_string()).join("cgroup.procs")).ok()
        });
        let pids: Vec<String> = procs
            .flat_map(|pids| pids.lines().map(ToOwned::to_owned).collect::<Vec<_>>())
            .collect();
        pids.iter()
            .any(|pid| state_of(&Path::new("/proc").join(pid)) == Some('D'))
    }

    /// What is asked from here on comes by connections that are yet to be made.
    pub(crate) fn forget_connections(&mut self) {
        self.client = http_client();
    }

    /// Kills what is left, and checks that nothing is.
    pub(super) async fn stop(self) {
        self.stop_with(|| {}).await;
    }

    /// As [`Self::stop`], with a further look before the folders go.
    pub(super) async fn stop_with(mut self, look: impl FnOnce()) {
        let (status, report) = self.call(Method::POST, "/agents/kill-all", None).await;
        assert_eq!(status, StatusCode::OK, "{report}");
        assert_eq!(report["unverified"], 0, "{report}");
        let (_, agents) = self.call(Method::GET, "/agents?limit=500", None).await;
        for agent in agents["agents"].as_array().unwrap() {
            self.finished(agent["agentId"].as_str().unwrap().parse().unwrap())
                .await;
        }
        match &mut self.body {
            Body::Here { running, shutdown } => {
                shutdown.cancel();
                running.take().unwrap().wait().await.unwrap();
            }
            Body::Process(_) => self.stop_daemon(),
        }
        self.nothing_is_left();
        look();
    }

    fn nothing_is_left(&self) {
        let data_dir = self.data_dir.to_str().unwrap();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            assert!(
                !command.contains(data_dir),
                "process {pid} is left: {command}"
            );
        }
        for entry in fs::read_dir(self.data_dir.join("agents"))
            .unwrap()
            .flatten()
        {
            for part in ["work", "work.removing", "home"] {
                assert!(
                    !entry.path().join(part).exists(),
                    "{:?} is left",
                    entry.path().join(part)
                );
            }
        }
        for scope in self.cgroups() {
            assert!(
                fs::read_dir(&scope)
                    .unwrap()
                    .flatten()
                    .all(|entry| !entry.path().is_dir()),
                "a cgroup is left in {scope:?}"
            );
        }
    }

    /// The cgroups of the scopes, wherever cgroup v2 is.
    fn cgroups(&self) -> Vec<PathBuf> {
        let remembered =
            fs::read_to_string(self.data_dir.join("cgroup-parent")).unwrap_or_default();
        let parent = PathBuf::from(remembered.trim());
        fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    }
}

impl Drop for Spoke {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        if let Body::Process(child) = &mut self.body {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = mosaic_orchestrator::sandbox::kill_parent_offline(
            &self.data_dir,
            std::time::Instant::now() + PATIENCE,
        );
    }
}

fn executable(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mosaic-orchestrator"));
    command
        .arg("--config")
        .arg(config)
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null());
    command
}

fn http_client() -> reqwest::Client {
    // A provider that another test of this process installed is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

fn admin_token(data_dir: &Path) -> String {
    fs::read_to_string(data_dir.join("admin.token"))
        .unwrap()
        .trim()
        .to_owned()
}
