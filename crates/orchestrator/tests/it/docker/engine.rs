//! A spoke on an engine of one test's own, which is stopped, frozen and lied about.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mosaic_e2e::{
    api::eventually,
    engine::private::{IMAGE, PrivateEngine},
};
use mosaic_orchestrator::{app::Config, sandbox::DockerSettings};
use mosaic_types::{AgentId, agent::AgentStatus, command::SandboxKind};
use serde_json::Value;

use super::meddler::Meddler;
use crate::{rig::Spoke, sandbox::rig::skip_unless};

/// Starts an engine; `None` where that cannot be done.
pub(crate) async fn start() -> Option<PrivateEngine> {
    start_with(&[], |_| {}).await
}

/// Starts an engine with these arguments, in a folder that `prepare` has seen.
pub(super) async fn start_with(
    arguments: &[&str],
    prepare: impl FnOnce(&Path),
) -> Option<PrivateEngine> {
    let engine = PrivateEngine::start_with(arguments, prepare).await;
    skip_unless(engine.is_some(), "a Docker engine of a test's own");
    engine
}

/// The settings of a spoke that is to use it, with calls of this many seconds at most.
fn settings(engine: &PrivateEngine, call_timeout_secs: u64) -> DockerSettings {
    DockerSettings {
        socket: engine.socket(),
        // It has no other.
        network: "none".to_owned(),
        call_timeout_secs,
        ..DockerSettings::of_image(IMAGE)
    }
}

/// The same for a spoke's file, with `more` of the table.
pub(crate) fn settings_in_words(engine: &PrivateEngine, more: &str) -> String {
    format!(
        "[sandbox]\ndefault = \"docker\"\n[sandbox.docker]\nimage = {IMAGE:?}\nsocket = {:?}\n\
         network = \"none\"\ncall-timeout-secs = 5\n{more}",
        engine.socket()
    )
}

/// A spoke on an engine of its own.
pub(crate) struct Troubled {
    pub(crate) engine: PrivateEngine,
    pub(crate) spoke: Spoke,
}

impl Troubled {
    pub(crate) async fn start(call_timeout_secs: u64) -> Option<Self> {
        let engine = start().await?;
        Some(Self::on(engine, call_timeout_secs, |_| {}).await)
    }

    /// A spoke in this process.
    pub(crate) async fn on(
        engine: PrivateEngine,
        call_timeout_secs: u64,
        change: impl FnOnce(&mut DockerSettings),
    ) -> Self {
        let mut settings = settings(&engine, call_timeout_secs);
        change(&mut settings);
        let spoke = Spoke::start_with(|config: &mut Config| {
            config.sandbox.docker = Some(settings);
            config.sandbox.default = Some(SandboxKind::Docker);
            config.limits.reconcile_secs = 1;
        })
        .await;
        Self { engine, spoke }
    }

    /// A spoke in this process, with a meddler before its engine.
    pub(crate) async fn meddled(call_timeout_secs: u64) -> Option<(Self, Meddler)> {
        Self::meddled_from_the_start(call_timeout_secs, |_| {}).await
    }

    /// The same, with what `rules` is to meddle with when the spoke starts.
    pub(crate) async fn meddled_from_the_start(
        call_timeout_secs: u64,
        rules: impl FnOnce(&Meddler),
    ) -> Option<(Self, Meddler)> {
        let engine = start().await?;
        let meddler = Meddler::before(&engine.socket());
        rules(&meddler);
        let socket = meddler.socket();
        let meddled = Self::on(engine, call_timeout_secs, |settings| {
            settings.socket = socket
        });
        Some((meddled.await, meddler))
    }

    /// The real executable.
    pub(crate) async fn start_process(arguments: &[&str]) -> Option<Self> {
        let engine = start_with(arguments, |_| {}).await?;
        let settings = format!(
            "[limits]\nreconcile-secs = 1\n{}",
            settings_in_words(&engine, "")
        );
        let spoke = Spoke::start_process_with(&settings).await;
        Some(Self { engine, spoke })
    }

    /// Waits until so many containers wait for agents of `shell`.
    pub(crate) async fn filled(&self, size: usize) {
        eventually("containers that wait", async || {
            (self.spoke.running().waiting_containers("shell") >= size).then_some(())
        })
        .await;
    }

    /// Starts an agent and waits until it has said so.
    pub(crate) async fn started(&self, script: &str) -> AgentId {
        let agent = self.spoke.spawn(script).await;
        self.spoke.wrote(agent, "at-work").await;
        agent
    }

    /// Kills, and expects the kernel's word on it.
    pub(crate) async fn kill(&self, agent: AgentId) {
        let report = self.spoke.kill(agent).await;
        let told = (
            report["outcome"].as_str(),
            report["proof"]["method"].as_str(),
        );
        assert_eq!(told, (Some("killed"), Some("cgroup")), "{report}");
    }

    /// Makes a file in the agent's tree.
    pub(crate) fn touch(&self, agent: AgentId, name: &str) {
        let tree = self.spoke.data_dir().join(format!("agents/{agent}/work"));
        fs::write(tree.join(name), "").unwrap();
    }

    /// Spawns with these options, and follows the agent to its end. Also gives what it did, as SSE text.
    pub(crate) async fn run(&self, script: &str, options: Value) -> (AgentStatus, String) {
        let agent = AgentId::generate();
        let mut body = self.spoke.spawn_body(agent, script);
        body["options"] = options;
        let path = "/agents/spawn";
        self.spoke
            .call(reqwest::Method::POST, path, Some(body))
            .await;
        let seen = self.spoke.follow(agent, None, |_| false).await;
        (self.spoke.status(agent).await, seen)
    }

    /// Stops the spoke, and checks that it has left nothing in the engine, in the groups or on the disk.
    pub(crate) async fn stop(self) {
        let parent = fs::read_to_string(self.spoke.data_dir().join("cgroup-parent"));
        let parent = PathBuf::from(parent.unwrap_or_default().trim());
        let engine = &self.engine;
        self.spoke
            .stop_with(|| assert_eq!(engine.containers(), Vec::<String>::new()))
            .await;
        let hierarchies = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        for hierarchy in hierarchies {
            if let Some(name) = parent.file_name() {
                let group = hierarchy.path().join(name);
                assert!(!group.exists(), "{group:?} is left");
            }
        }
    }
}
