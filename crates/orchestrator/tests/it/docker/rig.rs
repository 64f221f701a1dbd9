//! A spoke with containers, which fails its test if the engine, the kernel or the disk has anything left of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mosaic_orchestrator::{app::Config, sandbox::DockerSettings};
use mosaic_types::AgentId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{rig::Spoke, sandbox::rig::skip_unless};

/// The image that tests run in: Debian with git.
pub(crate) fn image() -> String {
    std::env::var("MOSAIC_TEST_IMAGE").unwrap_or_else(|_| "mosaic-test-base:1".to_owned())
}

pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker")
        .args(args)
        .output()
        .expect("docker runs");
    assert!(
        output.status.success(),
        "docker {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Says what is missing, by name.
pub(crate) fn can_run() -> bool {
    skip_unless(has_image(), "a Docker engine with the image for tests")
}

fn has_image() -> bool {
    Command::new("docker")
        .args(["image", "inspect", &image()])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A spoke that offers containers, and nothing else.
pub(crate) struct Docked {
    pub(crate) spoke: Spoke,
    _sweeper: Sweeper,
}

impl Docked {
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let spoke = Spoke::start_with(|config| {
            config.sandbox.docker = Some(DockerSettings::of_image(image()));
            config.sandbox.default = Some(mosaic_types::command::SandboxKind::Docker);
            change(config);
        })
        .await;
        Some(Self {
            _sweeper: Sweeper(spoke.data_dir().to_owned()),
            spoke,
        })
    }

    pub(crate) async fn start_process() -> Option<Self> {
        Self::start_process_as("", |_| {}).await
    }

    /// The real executable, with `more` behind the table of containers.
    pub(crate) async fn start_process_as(
        more: &str,
        change: impl FnOnce(&mut Command),
    ) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let settings = format!(
            "[sandbox]\ndefault = \"docker\"\n[sandbox.docker]\nimage = {:?}\n{more}",
            image()
        );
        let spoke = Spoke::start_process_as(&settings, change).await;
        Some(Self {
            _sweeper: Sweeper(spoke.data_dir().to_owned()),
            spoke,
        })
    }

    /// The engine's id of an agent's container.
    pub(crate) fn container_of(&self, agent: AgentId) -> String {
        let run = format!("agents/{agent}/run/container.json");
        let record = fs::read(self.spoke.data_dir().join(run)).ok();
        let record = record.map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap());
        match record {
            Some(record) => record["id"].as_str().unwrap().to_owned(),
            None => format!("mosaic-{agent}"),
        }
    }

    /// Spawns with these options.
    pub(crate) async fn spawn_with(&self, script: &str, options: Value) -> AgentId {
        self.spawn_of("shell", script, options).await
    }

    pub(crate) async fn spawn_of(&self, runtime: &str, script: &str, options: Value) -> AgentId {
        let agent_id = AgentId::generate();
        let mut body = self.spoke.spawn_body(agent_id, script);
        body["runtime"] = json!(runtime);
        body["options"] = options;
        let (status, answer) = self
            .spoke
            .call(Method::POST, "/agents/spawn", Some(body))
            .await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        agent_id
    }

    /// Runs a script to its end in a container, without a network; what it wrote, and that it ended well.
    pub(crate) async fn run(&self, script: &str) -> String {
        let agent = self.spawn_with(script, json!({"network": "none"})).await;
        let seen = self.spoke.follow(agent, None, |_| false).await;
        let status = self.spoke.status(agent).await;
        assert_eq!(status.state.to_string(), "completed", "{status:#?}\n{seen}");
        status.summary.unwrap_or_default()
    }

    /// Waits until this many containers wait for agents of `shell`.
    pub(crate) async fn filled(&self, size: usize) {
        self.filled_of("shell", size).await;
    }

    pub(crate) async fn filled_of(&self, runtime: &str, size: usize) {
        let all = async {
            while self.spoke.running().waiting_containers(runtime) < size {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::rig::PATIENCE, all)
            .await
            .expect("containers are made ready");
    }

    /// The engine's word on an agent's container.
    pub(crate) fn inspect(&self, agent: AgentId) -> Value {
        let told = docker(&["inspect", &format!("mosaic-{agent}")]);
        serde_json::from_str::<Value>(&told).unwrap()[0].take()
    }

    /// The containers of this spoke, dead ones as well.
    pub(crate) fn containers(&self) -> Vec<String> {
        containers_below(self.spoke.data_dir())
    }

    pub(crate) async fn stop(self) {
        let data_dir = self.spoke.data_dir().to_owned();
        let parent = fs::read_to_string(data_dir.join("cgroup-parent")).unwrap_or_default();
        let group = Path::new(parent.trim()).file_name().map(ToOwned::to_owned);
        self.spoke
            .stop_with(|| {
                assert_eq!(
                    containers_below(&data_dir),
                    Vec::<String>::new(),
                    "containers are left"
                );
            })
            .await;
        let hierarchies = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        for path in hierarchies.filter_map(|hierarchy| Some(hierarchy.path().join(group.as_ref()?)))
        {
            assert!(!path.exists(), "{path:?} is left");
        }
    }
}

/// The containers of the agents and slots of this data folder.
fn containers_below(data_dir: &Path) -> Vec<String> {
    let below = |folder: &str, prefix: &str| -> Vec<String> {
        let entries = fs::read_dir(data_dir.join(folder));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Some(format!("{prefix}{}", entry.file_name().to_str()?)))
            .collect()
    };
    let names = [below("agents", "mosaic-"), below("warm", "mosaic-warm-")].concat();
    let all = docker(&["ps", "-a", "--format", "{{.Names}}"]);
    all.lines()
        .filter(|name| names.iter().any(|ours| ours == name))
        .map(ToOwned::to_owned)
        .collect()
}

/// Lets a test that failed leave nothing either.
struct Sweeper(PathBuf);

impl Drop for Sweeper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in containers_below(&self.0) {
                let _ = Command::new("docker").args(["rm", "-f", &name]).output();
            }
        }
    }
}
