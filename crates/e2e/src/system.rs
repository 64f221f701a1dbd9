//! A whole system in a folder of its own: the real executables as processes, a real repository, the real command
//! line. [`World::stop`] ends it in order and fails on whatever is left: a process, a cgroup, a working tree, a
//! container, a temporary file, or a WARN or ERROR in a log that the test did not expect.
//!
//! Every process of a world has the world's path in its environment, and so is found whatever it calls itself.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness fails by failing its test"
)]

mod leftovers;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use mosaic_types::AgentId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    api::{Kind, Node, eventually},
    binaries::Binary,
    engine::Engine,
    standstill,
};

pub use leftovers::{cgroups_of, processes_with};

/// A script that waits for ever; `exec` so that the shell itself is what waits.
pub const FOREVER: &str = "echo at-work; exec sleep 100000";

/// See the module documentation.
#[derive(Debug)]
pub struct World {
    // Before the folder: what is mounted in it goes first.
    guards: Vec<Box<dyn std::any::Any + Send>>,
    dir: TempDir,
    daemons: BTreeMap<String, Daemon>,
    env: BTreeMap<String, String>,
    data_dirs: Vec<PathBuf>,
    expected_logs: Vec<String>,
    /// The spokes that offer containers; there is an engine to be asked if there are any.
    docked: Vec<String>,
    /// Which that is.
    engine: Engine,
}

#[derive(Debug)]
struct Daemon {
    args: Vec<String>,
    binary: Binary,
    child: Option<Child>,
    /// To be asked, and drained, before it is stopped.
    nodes: Vec<Node>,
    runs: u32,
}

/// What a run of the command line came to.
#[derive(Debug)]
pub struct Run {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// Checks the exit code.
    ///
    /// # Panics
    /// It is another.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Standard output as one JSON value.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A world with a repository and nothing that runs.
    ///
    /// # Panics
    /// There is no git.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mosaic-e2e-")
            .tempdir()
            .unwrap();
        let world = Self {
            guards: Vec::new(),
            dir,
            daemons: BTreeMap::new(),
            env: BTreeMap::new(),
            data_dirs: Vec::new(),
            expected_logs: Vec::new(),
            docked: Vec::new(),
            engine: Engine::of_the_machine(),
        };
        for folder in ["home", "tmp", "logs", "repository"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        let repository = world.path("repository");
        git(&repository, &["init", "-q", "-b", "main"]);
        fs::write(repository.join("README"), "hello\n").unwrap();
        git(&repository, &["add", "."]);
        git(&repository, &["commit", "-q", "-m", "first"]);
        world
    }

    /// A path in the world's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What is in every process of this world.
    #[must_use]
    pub fn marker(&self) -> String {
        self.dir.path().to_str().unwrap().to_owned()
    }

    /// The repository that agents work on.
    #[must_use]
    pub fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    /// Its URL.
    #[must_use]
    pub fn repository_url(&self) -> String {
        format!("file://{}", self.repository().display())
    }

    /// Sets a variable for what is started from here on.
    pub fn set_env(&mut self, name: &str, value: impl Into<String>) {
        self.env.insert(name.to_owned(), value.into());
    }

    /// Keeps something until all processes are gone, and not longer than the folder.
    pub fn keep(&mut self, guard: impl std::any::Any + Send) {
        self.guards.push(Box::new(guard));
    }

    /// The engine of this world's spokes is another than the machine's.
    pub fn use_engine(&mut self, engine: Engine) {
        self.engine = engine;
    }

    /// A WARN or ERROR that holds this text is part of the test.
    pub fn expect_log(&mut self, text: &str) {
        self.expected_logs.push(text.to_owned());
    }

    /// The body of a spawn for the runtime `shell`. `connection` is for a hub.
    #[must_use]
    pub fn spawn_body(&self, connection: Option<&str>, agent: AgentId, script: &str) -> Value {
        let mut body = json!({
            "agentId": agent,
            "taskId": "T-1",
            "agentType": "worker",
            "runtime": "shell",
            "context": {
                "repository": self.repository_url(),
                "branch": "main",
                "workItems": [],
                "instructions": script,
            },
        });
        if let Some(connection) = connection {
            body["connectionId"] = json!(connection);
        }
        body
    }

    /// Has an agent run the script.
    pub async fn spawn(&self, hub: &Node, connection: &str, script: &str) -> AgentId {
        let agent = AgentId::generate();
        let body = self.spawn_body(Some(connection), agent, script);
        let answer = hub.spawn(&body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        agent
    }

    /// Starts `mosaic dev`. Its hub, its spokes, and the hub's connections to them.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn dev(&mut self, spokes: u8) -> (Node, Vec<(Node, String)>) {
        self.dev_with(spokes, &[]).await
    }

    /// The same, with more arguments.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn dev_with(&mut self, spokes: u8, more: &[&str]) -> (Node, Vec<(Node, String)>) {
        let data = self.path("dev");
        let count = spokes.to_string();
        let args = [
            "dev",
            "--json",
            "--spokes",
            &count,
            "--dir",
            data.to_str().unwrap(),
        ];
        let args = [&args, more].concat();
        self.set_env("MOSAIC_DEV_DIR", data.to_str().unwrap());
        for number in 1..=spokes {
            self.data_dirs.push(data.join(format!("spoke-{number}")));
        }
        self.start_daemon("dev", Binary::Cli, &args);
        let ready: Value = eventually("the ready line", async || {
            self.still_runs("dev");
            let said = fs::read_to_string(self.path("logs/dev-1.out")).ok()?;
            said.ends_with('\n')
                .then(|| serde_json::from_str(&said).expect("one line of JSON"))
        })
        .await;
        let url = |node: &Value| node["url"].as_str().unwrap().to_owned();
        let hub = Node::at("hub", Kind::Hub, &url(&ready["hub"]), data.join("hub"));
        assert_eq!(ready["hub"]["token"], hub.token);
        if more.contains(&"docker") {
            let spokes = ready["spokes"].as_array().unwrap().iter();
            self.docked
                .extend(spokes.map(|spoke| spoke["instanceId"].as_str().unwrap().to_owned()));
        }
        let spokes: Vec<_> = ready["spokes"]
            .as_array()
            .unwrap()
            .iter()
            .zip(1..)
            .map(|(spoke, number)| {
                let name = format!("spoke-{number}");
                let node = Node::at(&name, Kind::Spoke, &url(spoke), data.join(&name));
                (node, spoke["connectionId"].as_str().unwrap().to_owned())
            })
            .collect();
        self.daemons.get_mut("dev").unwrap().nodes =
            spokes.iter().map(|(node, _)| node.clone()).collect();
        (hub, spokes)
    }

    /// Starts `mosaic dev` again in the same folder, after it has ended. Its spokes.
    pub async fn again_dev(&mut self) -> Vec<Node> {
        self.launch("dev");
        let spokes = self.daemons["dev"].nodes.clone();
        for node in &spokes {
            self.until_ready("dev", &node.url).await;
        }
        spokes
    }

    /// Starts a hub of its own.
    pub async fn hub(&mut self, name: &str) -> Node {
        self.node(name, Kind::Hub, free_port(), "").await
    }

    /// Starts a spoke of its own, with more lines of configuration: top-level settings, then tables.
    pub async fn spoke(&mut self, name: &str, more: &str) -> Node {
        self.spoke_at(name, free_port(), more).await
    }

    /// The same, at a port of the test's choice.
    pub async fn spoke_at(&mut self, name: &str, port: u16, more: &str) -> Node {
        let more = format!("enable-shell = true\n{more}");
        self.node(name, Kind::Spoke, port, &more).await
    }

    /// Starts a spoke of its own whose agents live in containers of the image, with more lines of configuration:
    /// settings of `[sandbox.docker]`, then tables.
    pub async fn docked_spoke(&mut self, name: &str, image: &str, more: &str) -> Node {
        let settings =
            format!("[sandbox]\ndefault = \"docker\"\n[sandbox.docker]\nimage = {image:?}\n{more}");
        self.spoke(name, &settings).await
    }

    async fn node(&mut self, name: &str, kind: Kind, port: u16, more: &str) -> Node {
        let data = self.path(name);
        let file = self.path(&format!("{name}.toml"));
        let text = format!(
            "data-dir = {data:?}\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\nallow-private-peers = true\n{more}\n"
        );
        fs::write(&file, text).unwrap();
        let binary = match kind {
            Kind::Hub => Binary::Hub,
            Kind::Spoke => Binary::Orchestrator,
        };
        if kind == Kind::Spoke {
            self.data_dirs.push(data.clone());
        }
        self.start_daemon(name, binary, &["--config", file.to_str().unwrap()]);
        let url = format!("http://127.0.0.1:{port}");
        self.until_ready(name, &url).await;
        let node = Node::at(name, kind, &url, data);
        if kind == Kind::Spoke {
            self.daemons.get_mut(name).unwrap().nodes = vec![node.clone()];
        }
        if more.contains("[sandbox.docker]") {
            let told = node.call("GET", "/api/v1/instance", None).await.ok();
            self.docked
                .push(told["instanceId"].as_str().unwrap().to_owned());
        }
        node
    }

    async fn until_ready(&mut self, name: &str, url: &str) {
        let http = crate::api::http_client();
        eventually("a daemon that is ready", async || {
            self.still_runs(name);
            let answer = http.get(format!("{url}/readyz")).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    fn still_runs(&mut self, name: &str) {
        let child = self.daemons.get_mut(name).unwrap().child.as_mut().unwrap();
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{name} ended: {ended:?}\n{}", self.logs());
    }

    fn start_daemon(&mut self, name: &str, binary: Binary, args: &[&str]) {
        let daemon = Daemon {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            binary,
            child: None,
            nodes: Vec::new(),
            runs: 0,
        };
        let before = self.daemons.insert(name.to_owned(), daemon);
        assert!(before.is_none(), "there is a {name} already");
        self.launch(name);
    }

    /// Starts a daemon again that has ended, and waits for nothing.
    pub fn launch(&mut self, name: &str) {
        let daemon = &self.daemons[name];
        let log = |end: &str| {
            let runs = daemon.runs + 1;
            File::create(self.path(&format!("logs/{name}-{runs}.{end}"))).unwrap()
        };
        let child = self
            .command(daemon.binary)
            .args(&daemon.args)
            .stdout(log("out"))
            .stderr(log("err"))
            .spawn()
            .unwrap();
        let daemon = self.daemons.get_mut(name).unwrap();
        daemon.runs += 1;
        daemon.child = Some(child);
    }

    fn command(&self, binary: Binary) -> Command {
        let mut command = Command::new(binary.path());
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("GIT_AUTHOR_NAME", "T")
            .env("GIT_AUTHOR_EMAIL", "t@example.invalid")
            .env("GIT_COMMITTER_NAME", "T")
            .env("GIT_COMMITTER_EMAIL", "t@example.invalid")
            .env("NO_COLOR", "1")
            .envs(&self.env)
            .stdin(Stdio::null());
        command
    }

    /// Starts a daemon again that has ended, and waits until it is ready.
    pub async fn restart(&mut self, node: &Node) {
        self.launch(&node.name);
        self.until_ready(&node.name, &node.url).await;
    }

    /// SIGKILL, as a crash would.
    ///
    /// # Panics
    /// It does not run.
    pub fn crash(&mut self, name: &str) {
        let mut child = self.take_child(name);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal to a daemon.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal(&self, name: &str, signal: Signal) {
        let child = self.daemons[name].child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Stops the time for a daemon.
    ///
    /// # Panics
    /// It goes on.
    pub fn freeze(&self, name: &str) {
        let child = self.daemons[name].child.as_ref().unwrap();
        standstill::stop(&[Pid::from_child(child)]).expect("a daemon stands still");
    }

    /// Waits until a daemon has ended; its exit code, unless it was killed by a signal.
    pub async fn ended(&mut self, name: &str) -> Option<i32> {
        let mut child = self.take_child(name);
        eventually("a daemon's end", async || child.try_wait().unwrap())
            .await
            .code()
    }

    fn take_child(&mut self, name: &str) -> Child {
        let daemon = self.daemons.get_mut(name).unwrap();
        daemon.child.take().expect("a daemon that runs")
    }

    /// Runs `mosaic` with these arguments. Where to is what the test set, or `mosaic dev`.
    pub async fn cli(&self, args: &[&str]) -> Run {
        self.cli_in(self.dir.path(), args).await
    }

    /// Runs `mosaic` in a folder.
    ///
    /// # Panics
    /// It does not end.
    pub async fn cli_in(&self, dir: &Path, args: &[&str]) -> Run {
        let mut command = self.command(Binary::Cli);
        command.args(args).current_dir(dir);
        let running = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = crate::api::soon("the command line", running).await.unwrap();
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs `mosaic` against a node.
    pub async fn cli_at(&self, node: &Node, args: &[&str]) -> Run {
        let token = node.token_file();
        let to = ["--hub", &node.url, "--token-file", token.to_str().unwrap()];
        self.cli(&[&to, args].concat()).await
    }

    /// Connects a hub to a spoke by `mosaic invite` with these arguments and `mosaic connect`. The hub's connection.
    pub async fn peer(&self, hub: &Node, spoke: &Node, invite: &[&str]) -> String {
        let invite = [&["--json", "invite"], invite].concat();
        let invite = self.cli_at(spoke, &invite).await.expect(0).json();
        let token = invite["token"].as_str().unwrap();
        let connected = self.cli_at(hub, &["--json", "connect", token]).await;
        let connection = connected.expect(0).json();
        connection["connectionId"].as_str().unwrap().to_owned()
    }

    /// All that each daemon wrote to standard error, by name and run.
    #[must_use]
    pub fn whole_logs(&self) -> Vec<(String, String)> {
        leftovers::logs(&self.path("logs"))
    }

    /// What the daemons said, for a failure.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (name, log) in leftovers::logs(&self.path("logs")) {
            let tail = log.lines().count().saturating_sub(40);
            text.push_str(&format!("── {name}\n"));
            text.extend(log.lines().skip(tail).map(|line| format!("{line}\n")));
        }
        text
    }

    /// Kills every agent, waits for the end of each one's story, stops every daemon in order, and checks that
    /// nothing is left.
    ///
    /// # Panics
    /// Something is.
    pub async fn stop(mut self) {
        let spokes: Vec<Node> = self
            .daemons
            .values()
            .filter(|daemon| daemon.child.is_some())
            .flat_map(|daemon| daemon.nodes.clone())
            .collect();
        for spoke in &spokes {
            let report = spoke.kill_all(json!({})).await;
            assert_eq!(report["unverified"], 0, "{report}");
            for agent in spoke.agents().await {
                let id = agent["agentId"].as_str().unwrap().parse().unwrap();
                let status = spoke.finished(id).await;
                let ended = status["state"].as_str().unwrap();
                assert!(
                    ["completed", "failed", "killed"].contains(&ended),
                    "{status}"
                );
            }
        }
        self.shut_down(Signal::TERM).await;
        leftovers::working_trees(&self.data_dirs);
        self.nothing_is_left().await;
    }

    /// Stops every daemon by a signal; each must end well.
    ///
    /// # Panics
    /// One does not.
    pub async fn shut_down(&mut self, signal: Signal) {
        let running: Vec<String> = self
            .daemons
            .iter()
            .filter(|(_, daemon)| daemon.child.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in &running {
            self.signal(name, signal);
        }
        for name in running {
            let code = self.ended(&name).await;
            assert_eq!(code, Some(0), "{name} did not end well:\n{}", self.logs());
        }
    }

    /// Checks that no process, cgroup, container, temporary file or unexpected line in a log is left. For a test that stops its
    /// daemons itself.
    ///
    /// # Panics
    /// Something is left.
    pub async fn nothing_is_left(&self) {
        let marker = self.marker();
        eventually("no process of this world", async || {
            processes_with(&marker).is_empty().then_some(())
        })
        .await;
        for data in &self.data_dirs {
            let left = cgroups_of(data);
            assert!(left.is_empty(), "cgroups are left: {left:?}");
            leftovers::remove_cgroups(data);
        }
        self.nothing_is_left_at_the_engine();
        let temporary: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().flatten().collect();
        assert!(temporary.is_empty(), "temporary files: {temporary:?}");
        let unexpected = leftovers::complaints(&self.path("logs"), &self.expected_logs);
        assert!(
            unexpected.is_empty(),
            "in the logs:\n{}",
            unexpected.join("\n")
        );
    }
}

impl World {
    /// Checks that the engine has no container, network or volume of this world.
    ///
    /// # Panics
    /// It has.
    pub fn nothing_is_left_at_the_engine(&self) {
        if self.docked.is_empty() {
            return;
        }
        let mut left = self.engine.containers_of(&self.marker());
        for instance in &self.docked {
            left.extend(self.engine.networks_and_volumes_of(instance));
        }
        assert!(left.is_empty(), "the engine has still {left:?}");
    }
}

impl Drop for World {
    /// A test that failed leaves nothing either, and says what the daemons said.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for daemon in self.daemons.values_mut() {
            if let Some(mut child) = daemon.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for data in &self.data_dirs {
            leftovers::kill_cgroups(data);
        }
        if std::thread::panicking() {
            self.engine.sweep(&self.marker());
        }
        for pid in processes_with(&self.marker()) {
            if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        for data in &self.data_dirs {
            leftovers::remove_cgroups(data);
        }
    }
}

/// Runs git in a folder, and gives what it says.
///
/// # Panics
/// It fails.
pub fn git(dir: &Path, args: &[&str]) -> String {
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
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git runs");
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A port that a daemon can have again after it was down: below the ports that the kernel gives to clients, and
/// another in each test process.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const EACH: u32 = 20;
    const PROCESSES: u32 = 1_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let own = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + (std::process::id() * EACH + own) % (EACH * PROCESSES);
        let port = u16::try_from(port).expect("a port");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
